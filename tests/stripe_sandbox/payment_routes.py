"""Payment intents, methods, charges, refunds and disputes."""

from . import accepted, payments
from .calls import Call, route
from .errors import StripeError, missing_param
from .shapes import payment_method, relabel
from .store import Obj


@route("GET", "/v1/payment_intents/{}", accepted.PLAIN)
def retrieve_intent(call: Call) -> Obj:
    return call.show(call.find("payment_intent", call.ids[0]))


@route("GET", "/v1/payment_methods/{}", accepted.PLAIN)
def retrieve_method(call: Call) -> Obj:
    for customer in call.world.store.all("customer").values():
        if not customer.get("deleted") and customer["invoice_settings"]["default_payment_method"] == call.ids[0]:
            return payment_method(call.ids[0], customer["id"])
    raise StripeError(f"No such PaymentMethod: '{call.ids[0]}'", status=404, code="resource_missing", param="id")


@route("GET", "/v1/charges", accepted.CHARGE_LIST)
def list_charges(call: Call) -> Obj:
    return _page(call, "charge", "customer", "payment_intent")


@route("GET", "/v1/charges/{}", accepted.PLAIN)
def retrieve_charge(call: Call) -> Obj:
    return call.show(call.find("charge", call.ids[0]))


@route("POST", "/v1/refunds", accepted.REFUND_CREATE)
def create_refund(call: Call) -> Obj:
    given = call.params
    if "charge" in given:
        charge = call.refer("charge", given["charge"])
    elif "payment_intent" in given:
        intent = call.refer("payment_intent", given["payment_intent"])
        if not intent["latest_charge"]:
            message = f"This PaymentIntent ({intent['id']}) does not have a successful charge to refund."
            raise StripeError(message, code="payment_intent_unexpected_state")
        charge = call.world.need("charge", intent["latest_charge"])
    else:
        raise missing_param("payment_intent")
    return call.show(payments.refund(call.world, charge, given, now=call.now))


@route("GET", "/v1/refunds", accepted.REFUND_LIST)
def list_refunds(call: Call) -> Obj:
    return _page(call, "refund", "charge", "payment_intent")


@route("GET", "/v1/refunds/{}", accepted.PLAIN)
def retrieve_refund(call: Call) -> Obj:
    return call.show(call.find("refund", call.ids[0]))


@route("POST", "/v1/refunds/{}", accepted.LABELLED)
def update_refund(call: Call) -> Obj:
    refund = call.find("refund", call.ids[0])
    refund["metadata"] = relabel(refund["metadata"], call.params.get("metadata", {}))
    return call.show(call.world.put(refund))


@route("GET", "/v1/disputes", accepted.DISPUTE_LIST)
def list_disputes(call: Call) -> Obj:
    return _page(call, "dispute", "charge", "payment_intent")


@route("GET", "/v1/disputes/{}", accepted.PLAIN)
def retrieve_dispute(call: Call) -> Obj:
    return call.show(call.find("dispute", call.ids[0]))


@route("POST", "/v1/disputes/{}/close", accepted.PLAIN)
def close_dispute(call: Call) -> Obj:
    """The merchant gives in."""
    dispute = call.find("dispute", call.ids[0])
    if dispute["status"] in payments.CLOSED:
        raise StripeError("This dispute is already closed.")
    return call.show(payments.close_dispute(call.world, dispute, status="lost", now=call.now))


def _page(call: Call, kind: str, *names: str) -> Obj:
    asked = {name: call.params[name] for name in names if name in call.params}
    return call.page(kind, lambda obj: all(obj[name] == value for name, value in asked.items()))
