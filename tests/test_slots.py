"""One device and its slot: taken, kept, changed, given back."""

from typing import Any

import pytest

from entitlements import slots
from entitlements.errors import (
    NoFreeSlot,
    TierDiffers,
)
from entitlements.models import Device, SlotAssignment
from subscriptions.audit import Actor
from subscriptions.models import Subscription
from subscriptions.states import Type
from tests.builders import subscription
from tests.history import on

pytestmark = pytest.mark.django_db
NOW = on(1, 10)
GATEWAY: dict[str, Any] = {"actor": Actor.api_key(3), "now": NOW}


def test_a_device_that_is_new_is_registered_and_gets_a_slot() -> None:
    s = subscription(slots={"basic": 2})
    slot = slots.assign(s.tenant_id, "d-1", "basic", source_id="req-1", **GATEWAY)
    assert slot == slots.Slot("d-1", "basic", s.number, NOW, is_new=True)
    assignment = SlotAssignment.objects.get(device__device_id="d-1")
    assert (assignment.assigned_by, assignment.source_id, assignment.tenant_id) == ("apikey:3", "req-1", s.tenant_id)
    assert used(s) == {"basic": (1, 2)}


def used(s: Subscription) -> dict[str, tuple[int, int]]:
    return {a.tier.code: (a.slots_used, a.slot_limit) for a in s.allocations.select_related("tier")}


def test_a_device_that_has_a_slot_keeps_it_however_often_it_is_assigned() -> None:
    s = subscription(slots={"basic": 2})
    first = slots.assign(s.tenant_id, "d-1", "basic", **GATEWAY)
    again = slots.assign(s.tenant_id, "d-1", "basic", **GATEWAY | {"now": on(1, 11)})
    assert (again.is_new, again.assigned_at, used(s)) == (False, first.assigned_at, {"basic": (1, 2)})


def test_the_slot_after_the_last_is_refused_with_numbers_and_with_what_would_help() -> None:
    s = subscription(slots={"basic": 1})
    slots.assign(s.tenant_id, "d-1", "basic", **GATEWAY)
    with pytest.raises(NoFreeSlot, match="1 of 1 slots of the tier basic are in use") as refused:
        slots.assign(s.tenant_id, "d-2", "basic", **GATEWAY)
    assert "Release a device" in str(refused.value.facts["would_help"])
    assert {name: refused.value.facts[name] for name in ("tier", "limit", "used", "available")} == {
        "tier": "basic", "limit": 1, "used": 1, "available": 0}  # fmt: skip
    assert not Device.objects.filter(device_id="d-2").exists()


def test_release_and_everything_else() -> None:
    s = subscription(slots={"basic": 1, "premium": 1})
    slots.assign(s.tenant_id, "d-1", "basic", **GATEWAY)
    assert slots.release(s.tenant_id, "d-1", **GATEWAY)
    assert used(s)["basic"] == (0, 1)
    slots.assign(s.tenant_id, "d-1", "basic", **GATEWAY)
    with pytest.raises(TierDiffers):
        slots.assign(s.tenant_id, "d-1", "premium", **GATEWAY)
    slots.change_tier(s.tenant_id, "d-1", "premium", **GATEWAY)
    assert used(s) == {"basic": (0, 1), "premium": (1, 1)}
    addon = subscription(Type.ADDON, parent=s, slots={"premium": 3})
    slots.move(s.tenant_id, "d-1", addon.pk, **GATEWAY)
    assert (used(s)["premium"], used(addon)) == ((0, 1), {"premium": (1, 3)})
    assert slots.delete(s.tenant_id, "d-1", **GATEWAY)
    assert not slots.delete(s.tenant_id, "d-2", **GATEWAY)
    slots.assign(s.tenant_id, "d-1", "basic", **GATEWAY)
