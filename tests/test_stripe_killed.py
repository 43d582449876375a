"""The same two years, in the hands of real processes, one of which is killed every few seconds: the end is the same."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from billing_site.local import ports
from billing_site.local.process import wait_until
from tests.builders import TenantFactory
from tests.history import broken
from tests.processes import Service, kill, service
from tests.reconciling import reconciled
from tests.years import BAD_WAY, Years, is_anything_unread, shifted, shop, two_years
from webhooks.catalogue import customer_of
from webhooks.models import StripeEvent, Telling

PATIENCE_SECONDS = 90


@dataclass
class Killer:
    """Kills one part of the service after another, without warning, and starts it again."""

    running: Service
    dice: Random
    killed: list[str] = field(default_factory=list)
    _mercy: threading.RLock = field(default_factory=threading.RLock)
    _over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        with ThreadPoolExecutor(max_workers=1) as pool:
            killing = pool.submit(self._kill_for_ever)
            try:
                yield
            finally:
                self._over.set()
            killing.result()

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Everything runs, and nothing is killed meanwhile."""
        with self._mercy:
            yield

    def _kill_for_ever(self) -> None:
        while not self._over.wait(self.dice.uniform(1, 3)):
            with self._mercy:
                victim = self.dice.choice([self.web, self.worker, self.broker, self.database, self.stripe])
                self.killed.append(victim.__name__)
                victim()
                self.running.supervise()

    def web(self) -> None:
        kill(self.running.web)
        self.running.web.start()
        self.running.web.wait_ready(lambda: ports.serves(f"{self.running.url}/healthz"), seconds=PATIENCE_SECONDS)

    def worker(self) -> None:
        self.running.kill_worker()
        self.running.start_worker()

    def broker(self) -> None:
        kill(self.running.broker.process)
        self.running.broker.start()

    def database(self) -> None:
        """As in a crash: every connection is cut, and what is on disk is recovered."""
        process = self.running.postgres.process
        assert process.pid is not None
        os.kill(process.pid, signal.SIGQUIT)
        assert wait_until(lambda: not process.running, seconds=PATIENCE_SECONDS)
        self.running.postgres.start()

    def stripe(self) -> None:
        self.running.stripe.kill_and_start_again()


@dataclass
class YearsOfProcesses(Years):
    """The workers do their work themselves; whoever finds something down tries again, as people do."""

    killer: Killer = field(kw_only=True)

    def work(self) -> None:
        """A week is a moment here: workers who are alive keep up with it, as they would."""

        def keep_up() -> bool:
            late = timezone.now() - timedelta(days=10)
            with self.killer.resting():
                self.killer.running.supervise()
            return not StripeEvent.objects.filter(state="PENDING", attempts=0, next_attempt_at__lt=late).exists()

        def worked() -> None:
            assert wait_until(keep_up, seconds=PATIENCE_SECONDS / 2), "The workers do not keep up."

        threading.Event().wait(0.15)
        self.patiently(worked)

    def patiently(self, what: Callable[[], Any]) -> Any:
        """Do it, again and again while something is down."""
        found: list[Any] = []

        def tried() -> bool:
            try:
                found.append(what())
            except Exception as error:  # whatever being away looks like: of the database, of Stripe, of a page
                connection.close()
                self.last_refusal = error
                return False
            return True

        assert wait_until(tried, seconds=PATIENCE_SECONDS, every=0.2), self.last_refusal
        return found[-1]

    def does(self, action: Callable[[], object], until: Callable[[], bool]) -> None:
        def done() -> bool:
            if not until():
                action()
            return until()

        assert self.patiently(done)

    def days(self, count: float) -> None:
        until = self.passed + timedelta(days=count)
        while self.passed < until:
            step = min(timedelta(days=self.dice.choice([1, 3, 7])), until - self.passed)
            with self.killer.resting():  # while something is being started again no weeks pass
                self.passed += step
                self.move(step)
                self.stripe.clock(int(self.passed.total_seconds()))
            self.work()

    def registers(self, *devices: str) -> None:
        for device in devices:
            self.patiently(partial(Years.registers, self, device))

    def card(self, card: str) -> None:
        self.patiently(lambda: Years.card(self, card))

    def come_to_rest(self) -> None:
        """Retries come due as the hours pass, and leases of the dead end."""
        self.stripe.flush()
        for _ in range(40):
            self.days(0.25)
            run = self.patiently(lambda: reconciled_or_busy())
            if run and wait_until(nothing_is_on_its_way, seconds=3, every=0.1):
                return
        left = [*StripeEvent.objects.exclude(state="DONE").values(), *Telling.objects.exclude(state="DONE").values()]
        raise AssertionError(f"It never comes to rest: {left}")

    def quiet(self) -> None:
        with self.killer.resting():
            super().quiet()


def reconciled_or_busy() -> bool:
    """Whether a run came to its end; a worker may be at one, or have been killed at it."""
    try:
        return reconciled().finished_at is not None
    except AssertionError:
        return False


def nothing_is_on_its_way() -> bool:
    is_waiting = (
        StripeEvent.objects.filter(state="PENDING").exists() or Telling.objects.filter(state="PENDING").exists()
    )
    return not is_waiting and not is_anything_unread()


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.django_db(transaction=True)
def test_whatever_is_killed_in_two_years_the_state_here_is_stripes_at_every_quiet_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    clock = tmp_path / "clock"
    clock.write_text("0")
    every = {"RECONCILE_INTERVAL_SECONDS": "2"}  # which is two or three weeks here
    with service(tmp_path, clock=clock, knobs=BAD_WAY | {"seed": 5}, **every) as running, running.database():
        settings.STRIPE_API_BASE, settings.STRIPE_SECRET_KEY = running.stripe.url, running.stripe.api_key
        with shifted(monkeypatch) as move_here:
            ahead = [timedelta(0)]

            def move(by: timedelta) -> None:
                ahead[0] += by
                fresh = clock.with_suffix(".new")
                fresh.write_text(str(ahead[0].total_seconds()))
                fresh.replace(clock)
                move_here(by)

            shop()
            tenant = TenantFactory.create()
            killer = Killer(running, Random(11))
            life = YearsOfProcesses(running.stripe, move, Random(7), tenant, killer=killer)
            customer_of(tenant)
            life.card("ok")
            # Who was started by a thread ends with it: nobody looks at what it leaves after its end.
            with killer.at_work():
                assert len(list(two_years(life))) == 15
                with killer.resting():
                    print(f"killed: {sorted((part, killer.killed.count(part)) for part in {*killer.killed})}")
                    assert len(set(killer.killed)) == 5
                    connection.close()  # it may have been cut
                    assert broken() == []
