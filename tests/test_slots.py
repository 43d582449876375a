"""One device and its slot: taken, kept, changed, given back."""

from typing import Any

import pytest

from entitlements import limits, slots
from entitlements.errors import DeviceNotFound, NoFreeSlot, NoSuchTier, NotAssigned, TierDiffers
from entitlements.models import Device, SlotAssignment
from subscriptions.audit import Actor
from subscriptions.models import Subscription
from subscriptions.states import Type
from tests.builders import subscription
from tests.history import by, nothing_changes, on, refused

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


def test_a_device_that_is_released_gives_its_slot_back_and_stays_registered() -> None:
    s = subscription(slots={"basic": 1})
    slots.assign(s.tenant_id, "d-1", "basic", **GATEWAY)
    assert slots.release(s.tenant_id, "d-1", reason="dismantled", **GATEWAY)
    left = SlotAssignment.objects.get()
    assert (left.ended, left.released_by, left.released_at, left.end_reason) == (
        "released", "apikey:3", NOW, "dismantled")  # fmt: skip
    assert (used(s), Device.objects.get().deleted_at) == ({"basic": (0, 1)}, None)
    assert not slots.release(s.tenant_id, "d-1", **GATEWAY)


def test_a_device_that_nobody_registered_is_released_moved_and_changed_by_nobody() -> None:
    s = subscription(slots={"basic": 1})
    with refused(DeviceNotFound):
        slots.release(s.tenant_id, "d-1", **GATEWAY)
    with refused(DeviceNotFound):
        slots.move(s.tenant_id, "d-1", s.pk, **GATEWAY)
    with refused(DeviceNotFound):
        slots.change_tier(s.tenant_id, "d-1", "basic", **GATEWAY)
    with nothing_changes():
        assert not slots.delete(s.tenant_id, "d-1", **GATEWAY)


def test_to_assign_another_tier_is_refused_and_to_change_the_tier_does_it() -> None:
    s = subscription(slots={"basic": 1, "premium": 1})
    slots.assign(s.tenant_id, "d-1", "basic", **GATEWAY)
    with refused(TierDiffers, "d-1 has a slot of the tier basic"):
        slots.assign(s.tenant_id, "d-1", "premium", **GATEWAY)
    assert slots.change_tier(s.tenant_id, "d-1", "premium", **GATEWAY).tier == "premium"
    assert used(s) == {"basic": (0, 1), "premium": (1, 1)}


def test_who_changes_into_a_tier_without_room_or_that_there_is_not_keeps_its_slot() -> None:
    s = subscription(slots={"basic": 1, "premium": 1})
    slots.assign(s.tenant_id, "d-1", "basic", **GATEWAY)
    slots.assign(s.tenant_id, "d-2", "premium", **GATEWAY)
    with refused(NoFreeSlot, "1 of 1 slots of the tier premium"):
        slots.change_tier(s.tenant_id, "d-1", "premium", **GATEWAY)
    with refused(NoSuchTier, "no device tier golden"):
        slots.change_tier(s.tenant_id, "d-1", "golden", **GATEWAY)


def test_a_device_is_moved_into_a_slot_of_another_subscription() -> None:
    s = subscription(slots={"premium": 1})
    addon = subscription(Type.ADDON, parent=s, slots={"premium": 3})
    slots.assign(s.tenant_id, "d-1", "premium", subscription_id=s.pk, **GATEWAY)
    moved = slots.move(s.tenant_id, "d-1", addon.pk, **GATEWAY)
    assert (moved.subscription, used(s), used(addon)) == (addon.number, {"premium": (0, 1)}, {"premium": (1, 3)})
    with nothing_changes():
        assert not slots.move(s.tenant_id, "d-1", addon.pk, **GATEWAY).is_new


def test_who_waits_gets_the_slot_that_a_device_left_for_another_tier() -> None:
    s = subscription(slots={"basic": 2, "premium": 1})
    slots.assign(s.tenant_id, "d-1", "basic", **GATEWAY)
    slots.assign(s.tenant_id, "d-2", "basic", **GATEWAY)
    limits.resize(s.pk, "basic", 1, park=["d-2"], **by(NOW))
    slots.change_tier(s.tenant_id, "d-1", "premium", **GATEWAY)
    assert used(s) == {"basic": (1, 1), "premium": (1, 1)}
    assert not Device.objects.filter(parked_at__isnull=False).exists()


def test_a_device_without_a_slot_is_not_moved() -> None:
    s = subscription(slots={"basic": 1})
    slots.assign(s.tenant_id, "d-1", "basic", **GATEWAY)
    slots.release(s.tenant_id, "d-1", **GATEWAY)
    with refused(NotAssigned):
        slots.move(s.tenant_id, "d-1", s.pk, **GATEWAY)
