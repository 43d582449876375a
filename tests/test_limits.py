"""Fewer slots, more slots, who is parked, and who comes back."""

from datetime import datetime

import pytest
from django.db import transaction

from entitlements import bulk, limits, slots
from entitlements.bulk import Wish
from entitlements.errors import InvalidSlots, NoSuchTier, SlotsInUse
from entitlements.features import entitlements_of
from entitlements.follow import follow
from entitlements.limits import Park
from entitlements.models import Device, PlanFeature, PlanSlots, SlotAssignment
from subscriptions import lifecycle
from subscriptions.errors import DomainError, IllegalTransition, ReasonMissing
from subscriptions.models import Subscription
from subscriptions.states import Action, EndReason, Type
from tests.builders import ALICE, giving, subscription, tier
from tests.history import by, entries, nothing_changes, on, refused
from tests.test_slots import GATEWAY, used

pytestmark = pytest.mark.django_db
NOW = on(1, 10)


def filled(count: int, **bought: object) -> Subscription:
    """A subscription with `count` basic slots, all in use by d-0, d-1, …, in this order."""
    s = subscription(slots={"basic": count}, **bought)  # type: ignore[arg-type]
    fill(s, *(f"d-{n}" for n in range(count)))
    return s


def fill(s: Subscription, *devices: str) -> None:
    for device in devices:
        slots.assign(s.tenant_id, device, "basic", subscription_id=s.pk, **GATEWAY)


def parked() -> list[str]:
    """Whoever waits, the longest first."""
    waiting = Device.objects.filter(parked_at__isnull=False).order_by("parked_at", "pk")
    return [*waiting.values_list("device_id", flat=True)]


def held_by(s: Subscription) -> list[str]:
    open_ones = SlotAssignment.objects.filter(allocation__subscription=s, released_at=None)
    return [*open_ones.order_by("device__device_id").values_list("device__device_id", flat=True)]


def resize(s: Subscription, to: int, park: limits.ParkWhom = Park.NOBODY, at: datetime = NOW) -> limits.Limits:
    return limits.resize(s.pk, "basic", to, park=park, **by(at))


# --- the limit and its evidence --------------------------------------------------------------------------------------


def test_what_is_bought_comes_with_the_slots_of_its_plan_and_an_entry_that_says_so() -> None:
    s = subscription(slots={"basic": 50, "premium": 10})
    started, got = entries(s)
    assert used(s) == {"basic": (0, 50), "premium": (0, 10)}
    assert (got.action, got.changes) == (Action.SLOTS_CHANGED, {"slots.basic": [0, 50], "slots.premium": [0, 10]})
    assert (got.version, got.effective_at, got.actor) == (2, started.effective_at, "staff:1")


def test_a_plan_that_sells_no_slots_leaves_no_entry_about_them() -> None:
    assert [entry.action for entry in entries(subscription())] == [Action.STARTED]


def test_more_slots_are_an_entry_with_the_number_before_and_after() -> None:
    s = filled(2)
    entry = resize(s, 5).entry
    assert entry is not None
    assert (entry.action, entry.changes, entry.reason) == (Action.SLOTS_CHANGED, {"slots.basic": [2, 5]}, "as agreed")
    assert used(s) == {"basic": (2, 5)}


def test_the_number_that_it_has_already_changes_nothing() -> None:
    s = filled(2)
    with nothing_changes():
        assert resize(s, 2).entry is None


def test_a_source_resizes_once() -> None:
    s = filled(1)
    limits.resize(s.pk, "basic", 5, **by(NOW, "po-7"))
    limits.resize(s.pk, "basic", 3, **by(NOW, "po-8"))
    with nothing_changes():
        limits.resize(s.pk, "basic", 5, **by(NOW, "po-7"))


@pytest.mark.parametrize("number", [-1, 1_000_001, True, 2.5, "3", None])
def test_what_is_no_number_of_slots_is_refused(number: object) -> None:
    s = filled(1)
    with refused(InvalidSlots):
        limits.resize(s.pk, "basic", number, **by(NOW))  # type: ignore[arg-type]


def test_a_tier_that_there_is_not_is_refused_and_staff_say_why() -> None:
    s = filled(1)
    with refused(NoSuchTier):
        limits.resize(s.pk, "golden", 1, **by(NOW))
    with refused(ReasonMissing):
        limits.resize(s.pk, "basic", 1, actor=ALICE, now=NOW)


def test_what_is_over_has_no_slots_to_change() -> None:
    s = subscription(slots={"basic": 1})
    lifecycle.expire(s.pk, why=EndReason.CANCELLED, **by(NOW))
    with refused(IllegalTransition):
        resize(s, 2)


# --- fewer than are in use -------------------------------------------------------------------------------------------


def test_fewer_slots_than_devices_are_refused_with_numbers_unless_somebody_says_who_is_parked() -> None:
    s = filled(4)
    with refused(SlotsInUse, "4 devices of the tier basic are in use, 2 slots would be left"):
        resize(s, 2)
    with refused(SlotsInUse, "2 slots would be left"):  # one is named, two have to go
        resize(s, 2, ["d-1"])


def test_whom_the_caller_names_are_parked_and_nobody_else() -> None:
    s = filled(4)
    assert resize(s, 2, ["d-0", "d-2"]).parked == {"basic": 2}
    assert (held_by(s), parked(), used(s)) == (["d-1", "d-3"], ["d-0", "d-2"], {"basic": (2, 2)})


def test_a_name_of_a_device_that_is_elsewhere_parks_nobody_there() -> None:
    s, other = filled(2), subscription(slots={"basic": 1})
    slots.assign(other.tenant_id, "theirs", "basic", **GATEWAY)
    with refused(SlotsInUse):
        resize(s, 1, ["theirs"])


def test_by_policy_who_came_last_is_parked_and_the_entry_says_how_many() -> None:
    s = filled(4)
    entry = resize(s, 1, Park.NEWEST).entry
    assert entry is not None
    assert (entry.action, entry.changes) == (
        Action.DEVICES_PARKED,
        {"slots.basic": [4, 1], "parked.basic": [0, 3]},
    )
    assert (held_by(s), parked()) == (["d-0"], ["d-1", "d-2", "d-3"])


def test_the_history_says_who_parked_a_device_and_why() -> None:
    s = filled(1)
    resize(s, 0, Park.NEWEST)
    last = SlotAssignment.objects.get(device__device_id="d-0")
    assert (last.ended, last.released_by, last.released_at, last.end_reason) == ("parked", "staff:1", NOW, "as agreed")


def test_who_loses_a_slot_moves_into_a_free_one_of_the_tenant_before_it_parks() -> None:
    s = filled(3)
    addon = subscription(Type.ADDON, parent=s, slots={"basic": 1})
    assert resize(s, 1, Park.NEWEST).parked == {"basic": 1}
    assert (held_by(s), held_by(addon), parked()) == (["d-0"], ["d-1"], ["d-2"])


# --- who comes back --------------------------------------------------------------------------------------------------


def waiting_in_order() -> Subscription:
    """Three wait for a slot: d-2 since the 10th, d-1 since the 11th, d-3 since the 12th."""
    s = filled(4)
    for day, device in ((10, "d-2"), (11, "d-1"), (12, "d-3")):
        resize(s, used(s)["basic"][1] - 1, [device], on(1, day))
    assert parked() == ["d-2", "d-1", "d-3"]
    return s


def test_a_slot_that_is_released_goes_to_who_waited_longest() -> None:
    s = waiting_in_order()
    slots.release(s.tenant_id, "d-0", actor=GATEWAY["actor"], now=on(1, 13))
    assert (held_by(s), parked()) == (["d-2"], ["d-1", "d-3"])


def test_slots_that_are_new_go_to_who_waited_longest() -> None:
    s = waiting_in_order()
    resize(s, 3, at=on(1, 13))
    assert (held_by(s), parked()) == (["d-0", "d-1", "d-2"], ["d-3"])


def test_an_addon_brings_back_who_waits() -> None:
    s = waiting_in_order()
    addon = subscription(Type.ADDON, parent=s, slots={"basic": 2}, now=on(1, 13))
    assert (held_by(addon), parked()) == (["d-1", "d-2"], ["d-3"])


def test_a_device_that_waits_and_is_released_waits_no_more() -> None:
    s = waiting_in_order()
    assert slots.release(s.tenant_id, "d-2", **GATEWAY)
    resize(s, 4, at=on(1, 13))
    assert (held_by(s), parked()) == (["d-0", "d-1", "d-3"], [])


def test_a_device_that_waits_takes_a_slot_of_another_tier_when_it_is_told_to() -> None:
    s = waiting_in_order()
    limits.resize(s.pk, "premium" if tier("premium") else "", 1, **by(on(1, 13)))
    slots.assign(s.tenant_id, "d-3", "premium", **GATEWAY)
    assert parked() == ["d-2", "d-1"]


# --- the plan --------------------------------------------------------------------------------------------------------


def test_a_plan_that_is_edited_changes_nothing_that_was_sold_until_it_is_synced() -> None:
    s = filled(2)
    PlanSlots.objects.filter(plan=s.plan).update(slots=7)
    PlanSlots.objects.create(plan=s.plan, tier=tier("premium"), slots=1)
    assert used(s) == {"basic": (2, 2)}
    entry = limits.sync_from_plan(s.pk, **by(NOW)).entry
    assert entry is not None
    assert entry.changes == {"slots.basic": [2, 7], "slots.premium": [0, 1]}
    assert used(s) == {"basic": (2, 7), "premium": (0, 1)}


def test_a_tier_that_a_plan_no_longer_sells_is_taken_away_by_a_sync_and_only_then() -> None:
    s = filled(2)
    PlanSlots.objects.filter(plan=s.plan).delete()
    with refused(SlotsInUse):
        limits.sync_from_plan(s.pk, **by(NOW))
    limits.sync_from_plan(s.pk, park=Park.NEWEST, **by(NOW))
    assert (used(s), parked()) == ({"basic": (0, 0)}, ["d-0", "d-1"])


# --- many at once ----------------------------------------------------------------------------------------------------


def wishes(*devices: str) -> list[Wish]:
    return [Wish(device, "basic") for device in devices]


def test_many_get_slots_of_the_most_durable_first_in_the_order_of_the_wishes() -> None:
    event = subscription(Type.TEMPORARY, slots={"basic": 2})
    main = subscription(tenant=event.tenant, slots={"basic": 2})
    got = bulk.assign_many(main.tenant_id, wishes("c", "a", "b"), **GATEWAY)
    assert [(o.device_id, o.slot and o.slot.subscription) for o in got] == [
        ("c", main.number), ("a", main.number), ("b", event.number)]  # fmt: skip


def test_all_or_nothing_gives_nobody_a_slot_where_one_has_none_and_says_which() -> None:
    s = filled(2)
    resize(s, 3)
    with refused(DomainError, "2 of 3 slots of the tier basic are in use, 2 more are wanted"):
        bulk.assign_many(s.tenant_id, wishes("d-0", "new-1", "new-2"), **GATEWAY)


def test_per_item_whoever_can_gets_a_slot_and_each_other_is_told_why() -> None:
    s = filled(2)
    resize(s, 3)
    asked = [*wishes("new-1", "d-0", "new-2", "bad id"), Wish("x", "golden"), Wish("d-1", "premium"), *wishes("new-1")]
    tier("premium")
    got = bulk.assign_many(s.tenant_id, asked, all_or_nothing=False, **GATEWAY)
    assert [o.error.code if o.error else o.slot and o.slot.is_new for o in got] == [
        True, False, "no_free_slot", "invalid_device_id", "no_such_tier", "tier_differs", True]  # fmt: skip
    assert used(s) == {"basic": (3, 3)}


def test_up_to_a_thousand_devices_take_the_statements_that_one_takes(django_assert_num_queries: object) -> None:
    s = subscription(slots={"basic": 1002})
    with django_assert_num_queries(5):  # type: ignore[operator]  # begin, lock, lock, assign, commit
        bulk.assign_many(s.tenant_id, wishes("one"), **GATEWAY)
    with django_assert_num_queries(5):  # type: ignore[operator]
        bulk.assign_many(s.tenant_id, wishes(*(f"d-{n}" for n in range(1000))), **GATEWAY)
    with nothing_changes(), pytest.raises(DomainError, match="1001 devices, where up to 1000"):
        bulk.assign_many(s.tenant_id, wishes(*(f"e-{n}" for n in range(1001))), **GATEWAY)


def test_features_that_were_sold_stay_as_they_were_until_they_are_synced() -> None:
    s = subscription(plan=giving(api=100, sso=True))
    PlanFeature.objects.filter(plan=s.plan, feature__code="api").update(amount=50)
    PlanFeature.objects.filter(plan=s.plan, feature__code="sso").delete()
    before = entitlements_of(s.tenant_id, NOW)
    entry = limits.sync_from_plan(s.pk, **by(NOW)).entry
    after = entitlements_of(s.tenant_id, NOW)
    assert [(e.quotas[0].limit, e.switches) for e in (before, after)] == [(100, {"sso": True}), (50, {"sso": False})]
    assert entry is not None
    assert entry.changes == {"features.api": [100, 50], "features.sso": [1, 0]}


def test_another_plan_gives_its_own_features_from_now_on() -> None:
    s = subscription(plan=giving(api=100))
    with transaction.atomic():
        entry = lifecycle.change_plan(s.pk, plan=giving(api=500), price=None, **by(NOW))
        assert entry is not None
        follow([entry], **by(NOW))
    assert entitlements_of(s.tenant_id, NOW).quotas[0].limit == 500
