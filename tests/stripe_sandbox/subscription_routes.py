"""Subscriptions, as their owner's program sees them."""

from typing import Any

from . import accepted, shapes
from .billing import (
    OVER,
    UPDATED,
    announce_birth,
    begin,
    cancel,
    collect_change,
    end_trial,
    fail,
    leave_pending,
    schedule_end,
    take_pending,
    unpause,
)
from .calls import Call, route, within
from .cards import NO_CARD, card_of, decline_of
from .changes import carry_out, draft_of, edits_from, proration_date_from
from .errors import StripeError
from .invoices import Charge, draw_up, written
from .items import items_of, period_end
from .ordering import check_anchor, orders_from, trial_end_from
from .proration import credits_of
from .schedules import note_items
from .store import Obj


@route("POST", "/v1/subscriptions", accepted.SUBSCRIPTION_CREATE)
def create(call: Call) -> Obj:
    customer = call.refer("customer", call.params["customer"])
    given, world, now = call.params, call.world, call.now
    orders = orders_from(call, given.get("items", []))
    given["trial_end"] = trial_end_from(given, now=now)
    check_anchor(given, orders, now=now)
    subscription = shapes.subscription(given, customer_id=customer["id"], currency=orders[0][0]["currency"], now=now)
    subscription["test_clock"] = customer["test_clock"]
    card, behaviour = card_of(world, subscription), given.get("payment_behavior", "allow_incomplete")
    charged = given["trial_end"] is None and subscription["collection_method"] == "charge_automatically"
    if charged and behaviour != "default_incomplete":
        if card == "none":
            raise StripeError(NO_CARD, code="resource_missing")
        if card == "declined" and behaviour == "error_if_incomplete":
            raise decline_of(world, subscription)
    begin(world, subscription, orders, given, now=now)
    plan_end(subscription, given, now=now)
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
        if given.get("customer") not in (None, subscription["customer"]):
            return False
        items = items_of(subscription)
        return (
            _status_matches(subscription["status"], status)
            and ("customer" in given or subscription["test_clock"] == given.get("test_clock"))
            and given.get("collection_method") in (None, subscription["collection_method"])
            and (price is None or any(item["price"]["id"] == price for item in items))
            and all(
                any(within(item[name], given[name]) for item in items)
                for name in ("current_period_start", "current_period_end")
                if name in given
            )
        )

    return call.page("subscription", wanted)


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
    if subscription["schedule"] and changes & {"cancel_at", "cancel_at_period_end"}:
        raise StripeError(
            f"The subscription is managed by the subscription schedule `{subscription['schedule']}`, and updating any "
            "cancelation behavior directly is not allowed. Please update the schedule instead."
        )
    _check_pause(given, now=now)
    draft = draft_of(subscription)
    charges = _changed(call, draft, given)
    behaviour, trial_end = given.get("payment_behavior", "allow_incomplete"), given.get("trial_end")
    ends_trial = trial_end == "now" and subscription["status"] == "trialing"
    _check_payment(call, draft, charges, ends_trial=ends_trial, behaviour=behaviour)
    invoice = None
    with call.world.updating(subscription, UPDATED, now=now):
        subscription.clear()
        subscription |= draft
        note_items(call.world, subscription)
        if charges:
            at = (now, now)
            invoice = draw_up(call.world, subscription, charges, reason="subscription_update", period=at, now=now)
    if invoice:
        collect_change(call.world, subscription, invoice, attempt=behaviour != "default_incomplete", now=now)
    if ends_trial:
        end_trial(call.world, subscription, paid=card_of(call.world, subscription) == "ok", now=now)
    return call.show(subscription)


@route("DELETE", "/v1/subscriptions/{}", accepted.SUBSCRIPTION_CANCEL)
def delete(call: Call) -> Obj:
    subscription, given, now = call.find("subscription", call.ids[0]), call.params, call.now
    if subscription["status"] in OVER:
        raise StripeError(
            f"No such subscription: '{subscription['id']}'", status=404, code="resource_missing", param="id"
        )
    subscription["cancellation_details"] |= given.get("cancellation_details", {})
    if given.get("prorate") and subscription["status"] == "active":
        leave_pending(subscription, credits_of(subscription, at=now))
    last = take_pending(subscription) if given.get("invoice_now") else []
    if last:
        at = (now, now)
        invoice = draw_up(call.world, subscription, last, reason="subscription_update", period=at, now=now)
        collect_change(call.world, subscription, invoice, attempt=True, now=now)
    cancel(call.world, subscription, now=now)
    return call.show(subscription)


@route("POST", "/v1/subscriptions/{}/resume", accepted.SUBSCRIPTION_RESUME)
def resume(call: Call) -> Obj:
    subscription = call.find("subscription", call.ids[0])
    if subscription["status"] != "paused":
        message = f"Subscription {subscription['id']} is not paused, so it cannot be resumed."
        raise StripeError(message, code="subscription_not_paused")
    unpause(call.world, subscription, paid=card_of(call.world, subscription) == "ok", now=call.now)
    return call.show(subscription)


# carrying out a change


def _check_pause(given: Obj, *, now: int) -> None:
    resumes_at = (given.get("pause_collection") or {}).get("resumes_at")
    if resumes_at is not None and resumes_at <= now:
        message = "Invalid timestamp: must be an integer Unix timestamp in the future."
        raise StripeError(message, param="pause_collection[resumes_at]")


def _changed(call: Call, draft: Obj, given: Obj) -> list[Charge]:
    """Make the draft what was asked for; what is to be paid for that at once."""
    now, trial_end = call.now, given.get("trial_end")
    edits = edits_from(call, draft, given.get("items", []))
    at = proration_date_from(given, draft, now=now)
    _copy_plain(draft, given)
    plan_end(draft, given, now=now)
    bill = carry_out(draft, edits, given, at=at, now=now)
    if isinstance(trial_end, int):
        draft |= {"trial_end": trial_end, "status": "trialing", "billing_cycle_anchor": trial_end}
        for item in items_of(draft):
            item["current_period_end"] = trial_end
    if bill.at_once:
        return take_pending(draft) + bill.charges
    leave_pending(draft, bill.charges)
    return []


def _check_payment(call: Call, draft: Obj, charges: list[Charge], *, ends_trial: bool, behaviour: str) -> None:
    """Refused before anything is changed: where there is no card, or where the caller wants no half-made change."""
    if behaviour == "pending_if_incomplete":
        raise StripeError("The sandbox does not model pending updates.", param="payment_behavior")
    owes = ends_trial
    if charges:
        at = (call.now, call.now)
        paper = written(call.world, draft, charges, reason="subscription_update", period=at, now=call.now)
        owes |= paper["amount_due"] > 0
    if not owes or draft["pause_collection"] or draft["collection_method"] != "charge_automatically":
        return
    card = card_of(call.world, draft)
    if card == "none" and not ends_trial and behaviour != "default_incomplete":
        raise StripeError(NO_CARD, code="resource_missing")
    if card == "declined" and behaviour == "error_if_incomplete":
        raise decline_of(call.world, draft)


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


def plan_end(subscription: Obj, given: Obj, *, now: int) -> None:
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
