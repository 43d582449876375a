"""One child process: its own group, its own log, a bounded start and an end that is certain."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import psutil

from billing_site.local import signals

MARK = "TERMKEEPER_LOCAL_SERVICE"
"""Environment variable that every child inherits; its value names the directory it works for."""

CHECKOUT = Path(__file__).resolve().parents[2]
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class LocalServiceError(Exception):
    """Something local did not start, stop or fit; the message is for the terminal and needs no traceback."""


def wait_until(condition: Callable[[], bool], *, seconds: float, every: float = 0.05) -> bool:
    """The one polling loop of this package. False if the condition was still false when the time was up."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(every)
    return True


class Traces(TypedDict):
    """Where a process leaves its output and its process id."""

    log: Path
    pid_file: Path


def module(name: str, *arguments: str) -> list[str]:
    """The command line of ``python -m``, with our own interpreter: scripts in a moved ``.venv/bin`` find none."""
    return [sys.executable, "-m", name, *arguments]


@dataclass
class Process:
    """A program in a session of its own, logging to a file, remembered in a pid file so that a later run can find it.

    On Linux it also gets ``stop_signal`` when whoever started it is killed.
    """

    name: str
    argv: Sequence[str]
    log: Path
    env: dict[str, str] | None = None
    cwd: Path = CHECKOUT
    user: str | None = None
    pid_file: Path | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    patience_seconds: float = 10
    _popen: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _log_start: int = 0

    def start(self) -> None:
        if self.pid_file:
            stop_leftover(self.pid_file)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self._popen = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.env,
                cwd=self.cwd,
                start_new_session=True,
                preexec_fn=_dies_with_parent(self.stop_signal),
                user=self.user,
                group=self.user,
                extra_groups=[] if self.user else None,
            )
        if self.pid_file:
            started = psutil.Process(self._popen.pid).create_time()
            self.pid_file.parent.mkdir(parents=True, exist_ok=True)
            noted = {"pid": self._popen.pid, "started": started, "stop_signal": int(self.stop_signal)}
            self.pid_file.write_text(json.dumps(noted))

    @property
    def pid(self) -> int | None:
        return self._popen.pid if self._popen else None

    @property
    def exit_code(self) -> int | None:
        """None while it runs, and before it was started."""
        return self._popen.poll() if self._popen else None

    @property
    def running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    def wait_ready(self, ready: Callable[[], bool], *, seconds: float) -> None:
        """Return once ``ready()``. Otherwise stop it and raise LocalServiceError with the end of its log."""
        try:
            in_time = wait_until(lambda: signals.first() is not None or not self.running or ready(), seconds=seconds)
            signals.check()
            if not self.running:
                raise LocalServiceError(f"{self.name} stopped at once (exit code {self.exit_code}).\n{self.tail()}")
            if not in_time:
                raise LocalServiceError(f"{self.name} was not ready after {seconds:g} s.\n{self.tail()}")
        except BaseException:
            self.stop()
            raise

    def finish(self, *, seconds: float) -> None:
        """Wait for the end of what runs once, starting it if need be. LocalServiceError if it failed or hangs."""
        if self._popen is None:
            self.start()
        try:
            in_time = wait_until(lambda: signals.first() is not None or not self.running, seconds=seconds)
            signals.check()
            if not in_time:
                raise LocalServiceError(f"{self.name} was not done after {seconds:g} s.\n{self.tail()}")
            if self.exit_code:
                raise LocalServiceError(f"{self.name} failed (exit code {self.exit_code}).\n{self.tail()}")
        finally:
            self.stop()

    def logged(self) -> str:
        """What it has written since it was started."""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def tail(self, lines: int = 15) -> str:
        """The last lines of its log, indented, below the log's path."""
        text = self.logged()
        return "\n".join([f"  the end of {self.log}:", *(f"  | {line}" for line in text.splitlines()[-lines:])])

    def ask_to_stop(self) -> None:
        if self._popen and self._popen.poll() is None:
            self._popen.send_signal(self.stop_signal)

    def stop(self, patience_seconds: float | None = None) -> None:
        """Safe to repeat. Nothing of its process group is left afterwards."""
        if self._popen is None:
            return
        self.ask_to_stop()
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(self.patience_seconds if patience_seconds is None else patience_seconds)
        kill_group(self._popen.pid)
        self._popen.wait()
        self._popen = None
        if self.pid_file:
            self.pid_file.unlink(missing_ok=True)


def stop_all(processes: Iterable[Process]) -> None:
    """Ask everybody first, then wait: the time it takes is the slowest one's, not the sum."""
    asked, began = list(processes), time.monotonic()
    for process in asked:
        process.ask_to_stop()
    for process in asked:
        process.stop(max(0.0, process.patience_seconds - (time.monotonic() - began)))


def kill_group(pgid: int) -> None:
    """End what is left of a process group: politely for two seconds, then not."""
    for sig in (signal.SIGTERM, signal.SIGKILL):
        if not _group(pgid):
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pgid, sig)
        wait_until(lambda: not _group(pgid), seconds=2)


def stop_leftover(pid_file: Path) -> bool:
    """Stop what an earlier, killed run left behind. True if there was something.

    A process counts as ours only if both its id and its start time are the ones in the pid file: ids are reused.
    """
    try:
        noted = json.loads(pid_file.read_text())
        process = psutil.Process(noted["pid"])
        ours = bool(abs(process.create_time() - noted["started"]) < 2 and process.status() != psutil.STATUS_ZOMBIE)
    except (OSError, ValueError, KeyError, psutil.NoSuchProcess):
        ours = False
    if ours:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(noted["stop_signal"])
        wait_until(lambda: not _group(process.pid), seconds=5)
        kill_group(process.pid)
    pid_file.unlink(missing_ok=True)
    return ours


def stop_marked(directory: Path) -> int:
    """Kill whatever still carries the mark of ``directory``, whichever group it moved to; how many there were."""
    marked = [p for p in psutil.process_iter() if p.pid != os.getpid() and _mark_of(p) == str(directory)]
    for process in marked:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(marked, timeout=3)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=3)
    return len(marked)


def _mark_of(process: psutil.Process) -> str | None:
    with suppress(psutil.Error, OSError):
        return str(process.environ().get(MARK, "")) or None
    return None


def _group(pgid: int) -> list[psutil.Process]:
    """The living members of a process group; zombies are dead."""
    members = []
    for pid in psutil.pids():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(pid) == pgid and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                members.append(psutil.Process(pid))
    return members


def _dies_with_parent(sig: signal.Signals) -> Callable[[], None] | None:
    if _libc is None:
        return None
    parent, prctl = os.getpid(), _libc.prctl

    def in_the_child() -> None:
        prctl(_PR_SET_PDEATHSIG, int(sig))
        if os.getppid() != parent:  # it died between fork and prctl
            os._exit(1)

    return in_the_child
