"""Checkout and portal sessions: made by the API, carried out by a person on the sandbox's pages or by a test."""

from . import accepted, shapes
from .billing import announce_birth, begin, fail, settle
from .calls import Call, route
from .errors import ControlError, StripeError, missing_param
from .ids import new_id
from .invoices import unpaid_of
from .ordering import check_anchor, orders_from, trial_end_from
from .periods import DAY
from .store import Obj
from .world import World


@route("POST", "/v1/checkout/sessions", accepted.CHECKOUT_CREATE)
def create(call: Call) -> Obj:
    given = call.params
    if given.get("mode", "payment") != "subscription":
        raise StripeError("The sandbox has checkout for subscriptions only.", param="mode")
    for name in ("success_url",):
        if not given.get(name):
            raise missing_param(name)
    if "customer" in given:
        call.refer("customer", given["customer"])
        if "customer_email" in given:
            raise StripeError("You may only specify one of these parameters: customer, customer_email.")
    data, now = given.get("subscription_data", {}), call.now
    trial_end_from(data, now=now)
    orders = orders_from(call, given.get("line_items", []), param="line_items")
    check_anchor(data, orders, now=now)
    return call.show(call.world.put(_session(call, orders)))


@route("GET", "/v1/checkout/sessions", accepted.CHECKOUT_LIST)
def list_all(call: Call) -> Obj:
    given = call.params
    return call.page(
        "checkout.session",
        lambda session: all(
            given.get(name) in (None, session[name]) for name in ("customer", "status", "subscription")
        ),
    )


@route("GET", "/v1/checkout/sessions/{}", accepted.PLAIN)
def retrieve(call: Call) -> Obj:
    return call.show(call.find("checkout.session", call.ids[0], what="checkout.session"))


@route("GET", "/v1/checkout/sessions/{}/line_items", accepted.PAGED)
def line_items(call: Call) -> Obj:
    session = call.find("checkout.session", call.ids[0], what="checkout.session")
    return shapes.list_of(session["_line_items"], call.path)


@route("POST", "/v1/checkout/sessions/{}/expire", accepted.PLAIN)
def expire(call: Call) -> Obj:
    session = call.find("checkout.session", call.ids[0], what="checkout.session")
    if session["status"] != "open":
        raise StripeError(f"This Session is {session['status']}; only open Sessions can be expired.")
    return call.show(call.world.put(session | {"status": "expired", "url": None}))


@route("POST", "/v1/billing_portal/sessions", accepted.PORTAL_CREATE)
def create_portal(call: Call) -> Obj:
    given = call.params
    customer = call.refer("customer", given["customer"])
    session_id = new_id("billing_portal.session")
    session = {
        "id": session_id,
        "object": "billing_portal.session",
        "configuration": "bpc_1SandboxTermkeeper",
        "created": call.now,
        "customer": customer["id"],
        "customer_account": None,
        "flow": _flow(given["flow_data"]) if "flow_data" in given else None,
        "livemode": False,
        "locale": given.get("locale"),
        "on_behalf_of": None,
        "return_url": given.get("return_url"),
        "url": f"{call.world.base_url}/portal/{session_id}",
    }
    return call.show(call.world.put(session))


def complete(world: World, session: Obj, *, now: int, settled: bool = True) -> Obj:
    """The customer fills in the form and pays. With ``settled`` False the money is still on its way (bank debit).

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
    if succeeded:
        settle(world, subscription, now=now)
        session["payment_status"] = "paid"
        world.put(session)
    elif unpaid_of(world, subscription["id"]):
        fail(world, subscription, now=now)
    outcome = "succeeded" if succeeded else "failed"
    world.emit(f"checkout.session.async_payment_{outcome}", session, now=now)
    return session


def _session(call: Call, orders: list[tuple[Obj, Obj]]) -> Obj:
    given, now = call.params, call.now
    session_id, data = new_id("checkout.session"), given.get("subscription_data", {})
    lines = [_line(call, price, asked) for price, asked in orders]
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
        "automatic_tax": {"enabled": False, "liability": None, "provider": None, "status": None},
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
        "success_url": given["success_url"],
        "total_details": {"amount_discount": 0, "amount_shipping": 0, "amount_tax": 0},
        "ui_mode": "hosted_page",
        "url": f"{call.world.base_url}/checkout/{session_id}",
        "wallet_options": None,
        "_line_items": lines,
        "_orders": [[price["id"], asked] for price, asked in orders],
        "_subscription_data": data,
    }


def _line(call: Call, price: Obj, asked: Obj) -> Obj:
    quantity = asked.get("quantity", 1)
    product = call.world.need("product", price["product"])
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


def _new_customer(world: World, session: Obj, *, now: int) -> str:
    email = session.get("_email") or session["customer_email"] or "someone@sandbox.test"  # _: typed on the page
    given = {"email": email, "name": session.get("_name") or "Someone"}
    return str(world.put(shapes.customer(given, now=now))["id"])


def _flow(given: Obj) -> Obj:
    after = {"hosted_confirmation": None, "redirect": None, "type": "portal_homepage"}
    after |= given.get("after_completion", {})
    flow: Obj = {"after_completion": after, "type": given["type"]}
    for name in ("subscription_cancel", "subscription_update", "subscription_update_confirm"):
        flow[name] = None
    if "subscription_cancel" in given:
        flow["subscription_cancel"] = {"retention": None, "subscription": given["subscription_cancel"]["subscription"]}
    if "subscription_update" in given:
        flow["subscription_update"] = {"subscription": given["subscription_update"]["subscription"]}
    if "subscription_update_confirm" in given:
        asked = given["subscription_update_confirm"]
        items = [{"id": None, "price": None, "quantity": None} | item for item in asked["items"]]
        flow["subscription_update_confirm"] = {"discounts": None, "items": items, "subscription": asked["subscription"]}
    return flow
