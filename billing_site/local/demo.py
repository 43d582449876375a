"""``make demo``: the whole service on one machine, from nothing, until Ctrl-C.

Read ``supervise`` from top to bottom: that is the order in which things start; they stop in the opposite one.
"""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import NoReturn, TextIO

from billing_site.local import demo_services, environment, ports, postgres_place, signals
from billing_site.local.demo_services import LOGS, PIDS
from billing_site.local.environment import DEMO, LOCAL, Remembered, locked
from billing_site.local.process import (
    MARK,
    LocalServiceError,
    Process,
    stop_all,
    stop_leftover,
    stop_marked,
    wait_until,
)
from billing_site.local.signals import Interrupted, Starter, noted

LOCK, ENV = LOCAL / "demo.lock", DEMO / "env"
WEB_PORT, SANDBOX_PORT, MAIL_PAGE_PORT = 8000, 12111, 8025


def main(arguments: list[str]) -> int:
    """Exit code 0 when a signal ended it in order, 1 when it could not start or a part of it died."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--port", default=os.environ.get("PORT") or str(WEB_PORT), help="of the web pages")
    port = parser.parse_args(arguments).port
    starter = Starter()
    try:
        with noted(), locked(LOCK) as ours:
            if not ours:
                url = environment.read(ENV).get("DEMO_URL", "") if ENV.exists() else ""
                raise LocalServiceError(f"The demo of this checkout is already running. {url}".rstrip())
            supervise(port, starter)
    except LocalServiceError as error:
        say(str(error), to=sys.stderr)
        return 1
    except PermissionError as error:
        say(
            f"{error.filename} belongs to somebody else: {error.strerror}. Was this started as root before?",
            to=sys.stderr,
        )
        return 1
    except Interrupted as interrupted:
        say(f"Stopped by {interrupted}. `make demo` continues with the same data, `make demo-reset` deletes them.")
    return 0


def supervise(port: str, starter: Starter) -> NoReturn:
    """Start everything, say where to look, then wait until something dies or somebody wants an end."""
    stop_leftovers()
    web_port = usable_port(port)
    put_old_logs_aside()
    remembered = Remembered(DEMO / "made.json")
    env = environment.for_demo(web_port, remembered) | environment.given()
    env |= {"PORT": str(web_port), "DEMO_URL": f"http://{ports.LOCALHOST}:{web_port}", MARK: str(DEMO)}
    began = time.monotonic()
    services: list[Process] = []

    with ExitStack() as stack:
        stack.callback(stop_marked, DEMO)
        if "DATABASE_URL" not in env:
            with step("PostgreSQL"):
                env["DATABASE_URL"] = stack.enter_context(demo_services.database(remembered.port("postgres"))).url
        if "REDIS_URL" not in env:
            with step("Valkey"):
                env["REDIS_URL"] = stack.enter_context(demo_services.broker(remembered.port("valkey"))).url
        stack.callback(stop_all, services)
        if "EMAIL_URL" not in env:
            with step("mail catcher"):
                mail = demo_services.mail(remembered.port("smtp"), remembered.port("mail", MAIL_PAGE_PORT))
                env |= {"EMAIL_URL": mail.smtp_url, "DEMO_MAIL_URL": mail.page_url}
                services.append(mail.process)
                mail.start()
        if "STRIPE_API_BASE" not in env:
            with step("Stripe sandbox"):
                sandbox_port = remembered.port("sandbox", SANDBOX_PORT)
                env["STRIPE_API_BASE"] = env["DEMO_STRIPE_URL"] = f"http://{ports.LOCALHOST}:{sandbox_port}"
                services.append(demo_services.sandbox(sandbox_port, env))
                services[-1].start()
                services[-1].wait_ready(lambda: ports.answers(sandbox_port), seconds=30)
        environment.write(ENV, env)

        with step("database schema"):
            demo_services.command("migrate", env, "--no-input").finish(seconds=300)
        with step("demo data"):
            demo_services.command("seed_demo", env).finish(seconds=300)
        with step("web pages, worker and clock"):
            web, worker, beat = (make(env) for make in demo_services.DJANGO)
            services += [beat, worker, web]
            guide = demo_services.command("demo_guide", env)
            for process in (web, worker, beat, guide):
                process.start()
            web.wait_ready(lambda: ports.serves(f"{env['DEMO_URL']}/healthz"), seconds=60)
            worker.wait_ready(lambda: " ready." in worker.logged(), seconds=60)
            beat.wait_ready(lambda: "beat: Starting" in beat.logged(), seconds=60)
            text = where_to_look(guide, env)
        say(f"  {'started in':<50} {time.monotonic() - began:6.1f} s\n\n{text}\n\nCtrl-C stops everything.")
        stack.callback(say, "\nStopping ...")
        watch(services, starter)


def watch(services: list[Process], starter: Starter) -> NoReturn:
    """Raise LocalServiceError when one of them is gone, Interrupted when we should be."""

    def dead() -> list[Process]:
        return [process for process in services if not process.running]

    while not dead():
        wait_until(lambda: bool(dead() or signals.first() or starter.left()), seconds=3600, every=0.2)
        signals.check()
        if signum := starter.left():
            raise Interrupted(signum)
    found = dead()[0]
    raise LocalServiceError(f"{found.name} died (exit code {found.exit_code}), the rest was stopped.\n{found.tail()}")


def reset() -> int:
    """Delete what the demo has written. A database or broker named by the environment is not touched."""
    with locked(LOCK) as idle:
        if not idle:
            say("The demo is running: stop it with Ctrl-C first.", to=sys.stderr)
            return 1
        stop_leftovers()
        postgres_place.remove(DEMO / "postgres")
        if DEMO.exists():
            shutil.rmtree(DEMO)
    say("The demo's data are gone. `make demo` starts afresh.")
    return 0


def stop_leftovers() -> None:
    """A supervisor that was killed could not stop anything; the next one does it first."""
    found = [stop_leftover(pid_file) for pid_file in PIDS.glob("*.json")]
    if stop_marked(DEMO) or any(found):
        say("  stopped what a killed demo had left running")


def usable_port(given: str) -> int:
    if not given.isdecimal() or not 0 < int(given) < 65536:
        raise LocalServiceError(f"PORT={given} is not a port: a number from 1 to 65535 is.")
    if why := ports.why_unusable(int(given)):
        raise LocalServiceError(f"Port {given} cannot be used: {why}. Choose another: make demo PORT={int(given) + 1}")
    return int(given)


def put_old_logs_aside() -> None:
    """One run, one set of logs; the run before stays readable."""
    before = LOGS.with_name("logs.before")
    shutil.rmtree(before, ignore_errors=True)
    if LOGS.exists():
        LOGS.rename(before)
    LOGS.mkdir(parents=True)


def where_to_look(guide: Process, env: dict[str, str]) -> str:
    """What `manage.py demo_guide` said; a plain list if it could not."""
    with suppress(LocalServiceError):
        guide.finish(seconds=60)
        return guide.logged().strip()
    names = {"DEMO_URL": "web", "DEMO_MAIL_URL": "caught mail", "DEMO_STRIPE_URL": "Stripe sandbox"}
    return "\n".join(f"  {names[name]:<16}{env[name]}" for name in names if name in env)


@contextmanager
def step(what: str) -> Iterator[None]:
    """One line a step, with the time it took."""
    signals.check()
    began = time.monotonic()
    say(f"  {what + ' ...':<50} ", end="")
    try:
        yield
    except BaseException:
        say("")
        raise
    say(f"{time.monotonic() - began:6.1f} s")


def say(text: str, *, end: str = "\n", to: TextIO | None = None) -> None:
    """Print, unless nobody can read it any more: a closed terminal must not keep us from cleaning up."""
    with suppress(OSError):
        print(text, end=end, file=to or sys.stdout, flush=True)
