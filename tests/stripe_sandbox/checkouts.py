"""A checkout: what is offered, and what its completion makes, at once or when the money comes."""

from . import shapes
from .billing import announce_birth, begin, fail, settle
from .errors import ControlError
from .ids import new_id
from .invoices import payments_of, unpaid_of
from .ordering import trial_end_from
from .periods import DAY
from .store import Obj
from .world import World

# ways of paying whose money comes days after the customer has agreed to it
DELAYED = frozenset(
    {
        "acss_debit",
        "au_becs_debit",
        "bacs_debit",
        "boleto",
        "customer_balance",
        "konbini",
        "multibanco",
        "oxxo",
        "sepa_debit",
        "us_bank_account",
    }
)


def settles_at_once(session: Obj) -> bool:
    """Whether the customer can pay so that the money is there when the session is complete."""
    return not set(session["payment_method_types"]) <= DELAYED


def complete(world: World, session: Obj, *, now: int, settled: bool = True) -> Obj:
    """The customer fills in the form and pays. With ``settled`` False the money is still on its way (bank debit).

    Until it arrives the subscription is incomplete, however long that takes.
    Raises ControlError for a session that is not open.
    """
    if session["status"] != "open":
        raise ControlError(f"{session['id']} is {session['status']}: only an open session can be completed")
    if session["customer"] and world.need("customer", session["customer"]).get("deleted"):
        raise ControlError(f"{session['customer']}, for whom {session['id']} was made, has been deleted")
    given = dict(session["_subscription_data"])
    given["trial_end"] = trial_end_from(given, now=now)
    customer_id = session["customer"] or _new_customer(world, session, now=now)
    orders = [(world.need("price", price_id), asked) for price_id, asked in session["_orders"]]
    subscription = shapes.subscription(given, customer_id=customer_id, currency=session["currency"], now=now)
    subscription["test_clock"] = world.clock_of(subscription)
    begin(world, subscription, orders, given, now=now)
    nothing_due = world.need("invoice", subscription["latest_invoice"])["amount_due"] == 0
    if nothing_due and session["payment_method_collection"] == "if_required":
        subscription["_no_card"] = True
    if not settled and not nothing_due:
        _await_money(world, subscription)
    announce_birth(world, subscription, paid=settled, now=now)
    free = world.need("invoice", subscription["latest_invoice"])["amount_due"] == 0
    customer = world.need("customer", customer_id)
    session |= {
        "customer": customer_id,
        "customer_details": {
            "address": customer["address"],
            "business_name": None,
            "email": customer["email"],
            "individual_name": None,
            "name": customer["name"],
            "phone": customer["phone"],
            "tax_exempt": customer["tax_exempt"],
            "tax_ids": [],
        },
        "invoice": subscription["latest_invoice"],
        "payment_status": "no_payment_required" if free else "paid" if settled else "unpaid",
        "status": "complete",
        "subscription": subscription["id"],
        "url": None,
    }
    world.emit("checkout.session.completed", world.put(session), now=now)
    return session


def arrive(world: World, session: Obj, *, succeeded: bool, now: int) -> Obj:
    """The delayed money of a completed session arrives, or does not. Raises ControlError if none is awaited."""
    if session["payment_status"] != "unpaid" or session["status"] != "complete":
        raise ControlError(f"{session['id']} awaits no payment; complete it with settled=false first")
    subscription = world.need("subscription", session["subscription"])
    subscription.pop("_awaits_money", None)
    world.put(subscription)
    if succeeded:
        settle(world, subscription, now=now)
        session["payment_status"] = "paid"
        world.put(session)
    elif unpaid_of(world, subscription["id"]):
        fail(world, subscription, now=now)
    outcome = "succeeded" if succeeded else "failed"
    world.emit(f"checkout.session.async_payment_{outcome}", session, now=now)
    return session


def session_of(world: World, given: Obj, orders: list[tuple[Obj, Obj]], *, now: int) -> Obj:
    """An open session; not kept yet."""
    session_id, data = new_id("checkout.session"), given.get("subscription_data", {})
    lines = [_line(world, price, asked) for price, asked in orders]
    trial = trial_end_from(data, now=now) is not None
    total = 0 if trial else sum(line["amount_total"] for line in lines)
    return {
        "id": session_id,
        "object": "checkout.session",
        "adaptive_pricing": {"enabled": False},
        "after_expiration": None,
        "allow_promotion_codes": given.get("allow_promotion_codes"),
        "amount_subtotal": total,
        "amount_total": total,
        "automatic_tax": _automatic_tax(given.get("automatic_tax", {}).get("enabled", False)),
        "billing_address_collection": given.get("billing_address_collection"),
        "branding_settings": {
            "background_color": "#ffffff",
            "border_style": "rounded",
            "button_color": "#0b5fff",
            "display_name": "Stripe sandbox",
            "font_family": "default",
            "icon": None,
            "logo": None,
        },
        "cancel_url": given.get("cancel_url"),
        "client_reference_id": given.get("client_reference_id"),
        "client_secret": None,
        "collected_information": None,
        "consent": None,
        "consent_collection": None,
        "created": now,
        "currency": orders[0][0]["currency"],
        "currency_conversion": None,
        "custom_fields": [],
        "custom_text": {
            "after_submit": None,
            "shipping_address": None,
            "submit": None,
            "terms_of_service_acceptance": None,
        },
        "customer": given.get("customer"),
        "customer_account": None,
        "customer_creation": None if "customer" in given else "always",
        "customer_details": None,
        "customer_email": given.get("customer_email"),
        "discounts": [],
        "excluded_payment_method_types": [],
        "expires_at": given.get("expires_at", now + DAY),
        "integration_identifier": None,
        "invoice": None,
        "invoice_creation": None,
        "livemode": False,
        "locale": given.get("locale"),
        "managed_payments": None,
        "metadata": shapes.labels(given),
        "mode": "subscription",
        "name_collection": {},
        "origin_context": None,
        "payment_intent": None,
        "payment_link": None,
        "payment_method_collection": given.get("payment_method_collection", "always"),
        "payment_method_configuration_details": None,
        "payment_method_options": {},
        "payment_method_types": given.get("payment_method_types", ["card"]),
        "payment_status": "unpaid",
        "permissions": None,
        "phone_number_collection": {"enabled": False},
        "recovered_from": None,
        "saved_payment_method_options": None,
        "setup_intent": None,
        "shipping_address_collection": None,
        "shipping_cost": None,
        "shipping_options": [],
        "status": "open",
        "submit_type": None,
        "subscription": None,
        "success_url": given.get("success_url"),
        "total_details": {"amount_discount": 0, "amount_shipping": 0, "amount_tax": 0},
        "ui_mode": "hosted_page",
        "url": f"{world.base_url}/checkout/{session_id}",
        "wallet_options": None,
        "_line_items": lines,
        "_orders": [[price["id"], asked] for price, asked in orders],
        "_subscription_data": data,
    }


def _line(world: World, price: Obj, asked: Obj) -> Obj:
    quantity = asked.get("quantity", 1)
    product = world.need("product", price["product"])
    amount = price["unit_amount"] * quantity
    return {
        "id": new_id("item"),
        "object": "item",
        "adjustable_quantity": None,
        "amount_discount": 0,
        "amount_subtotal": amount,
        "amount_tax": 0,
        "amount_total": amount,
        "currency": price["currency"],
        "description": product["name"],
        "metadata": shapes.labels(asked),
        "price": price,
        "quantity": quantity,
    }


def _await_money(world: World, subscription: Obj) -> None:
    subscription["_awaits_money"] = True
    world.put(subscription)
    for payment in payments_of(world, subscription["latest_invoice"]):
        intent = world.need("payment_intent", payment["payment"]["payment_intent"])
        world.put(intent | {"status": "processing"})


def _automatic_tax(enabled: bool) -> Obj:
    """Taken note of; no tax is worked out here."""
    if not enabled:
        return {"enabled": False, "liability": None, "provider": None, "status": None}
    return {"enabled": True, "liability": {"type": "self"}, "provider": "stripe", "status": "complete"}


def _new_customer(world: World, session: Obj, *, now: int) -> str:
    email = session.get("_email") or session["customer_email"] or "someone@sandbox.test"  # _: typed on the page
    given = {"email": email, "name": session.get("_name") or "Someone"}
    return str(world.put(shapes.customer(given, now=now))["id"])
