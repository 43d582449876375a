"""The whole service as real processes: PostgreSQL, Valkey, mail server, Stripe, web, worker and clock, all its own.

Its own PostgreSQL, not a further database of the run's: a test may restart it, and the long transactions of other tests
do not hold back its readers of the audit.
"""

import json
import os
import signal
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

import environ
from django.db import connection

from billing_site.local import demo_services, environment, ports
from billing_site.local.caught_mail import Mailbox
from billing_site.local.mail_catcher import MailCatcher
from billing_site.local.postgres import Postgres
from billing_site.local.process import Process, stop_all, wait_until
from billing_site.local.valkey import Valkey
from notifications.models import Notice
from tests.stripe_sandbox.client import Sandbox
from webhooks.models import StripeEvent

PATIENCE_SECONDS = 80  # for what takes one or two: the machine may be busy, and beat's lock outlives a beat by 30
LEASE_SECONDS, SWEEP_SECONDS = 4, 1


@dataclass
class Service:
    """Everything started, and handles to the parts that a test looks into or takes away."""

    url: str
    postgres: Postgres
    broker: Valkey
    mailbox: Mailbox
    stripe: Sandbox
    web: Process
    worker: Process
    beat: Process

    @contextmanager
    def database(self) -> Iterator[None]:
        """Within it, Django's models in this process are those of the service's database."""
        before = dict(connection.settings_dict)
        address = environ.Env.db_url_config(self.postgres.url)
        connection.close()
        connection.settings_dict.update({key: address[key] for key in ("NAME", "USER", "PASSWORD", "HOST", "PORT")})
        try:
            yield
        finally:
            connection.close()
            connection.settings_dict.update(before)

    def wait(self, condition: Callable[[], bool], what: str, *, seconds: float = PATIENCE_SECONDS) -> None:
        """Return once ``condition()``; otherwise fail with what did not happen, what is left to do, and the logs."""
        if not wait_until(lambda: self._all_run() and condition(), seconds=seconds, every=0.02):
            left = [*StripeEvent.objects.exclude(state="DONE").values(), *Notice.objects.exclude(state="SENT").values()]
            logs = [process.tail(30) for process in (self.web, self.worker, self.beat)]
            raise AssertionError("\n".join([f"not within {seconds:g} s: {what}", *map(str, left), *logs]))

    def _all_run(self) -> bool:
        """The clock outlives its broker: nobody starts it again."""
        assert self.beat.running, self.beat.tail(30)
        self.supervise()
        return True

    def kill_worker(self) -> None:
        """SIGKILL for the worker and its children, all at once: nobody can tidy up."""
        kill(self.worker)

    def start_worker(self) -> None:
        self.worker.start()
        self.worker.wait_ready(lambda: " ready." in self.worker.logged(), seconds=60)

    def supervise(self) -> None:
        """As docker-compose does. A worker gives up, with exit code 1, where the broker goes while it has messages:
        Celery 5.7 closes a channel twice, the second time without its connection.
        """
        if not self.worker.running:
            assert self.worker.exit_code == 1, self.worker.tail(30)
            self.worker.stop()
            self.start_worker()

    def web_workers(self) -> set[str]:
        """The ids of the web processes that have answered deliveries since the service was started."""
        lines = (line.split() for line in self.web.logged().splitlines() if " /webhook/stripe " in line)
        return {words[1] for words in lines if words[0] == "served-by"}


@contextmanager
def service(
    directory: Path, *, clock: Path | None = None, knobs: dict[str, Any] | None = None, **settings: str
) -> Iterator[Service]:
    """Start all of it on an empty database; stop all of it, also when starting fails half way. With a `clock`, time is
    as far ahead in ours as that file says (`tests.shifted`); Stripe begins with these knobs, and outlives being killed.
    """
    with ExitStack() as stack:
        mail = MailCatcher(directory / "mail")
        stack.callback(mail.stop)
        mail.process.start()
        broker = stack.enter_context(Valkey(directory / "valkey"))
        postgres = stack.enter_context(Postgres(directory / "postgres"))
        port = ports.free()
        url = f"http://{ports.LOCALHOST}:{port}"
        secret, key = environment.FOR_RUNS["STRIPE_WEBHOOK_SECRET"], environment.FOR_RUNS["STRIPE_SECRET_KEY"]
        stripe = stack.enter_context(
            Sandbox.start(
                webhook_url=f"{url}/webhook/stripe", webhook_secret=secret, api_key=key,
                state=directory / "stripe.json" if clock else None,
            )
        )  # fmt: skip
        stripe.knobs(**(knobs or {}))
        env = environment.given() | environment.FOR_RUNS
        env |= {
            "DATABASE_URL": postgres.url, "REDIS_URL": broker.url, "EMAIL_URL": mail.smtp_url,
            "STRIPE_API_BASE": stripe.url, "PORT": str(port), "LIFECYCLE_INTERVAL_SECONDS": "1",
            "INBOX_SWEEP_SECONDS": str(SWEEP_SECONDS), "INBOX_LEASE_SECONDS": str(LEASE_SECONDS),
            "GUNICORN_CMD_ARGS": "--access-logformat='served-by %(p)s %(m)s %(U)s %(s)s'",
        } | settings  # fmt: skip
        migrate = demo_services.command("migrate", env, "--no-input")
        _traced_in(directory, migrate).finish(seconds=100)
        web, worker, beat = (_shifted(_traced_in(directory, make(env)), clock) for make in demo_services.DJANGO)
        processes = [beat, worker, web]
        stack.callback(stop_all, processes)
        for process in processes:
            process.start()
        web.wait_ready(lambda: ports.serves(f"{url}/healthz"), seconds=60)
        worker.wait_ready(lambda: " ready." in worker.logged(), seconds=60)
        beat.wait_ready(lambda: "beat: Starting" in beat.logged(), seconds=60)
        mail.process.wait_ready(lambda: ports.answers(mail.smtp_port), seconds=30)
        yield Service(url, postgres, broker, mail.mailbox, stripe, web, worker, beat)


def kill(process: Process) -> None:
    """SIGKILL for it and its children; nothing, where it has ended by itself."""
    assert process.pid is not None
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.stop()


def _traced_in(directory: Path, process: Process) -> Process:
    return replace(process, log=directory / f"{process.name}.log", pid_file=None)


def _shifted(process: Process, clock: Path | None) -> Process:
    """`python -m MODULE …` with its clock ahead."""
    python, dash_m, *rest = process.argv
    return replace(process, argv=[python, dash_m, "tests.shifted", str(clock), *rest]) if clock else process


class Browser:
    """Somebody with cookies."""

    def __init__(self, base: str) -> None:
        self.base, self._jar = base, CookieJar()
        self._open = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(self._jar)
        ).open

    def sign_in(self, username: str, password: str) -> None:
        self._open(f"{self.base}/login", timeout=10).close()
        token = next(cookie.value for cookie in self._jar if cookie.name == "csrftoken")
        form = {"username": username, "password": password, "csrfmiddlewaretoken": token}
        request = urllib.request.Request(
            f"{self.base}/login", urllib.parse.urlencode(form).encode(), {"Referer": f"{self.base}/login"}
        )
        self._open(request, timeout=10).close()
        assert any(cookie.name == "sessionid" for cookie in self._jar), "not signed in"

    def get(self, path: str) -> tuple[int, Any]:
        try:
            with self._open(f"{self.base}{path}", timeout=10) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())
