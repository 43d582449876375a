"""Plans that are sold by the device: one that is deleted lowers the quantity that is paid for, here and at Stripe."""

from typing import Any

import pytest
from django.utils import timezone

from entitlements import limits, slots
from entitlements.models import PlanSlots
from subscriptions.audit import Actor
from subscriptions.models import AuditCursor, Subscription
from subscriptions.states import Action
from tests.builders import ALICE, PlanPriceFactory, selling
from tests.history import at_once, entries, settle
from tests.stripe_sandbox.client import Sandbox
from tests.test_limits import parked
from tests.test_outbound import bought, deliver, link, ring, there
from tests.test_slots import used
from webhooks.catalogue import price_at_stripe
from webhooks.outgoing import by_device

pytestmark = pytest.mark.django_db(transaction=True)

BY: dict[str, Any] = {"actor": Actor.api_key(3)}


def fleet(
    stripe: Sandbox, quantity: int, devices: int, *, slots_per_unit: int = 1, is_by_device: bool = True
) -> Subscription:
    """So many units bought at Stripe, so many devices in slots, and everything before has been looked at."""
    price = PlanPriceFactory.create(plan=selling({"basic": slots_per_unit}))
    PlanSlots.objects.update(by_device=is_by_device)
    s = bought(stripe, price=price)
    item = there(stripe, s)["items"]["data"][0]["id"]
    items = [{"id": item, "price": price_at_stripe(price), "quantity": quantity}]
    stripe.api("POST", f"/v1/subscriptions/{link(s)}", items=items)

    if quantity > 1:
        assert ring(s) == "quantity changed"
    for number in range(devices):
        slots.assign(s.tenant_id, f"d{number}", "basic", now=timezone.now(), **BY)
    look()
    s.refresh_from_db()
    assert (s.quantity, used(s)) == (quantity, {"basic": (devices, quantity * slots_per_unit)})
    return s


def look() -> int:
    settle()
    return by_device.lower(now=timezone.now())


def delete(s: Subscription, *devices: str) -> None:
    for device in devices:
        assert slots.delete(s.tenant_id, device, now=timezone.now(), **BY)


def quantity(s: Subscription) -> int:
    s.refresh_from_db()
    return s.quantity


def test_a_device_that_is_deleted_is_paid_for_no_more(stripe: Sandbox) -> None:
    s = fleet(stripe, 3, 3)
    delete(s, "d1")
    assert (look(), look()) == (1, 0)
    assert (quantity(s), used(s)) == (2, {"basic": (2, 2)})
    entry = next(entry for entry in entries(s) if entry.changes.get("quantity") == [3, 2])
    assert (entry.action, entry.actor, entry.reason) == (Action.QUANTITY_CHANGED, "clock", by_device.REASON)
    assert deliver() == ["told"]
    assert there(stripe, s)["items"]["data"][0]["quantity"] == 2


def test_units_that_were_bought_ahead_stay(stripe: Sandbox) -> None:
    s = fleet(stripe, 10, 3)
    assert look() == 0
    delete(s, "d1", "d2")
    assert (look(), quantity(s)) == (1, 8)


def test_a_unit_of_several_slots_goes_when_the_devices_left_need_it_no_more_and_the_last_unit_stays(
    stripe: Sandbox,
) -> None:
    s = fleet(stripe, 2, 7, slots_per_unit=5)
    delete(s, "d0")
    assert (look(), quantity(s)) == (0, 2)
    delete(s, "d1")
    assert (look(), quantity(s)) == (1, 1)
    delete(s, "d2", "d3", "d4", "d5", "d6")
    assert (look(), quantity(s)) == (0, 1)


def test_a_plan_that_is_not_sold_by_the_device_a_released_slot_and_a_device_that_came_back_change_nothing(
    stripe: Sandbox,
) -> None:
    s = fleet(stripe, 3, 3)
    slots.release(s.tenant_id, "d0", now=timezone.now(), **BY)
    delete(s, "d1")
    slots.assign(s.tenant_id, "d1", "basic", now=timezone.now(), **BY)
    assert (look(), quantity(s)) == (0, 3)
    PlanSlots.objects.update(by_device=False)
    delete(s, "d1")
    assert (look(), quantity(s)) == (0, 3)


def test_who_is_parked_takes_the_slot_and_the_quantity_stays(stripe: Sandbox) -> None:
    s = fleet(stripe, 2, 2)
    limits.resize(s.pk, "basic", 1, park=limits.Park.NEWEST, actor=ALICE, now=timezone.now(), reason="smaller")
    assert parked() == ["d1"]
    look()
    delete(s, "d0")
    assert (look(), quantity(s), parked()) == (1, 1, [])  # two units, one device


def test_a_device_that_comes_at_the_same_moment_keeps_its_slot_or_finds_none(stripe: Sandbox) -> None:
    s = fleet(stripe, 3, 3)
    for turn in range(3):
        delete(s, f"d{turn}" if turn == 0 else f"n{turn - 1}")
        settle()
        at_once(
            lambda: by_device.lower(now=timezone.now()),
            lambda turn=turn: slots.assign(s.tenant_id, f"n{turn}", "basic", now=timezone.now(), **BY),  # type: ignore[misc]
        )
        ((in_use, limit),) = used(s).values()
        assert in_use <= limit == quantity(s)
        if quantity(s) < 3:
            break


def test_while_it_is_lowered_nobody_takes_a_slot(stripe: Sandbox) -> None:
    s = fleet(stripe, 2, 2)
    delete(s, "d0")
    settle()
    slots.assign(s.tenant_id, "new", "basic", now=timezone.now(), **BY)
    assert (by_device.lower(now=timezone.now()), quantity(s)) == (0, 2)


def test_killed_before_it_noted_how_far_it_came_it_lowers_nothing_twice(stripe: Sandbox) -> None:
    s = fleet(stripe, 10, 5)
    cursor = AuditCursor.objects.filter(reader=by_device.READER)
    began = cursor.get().transaction_id
    delete(s, "d0")
    assert (look(), quantity(s)) == (1, 9)
    cursor.update(transaction_id=began)
    assert (look(), quantity(s)) == (0, 9)


def test_the_first_look_ever_only_notes_where_to_begin(stripe: Sandbox) -> None:
    s = fleet(stripe, 3, 3)
    AuditCursor.objects.all().delete()
    delete(s, "d0")
    assert (look(), quantity(s)) == (0, 3)


def test_a_look_where_nothing_is_to_be_lowered_takes_five_statements_in_all(
    stripe: Sandbox, django_assert_num_queries: Any
) -> None:
    s = fleet(stripe, 1, 1)
    delete(s, "d0")
    settle()
    with django_assert_num_queries(5):  # the cursor is locked (3), who left, the cursor moves
        by_device.lower(now=timezone.now())
    assert quantity(s) == 1
