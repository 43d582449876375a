"""Another plan, interval, quantity, packs: now, or by a schedule at Stripe when the term ends."""

from typing import Any

from subscriptions.models import Subscription
from webhooks import stripe_api
from webhooks.changing.asked import AskedBy, ChangeAt, WishedChange
from webhooks.changing.billed import Aspect, billed_by_stripe, bring
from webhooks.changing.bought import units_of
from webhooks.changing.orders import ChangeOrder, order_of
from webhooks.errors import DevicesWouldBeParked, NotBilledByStripe
from webhooks.stripe_state import stripe_id


def change(
    subscription: Subscription,
    *,
    wish: WishedChange,
    when: ChangeAt = ChangeAt.NOW,
    proration_date: int | None = None,
    confirm_parking: bool = False,
    by: AskedBy,
) -> None:
    """Buy something else: now, with what it costs more for the rest of the period paid at once, or when the term ends.
    A change that is asked for takes the place of one that is scheduled; asking for what there is drops that one.

    Raises NotBilledByStripe, NoSuchPrice, AmbiguousPrice, NoSuchPack, InvalidPlan, CurrencyStays, IsPaused,
    PaymentOwed, PreviewTooOld, DevicesWouldBeParked unless that is confirmed, EndsWithTerm for a later change of what
    ends then, IllegalTransition for one of a trial.
    """
    order = order_of(subscription, wish, when, by)
    if order.items:
        to_park = order.devices_to_park
        if to_park and not confirm_parking:
            detail = f"{to_park} {'device' if to_park == 1 else 'devices'} would lose their slots."
            raise DevicesWouldBeParked(detail, devices_to_park=to_park)
        if when is ChangeAt.TERM_END:
            _schedule(order, by)
        else:
            # Before a schedule is dropped: where the card is declined, it stays.
            order.billed.tell("change", by, stripe_api.update_subscription, **order.now_with(proration_date, by.now()))
    if when is ChangeAt.NOW or not order.items:
        order.billed.release(order.state, by)
    bring([order.billed], by)


def unschedule(subscription: Subscription, *, by: AskedBy) -> None:
    """Nothing is scheduled any more; it goes on as it is. Raises NotBilledByStripe."""
    billed = billed_by_stripe(subscription, Aspect.ITEMS)
    if billed is None:
        raise NotBilledByStripe
    billed.release(billed.state(), by)
    bring([billed], by)


def _schedule(order: ChangeOrder, by: AskedBy) -> None:
    """What is bought now to the end of the period, then what was ordered; after that there is no schedule any more."""
    schedule = order.state.get("schedule")
    if not isinstance(schedule, dict):
        schedule = order.billed.tell("schedule", by, stripe_api.begin_schedule)
    start = schedule["current_phase"]["start_date"]
    current = next(phase for phase in schedule["phases"] if phase["start_date"] == start)
    items = order.state["items"]["data"]
    present = [{"price": stripe_id(item["price"]), "quantity": units_of(item)} for item in items]
    edited = {edit["id"]: edit for edit in order.items if "id" in edit}
    coming = [
        {"price": edit.get("price", now["price"]), "quantity": edit.get("quantity", now["quantity"])}
        for item, now in zip(items, present, strict=True)
        if not (edit := edited.get(item["id"], {})).get("deleted")
    ] + [edit for edit in order.items if "id" not in edit]
    kept = _kept(current) | {"proration_behavior": "none"}
    end = int(order.period[1].timestamp())
    order.billed.tell(
        "phases", by, stripe_api.update_schedule, of=schedule["id"], end_behavior="release", proration_behavior="none",
        phases=[kept | {"items": present, "start_date": start, "end_date": end}, kept | {"items": coming}],
    )  # fmt: skip


def _kept(phase: dict[str, Any]) -> dict[str, Any]:
    """What a phase has beside its items: whoever writes phases anew loses what is not said again."""
    names = ("collection_method", "default_payment_method", "description", "metadata")
    kept = {name: phase[name] for name in names if phase.get(name)}
    if rates := phase.get("default_tax_rates"):
        kept["default_tax_rates"] = [stripe_id(rate) for rate in rates]
    if discounts := phase.get("discounts"):
        kinds = ("discount", "promotion_code", "coupon")
        kept["discounts"] = [{kind: stripe_id(d[kind]) for kind in kinds if d.get(kind)} for d in discounts]
    return kept
