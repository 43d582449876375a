"""Years of one tenant's life at Stripe and here, while the way between the two is as bad as it gets.

Time is the sandbox's clock and ours, moved together. Webhooks go over HTTP, twice, late, shuffled, and some never.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from entitlements import follow, slots
from subscriptions import sweep
from subscriptions.audit import Actor
from subscriptions.models import AuditCursor, AuditEntry, Member, Subscription, Tenant
from subscriptions.states import Status, Type
from tests.buying import ADDON, asks, buys, returns, session_of, signs_in, sold
from tests.history import settle
from tests.reconciling import reconciled
from tests.stripe_equal import assert_equal_to_stripe
from tests.stripe_sandbox.client import Sandbox
from webhooks import inbox
from webhooks.catalogue import customer_of
from webhooks.models import Drift, StripeLink
from webhooks.outgoing import by_device, outbound, telling

BAD_WAY: dict[str, Any] = {
    "duplicate": 2, "delay_seconds": [0, 0.05], "reorder": 3, "drop": 0.1, "timestamp_clock": "sandbox",
    "retry": [0.05, 0.1],
}  # fmt: skip


@contextmanager
def shifted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[timedelta], None]]:
    """Our clock, which the caller moves ahead. What the database calls now stays what it is."""
    real, ahead = timezone.now, [timedelta(0)]

    def move(by: timedelta) -> None:
        ahead[0] += by

    monkeypatch.setattr(timezone, "now", lambda: real() + ahead[0])
    yield move
    monkeypatch.undo()


@dataclass
class Years:
    """A tenant with a shop to buy in, and the hands of everybody who does something about it."""

    stripe: Sandbox
    move: Callable[[timedelta], None]
    dice: Random
    tenant: Tenant
    passed: timedelta = timedelta(0)
    compared: timedelta = timedelta(0)
    owner: Client = field(init=False)

    def __post_init__(self) -> None:
        self.owner = signs_in(self.tenant)

    # time

    def days(self, count: float) -> None:
        """Let time pass, a few days at a time, and what falls due happen, here and at Stripe."""
        until = self.passed + timedelta(days=count)
        while self.passed < until:
            step = min(timedelta(days=self.dice.choice([1, 3, 7])), until - self.passed)
            self.passed += step
            self.move(step)
            self.stripe.clock(int(self.passed.total_seconds()))
            self.work()

    def work(self) -> None:
        """What workers do meanwhile, sometimes; a comparison every two weeks (in production, every hour)."""
        if self.dice.random() < 0.5:
            by_hand()
        if self.passed - self.compared >= timedelta(days=14):
            self.compared = self.passed
            reconciled()

    def come_to_rest(self) -> None:
        """Until nothing is on its way any more, and what was lost has been found."""
        self.stripe.flush()
        by_hand()
        reconciled()
        by_hand()
        while is_anything_unread():
            settle()
            by_hand()

    def quiet(self) -> None:
        """Nothing is on its way any more: what is here is what is at Stripe."""
        self.come_to_rest()
        for link in StripeLink.objects.filter(subscription__isnull=False).select_related("subscription"):
            assert link.subscription is not None
            assert_equal_to_stripe(self.stripe, link.subscription)
        theirs = self.stripe.api("GET", "/v1/subscriptions", customer=customer_of(self.tenant), status="all")["data"]
        begun = {sub["id"] for sub in theirs if sub["status"] not in ("incomplete", "incomplete_expired")}
        assert begun == {*StripeLink.objects.filter(subscription__isnull=False).values_list("pk", flat=True)}
        assert not Drift.objects.filter(resolved_at=None).exists(), [*Drift.objects.filter(resolved_at=None).values()]

    # who does what

    def main(self) -> Subscription:
        return Subscription.objects.exclude(status=Status.EXPIRED).get(tenant=self.tenant, parent=None)

    def signed_in(self) -> Client:
        """Sessions end in two weeks of not being used."""
        self.owner.force_login(Member.objects.get(tenant=self.tenant).user)
        return self.owner

    def pays_on(self, answer: Any) -> None:
        """The customer fills in Stripe's page, and comes back, or closes the window."""
        session = session_of(answer)
        self.stripe.complete(session)
        if self.dice.random() < 0.5:
            assert returns(session).status_code in (200, 303)

    def buys(self, plan: str, **more: Any) -> None:
        self.pays_on(buys(self.signed_in(), plan, **more))

    def buys_addon(self, plan: str) -> None:
        self.pays_on(asks(self.signed_in(), ADDON, parent_subscription=self.main().number, plan=plan))

    def does(self, action: Callable[[], object], until: Callable[[], bool]) -> None:
        """Do something, and see at Stripe that it was done."""
        action()
        assert until()

    def at_stripe(self, **only: Any) -> list[dict[str, Any]]:
        """The customer's subscriptions there that are not over."""
        found = self.stripe.api("GET", "/v1/subscriptions", customer=customer_of(self.tenant), **only)["data"]
        return [sub for sub in found if sub["status"] not in ("canceled", "incomplete", "incomplete_expired")]

    def main_at_stripe(self) -> dict[str, Any]:
        return next(sub for sub in self.at_stripe() if sub["id"] == self.main().stripe_link.pk)

    def asks_to(self, verb: str, **body: Any) -> Any:
        path = f"/api/v1/customer/subscriptions/{self.main().number}/{verb}"
        answer = asks(self.signed_in(), path, **body)
        assert answer.status_code == 200, answer.content
        return answer.json()

    def card(self, card: str) -> None:
        self.stripe.api("POST", f"/v1/customers/{customer_of(self.tenant)}", metadata={"card": card})

    def registers(self, *devices: str) -> None:
        for device in devices:
            slots.assign(self.tenant.pk, device, "basic", actor=Actor.api_key(1), now=timezone.now())


def by_hand() -> None:
    """What the workers do in a minute, until there is nothing left to do."""
    for _ in range(10):
        done = [*inbox.drain(now=timezone.now)]
        done += [step for steps in sweep.advance(now=timezone.now()) for step in steps.entries()]  # type: ignore[misc]
        follow.catch_up(now=timezone.now())
        by_device.lower(now=timezone.now())
        telling.catch_up(now=timezone.now())
        done += [*outbound.deliver(now=timezone.now)]
        if not done:
            return
    raise AssertionError("It never comes to rest.")


def is_anything_unread() -> bool:
    """Whether the audit has entries that its readers have not seen: other transactions were open beside them."""
    readers = AuditCursor.objects.filter(reader__in=[follow.READER, telling.READER]).values_list("transaction_id")
    cursors = [transaction_id for (transaction_id,) in readers]
    return AuditEntry.objects.filter(transaction_id__gte=min(cursors, default=0)).exists()


def shop() -> None:
    """A small fleet, a big one that begins with a trial, and an add-on."""
    sold("fleet", slots=3, trial_days=14, price={"amount_minor": 1900})
    sold("fleet-big", slots=6, price={"amount_minor": 4900})
    sold("more", type=Type.ADDON, slots=2, price={"amount_minor": 900})


def amount(at_stripe: dict[str, Any]) -> int:
    return int(at_stripe["items"]["data"][0]["price"]["unit_amount"])


def two_years(life: Years) -> Iterator[datetime]:
    """Trial, buy, add-on, upgrade, failed card, recovery, downgrade, cancel, come back; an instant for each quiet
    point, at which the caller compares.
    """
    statuses: list[str] = []

    def rest() -> datetime:
        life.quiet()
        statuses.append(str(life.main().status))
        return timezone.now()

    def has(count: int) -> Callable[[], bool]:
        return lambda: len(life.at_stripe()) == count

    def sells(**facts: Any) -> Callable[[], bool]:
        return lambda: {name: life.main_at_stripe()["items"]["data"][0][name] for name in facts} == facts

    def is_set(name: str) -> Callable[[], bool]:
        return lambda: bool(life.main_at_stripe()[name])

    life.does(lambda: life.buys("fleet"), has(1))
    life.work()
    yield rest()
    life.days(20)
    yield rest()
    life.registers("a", "b", "c")
    life.days(20)
    yield rest()
    life.does(lambda: life.buys_addon("more"), has(2))
    life.days(45)
    yield rest()
    life.does(lambda: life.asks_to("change", plan="fleet-big"), lambda: amount(life.main_at_stripe()) == 4900)
    life.registers("d", "e", "f")
    life.days(50)
    yield rest()
    life.card("declined")
    life.days(33)
    yield rest()
    life.card("ok")
    life.days(12)
    yield rest()
    life.days(60)
    later = {"plan": "fleet", "when": "term_end", "confirm_parking": True}
    life.does(lambda: life.asks_to("change", **later), is_set("schedule"))
    yield rest()
    life.days(35)
    yield rest()
    life.does(lambda: life.asks_to("change", quantity=2), sells(quantity=2))
    life.days(70)
    yield rest()
    life.does(lambda: life.asks_to("pause"), is_set("pause_collection"))
    life.days(10)
    yield rest()
    life.does(lambda: life.asks_to("resume"), lambda: not is_set("pause_collection")())
    life.days(80)
    yield rest()
    life.does(lambda: life.asks_to("cancel"), is_set("cancel_at"))
    life.days(40)
    life.quiet()
    assert not Subscription.objects.exclude(status=Status.EXPIRED).filter(tenant=life.tenant).exists()
    yield timezone.now()
    life.days(60)
    life.does(lambda: life.buys("fleet-big"), has(1))
    life.work()
    yield rest()
    life.days(730 - life.passed.days)
    yield rest()
    assert statuses == [
        "TRIAL", "ACTIVE", "ACTIVE", "ACTIVE", "ACTIVE", "GRACE", "ACTIVE", "ACTIVE", "ACTIVE", "ACTIVE",
        "SUSPENDED", "ACTIVE", "ACTIVE", "ACTIVE",
    ]  # fmt: skip
