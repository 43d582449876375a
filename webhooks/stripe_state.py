"""What a Stripe subscription means to us. Pure: a Stripe object in, the wanted state out.

Two generations of shapes are read (STRIPE.md): periods on the items or on the subscription, `latest_invoice.status` or
`.paid`. What is not known is refused: an unknown status never becomes service.

A term is what has been *paid*: Stripe moves the period on when a renewal invoice is made, and its payment may still
fail. So a period whose invoice is not paid counts up to where it begins: also where a later invoice, of a change within
it, was paid while the period itself is owed. It ends where the subscription does: a
cancellation within the period shortens it.

While payments are paused and invoices voided (`pause_collection`), nobody pays: service is withheld, as it is from a
trial that ended without a payment method (`paused`). Invoices that are kept or written off leave service as it is.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from subscriptions.states import EndReason, Status


class Unmappable(Exception):
    """Nothing can be derived from this object, now or later, until somebody looks at it."""

    def __init__(self, code: str, detail: str) -> None:
        self.code, self.detail = code, detail
        super().__init__(f"{code}: {detail}")


STATUS_OF: dict[str, Status | None] = {
    "trialing": Status.TRIAL,
    "active": Status.ACTIVE,
    "past_due": Status.GRACE,
    "unpaid": Status.SUSPENDED,
    "paused": Status.SUSPENDED,  # a trial that ended without a payment method
    "canceled": Status.EXPIRED,
    "incomplete": None,  # the first payment is awaited: nothing yet
    "incomplete_expired": Status.EXPIRED,
}

OWED = frozenset({"past_due", "unpaid"})
OVER = frozenset({"canceled", "incomplete_expired"})  # nothing of it changes any more

CHECKOUT = "checkout"  # the label of a Stripe subscription that names our checkout

STRIPE_ID = re.compile(r"[A-Za-z0-9_]{1,255}", re.ASCII)


@dataclass(frozen=True)
class Item:
    price_id: str
    quantity: int
    period_start: datetime
    period_end: datetime


@dataclass(frozen=True)
class Coming:
    """What a schedule will make of it, and when."""

    at: datetime
    items: tuple[tuple[str, int], ...]  # price id and quantity


@dataclass(frozen=True)
class Wanted:
    """What Stripe says, in our words. `status` None: nothing yet."""

    stripe_subscription_id: str
    customer_id: str
    status: Status | None
    items: tuple[Item, ...]
    period_is_paid: bool
    started_at: datetime
    cancels_at_period_end: bool
    cancel_at: datetime | None
    ended_at: datetime | None
    end_reason: EndReason
    schedule_id: str  # of its schedule; empty if there is none
    schedule_was_read: bool  # whether Stripe told us more of it than its id
    coming: Coming | None  # the next change of that schedule, if it was read and has one
    checkout_id: int | None  # which of our checkouts it came from; whose that was is for the caller to check

    def term(self, item: Item) -> tuple[datetime, datetime]:
        """The paid term, by the item that sells the plan. Empty if nothing has been paid."""
        if self.period_is_paid:
            return item.period_start, self.ends_within(item) or item.period_end
        return min(self.started_at, item.period_start), item.period_start

    def ends_within(self, item: Item) -> datetime | None:
        """Where a cancellation cuts the present period short."""
        is_within = self.cancel_at is not None and item.period_start < self.cancel_at < item.period_end
        return self.cancel_at if is_within else None

    def is_last(self, item: Item) -> bool:
        """Whether the present period is the last one. A cancellation in a later one is still to come."""
        return self.cancels_at_period_end or (self.cancel_at is not None and self.cancel_at <= item.period_end)


def wanted(subscription: dict[str, Any]) -> Wanted:
    """Raises Unmappable for an unknown status, and for an object that lacks what every subscription has."""
    stripe_status = subscription.get("status")
    if not isinstance(stripe_status, str) or stripe_status not in STATUS_OF:
        raise Unmappable("unknown_status", f"Stripe says {str(stripe_status)[:40]!r}, which we do not know.")
    status = STATUS_OF[stripe_status]
    if status in (Status.ACTIVE, Status.GRACE) and _is_paused(subscription.get("pause_collection")):
        status = Status.SUSPENDED
    try:
        return Wanted(
            stripe_subscription_id=subscription["id"],
            customer_id=stripe_id(subscription.get("customer")),
            status=status,
            items=tuple(_item(item, subscription) for item in subscription["items"]["data"]),
            period_is_paid=status == Status.TRIAL or not owes(subscription),
            started_at=_time(subscription.get("start_date") or subscription["created"]),
            cancels_at_period_end=bool(subscription.get("cancel_at_period_end")),
            cancel_at=_time(subscription["cancel_at"]) if subscription.get("cancel_at") else None,
            ended_at=_time(subscription["ended_at"]) if subscription.get("ended_at") else None,
            end_reason=EndReason.NEVER_PAID if stripe_status == "incomplete_expired" else EndReason.CANCELLED,
            schedule_id=stripe_id(subscription.get("schedule")),
            schedule_was_read=isinstance(subscription.get("schedule"), dict),
            coming=_coming(subscription.get("schedule"), subscription["items"]["data"]),
            checkout_id=_checkout((subscription.get("metadata") or {}).get(CHECKOUT)),
        )
    except (KeyError, TypeError, ValueError, OverflowError, OSError, AttributeError):
        raise Unmappable("unreadable_subscription", "The object lacks what every subscription has.") from None


def _item(item: dict[str, Any], subscription: dict[str, Any]) -> Item:
    start = item.get("current_period_start") or subscription["current_period_start"]
    end = item.get("current_period_end") or subscription["current_period_end"]
    if not start < end:
        raise ValueError("a period that ends before it starts")
    return Item(*_bought(item), _time(start), _time(end))


def _coming(schedule: Any, items: list[dict[str, Any]]) -> Coming | None:
    """Of the phases that are to come, the first; None where it changes nothing that is bought."""
    current = schedule.get("current_phase") if isinstance(schedule, dict) else None
    phases = [phase for phase in schedule["phases"] if phase["start_date"] >= current["end_date"]] if current else []
    if not phases:
        return None
    phase = min(phases, key=lambda phase: int(phase["start_date"]))
    coming, present = (sorted(map(_bought, some)) for some in (phase["items"], items))
    return Coming(_time(phase["start_date"]), tuple(coming)) if coming != present else None


def _bought(item: dict[str, Any]) -> tuple[str, int]:
    return stripe_id(item.get("price") or item["plan"]), 1 if item.get("quantity") is None else int(item["quantity"])


def _checkout(label: Any) -> int | None:
    return int(label) if isinstance(label, str) and label.isascii() and label.isdigit() and len(label) < 19 else None


def _is_paused(pause: Any) -> bool:
    return isinstance(pause, dict) and pause.get("behavior") == "void"


def owes(subscription: dict[str, Any]) -> bool:
    """Whether its period is still to be paid. What is overdue is that whatever was paid after it."""
    return subscription.get("status") in OWED or not _is_paid(subscription.get("latest_invoice"))


def _is_paid(invoice: Any) -> bool:
    """Whether nothing is owed. An open invoice never extends a term, whatever it is for; a term stays as it was."""
    if not isinstance(invoice, dict):  # none was made, or it was not expanded: the status says what there is to know
        return True
    return invoice.get("status") == "paid" or invoice.get("paid") is True


def outlasts_what_was_paid(subscription: dict[str, Any]) -> bool:
    """Whether its present period was voided in a pause. What a schedule moves keeps the periods of that."""
    invoice = subscription.get("latest_invoice")
    was_voided = isinstance(invoice, dict) and invoice.get("status") == "void"
    return subscription.get("status") == "active" and was_voided and not stripe_id(subscription.get("schedule"))


def unpausing(*, anew: bool) -> dict[str, Any]:
    """What to tell Stripe to end a pause. `anew`: a new period begins and is paid at once, as otherwise nothing would
    be served until the next renewal.
    """
    begins_now = {"billing_cycle_anchor": "now", "proration_behavior": "none"}
    return {"pause_collection": ""} | (begins_now if anew else {})


def stripe_id(reference: object) -> str:
    """A Stripe id, given as itself or as the expanded object; empty if it is neither."""
    value = reference.get("id") if isinstance(reference, dict) else reference
    return value if isinstance(value, str) and STRIPE_ID.fullmatch(value) else ""


def _time(seconds: Any) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
