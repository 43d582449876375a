"""What becomes of devices as subscriptions live: from buying to leaving and coming back."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import transaction

from entitlements import limits, slots
from entitlements.access import access
from entitlements.errors import NoFreeSlot, TierNotSold
from entitlements.follow import catch_up, follow
from entitlements.limits import Park
from entitlements.models import Device, SlotAssignment
from subscriptions import lifecycle
from subscriptions.audit import STRIPE
from subscriptions.lifecycle import CancelAt, Purchase
from subscriptions.models import AuditEntry, Subscription
from subscriptions.states import Action, Type
from tests.builders import FEB_1, JAN_1, MAR_1, selling, subscription
from tests.history import advance, broken, by, entries, on, refused, settle
from tests.test_limits import fill, held_by, parked
from tests.test_slots import GATEWAY, used

pytestmark = pytest.mark.django_db


def bought(type: Type = Type.MAIN, *devices: str, slots: int = 3, **more: Any) -> Subscription:
    """A subscription with so many basic slots, and these devices in them."""
    s = subscription(type, slots={"basic": slots}, **more)
    fill(s, *devices)
    return s


def then(entry: AuditEntry | None, at: datetime, park: Park = Park.NEWEST) -> AuditEntry:
    """What follows from a change that somebody made."""
    assert entry is not None
    follow([entry], actor=STRIPE, now=at, park=park)
    return entry


def clock(at: datetime) -> None:
    """Let time pass: the sweep, and what follows from it."""
    follow(advance(at), actor=STRIPE, now=at)


def served(s: Subscription, at: datetime) -> dict[str, str]:
    """Every device of the tenant, and the reason it is served or not."""
    devices = Device.objects.filter(tenant=s.tenant_id, deleted_at=None).order_by("device_id")
    return {d.device_id: access(s.tenant.slug, d.device_id, now=at).reason for d in devices}


@pytest.fixture(autouse=True)
def nothing_leaks() -> Any:
    yield
    assert broken() == []


# --- a trial ---------------------------------------------------------------------------------------------------------


def test_a_trial_that_is_activated_keeps_its_devices_where_they_are_and_gets_the_plans_slots() -> None:
    s = bought(Type.TRIAL, "a", "b")
    plan = selling({"basic": 10, "premium": 2})
    entry = lifecycle.activate(s.pk, purchase=Purchase(plan, on(1, 5), FEB_1), **by(on(1, 5)))
    then(entry, on(1, 5))
    assert (used(s), held_by(s)) == ({"basic": (2, 10), "premium": (0, 2)}, ["a", "b"])
    assert SlotAssignment.objects.count() == 2  # nobody moved


def test_a_trial_that_another_subscription_takes_over_from_hands_its_devices_over_without_a_gap() -> None:
    trial = bought(Type.TRIAL, "a", "b")
    with transaction.atomic():
        purchase = Purchase(selling({"basic": 5}), on(1, 5), FEB_1)
        entry = lifecycle.start(trial.tenant_id, purchase, converts_id=trial.pk, **by(on(1, 5)))
        assert entry is not None
        follow([entry, entries(trial)[-1]], actor=STRIPE, now=on(1, 5))
    main = entry.subscription
    assert (held_by(trial), held_by(main), parked()) == ([], ["a", "b"], [])
    assert served(main, on(1, 5)) == {"a": "ok", "b": "ok"}


def test_a_trial_that_ends_unpaid_withholds_then_parks_its_devices() -> None:
    s = bought(Type.TRIAL, "a", term=(JAN_1, on(1, 10)))
    clock(on(1, 24))
    assert (served(s, on(1, 24)), held_by(s)) == ({"a": "suspended"}, ["a"])
    clock(on(5, 1))
    assert (served(s, on(5, 1)), held_by(s)) == ({"a": "parked"}, [])


# --- suspended, and back ---------------------------------------------------------------------------------------------


def test_a_tenant_that_is_suspended_keeps_its_slots_and_is_served_from_the_second_that_it_is_back() -> None:
    s = bought(Type.MAIN, "a", "b")
    lifecycle.suspend(s.pk, **by(on(1, 5)))
    assert served(s, on(1, 5)) == {"a": "suspended", "b": "suspended"}
    with refused(TierNotSold):
        slots.assign(s.tenant_id, "c", "basic", actor=GATEWAY["actor"], now=on(1, 5))
    then(lifecycle.activate(s.pk, **by(on(1, 6))), on(1, 6))
    assert (served(s, on(1, 6)), used(s)) == ({"a": "ok", "b": "ok"}, {"basic": (2, 3)})


def test_who_waits_gets_the_free_slots_of_what_is_renewed() -> None:
    event = bought(Type.TEMPORARY, "a", slots=1)
    main = subscription(tenant=event.tenant, slots={"basic": 2})
    lifecycle.suspend(main.pk, **by(on(1, 5)))
    then(lifecycle.cancel(event.pk, at=CancelAt.NOW, **by(on(1, 6))), on(1, 6))
    assert parked() == ["a"]
    then(lifecycle.renew(main.pk, term_end=MAR_1, **by(on(1, 7))), on(1, 7))
    assert (parked(), held_by(main)) == ([], ["a"])


def test_a_hold_withholds_and_its_lifting_serves_again() -> None:
    s = bought(Type.MAIN, "a")
    lifecycle.suspend(s.pk, hold=True, **by(on(1, 5)))
    assert served(s, on(1, 5)) == {"a": "suspended"}
    then(lifecycle.lift_hold(s.pk, **by(on(1, 6))), on(1, 6))
    assert served(s, on(1, 6)) == {"a": "ok"}


# --- what ends -------------------------------------------------------------------------------------------------------


def test_an_addon_that_ends_hands_its_devices_to_the_main_subscription_and_parks_the_newest() -> None:
    main = bought(Type.MAIN, "m-1", slots=2)
    addon = bought(Type.ADDON, "a-1", "a-2", slots=2, parent=main)
    then(lifecycle.cancel(addon.pk, at=CancelAt.NOW, **by(on(1, 20))), on(1, 20))
    assert (held_by(main), held_by(addon), parked()) == (["a-1", "m-1"], [], ["a-2"])
    said = entries(addon)[-1]
    assert (said.action, said.changes) == (Action.DEVICES_PARKED, {"parked.basic": [0, 1]})


def test_what_an_addon_that_ended_had_no_room_for_returns_when_somebody_leaves() -> None:
    main = bought(Type.MAIN, "m-1", slots=1)
    addon = bought(Type.ADDON, "a-1", slots=1, parent=main)
    then(lifecycle.cancel(addon.pk, at=CancelAt.NOW, **by(on(1, 20))), on(1, 20))
    slots.delete(main.tenant_id, "m-1", actor=GATEWAY["actor"], now=on(1, 21))
    assert (held_by(main), parked()) == (["a-1"], [])


def test_a_temporary_subscription_that_is_over_leaves_its_devices_parked_and_loses_none() -> None:
    event = bought(Type.TEMPORARY, "a", "b", slots=2, term=(JAN_1, on(1, 12)))
    clock(on(1, 12))
    assert (parked(), served(event, on(1, 12))) == (["a", "b"], {"a": "parked", "b": "parked"})


def test_a_main_that_ends_takes_the_slots_of_its_addons_along() -> None:
    main = bought(Type.MAIN, "m", slots=1)
    bought(Type.ADDON, "a", slots=1, parent=main)
    then(lifecycle.cancel(main.pk, at=CancelAt.NOW, **by(on(1, 20))), on(1, 20))
    assert parked() == ["m", "a"]


def test_a_tenant_that_comes_back_finds_its_devices_in_slots_again() -> None:
    first = bought(Type.MAIN, "a", "b")
    then(lifecycle.cancel(first.pk, at=CancelAt.NOW, **by(on(1, 20))), on(1, 20))
    again = subscription(tenant=first.tenant, slots={"basic": 2}, term=(on(1, 25), MAR_1), now=on(1, 25))
    assert (held_by(again), parked(), served(again, on(1, 25))) == (["a", "b"], [], {"a": "ok", "b": "ok"})


# --- another plan ----------------------------------------------------------------------------------------------------


def test_a_smaller_plan_is_refused_while_devices_need_the_slots_and_nothing_has_happened() -> None:
    s = bought(Type.MAIN, "a", "b")
    smaller = selling({"basic": 1})
    with refused(Exception, "2 devices of the tier basic are in use"), transaction.atomic():  # type: ignore[arg-type]
        then(lifecycle.change_plan(s.pk, plan=smaller, price=None, **by(on(1, 5))), on(1, 5), park=Park.NOBODY)


def test_stripe_is_not_refused_a_smaller_plan_parks_who_came_last_and_a_bigger_one_brings_them_back() -> None:
    s = bought(Type.MAIN, "a", "b", "c")
    bigger, smaller = s.plan, selling({"basic": 1})
    then(lifecycle.change_plan(s.pk, plan=smaller, price=None, actor=STRIPE, now=on(1, 5)), on(1, 5))
    assert (held_by(s), parked(), entries(s)[-1].action) == (["a"], ["b", "c"], Action.DEVICES_PARKED)
    s.refresh_from_db()
    then(lifecycle.change_plan(s.pk, plan=bigger, price=None, actor=STRIPE, now=on(1, 6)), on(1, 6))
    assert (held_by(s), parked()) == (["a", "b", "c"], [])


def test_a_plan_of_other_tiers_parks_the_devices_of_those_that_it_does_not_sell() -> None:
    s = bought(Type.MAIN, "a")
    other = selling({"premium": 5})
    then(lifecycle.change_plan(s.pk, plan=other, price=None, actor=STRIPE, now=on(1, 5)), on(1, 5))
    assert (used(s), parked()) == ({"basic": (0, 0), "premium": (0, 5)}, ["a"])
    slots.assign(s.tenant_id, "a", "premium", actor=GATEWAY["actor"], now=on(1, 6))
    assert parked() == []


# --- by the clock ----------------------------------------------------------------------------------------------------


def test_what_was_sold_ahead_gives_slots_from_its_beginning_on_and_not_before() -> None:
    s = subscription(slots={"basic": 1}, term=(FEB_1, MAR_1), now=on(1, 10))
    with refused(TierNotSold):
        slots.assign(s.tenant_id, "a", "basic", actor=GATEWAY["actor"], now=FEB_1 - timedelta(seconds=1))
    assert slots.assign(s.tenant_id, "a", "basic", actor=GATEWAY["actor"], now=FEB_1).subscription == s.number


def test_a_grace_period_is_full_service_new_devices_too() -> None:
    s = bought(Type.MAIN, "a")
    clock(on(2, 3))
    slots.assign(s.tenant_id, "b", "basic", actor=GATEWAY["actor"], now=on(2, 3))
    assert served(s, on(2, 3)) == {"a": "ok", "b": "ok"}


def test_nothing_is_assigned_from_what_should_have_been_suspended_by_now_though_the_clock_stands_still() -> None:
    s = bought(Type.MAIN, "a")
    late = on(2, 15)  # its grace period is over, and nobody has said so
    assert served(s, late) == {"a": "suspended"}
    with refused(TierNotSold):
        slots.assign(s.tenant_id, "b", "basic", actor=GATEWAY["actor"], now=late)


# --- the devices themselves ------------------------------------------------------------------------------------------


def test_a_device_that_is_deleted_gives_its_slot_back_and_may_be_registered_again() -> None:
    s = bought(Type.MAIN, "a", slots=1)
    slots.delete(s.tenant_id, "a", **GATEWAY)
    assert (used(s), served(s, on(1, 10))) == ({"basic": (0, 1)}, {})
    assert slots.assign(s.tenant_id, "a", "basic", **GATEWAY).is_new
    assert [one.ended for one in SlotAssignment.objects.order_by("pk")] == ["deleted", ""]


def test_a_device_of_the_same_name_at_two_tenants_is_two_devices() -> None:
    ours, theirs = bought(Type.MAIN, "a"), bought(Type.MAIN, "a")
    slots.release(ours.tenant_id, "a", **GATEWAY)
    assert (held_by(ours), held_by(theirs)) == ([], ["a"])


def test_the_most_durable_slot_is_taken_first_and_the_explicit_choice_wins() -> None:
    event = subscription(Type.TEMPORARY, slots={"basic": 1}, term=(JAN_1, MAR_1))
    tenant = event.tenant
    trial = subscription(Type.TRIAL, tenant=tenant, slots={"basic": 1})
    main = subscription(tenant=tenant, slots={"basic": 1})
    addon = subscription(Type.ADDON, parent=main, slots={"basic": 1})
    chosen = slots.assign(tenant.pk, "chosen", "basic", subscription_id=trial.pk, **GATEWAY)
    taken = [slots.assign(tenant.pk, f"d-{n}", "basic", **GATEWAY).subscription for n in range(3)]
    assert (chosen.subscription, taken) == (trial.number, [main.number, addon.number, event.number])
    with refused(NoFreeSlot, "1 of 1 slots"):
        slots.assign(tenant.pk, "late", "basic", subscription_id=trial.pk, **GATEWAY)


def test_of_two_alike_the_one_that_lasts_longer_is_more_durable() -> None:
    short = subscription(Type.TEMPORARY, slots={"basic": 1}, term=(JAN_1, FEB_1))
    long = subscription(Type.TEMPORARY, tenant=short.tenant, slots={"basic": 1}, term=(JAN_1, MAR_1))
    assert slots.assign(short.tenant_id, "a", "basic", **GATEWAY).subscription == long.number


def test_who_waits_gets_what_was_sold_ahead_from_the_instant_that_it_begins() -> None:
    main = bought(Type.MAIN, "a", "b", slots=2)
    limits.resize(main.pk, "basic", 1, park=["b"], **by(on(1, 10)))
    event = subscription(Type.TEMPORARY, tenant=main.tenant, slots={"basic": 1}, term=(on(1, 20), FEB_1), now=on(1, 10))
    assert (catch_up(now=on(1, 19)), parked()) == (0, ["b"])
    assert (catch_up(now=on(1, 20)), parked(), held_by(event)) == (1, [], ["b"])


@pytest.mark.django_db(transaction=True)
def test_what_nobody_followed_is_caught_up_by_the_clocks_job() -> None:
    main = bought(Type.MAIN, "m", slots=1)
    addon = bought(Type.ADDON, "a", slots=1, parent=main)
    lifecycle.cancel(addon.pk, at=CancelAt.NOW, **by(on(1, 20)))  # by somebody who calls the verb and nothing else
    bigger = selling({"basic": 2})
    lifecycle.change_plan(main.pk, plan=bigger, price=None, actor=STRIPE, now=on(1, 21))
    settle()
    assert catch_up(now=on(1, 22)) == 1
    assert (held_by(main), parked(), used(main)) == (["a", "m"], [], {"basic": (2, 2)})
    settle()
    assert catch_up(now=on(1, 22)) == 0
