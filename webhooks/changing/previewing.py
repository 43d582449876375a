"""What a change would come to, by Stripe's reckoning."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from subscriptions.models import Subscription
from webhooks import stripe_api
from webhooks.changing.asked import AskedBy, ChangeAt, WishedChange
from webhooks.changing.orders import BeforeAfter, order_of


@dataclass(frozen=True)
class InvoiceLine:
    description: str
    amount_minor: int
    proration: bool


@dataclass(frozen=True)
class Preview:
    """What a change comes to. Amounts are minor units of `currency`; of what Stripe bills, with tax."""

    due_now_minor: int
    next_minor: int  # the list price of every term from then on
    currency: str
    lines: list[InvoiceLine]  # of the invoice, as Stripe has it
    at: datetime  # when it becomes so
    proration_date: int | None  # to be confirmed with, within the hour; None where nothing is prorated
    slots: dict[str, BeforeAfter]  # by tier
    devices_to_park: int


def preview(
    subscription: Subscription,
    *,
    wish: WishedChange,
    when: ChangeAt = ChangeAt.NOW,
    proration_date: int | None = None,
    by: AskedBy,
) -> Preview:
    """What `change` would come to; nothing is changed. Raises as it does, and asks for no confirmation."""
    order = order_of(subscription, wish, when, by)
    period_end = order.period[1]
    if when is ChangeAt.TERM_END:
        asked: dict[str, Any] = {"items": order.items, "proration_behavior": "none"}
    else:
        date = proration_date or int(max(by.now(), order.settled_until).timestamp())
        asked = order.now_with(date, by.now())
        del asked["payment_behavior"]
    paper = stripe_api.preview_change(order.billed.link_id, asked) if order.items else {}
    lines = [_line(line) for line in (paper.get("lines") or {}).get("data", ())]
    restarts = order.target.rhythm != order.bought.rhythm and order.state["status"] != "trialing"
    is_billed_now = when is ChangeAt.NOW and (restarts or any(line.proration for line in lines))
    prorated = asked.get("proration_date")
    return Preview(
        due_now_minor=int(paper.get("amount_due", 0)) if is_billed_now else 0,
        next_minor=order.target.amount_minor,
        currency=order.target.price.currency,
        lines=lines,
        at=period_end if when is ChangeAt.TERM_END else datetime.fromtimestamp(prorated, UTC) if prorated else by.now(),
        proration_date=prorated if order.items else None,
        slots=order.slots,
        devices_to_park=order.devices_to_park,
    )


def _line(line: dict[str, Any]) -> InvoiceLine:
    parent = line.get("parent") or {}
    details = [parent.get(kind) or {} for kind in ("subscription_item_details", "invoice_item_details")]
    is_prorated = any(detail.get("proration") for detail in details)
    return InvoiceLine(str(line.get("description") or ""), int(line["amount"]), is_prorated)
