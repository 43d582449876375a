"""Whatever is done with devices and subscriptions, in whatever order: what stays true of slots."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from entitlements import bulk, limits, room, slots
from entitlements.bulk import Wish
from entitlements.follow import follow
from entitlements.limits import Park
from entitlements.models import Device, SlotAssignment
from subscriptions import lifecycle, serving
from subscriptions.audit import STRIPE
from subscriptions.errors import DomainError
from subscriptions.lifecycle import CancelAt
from subscriptions.models import AuditEntry, Subscription
from subscriptions.states import Status, Type
from tests.builders import JAN_1, TenantFactory, selling, subscription
from tests.history import advance, broken
from tests.test_lifecycle_properties import check_what_a_commit_checks, undone

pytestmark = pytest.mark.django_db

TIERS = st.sampled_from(["basic", "premium"])
DEVICES = st.integers(0, 9).map(lambda n: f"d-{n}")
SLOTS = st.integers(0, 6)
PARK = st.sampled_from(Park)
WHICH = st.integers(0, 5)


class Slots(RuleBasedStateMachine):
    """A tenant that buys, has devices, does not pay, comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.undone = undone()
        self.undone.__enter__()
        self.now = JAN_1
        self.wanted: set[str] = set()  # who was given a slot, and nobody took it away
        self.waiting: list[tuple[str, str]] = []  # who was parked before this step, the longest first, by tier
        self.touched: set[str] = set()

    def teardown(self) -> None:
        assert broken() == []
        self.undone.__exit__(None, None, None)

    @initialize(basic=SLOTS, premium=SLOTS)
    def buy(self, basic: int, premium: int) -> None:
        self.tenant = TenantFactory.create()
        self.plans = {
            type: [selling({"basic": basic, "premium": premium}, type), selling({"basic": 2}, type)] for type in Type
        }
        subscription(tenant=self.tenant, plan=self.plans[Type.MAIN][0])

    @property
    def by(self) -> dict[str, Any]:
        return {"actor": STRIPE, "now": self.now}

    def does(self, verb: Callable[[], object]) -> object:
        """What a caller's transaction does: all of it, or nothing of it."""
        self.waiting = parked(self.tenant.pk)
        self.touched = set()
        self.now += timedelta(minutes=1)
        try:
            with transaction.atomic():
                did = verb()
                if isinstance(did, AuditEntry):
                    follow([did], **self.by)
                check_what_a_commit_checks()
        except DomainError as refusal:
            return refusal
        return did

    def some(self, which: int) -> Subscription:
        members = [*Subscription.objects.filter(tenant=self.tenant).order_by("pk")]
        return members[which % len(members)]

    @rule(device=DEVICES, tier=TIERS)
    def assign(self, device: str, tier: str) -> None:
        if isinstance(self.does(lambda: slots.assign(self.tenant.pk, device, tier, **self.by)), slots.Slot):
            self.wanted.add(device)
        self.touched = {device}

    @rule(devices=st.lists(DEVICES, max_size=8), tier=TIERS, all_or_nothing=st.booleans())
    def assign_many(self, devices: list[str], tier: str, all_or_nothing: bool) -> None:
        wishes = [Wish(device, tier) for device in devices]
        got = self.does(lambda: bulk.assign_many(self.tenant.pk, wishes, all_or_nothing=all_or_nothing, **self.by))
        if isinstance(got, list):
            self.wanted |= {outcome.device_id for outcome in got if outcome.slot}
        self.touched = {*devices}

    @rule(device=DEVICES, forever=st.booleans())
    def leave(self, device: str, forever: bool) -> None:
        self.does(lambda: (slots.delete if forever else slots.release)(self.tenant.pk, device, **self.by))
        self.wanted.discard(device)
        self.touched = {device}

    @rule(device=DEVICES, which=WHICH)
    def move(self, device: str, which: int) -> None:
        self.does(lambda: slots.move(self.tenant.pk, device, self.some(which).pk, **self.by))

    @rule(device=DEVICES, tier=TIERS)
    def change_tier(self, device: str, tier: str) -> None:
        got = self.does(lambda: slots.change_tier(self.tenant.pk, device, tier, **self.by))
        if isinstance(got, slots.Slot):
            self.wanted.add(device)
        self.touched = {device}

    @rule(which=WHICH, tier=TIERS, to=SLOTS, park=PARK)
    def resize(self, which: int, tier: str, to: int, park: Park) -> None:
        self.does(lambda: limits.resize(self.some(which).pk, tier, to, park=park, **self.by))

    @rule(which=WHICH, plan=st.integers(0, 1))
    def change_plan(self, which: int, plan: int) -> None:
        s = self.some(which)
        other = self.plans[Type(s.type)][plan]
        self.does(lambda: lifecycle.change_plan(s.pk, plan=other, price=None, **self.by))

    @rule(type=st.sampled_from([Type.ADDON, Type.TEMPORARY, Type.MAIN]), plan=st.integers(0, 1))
    def buy_more(self, type: Type, plan: int) -> None:
        main = Subscription.objects.filter(tenant=self.tenant, type=Type.MAIN).exclude(status=Status.EXPIRED).first()
        if type == Type.ADDON and (main is None or main.term_end <= self.now):
            return
        end = main.term_end if main and type == Type.ADDON else self.now + timedelta(days=20)
        bought = lifecycle.Purchase(self.plans[type][plan], self.now, end)
        parent = main.pk if main and type == Type.ADDON else None
        self.does(lambda: lifecycle.start(self.tenant.pk, bought, parent_id=parent, **self.by))

    @rule(which=WHICH)
    def renew(self, which: int) -> None:
        self.does(lambda: lifecycle.renew(self.some(which).pk, term_end=self.now + timedelta(days=30), **self.by))

    @rule(which=WHICH)
    def suspend(self, which: int) -> None:
        self.does(lambda: lifecycle.suspend(self.some(which).pk, **self.by))

    @rule(which=WHICH)
    def end(self, which: int) -> None:
        self.does(lambda: lifecycle.cancel(self.some(which).pk, at=CancelAt.NOW, **self.by))

    @rule(days=st.integers(1, 40))
    def time_passes(self, days: int) -> None:
        def tick() -> None:
            self.now += timedelta(days=days)
            follow(advance(self.now), **self.by)
            room.lock(self.tenant.pk)
            room.return_parked(self.tenant.pk, actor=STRIPE, now=self.now)  # as catch_up does for what time frees

        self.does(tick)

    @invariant()
    def the_counter_is_the_number_of_devices_and_what_is_over_has_none(self) -> None:
        found = room.one(
            "SELECT count(*) FROM tier_allocations AS a JOIN subscriptions AS s ON s.id = a.subscription_id"
            " CROSS JOIN LATERAL (SELECT count(*) AS devices FROM slot_assignments"
            " WHERE allocation_id = a.id AND released_at IS NULL) AS really"
            " WHERE a.slots_used <> really.devices OR a.slots_used > a.slot_limit"
            " OR (s.status = 'EXPIRED' AND (really.devices > 0 OR a.is_open))",
            {},
        )
        assert found == (0,)

    @invariant()
    def nobody_is_lost(self) -> None:
        if not hasattr(self, "tenant"):
            return
        held = SlotAssignment.objects.filter(tenant=self.tenant, released_at=None)
        in_slots = {*held.values_list("device__device_id", flat=True)}
        waiting = {device for device, _ in parked(self.tenant.pk)}
        assert (in_slots | waiting, in_slots & waiting) == (self.wanted, set())

    @invariant()
    def nobody_waits_beside_room(self) -> None:
        if hasattr(self, "tenant"):
            tiers = {tier for _, tier in parked(self.tenant.pk)}
            assert tiers & with_room(self.tenant.pk, self.now) == set()

    @invariant()
    def who_waited_longest_came_back_first(self) -> None:
        if not hasattr(self, "tenant"):
            return
        still = {device for device, _ in parked(self.tenant.pk)}
        for tier in ("basic", "premium"):
            queue = [device for device, its in self.waiting if its == tier and device not in self.touched]
            stays = [device in still for device in queue]
            assert stays == sorted(stays), queue


def parked(tenant_id: int) -> list[tuple[str, str]]:
    waiting = Device.objects.filter(tenant=tenant_id, parked_at__isnull=False).order_by("parked_at", "pk")
    return [*waiting.values_list("device_id", "parked_tier__code")]


def with_room(tenant_id: int, now: Any) -> set[str]:
    found = room.one(
        f"SELECT array_agg(DISTINCT tier.code) FROM device_tiers AS tier WHERE EXISTS ("
        f" SELECT FROM {room.SERVING} AND a.tier_id = tier.id AND a.slots_used < a.slot_limit)",
        {"tenant": tenant_id, "now": now, **serving.windows()},
    )
    return {*(found[0] or ())} if found else set()


def test_no_slot_is_ever_lost_oversold_or_left_empty_while_a_device_waits_for_it() -> None:
    run_state_machine_as_test(Slots, settings=settings(max_examples=12, stateful_step_count=25, deadline=None))
