"""Subscriptions, as their owner's program sees them."""

from typing import Any

from . import accepted, shapes
from .billing import (
    OVER,
    UPDATED,
    add_item,
    announce_birth,
    begin,
    cancel,
    card_of,
    end_trial,
    fail,
    full_price,
    items_of,
    period_end,
    schedule_end,
    settle_invoice,
    unpause,
)
from .calls import Call, route, within
from .errors import StripeError, card_declined, missing_param
from .invoices import Charge, draw_up
from .periods import DAY, next_end
from .store import Obj

NO_CARD = (
    "This customer has no attached payment source or default payment method. "
    "Please consider adding a default payment method."
)


@route("POST", "/v1/subscriptions", accepted.SUBSCRIPTION_CREATE)
def create(call: Call) -> Obj:
    given, world, now = call.params, call.world, call.now
    customer = call.refer("customer", given["customer"])
    orders = orders_from(call, given.get("items", []))
    given["trial_end"] = trial_end_from(given, now=now)
    _check_anchor(given, orders, now=now)
    subscription = shapes.subscription(given, customer_id=customer["id"], currency=orders[0][0]["currency"], now=now)
    card, behaviour = card_of(world, subscription), given.get("payment_behavior", "allow_incomplete")
    charged = given["trial_end"] is None and subscription["collection_method"] == "charge_automatically"
    if charged and behaviour != "default_incomplete":
        if card == "none":
            raise StripeError(NO_CARD, code="resource_missing")
        if card == "declined" and behaviour == "error_if_incomplete":
            raise card_declined()
    begin(world, subscription, orders, given, now=now)
    _plan_end(subscription, given, now=now)
    world.put(subscription)
    tried = charged and behaviour != "default_incomplete" and subscription["status"] == "incomplete"
    announce_birth(world, subscription, paid=tried and card == "ok", now=now)
    if tried and card == "declined":
        fail(world, subscription, now=now)
    return call.show(subscription)


@route("GET", "/v1/subscriptions", accepted.SUBSCRIPTION_LIST)
def list_all(call: Call) -> Obj:
    given = call.params
    status, price = given.get("status"), given.get("price")

    def wanted(subscription: Obj) -> bool:
        items = items_of(subscription)
        return (
            _status_matches(subscription["status"], status)
            and given.get("customer") in (None, subscription["customer"])
            and given.get("collection_method") in (None, subscription["collection_method"])
            and (price is None or any(item["price"]["id"] == price for item in items))
            and all(
                any(within(item[name], given[name]) for item in items)
                for name in ("current_period_start", "current_period_end")
                if name in given
            )
        )

    return call.page(filter(wanted, call.world.store.all("subscription").values()))


def _status_matches(status: str, asked: str | None) -> bool:
    match asked:
        case None:
            return status != "canceled"
        case "all":
            return True
        case "ended":
            return status in OVER
        case _:
            return status == asked


@route("GET", "/v1/subscriptions/{}", accepted.PLAIN)
def retrieve(call: Call) -> Obj:
    return call.show(call.find("subscription", call.ids[0]))


@route("POST", "/v1/subscriptions/{}", accepted.SUBSCRIPTION_UPDATE)
def update(call: Call) -> Obj:
    subscription, given, now = call.find("subscription", call.ids[0]), call.params, call.now
    changes = set(given) - {"expand"}
    if subscription["status"] in OVER and changes - {"metadata", "cancellation_details"}:
        raise StripeError("A canceled subscription can only update its cancellation_details and metadata.")
    edits = _edits_from(call, subscription, given.get("items", []))
    trial_end = given.get("trial_end")
    with call.world.updating(subscription, UPDATED, now=now):
        _copy_plain(subscription, given)
        _plan_end(subscription, given, now=now)
        bill = _apply_edits(call, subscription, edits, given)
        if isinstance(trial_end, int):
            subscription |= {"trial_end": trial_end, "status": "trialing", "billing_cycle_anchor": trial_end}
            for item in items_of(subscription):
                item["current_period_end"] = trial_end
    if bill is not None:
        settle_invoice(call.world, bill, now=now)
    if trial_end == "now" and subscription["status"] == "trialing":
        end_trial(call.world, subscription, paid=card_of(call.world, subscription) == "ok", now=now)
    return call.show(subscription)


@route("DELETE", "/v1/subscriptions/{}", accepted.SUBSCRIPTION_CANCEL)
def delete(call: Call) -> Obj:
    subscription = call.find("subscription", call.ids[0])
    if subscription["status"] in OVER:
        raise StripeError(
            f"No such subscription: '{subscription['id']}'", status=404, code="resource_missing", param="id"
        )
    subscription["cancellation_details"] |= call.params.get("cancellation_details", {})
    cancel(call.world, subscription, now=call.now)
    return call.show(subscription)


@route("POST", "/v1/subscriptions/{}/resume", accepted.SUBSCRIPTION_RESUME)
def resume(call: Call) -> Obj:
    subscription = call.find("subscription", call.ids[0])
    if subscription["status"] != "paused":
        message = f"Subscription {subscription['id']} is not paused, so it cannot be resumed."
        raise StripeError(message, code="subscription_not_paused")
    unpause(call.world, subscription, paid=card_of(call.world, subscription) == "ok", now=call.now)
    return call.show(subscription)


# reading what was asked


def orders_from(call: Call, asked: list[Obj], *, param: str = "items") -> list[tuple[Obj, Obj]]:
    """(price, what was asked) for each item. Raises StripeError for what cannot be subscribed to."""
    if not asked:
        raise missing_param(param)
    orders = []
    for index, item in enumerate(asked):
        if not item.get("price"):
            raise missing_param(f"{param}[{index}][price]")
        orders.append((price_for(call, item["price"], param=f"{param}[{index}][price]"), item))
    if len({price["currency"] for price, _ in orders}) > 1:
        raise StripeError("All prices of a subscription must have the same currency.", param=param)
    if len({price["id"] for price, _ in orders}) < len(orders):
        raise StripeError("Cannot add multiple subscription items with the same price.", param=param)
    return orders


def price_for(call: Call, price_id: str, *, param: str) -> Obj:
    price = call.refer("price", price_id, param=param)
    if not price["active"]:
        raise StripeError("The price specified is inactive. This field only accepts active prices.", param=param)
    if price["type"] != "recurring":
        message = (
            "The price specified is set to `type=one_time` but this field only accepts prices with `type=recurring`."
        )
        raise StripeError(message, param=param)
    return price


def trial_end_from(given: Obj, *, now: int) -> int | None:
    end = given.get("trial_end")
    if end == "now":
        return None
    if end is None:
        return now + given["trial_period_days"] * DAY if "trial_period_days" in given else None
    if end <= now:
        raise StripeError("Invalid timestamp: must be an integer Unix timestamp in the future.", param="trial_end")
    return int(end)


def _check_anchor(given: Obj, orders: list[tuple[Obj, Obj]], *, now: int) -> None:
    anchor = given.get("billing_cycle_anchor")
    if anchor is None:
        return
    if anchor <= now:
        message = "Invalid timestamp: must be an integer Unix timestamp in the future."
        raise StripeError(message, param="billing_cycle_anchor")
    for price, _ in orders:
        recurring = price["recurring"]
        if anchor > next_end(now, now, recurring["interval"], recurring["interval_count"]):
            message = "billing_cycle_anchor cannot be later than next natural billing date"
            raise StripeError(message, param="billing_cycle_anchor")


check_anchor = _check_anchor


# carrying out a change


def _copy_plain(subscription: Obj, given: Obj) -> None:
    for name in ("collection_method", "days_until_due"):
        if name in given:
            subscription[name] = given[name]
    for name in ("default_payment_method", "description", "pause_collection"):
        if name in given:
            subscription[name] = given[name] or None
    if subscription["pause_collection"]:
        subscription["pause_collection"].setdefault("resumes_at", None)
    subscription["payment_settings"] |= given.get("payment_settings", {})
    subscription["cancellation_details"] |= given.get("cancellation_details", {})
    if "trial_settings" in given:
        subscription["trial_settings"] = given["trial_settings"]
    if "metadata" in given:
        subscription["metadata"] = shapes.relabel(subscription["metadata"], given["metadata"])


def _plan_end(subscription: Obj, given: Obj, *, now: int) -> None:
    if "cancel_at" in given:
        at: Any = given["cancel_at"]
        ends = [item["current_period_end"] for item in items_of(subscription)]
        at = {"min_period_end": min(ends), "max_period_end": max(ends), "": None}.get(at, at)
        if at is not None and at <= now:
            raise StripeError("Invalid timestamp: must be an integer Unix timestamp in the future.", param="cancel_at")
        schedule_end(subscription, at=at, at_period_end=False, now=now)
    elif "cancel_at_period_end" in given:
        wanted = given["cancel_at_period_end"]
        if wanted != subscription["cancel_at_period_end"] or (not wanted and subscription["cancel_at"]):
            at = period_end(subscription) if wanted else None
            schedule_end(subscription, at=at, at_period_end=wanted, now=now)


Edit = tuple[Obj | None, Obj | None, Obj]  # the item (None: a new one), its new price (None: as it is), what was asked


def _edits_from(call: Call, subscription: Obj, asked: list[Obj]) -> list[Edit]:
    """Checked before anything is changed. Raises StripeError."""
    present = {item["id"]: item for item in items_of(subscription)}
    taken = {item["price"]["id"]: item["id"] for item in items_of(subscription)}
    edits: list[Edit] = []
    for index, edit in enumerate(asked):
        price = price_for(call, edit["price"], param=f"items[{index}][price]") if "price" in edit else None
        if "id" in edit:
            if edit["id"] not in present:
                message = f"No such subscription_item: '{edit['id']}'"
                raise StripeError(message, code="resource_missing", param=f"items[{index}][id]")
            edits.append((present[edit["id"]], price, edit))
            continue
        if price is None:
            raise missing_param(f"items[{index}][price]")
        if price["id"] in taken:
            message = f"Cannot add multiple subscription items with the same plan: {price['id']}"
            raise StripeError(message, param="items")
        edits.append((None, price, edit))
    gone = sum(1 for item, _, edit in edits if item and edit.get("deleted"))
    if gone and gone >= len(present) + sum(1 for item, _, _ in edits if item is None):
        raise StripeError("A subscription must have at least one active plan. To cancel it, delete it.", param="items")
    return edits


def _apply_edits(call: Call, subscription: Obj, edits: list[Edit], given: Obj) -> Obj | None:
    """The items after; an open invoice if the change is to be billed at once.

    Prorations that Stripe would collect with the next invoice are not modelled.
    """
    now, before = call.now, sum(map(full_price, items_of(subscription)))
    restarted = given.get("billing_cycle_anchor") == "now"
    for item, price, asked in edits:
        if item is None:
            assert price is not None
            item = add_item(subscription, price, asked, anchor=subscription["billing_cycle_anchor"], now=now)
            continue
        if asked.get("deleted"):
            items_of(subscription).remove(item)
            continue
        if price is not None:
            restarted |= price["recurring"]["interval"] != item["price"]["recurring"]["interval"]
            item["price"] = price
        if "quantity" in asked:
            item["quantity"] = asked["quantity"]
        if "metadata" in asked:
            item["metadata"] = shapes.relabel(item["metadata"], asked["metadata"])
    if subscription["status"] not in ("active", "past_due"):
        return None
    items = items_of(subscription)
    if restarted:
        subscription["billing_cycle_anchor"] = now
        for item in items:
            recurring = item["price"]["recurring"]
            end = next_end(now, now, recurring["interval"], recurring["interval_count"])
            item |= {"current_period_start": now, "current_period_end": end}
        charges = [Charge(item, now, item["current_period_end"], full_price(item)) for item in items]
    elif edits and given.get("proration_behavior") == "always_invoice":
        more = max(0, sum(map(full_price, items)) - before)
        start, end = items[0]["current_period_start"], items[0]["current_period_end"]
        share = more * max(0, end - now) // (end - start)
        charges = [Charge(items[0], now, end, share, proration=True)]
    else:
        return None
    return draw_up(call.world, subscription, charges, reason="subscription_update", period=(now, now), now=now)
