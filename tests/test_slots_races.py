"""Many at once: never more devices than slots, the counter is the number of devices, and nobody meets a deadlock.

Beside each guard the same race without it.
"""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.utils import IntegrityError

from entitlements import bulk, imports, limits, slots
from entitlements.bulk import Wish
from entitlements.errors import NoFreeSlot
from entitlements.follow import catch_up, follow
from entitlements.limits import Park
from entitlements.models import Device, SlotAssignment, TierAllocation
from subscriptions import lifecycle
from subscriptions.audit import STRIPE, Actor
from subscriptions.errors import DomainError
from subscriptions.models import Plan, Subscription
from subscriptions.states import Type
from tests.builders import selling, subscription
from tests.history import at_once, broken, by, on, settle

pytestmark = pytest.mark.django_db(transaction=True)
NOW = on(1, 10)
BY: dict[str, Any] = {"actor": Actor.api_key(3), "now": NOW}


def in_use(s: Subscription) -> tuple[int, int]:
    """The counter, and the devices."""
    used = sum(a.slots_used for a in TierAllocation.objects.filter(tenant=s.tenant_id))
    return used, SlotAssignment.objects.filter(tenant=s.tenant_id, released_at=None).count()


# --- the last slot ---------------------------------------------------------------------------------------------------


@contextmanager
def all_reach_for(allocation: TierAllocation, callers: int) -> Iterator[None]:
    """Hold the row until so many statements wait for it: each of them has seen the same free slot."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT FROM tier_allocations WHERE id = %s FOR UPDATE", [allocation.pk])
        yield
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        for _ in range(3000):
            cursor.execute(waiting)
            if cursor.fetchone()[0] >= callers:
                return
            cursor.execute("SELECT pg_sleep(0.01)")
        raise AssertionError("They did not all come to the row.")


def race_for_one_slot(s: Subscription) -> list[Any]:
    """What eight callers got who saw the same last slot."""
    allocation = s.allocations.get()

    def hold() -> str:
        with all_reach_for(allocation, 8):
            gate.append(True)
        return "held"

    gate: list[bool] = []

    def take(device_id: str) -> Any:
        while not gate:
            time.sleep(0)  # nothing is waited out: only the other thread's turn
        return slots.assign(s.tenant_id, device_id, "basic", **BY)

    return at_once(hold, *(partial(take, f"d-{n}") for n in range(8)))[1:]


def test_of_eight_who_see_the_last_slot_one_gets_it_and_the_others_are_told_so() -> None:
    s = subscription(slots={"basic": 1})
    outcomes = race_for_one_slot(s)
    assert len([o for o in outcomes if isinstance(o, slots.Slot)]) == 1
    assert len([o for o in outcomes if isinstance(o, NoFreeSlot)]) == 7
    assert (in_use(s), Device.objects.count(), broken()) == ((1, 1), 1, [])


WITHOUT_GUARD = slots._TAKE.replace("AND a.is_open AND a.slots_used < a.slot_limit\n        RETURNING", "RETURNING")


def test_without_the_statements_guard_the_database_still_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    assert WITHOUT_GUARD != slots._TAKE
    monkeypatch.setattr(slots, "_TAKE", WITHOUT_GUARD)
    s = subscription(slots={"basic": 1})
    outcomes = race_for_one_slot(s)
    refused = [o for o in outcomes if isinstance(o, IntegrityError)]
    assert len(refused) == 7
    assert all("slots_are_never_oversold" in str(error) for error in refused)
    assert in_use(s) == (1, 1)


def test_without_either_guard_eight_devices_have_one_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "_TAKE", WITHOUT_GUARD)
    s = subscription(slots={"basic": 1})
    rule = "slots_are_never_oversold"
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = %s", [rule])
        (definition,) = cursor.fetchone()
        cursor.execute(f"ALTER TABLE tier_allocations DROP CONSTRAINT {rule}")
        try:
            race_for_one_slot(s)
            assert in_use(s) == (8, 8)
        finally:
            cursor.execute("UPDATE tier_allocations SET slots_used = 0")
            cursor.execute(f"ALTER TABLE tier_allocations ADD CONSTRAINT {rule} {definition}")


def test_a_device_that_two_assign_at_the_same_moment_has_one_slot() -> None:
    s = subscription(slots={"basic": 8})
    same = [partial(slots.assign, s.tenant_id, "d-1", "basic", **BY) for _ in range(8)]
    outcomes: list[Any] = [*at_once(*same)]
    assert sorted(o.is_new for o in outcomes) == [False] * 7 + [True]
    assert in_use(s) == (1, 1)


# --- every path at once ----------------------------------------------------------------------------------------------


class Fleet:
    """500 slots in three subscriptions, 700 devices that want one, and callers of every kind."""

    def __init__(self) -> None:
        self.main = subscription(slots={"basic": 300})
        self.tenant = self.main.tenant_id
        self.big, self.small = selling({"basic": 150}, Type.ADDON), selling({"basic": 100}, Type.ADDON)
        self.addon = subscription(Type.ADDON, parent=self.main, plan=self.big)
        self.event = subscription(Type.TEMPORARY, tenant=self.main.tenant, slots={"basic": 50})
        self.most = 0

    def someone(self, dice: random.Random) -> str:
        return f"d-{dice.randrange(700)}"

    def singles(self, dice: random.Random) -> None:
        slots.assign(self.tenant, self.someone(dice), "basic", **BY)

    def many(self, dice: random.Random) -> None:
        wishes = [Wish(self.someone(dice), "basic") for _ in range(40)]
        bulk.assign_many(self.tenant, wishes, all_or_nothing=dice.random() < 0.3, **BY)

    def moves(self, dice: random.Random) -> None:
        to = dice.choice([self.main, self.addon, self.event])
        slots.move(self.tenant, self.someone(dice), to.pk, **BY)

    def releases(self, dice: random.Random) -> None:
        leave = dice.choice([slots.release, slots.delete])
        leave(self.tenant, self.someone(dice), **BY)

    def resizes(self, dice: random.Random) -> None:
        limits.resize(self.main.pk, "basic", dice.choice([260, 300]), park=Park.NEWEST, **by(NOW))

    def stripe_changes_the_plan(self, dice: random.Random) -> None:
        plan: Plan = dice.choice([self.big, self.small])
        with transaction.atomic():
            entry = lifecycle.change_plan(self.addon.pk, plan=plan, price=None, actor=STRIPE, now=NOW)
            follow([entry] if entry else [], actor=STRIPE, now=NOW)

    def suspends(self, dice: random.Random) -> None:
        lifecycle.suspend(self.event.pk, **by(NOW))
        lifecycle.activate(self.event.pk, **by(NOW))

    def imports(self, dice: random.Random) -> None:
        devices = "\n".join(sorted({self.someone(dice) for _ in range(30)}))
        lines = imports.read(BytesIO(devices.encode()), "basic").lines
        if not imports.check(self.tenant, lines, now=NOW).failures:
            imports.write(self.tenant, lines, actor=BY["actor"], now=lambda: NOW)

    def follows(self, dice: random.Random) -> None:
        catch_up(now=NOW)

    def counts(self, dice: random.Random) -> None:
        self.most = max(self.most, in_use(self.main)[1])


def storm(fleet: Fleet, *callers: tuple[Callable[[random.Random], None], int]) -> list[Exception]:
    """Let every caller do its thing so often, all at once; what they met but for refusals."""

    def run(does: Callable[[random.Random], None], times: int, seed: int) -> list[Exception]:
        dice, met = random.Random(seed), []
        for _ in range(times):
            try:
                does(dice)
            except DomainError:
                pass
            except Exception as error:
                met.append(error)
        return met

    outcomes = at_once(*(partial(run, does, times, seed) for seed, (does, times) in enumerate(callers)))
    return [error for met in outcomes for error in (met if isinstance(met, list) else [met])]


def test_sixteen_callers_on_every_path_never_have_more_devices_than_slots_nor_meet_a_deadlock() -> None:
    f = Fleet()
    callers = (
        [(f.singles, 40)] * 5 + [(f.many, 6)] * 2 + [(f.imports, 6)] + [(f.moves, 20)] * 2 + [(f.releases, 20)] * 2
    )
    one_each = [(f.resizes, 6), (f.stripe_changes_the_plan, 6), (f.suspends, 6), (f.follows, 6)]
    assert len(callers) + len(one_each) == 16
    assert storm(f, *callers, *one_each, (f.counts, 40)) == []
    assert 0 < f.most <= 500
    limits.resize(f.main.pk, "basic", 300, **by(NOW))
    follow_plan(f, f.big)
    bulk.assign_many(f.tenant, [Wish(f"d-{n}", "basic") for n in range(700)], all_or_nothing=False, **BY)
    assert in_use(f.main) == (500, 500)
    settle()
    catch_up(now=NOW)
    assert broken() == []


def follow_plan(f: Fleet, plan: Plan) -> None:
    with transaction.atomic():
        entry = lifecycle.change_plan(f.addon.pk, plan=plan, price=None, actor=STRIPE, now=NOW)
        follow([entry] if entry else [], actor=STRIPE, now=NOW)


def test_a_change_of_a_subscription_holds_nobody_up_who_only_refers_to_it() -> None:
    """An allocation that a transaction touches twice refers to it again at the commit, with the tenant locked: whoever
    has changed it, and waits for the tenant, would never come to an end.
    """
    s = subscription(slots={"basic": 1})

    def refer() -> int:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT FROM subscriptions WHERE id = %s FOR KEY SHARE NOWAIT", [s.pk])
            return len(cursor.fetchall())

    with transaction.atomic():
        lifecycle.renew(s.pk, term_end=on(5, 1), **by(NOW))
        assert at_once(refer) == [1]


def test_who_takes_and_gives_back_in_one_transaction_waits_for_nobody_who_changes_what_was_bought() -> None:
    """A trial that is converted changes its type, a key: with a foreign key to it, the commit would wait for that."""
    trial = subscription(Type.TRIAL, slots={"basic": 2})
    slots.assign(trial.tenant_id, "a", "basic", **BY)
    slots.assign(trial.tenant_id, "b", "basic", **BY)
    limits.resize(trial.pk, "basic", 1, park=Park.NEWEST, **by(NOW))

    def takes_and_gives_back() -> bool:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET LOCAL lock_timeout = '3s'")
            return slots.release(trial.tenant_id, "a", **BY)  # and b returns into its slot

    with transaction.atomic():
        purchase = lifecycle.Purchase(selling({"basic": 5}), NOW, on(3, 1))
        lifecycle.activate(trial.pk, purchase=purchase, **by(NOW))
        assert at_once(takes_and_gives_back) == [True]
