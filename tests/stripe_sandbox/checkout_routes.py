"""Checkout and portal sessions: made by the API, carried out by a person on the sandbox's pages or by a test."""

from . import accepted, shapes
from .calls import Call, route
from .checkouts import arrive as arrive
from .checkouts import complete as complete
from .checkouts import session_of
from .errors import StripeError, missing_param
from .ids import new_id
from .ordering import check_anchor, orders_from, trial_end_from
from .store import Obj


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
    return call.show(call.world.put(session_of(call.world, given, orders, now=now)))


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
