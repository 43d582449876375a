"""What a change of a subscription would cost, before anybody agrees to it."""

from . import accepted
from .billing import OVER, next_charges, take_pending
from .calls import Call, route
from .changes import Bill, carry_out, draft_of, edits_from, proration_date_from
from .errors import StripeError
from .ids import new_id
from .invoices import Charge, written
from .items import period_end
from .proration import credits_of
from .store import Obj
from .subscription_routes import plan_end


@route("POST", "/v1/invoices/create_preview", accepted.INVOICE_PREVIEW)
def create(call: Call) -> Obj:
    """The invoice that the change would be billed with: at once, or the next one with what would wait for it.

    Nothing is kept. Worked out by the same code as the change.
    """
    subscription = call.refer("subscription", call.params["subscription"])
    if call.params.get("customer") not in (None, subscription["customer"]):
        raise StripeError("The subscription does not belong to the customer.", param="subscription")
    if subscription["status"] in OVER:
        raise _nothing_upcoming(subscription)
    given, draft, now = call.params.get("subscription_details", {}), draft_of(subscription), call.now
    at = proration_date_from(given, draft, now=now)
    if given.get("cancel_now"):
        charges = take_pending(draft)
        if given.get("proration_behavior") != "none" and draft["status"] == "active":
            charges += credits_of(draft, at=at)
        return _shown(call, draft, charges, period=(now, now), at=now)
    plan_end(draft, given, now=now)
    bill = _carried_out(call, draft, given, at=at)
    if bill.at_once:
        return _shown(call, draft, take_pending(draft) + bill.charges, period=(now, now), at=now)
    due = period_end(draft)
    waiting = draft.get("_pending", []) + [charge.plain() for charge in bill.charges]
    draft["_pending"] = waiting
    if draft["cancel_at"] and draft["cancel_at"] <= due:
        if not waiting:
            raise _nothing_upcoming(subscription)
        return _shown(call, draft, take_pending(draft), period=(now, now), at=draft["cancel_at"])
    charges, period = next_charges(draft)
    return _shown(call, draft, charges, period=period, at=due)


def _carried_out(call: Call, draft: Obj, given: Obj, *, at: int) -> Bill:
    trial_end = given.get("trial_end")
    if trial_end == "now" and draft["status"] == "trialing":
        draft["status"] = "active"
        given = given | {"billing_cycle_anchor": "now", "proration_behavior": "none"}
    edits = edits_from(call, draft, given.get("items", []), param="subscription_details[items]")
    return carry_out(draft, edits, given, at=at, now=call.now)


def _shown(call: Call, draft: Obj, charges: list[Charge], *, period: tuple[int, int], at: int) -> Obj:
    paper = written(call.world, draft, charges, reason="upcoming", period=period, now=at)
    name = new_id("upcoming_invoice")
    for line in paper["lines"]["data"]:
        line["invoice"] = name
    paper["lines"]["url"] = f"/v1/invoices/{name}/lines"
    paper["status_transitions"]["finalized_at"] = None
    automatic = paper["collection_method"] == "charge_automatically"
    return call.show(
        paper
        | {
            "id": name,
            "effective_at": None,
            "next_payment_attempt": at if automatic else None,
            "status": "draft",
            "webhooks_delivered_at": None,
        }
    )


def _nothing_upcoming(subscription: Obj) -> StripeError:
    message = f"No upcoming invoices for customer: '{subscription['customer']}'"
    return StripeError(message, status=404, code="invoice_upcoming_none")
