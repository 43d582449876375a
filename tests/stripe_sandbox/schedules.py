"""Subscription schedules: what a subscription will be in its next phases, and the moment at which a phase begins."""

from .billing import OVER, UPDATED, cancel, collect_change, leave_pending, take_pending
from .changes import Bill, Edit, carry_out, draft_of
from .ids import new_id
from .invoices import draw_up
from .items import items_of, period_end
from .periods import add_interval
from .shapes import list_of, subscription_item
from .store import Obj
from .world import World

KIND = "subscription_schedule"


def schedule_for(world: World, subscription: Obj) -> Obj | None:
    """The live schedule of a subscription, if it has one."""
    return world.store.get(KIND, subscription["schedule"]) if subscription["schedule"] else None


def attach(world: World, subscription: Obj, *, metadata: Obj, now: int) -> Obj:
    """A schedule whose only phase is the subscription as it is, to the end of its period."""
    start = min(item["current_period_start"] for item in items_of(subscription))
    given: Obj = {"items": [_plain(item) for item in items_of(subscription)]}
    schedule = {
        "id": new_id(KIND),
        "object": KIND,
        "application": None,
        "billing_mode": dict(subscription["billing_mode"]),
        "canceled_at": None,
        "completed_at": None,
        "created": now,
        "current_phase": None,
        "customer": subscription["customer"],
        "customer_account": None,
        "default_settings": {
            "application_fee_percent": None,
            "automatic_tax": {"disabled_reason": None, "enabled": False, "liability": None},
            "billing_cycle_anchor": "automatic",
            "billing_thresholds": None,
            "collection_method": subscription["collection_method"],
            "default_payment_method": None,
            "description": None,
            "invoice_settings": {"account_tax_ids": None, "days_until_due": None, "issuer": {"type": "self"}},
            "on_behalf_of": None,
            "transfer_data": None,
        },
        "end_behavior": "release",
        "livemode": False,
        "metadata": metadata,
        "phases": [phase_of(given, start=start, end=period_end(subscription), currency=subscription["currency"])],
        "released_at": None,
        "released_subscription": None,
        "status": "active",
        "subscription": subscription["id"],
        "test_clock": subscription["test_clock"],
    }
    point_at(schedule, now=now)
    world.emit(f"{KIND}.created", world.put(schedule), now=now)
    with world.updating(subscription, UPDATED, now=now):
        subscription["schedule"] = schedule["id"]
    return schedule


def note_items(world: World, subscription: Obj) -> None:
    """The items were changed past the schedule: its current phase has them too, the coming ones stay as they are."""
    schedule = schedule_for(world, subscription)
    if schedule is None or schedule["current_phase"] is None:
        return
    for phase in schedule["phases"]:
        if phase["start_date"] == schedule["current_phase"]["start_date"]:
            given = {"items": [_plain(item) for item in items_of(subscription)]}
            phase["items"] = phase_of(given, start=0, end=0, currency="")["items"]
            world.put(schedule)


def phase_of(given: Obj, *, start: int, end: int, currency: str) -> Obj:
    return {
        "add_invoice_items": [],
        "application_fee_percent": None,
        "billing_cycle_anchor": None,
        "billing_thresholds": None,
        "collection_method": None,
        "currency": currency,
        "default_payment_method": None,
        "default_tax_rates": [],
        "description": given.get("description"),
        "discounts": [],
        "end_date": end,
        "invoice_settings": None,
        "items": [
            {
                "billing_thresholds": None,
                "discounts": [],
                "metadata": item.get("metadata") or {},
                "price": item["price"],
                "quantity": item.get("quantity", 1),
                "tax_rates": [],
            }
            for item in given["items"]
        ],
        "metadata": given.get("metadata") or {},
        "on_behalf_of": None,
        "proration_behavior": given.get("proration_behavior", "create_prorations"),
        "start_date": start,
        "transfer_data": None,
        "trial_end": None,
    }


def point_at(schedule: Obj, *, now: int) -> None:
    """Say which phase is the current one."""
    current = next((p for p in schedule["phases"] if p["start_date"] <= now < p["end_date"]), schedule["phases"][-1])
    schedule["current_phase"] = {"end_date": current["end_date"], "start_date": current["start_date"]}


def next_boundary(schedule: Obj) -> int:
    """When the current phase ends."""
    return int(schedule["current_phase"]["end_date"])


def turn(world: World, subscription: Obj, *, now: int) -> None:
    """The current phase ends: the next one begins, or the schedule is over and lets the subscription go."""
    schedule = schedule_for(world, subscription)
    assert schedule is not None
    at = next_boundary(schedule)
    following = next((phase for phase in schedule["phases"] if phase["start_date"] == at), None)
    if following is None:
        end(world, schedule, subscription, now=now)
        return
    schedule["current_phase"] = {"end_date": following["end_date"], "start_date": at}
    world.emit(f"{KIND}.updated", world.put(schedule), now=now)
    become(world, subscription, following, behaviour=following["proration_behavior"], at=at, now=now)


def turn_with_period(world: World, subscription: Obj, *, now: int) -> None:
    """The side door renews ahead of time: phases that end with the present period or before it end now."""
    for _ in range(len((schedule_for(world, subscription) or {}).get("phases", ()))):
        schedule = schedule_for(world, subscription)
        if subscription["status"] != "active" or schedule is None or schedule["current_phase"] is None:
            return
        if next_boundary(schedule) > period_end(subscription):
            return
        turn(world, subscription, now=now)


def end(world: World, schedule: Obj, subscription: Obj, *, now: int) -> None:
    if schedule["end_behavior"] == "cancel":
        schedule |= {"status": "completed", "completed_at": now, "current_phase": None}
        world.emit(f"{KIND}.completed", world.put(schedule), now=now)
        cancel(world, subscription, now=now)
    else:
        release(world, schedule, subscription, now=now)


def release(world: World, schedule: Obj, subscription: Obj, *, now: int) -> None:
    """The subscription goes on as it is, and the schedule has no more to do with it."""
    schedule |= {"status": "released", "released_at": now, "released_subscription": subscription["id"]}
    schedule |= {"subscription": None, "current_phase": None}
    world.emit(f"{KIND}.released", world.put(schedule), now=now)
    with world.updating(subscription, UPDATED, now=now):
        subscription["schedule"] = None


def abandon(world: World, schedule: Obj, subscription: Obj, *, now: int) -> None:
    """Cancel the schedule and its subscription."""
    schedule |= {"status": "canceled", "canceled_at": now, "current_phase": None}
    world.emit(f"{KIND}.canceled", world.put(schedule), now=now)
    if subscription["status"] not in OVER:
        cancel(world, subscription, now=now)


def become(world: World, subscription: Obj, phase: Obj, *, behaviour: str, at: int, now: int) -> None:
    """Its items are the phase's after; a difference inside a period is prorated as ``behaviour`` says."""
    draft = draft_of(subscription)
    if at >= period_end(draft):
        _swap(world, draft, phase, now=now)
        bill = Bill()
    else:
        bill = carry_out(draft, _edits(world, draft, phase), {"proration_behavior": behaviour}, at=at, now=now)
    charges = take_pending(draft) + bill.charges if bill.at_once else []
    if not bill.at_once:
        leave_pending(draft, bill.charges)
    invoice = None
    with world.updating(subscription, UPDATED, now=now):
        subscription.clear()
        subscription |= draft
        if charges:
            at_once = (now, now)
            invoice = draw_up(world, subscription, charges, reason="subscription_update", period=at_once, now=now)
    if invoice:
        collect_change(world, subscription, invoice, attempt=True, now=now)


def _edits(world: World, draft: Obj, phase: Obj) -> list[Edit]:
    """From the items as they are to those of the phase; the same price is the same item."""
    wanted = {item["price"]: item for item in phase["items"]}
    edits: list[Edit] = []
    for item in items_of(draft):
        asked = wanted.pop(item["price"]["id"], None)
        edits.append((item, None, {"quantity": asked["quantity"]} if asked else {"deleted": True}))
    return edits + [(None, world.need("price", price_id), _asked(item)) for price_id, item in wanted.items()]


def _swap(world: World, draft: Obj, phase: Obj, *, now: int) -> None:
    """At the end of a period: nothing to prorate, and the renewal that follows bills what stands here then."""
    due = period_end(draft)
    present = {item["price"]["id"]: item for item in items_of(draft)}
    before, items = items_of(draft)[0], []
    for wanted in phase["items"]:
        item = present.get(wanted["price"])
        if item is None:
            price = world.need("price", wanted["price"])
            start = before["current_period_start"]
            item = subscription_item(price, _asked(wanted), subscription_id=draft["id"], start=start, end=due, now=now)
            if price["recurring"]["interval"] != before["price"]["recurring"]["interval"]:
                draft["billing_cycle_anchor"] = due
        item["quantity"] = wanted["quantity"]
        items.append(item)
    draft["items"] = list_of(items, draft["items"]["url"])


def _plain(item: Obj) -> Obj:
    return {"price": item["price"]["id"], "quantity": item["quantity"], "metadata": dict(item["metadata"])}


def _asked(item: Obj) -> Obj:
    return {"quantity": item["quantity"], "metadata": item["metadata"]}


def end_of_phase(world: World, given: Obj, *, start: int) -> int:
    """Its ``end_date``, or its ``duration`` after the start, or one interval of its first price."""
    if "end_date" in given:
        return int(given["end_date"])
    span = given.get("duration") or world.need("price", given["items"][0]["price"])["recurring"]
    return add_interval(start, span["interval"], span.get("interval_count", 1))
