"""Invoices: drawn up, paid, or not; the payment that each asks for, and the customer's balance that it uses."""

from .ids import new_id
from .paper import Charge as Charge
from .paper import blank_invoice, charge_for, line_for
from .periods import DAY
from .shapes import list_of
from .store import Obj
from .world import World


def written(
    world: World, subscription: Obj, charges: list[Charge], *, reason: str, period: tuple[int, int], now: int
) -> Obj:
    """An invoice on paper: nothing is kept, and nobody owes anything yet.

    The customer's balance is applied: below zero it is theirs, and what they do not use up of it stays.
    """
    customer = world.need("customer", subscription["customer"])
    invoice_id = new_id("invoice")
    total = sum(charge.amount for charge in charges)
    due = total + customer["balance"]
    products = [charge.item["price"]["product"] for charge in charges]
    names = [(world.store.get("product", product) or {}).get("name") or product for product in products]
    lines = [line_for(charge, subscription, invoice_id, name) for charge, name in zip(charges, names, strict=True)]
    return blank_invoice(invoice_id, customer, subscription, now) | {
        "amount_due": max(0, due),
        "amount_remaining": max(0, due),
        "billing_reason": reason,
        "ending_balance": min(0, due),
        "lines": list_of(lines, f"/v1/invoices/{invoice_id}/lines"),
        "period_start": period[0],
        "period_end": period[1],
        "starting_balance": customer["balance"],
        "subtotal": total,
        "subtotal_excluding_tax": total,
        "total": total,
        "total_excluding_tax": total,
    }


def draw_up(
    world: World, subscription: Obj, charges: list[Charge], *, reason: str, period: tuple[int, int], now: int
) -> Obj:
    """A finalised, open invoice for the subscription, which names it as its latest.

    Stripe leaves renewals in draft for an hour first; here finalising follows at once. While collection is paused
    the invoice is void, uncollectible or a draft instead, and touches no balance.
    """
    customer = world.need("customer", subscription["customer"])
    invoice = written(world, subscription, charges, reason=reason, period=period, now=now)
    automatic = subscription["collection_method"] == "charge_automatically"
    invoice |= {
        "auto_advance": automatic,
        "due_date": None if automatic else now + (subscription["days_until_due"] or 30) * DAY,
    }
    customer["currency"] = customer["currency"] or subscription["currency"]
    pause = subscription["pause_collection"]
    if pause:
        invoice |= {"amount_due": max(0, invoice["total"]), "amount_remaining": max(0, invoice["total"])}
        invoice |= {"auto_advance": False, "ending_balance": None, "starting_balance": 0}
    if pause and pause["behavior"] == "keep_as_draft":
        invoice |= {"status": "draft", "effective_at": None, "due_date": None}
        invoice["status_transitions"]["finalized_at"] = None
    else:
        invoice |= {
            "hosted_invoice_url": f"{world.base_url}/invoice/{invoice['id']}",
            "number": f"{customer['invoice_prefix']}-{customer['next_invoice_sequence']:04d}",
        }
        customer["next_invoice_sequence"] += 1
    if pause:
        _set_aside(invoice, pause["behavior"], now=now)
    else:
        customer["balance"] = invoice["ending_balance"]
        if invoice["amount_due"] > 0:
            _open_payment(world, invoice, now=now)
    world.put(customer)
    subscription["latest_invoice"] = invoice["id"]
    subscription.setdefault("_invoices", []).append(invoice["id"])
    return world.put(invoice)


def _set_aside(invoice: Obj, behavior: str, *, now: int) -> None:
    match behavior:
        case "void":
            invoice["status"] = "void"
            invoice["status_transitions"]["voided_at"] = now
        case "mark_uncollectible":
            invoice["status"] = "uncollectible"
            invoice["status_transitions"]["marked_uncollectible_at"] = now


def collect(world: World, invoice: Obj, *, now: int, out_of_band: bool = False) -> Obj:
    """The invoice is paid, and says by which payment."""
    due = invoice["amount_remaining"]
    invoice |= {
        "status": "paid",
        "attempted": True,
        "attempt_count": invoice["attempt_count"] + (1 if due and not out_of_band else 0),
        "amount_paid": invoice["amount_due"],
        "amount_paid_off_stripe": due if out_of_band else 0,
        "amount_remaining": 0,
        "auto_advance": False,
        "next_payment_attempt": None,
    }
    invoice["status_transitions"]["paid_at"] = now
    for payment in payments_of(world, invoice["id"]):
        if out_of_band:
            payment |= {"status": "canceled"}
            payment["status_transitions"]["canceled_at"] = now
        else:
            payment |= {"status": "paid", "amount_paid": due}
            payment["status_transitions"]["paid_at"] = now
            intent = world.need("payment_intent", payment["payment"]["payment_intent"])
            intent |= {"status": "succeeded", "amount_received": due, "last_payment_error": None}
            intent["latest_charge"] = world.put(charge_for(intent, invoice, now=now))["id"]
            world.put(intent)
        world.put(payment)
    return world.put(invoice)


def bounce(world: World, invoice: Obj, *, now: int, action_required: bool = False) -> Obj:
    """A payment attempt that did not work; the next one is in three days."""
    invoice |= {
        "attempted": True,
        "attempt_count": invoice["attempt_count"] + 1,
        "next_payment_attempt": now + 3 * DAY,
    }
    for payment in payments_of(world, invoice["id"]):
        intent = world.need("payment_intent", payment["payment"]["payment_intent"])
        intent["status"] = "requires_action" if action_required else "requires_payment_method"
        world.put(intent)
    return world.put(invoice)


def payments_of(world: World, invoice_id: str) -> list[Obj]:
    invoice = world.store.get("invoice", invoice_id)
    ids: list[str] = invoice.get("_payments", []) if invoice else []
    return [world.need("invoice_payment", payment_id) for payment_id in ids]


def unpaid_of(world: World, subscription_id: str) -> list[Obj]:
    """Open invoices of a subscription, oldest first. Drafts are those of a paused collection: nobody asks for them."""
    own = world.need("subscription", subscription_id).get("_invoices", [])
    invoices = [world.need("invoice", invoice_id) for invoice_id in own]
    return [invoice for invoice in invoices if invoice["status"] == "open"]


def subscription_of(invoice: Obj) -> str | None:
    details = (invoice["parent"] or {}).get("subscription_details") or {}
    found: str | None = details.get("subscription")
    return found


def _open_payment(world: World, invoice: Obj, *, now: int) -> None:
    amount, currency = invoice["amount_due"], invoice["currency"]
    intent_id = new_id("payment_intent")
    world.put(
        {
            "id": intent_id,
            "object": "payment_intent",
            "amount": amount,
            "amount_received": 0,
            "canceled_at": None,
            "cancellation_reason": None,
            "capture_method": "automatic",
            "client_secret": f"{intent_id}_secret_{new_id('customer')[4:]}",
            "confirmation_method": "automatic",
            "created": now,
            "currency": currency,
            "customer": invoice["customer"],
            "description": None,
            "last_payment_error": None,
            "latest_charge": None,
            "livemode": False,
            "metadata": {},
            "next_action": None,
            "payment_method": None,
            "payment_method_types": ["card"],
            "status": "requires_payment_method",
        }
    )
    payment = world.put(
        {
            "id": new_id("invoice_payment"),
            "object": "invoice_payment",
            "amount_paid": None,
            "amount_requested": amount,
            "created": now,
            "currency": currency,
            "invoice": invoice["id"],
            "is_default": True,
            "livemode": False,
            "payment": {"payment_intent": intent_id, "type": "payment_intent"},
            "status": "open",
            "status_transitions": {"canceled_at": None, "paid_at": None},
        }
    )
    invoice["_payments"] = [payment["id"]]
