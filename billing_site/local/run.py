"""Run any command with PostgreSQL and Valkey up: the tests, the benchmarks, a shell."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from billing_site.local import environment, postgres_place, signals
from billing_site.local.environment import locked
from billing_site.local.postgres import Postgres
from billing_site.local.process import MARK, LocalServiceError, stop_marked
from billing_site.local.valkey import Valkey


def run(command: Sequence[str], data: Path | None = None) -> int:
    """The command's exit code, or 128 + the signal that ended it. Servers named by the environment are left alone.

    Without ``data`` the servers start empty and leave nothing behind; with it they keep their data there.
    """
    with ExitStack() as stack:
        directory = stack.enter_context(_kept(data) if data else _thrown_away())
        env = environment.FOR_RUNS | environment.given() | {MARK: str(directory)}
        if "DATABASE_URL" not in env:
            server = stack.enter_context(Postgres(directory / "postgres", may_create_databases=True))
            env["DATABASE_URL"] = server.url
        if "REDIS_URL" not in env:
            env["REDIS_URL"] = stack.enter_context(Valkey(directory / "valkey")).url
        stack.callback(stop_marked, directory)
        return _forwarding_signals(command, env)


def run_in_demo(command: Sequence[str]) -> int:
    """The same beside the running demo: its servers, its settings."""
    with locked(environment.LOCAL / "demo.lock") as idle:
        if idle:
            raise LocalServiceError("The demo is not running: start it with `make demo`.")
    return _forwarding_signals(command, environment.read(environment.DEMO / "env") | environment.given())


def _forwarding_signals(command: Sequence[str], env: dict[str, str]) -> int:
    """At a terminal the command shares our foreground group, and Ctrl-C reaches it without us."""
    at_terminal = sys.stdin is not None and sys.stdin.isatty() and os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    signals.check()
    try:
        child = subprocess.Popen(command, env=env, process_group=None if at_terminal else 0)
    except OSError as error:
        raise LocalServiceError(f"Cannot run {command[0]}: {error.strerror}.") from None

    def forward(signum: int, frame: object) -> None:
        if child.poll() is not None:
            return
        if not at_terminal:
            os.killpg(child.pid, signum)
        elif signum != signal.SIGINT:
            child.send_signal(signum)

    previous = {each: signal.signal(each, forward) for each in signals.ENDING}
    if (missed := signals.first()) is not None:  # it came while the command was being started
        forward(missed, None)
    try:
        code = child.wait()
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
    return code if code >= 0 else 128 - code


@contextmanager
def _kept(directory: Path) -> Iterator[Path]:
    directory = directory.resolve()
    with locked(directory / "lock") as free:
        if not free:
            raise LocalServiceError(f"{directory} is in use by another run.")
        yield directory


@contextmanager
def _thrown_away() -> Iterator[Path]:
    parent = environment.LOCAL / "test"
    parent.mkdir(parents=True, exist_ok=True)
    for old in parent.glob("run-*"):
        with locked(old / "lock") as free:
            if free:  # whoever used it was killed
                _remove(old)
    directory = Path(tempfile.mkdtemp(prefix="run-", dir=parent))
    directory.chmod(0o755)
    with locked(directory / "lock"):
        try:
            yield directory
        finally:
            _remove(directory)


def _remove(directory: Path) -> None:
    postgres_place.remove(directory / "postgres")
    shutil.rmtree(directory, ignore_errors=True)
