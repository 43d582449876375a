"""Whether one of our subscriptions is what Stripe's object says, worked out anew: nothing of `converge` is used."""

from datetime import UTC, datetime
from typing import Any

from entitlements.models import PlanSlots, SubscriptionPack, TierAllocation
from subscriptions.models import Subscription
from subscriptions.states import Status
from tests.stripe_sandbox.client import Sandbox
from webhooks.models import StripePrice

MEANS = {
    "trialing": {"TRIAL"},
    "active": {"ACTIVE"},
    "past_due": {"GRACE", "SUSPENDED"},  # the clock may have gone on
    "unpaid": {"SUSPENDED"},
    "paused": {"SUSPENDED"},
    "canceled": {"EXPIRED"},
    "incomplete_expired": {"EXPIRED"},
}


def assert_equal_to_stripe(stripe: Sandbox, s: Subscription) -> None:
    """Status, plan, price, quantity, term, cancellation, packs, slots and what is scheduled. What ended keeps the dates
    and the plan that it had.
    """
    s = Subscription.objects.select_related("parent").get(pk=s.pk)
    link = s.stripe_link
    theirs = stripe.api("GET", f"/v1/subscriptions/{link.pk}", expand=["latest_invoice", "schedule"])
    assert s.status in _statuses(s, theirs), f"{s.number} is {s.status}, {theirs['status']} at Stripe"
    if s.status == Status.EXPIRED:
        assert not TierAllocation.objects.filter(subscription=s, is_open=True).exists()
        return
    assert s.auto_renews
    sold = {row.pk: row for row in StripePrice.objects.select_related("plan_price")}
    (plan,) = [item for item in theirs["items"]["data"] if sold[item["price"]["id"]].plan_price]
    price = sold[plan["price"]["id"]].plan_price
    assert price is not None
    assert (s.plan_id, s.price_id, s.quantity) == (price.plan_id, price.pk, plan["quantity"])
    packs = {
        sold[item["price"]["id"]].slot_pack: item["quantity"]
        for item in theirs["items"]["data"]
        if item is not plan and item["quantity"]
    }
    held = {p.pack: p.quantity for p in SubscriptionPack.objects.filter(subscription=s).select_related("pack")}
    assert held == packs
    if not s.parent:
        assert abs((s.term_end - _paid_until(plan, theirs)).total_seconds()) < 1
        if s.status in (Status.TRIAL, Status.ACTIVE):
            assert s.cancel_at_term_end == _is_last(plan, theirs)
    slots = {p.tier_id: p.slots * s.quantity for p in PlanSlots.objects.filter(plan=s.plan_id)}
    for pack, units in packs.items():
        assert pack is not None
        slots[pack.tier_id] = slots.get(pack.tier_id, 0) + pack.slots * units
    open_ones = TierAllocation.objects.filter(subscription=s, is_open=True)
    assert {a.tier_id: a.slot_limit for a in open_ones if a.slot_limit} == {t: n for t, n in slots.items() if n}
    coming = _coming(theirs)
    assert (link.scheduled_at and link.scheduled_at.timestamp()) == (coming and coming[0])
    if coming:
        of_plan = [(sold[p].plan_price_id, n) for p, n in coming[1] if p in sold and sold[p].plan_price_id]
        assert [(link.scheduled_price_id, link.scheduled_quantity)] == of_plan


def _statuses(s: Subscription, theirs: dict[str, Any]) -> set[str]:
    if theirs["status"] in ("canceled", "incomplete_expired"):
        return {"EXPIRED"}
    if s.on_hold:
        return {"SUSPENDED"}
    if s.parent:
        return {s.parent.status}
    is_void = (theirs["pause_collection"] or {}).get("behavior") == "void"
    return {"SUSPENDED"} if is_void and theirs["status"] != "trialing" else MEANS[theirs["status"]]


def _paid_until(plan: dict[str, Any], theirs: dict[str, Any]) -> datetime:
    invoice = theirs["latest_invoice"]
    is_paid = theirs["status"] == "trialing" or invoice is None or invoice["status"] == "paid"
    if not is_paid:
        return datetime.fromtimestamp(plan["current_period_start"], UTC)
    end = min(plan["current_period_end"], theirs["cancel_at"] or plan["current_period_end"])
    return datetime.fromtimestamp(end, UTC)


def _is_last(plan: dict[str, Any], theirs: dict[str, Any]) -> bool:
    return bool(theirs["cancel_at"]) and theirs["cancel_at"] <= plan["current_period_end"]


def _coming(theirs: dict[str, Any]) -> tuple[int, list[tuple[str, int]]] | None:
    schedule = theirs["schedule"]
    if not schedule or not schedule["current_phase"]:
        return None
    after = [p for p in schedule["phases"] if p["start_date"] >= schedule["current_phase"]["end_date"]]
    if not after:
        return None
    items = [(item["price"], item["quantity"]) for item in after[0]["items"]]
    present = [(item["price"]["id"], item["quantity"]) for item in theirs["items"]["data"]]
    return None if sorted(items) == sorted(present) else (after[0]["start_date"], items)
