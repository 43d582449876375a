"""Money that was taken, given back, or is quarrelled about: charges, refunds, disputes."""

from .errors import ControlError, StripeError
from .ids import new_id
from .invoices import payments_of
from .periods import DAY
from .shapes import labels
from .store import Obj
from .world import World

_EVIDENCE = (
    "access_activity_log",
    "billing_address",
    "cancellation_policy",
    "cancellation_policy_disclosure",
    "cancellation_rebuttal",
    "customer_communication",
    "customer_email_address",
    "customer_name",
    "customer_purchase_ip",
    "customer_signature",
    "duplicate_charge_documentation",
    "duplicate_charge_explanation",
    "duplicate_charge_id",
    "product_description",
    "receipt",
    "refund_policy",
    "refund_policy_disclosure",
    "refund_refusal_explanation",
    "service_date",
    "service_documentation",
    "shipping_address",
    "shipping_carrier",
    "shipping_date",
    "shipping_documentation",
    "shipping_tracking_number",
    "uncategorized_file",
    "uncategorized_text",
)
CLOSED = ("won", "lost", "warning_closed", "prevented")


def refund(world: World, charge: Obj, given: Obj, *, now: int) -> Obj:
    """Give back ``amount`` or all that is left. Raises StripeError when there is not so much left."""
    left = charge["amount"] - charge["amount_refunded"]
    if left == 0:
        message = f"Charge {charge['id']} has already been refunded."
        raise StripeError(message, code="charge_already_refunded")
    if charge["disputed"] and charge.get("_dispute_lost"):
        raise StripeError(
            f"Charge {charge['id']} has been charged back; cannot issue a refund.", code="charge_disputed"
        )
    amount = given.get("amount", left)
    if amount > left:
        currency = charge["currency"].upper()
        message = (
            f"Refund amount ({amount / 100:.2f} {currency}) is greater than unrefunded amount on charge "
            f"({left / 100:.2f} {currency})"
        )
        raise StripeError(message, param="amount")
    made = world.put(
        {
            "id": new_id("refund"),
            "object": "refund",
            "amount": amount,
            "balance_transaction": None,
            "charge": charge["id"],
            "created": now,
            "currency": charge["currency"],
            "metadata": labels(given),
            "payment_intent": charge["payment_intent"],
            "reason": given.get("reason"),
            "receipt_number": None,
            "source_transfer_reversal": None,
            "status": "succeeded",
            "transfer_reversal": None,
        }
    )
    world.emit("refund.created", made, now=now)
    with world.updating(charge, "charge.refunded", now=now):
        charge["amount_refunded"] += amount
        charge["refunded"] = charge["amount_refunded"] == charge["amount"]
    return made


def charge_of(world: World, invoice: Obj) -> Obj:
    """What paid the invoice. Raises ControlError if no card did."""
    for payment in payments_of(world, invoice["id"]):
        intent = world.need("payment_intent", payment["payment"]["payment_intent"])
        if intent["latest_charge"]:
            return world.need("charge", intent["latest_charge"])
    raise ControlError(f"{invoice['id']} was not paid with a card, so there is no charge to dispute")


def dispute(world: World, charge: Obj, *, reason: str, now: int) -> Obj:
    """The customer's bank takes the money back until the quarrel is over. Raises ControlError for a second one."""
    if charge["disputed"]:
        raise ControlError(f"{charge['id']} is disputed already")
    charge["disputed"] = True
    world.put(charge)
    made = world.put(
        {
            "id": new_id("dispute"),
            "object": "dispute",
            "amount": charge["amount"] - charge["amount_refunded"],
            "balance_transactions": [],
            "charge": charge["id"],
            "created": now,
            "currency": charge["currency"],
            "enhanced_eligibility_types": [],
            "evidence": dict.fromkeys(_EVIDENCE) | {"enhanced_evidence": {}},
            "evidence_details": {
                "due_by": now + 7 * DAY,
                "enhanced_eligibility": {},
                "has_evidence": False,
                "past_due": False,
                "submission_count": 0,
            },
            "is_charge_refundable": False,
            "livemode": False,
            "metadata": {},
            "payment_intent": charge["payment_intent"],
            "reason": reason,
            "status": "needs_response",
        }
    )
    world.emit("charge.dispute.created", made, now=now)
    return made


def close_dispute(world: World, quarrel: Obj, *, status: str, now: int) -> Obj:
    """Raises ControlError for one that is over, or an end that there is not."""
    if status not in CLOSED:
        raise ControlError(f"a dispute ends as one of {', '.join(CLOSED)}, not {status!r}", status=400)
    if quarrel["status"] in CLOSED:
        raise ControlError(f"{quarrel['id']} is {quarrel['status']} already")
    charge = world.need("charge", quarrel["charge"])
    world.put(charge | {"_dispute_lost": status == "lost"})
    world.put(quarrel | {"status": status})
    closed = world.need("dispute", quarrel["id"])
    world.emit("charge.dispute.closed", closed, now=now)
    return closed
