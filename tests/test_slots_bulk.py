"""Slots for many devices in one call: whose the last one is, who is named twice, and what it costs."""

from typing import Any

import pytest
from django.db import connection

from entitlements import bulk, slots
from entitlements.bulk import Outcome, Wish
from entitlements.errors import NoSuchTier
from entitlements.models import Device, SlotAssignment
from entitlements.slots import Slot
from subscriptions.audit import Actor
from subscriptions.states import Type
from tests.builders import subscription
from tests.history import on

pytestmark = pytest.mark.django_db
NOW = on(1, 10)
GATEWAY: dict[str, Any] = {"actor": Actor.api_key(3), "now": NOW}


def test_whoever_is_named_first_gets_the_last_slot_and_of_a_device_named_twice_the_first_counts() -> None:
    s = subscription(slots={"basic": 2})
    wishes = [Wish("d-3", "basic"), Wish("d-2", "basic"), Wish("d-1", "basic"), Wish("d-3", "none such")]
    outcomes = bulk.assign_many(s.tenant_id, wishes, all_or_nothing=False, **GATEWAY)
    assert [(o.device_id, o.slot and o.slot.tier) for o in outcomes] == [
        ("d-3", "basic"), ("d-2", "basic"), ("d-1", None), ("d-3", "basic")]  # fmt: skip
    assert sorted(Device.objects.values_list("device_id", flat=True)) == ["d-2", "d-3"]


def test_new_ones_present_ones_and_those_of_no_tier_each_get_their_own_answer() -> None:
    s = subscription(slots={"basic": 2})
    addon = subscription(Type.ADDON, parent=s, slots={"basic": 5})
    slots.assign(s.tenant_id, "d-1", "basic", **GATEWAY | {"now": on(1, 5)})
    wishes = [Wish("d-1", "basic"), Wish("d-2", "basic"), Wish("d-3", "basic"), Wish("d-4", "none such")]
    *given, refused = bulk.assign_many(s.tenant_id, wishes, all_or_nothing=False, **GATEWAY)
    assert given == [
        Outcome("d-1", Slot("d-1", "basic", s.number, on(1, 5), is_new=False)),
        Outcome("d-2", Slot("d-2", "basic", s.number, NOW, is_new=True)),
        Outcome("d-3", Slot("d-3", "basic", addon.number, NOW, is_new=True)),
    ]
    assert isinstance(refused.error, NoSuchTier)
    assert SlotAssignment.objects.count() == 3


def test_no_two_of_a_thousand_are_compared_with_each_other() -> None:
    """What the planner guesses of a CTE lets it join two by comparing each row with each."""
    s = subscription(slots={"basic": 1000})
    plans: list[str] = []

    def explained(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql == bulk._ASSIGN_MANY:
            with context["cursor"].connection.cursor() as cursor:
                cursor.execute("SAVEPOINT explained")
                cursor.execute(f"EXPLAIN (ANALYZE, TIMING OFF, COSTS OFF) {sql}", params)
                plans.extend(line for (line,) in cursor.fetchall())
                cursor.execute("ROLLBACK TO SAVEPOINT explained")
        return execute(sql, params, many, context)

    with connection.execute_wrapper(explained):
        bulk.assign_many(s.tenant_id, [Wish(f"d-{n}", "basic") for n in range(1000)], **GATEWAY)
    compared = [line for line in plans if "Removed by Join Filter" in line and int(line.rpartition(":")[2]) > 50_000]
    assert plans and not compared, compared  # noqa: PT018
