"""Invoices and what paid them."""

from . import accepted
from .billing import fail, settle_invoice
from .calls import Call, route
from .cards import NO_CARD, card_of, decline_of
from .errors import StripeError
from .invoices import subscription_of
from .shapes import list_of
from .store import Obj


@route("GET", "/v1/invoices", accepted.INVOICE_LIST)
def list_all(call: Call) -> Obj:
    given = call.params
    return call.page(
        "invoice",
        lambda invoice: (
            given.get("subscription") in (None, subscription_of(invoice))
            and all(given.get(name) in (None, invoice[name]) for name in ("customer", "status", "collection_method"))
        ),
    )


@route("GET", "/v1/invoices/{}", accepted.PLAIN)
def retrieve(call: Call) -> Obj:
    return call.show(call.find("invoice", call.ids[0]))


@route("GET", "/v1/invoices/{}/lines", accepted.PAGED)
def lines(call: Call) -> Obj:
    return list_of(call.find("invoice", call.ids[0])["lines"]["data"], call.path)


@route("POST", "/v1/invoices/{}/pay", accepted.INVOICE_PAY)
def pay(call: Call) -> Obj:
    invoice, given = call.find("invoice", call.ids[0]), call.params
    if invoice["status"] == "paid":
        raise StripeError("Invoice is already paid", code="invoice_already_paid")
    if invoice["status"] != "open":
        raise StripeError(f"You cannot pay an invoice that is {invoice['status']}.")
    out_of_band = given.get("paid_out_of_band", False)
    if not out_of_band:
        subscription = call.world.need("subscription", subscription_of(invoice) or "")
        card = "ok" if given.get("payment_method") or given.get("source") else card_of(call.world, subscription)
        if card == "none":
            raise StripeError(NO_CARD, code="resource_missing")
        if card == "declined":
            fail(call.world, subscription, now=call.now)
            raise decline_of(call.world, subscription)
    settle_invoice(call.world, invoice, now=call.now, out_of_band=out_of_band)
    return call.show(invoice)


@route("GET", "/v1/invoice_payments", accepted.INVOICE_PAYMENT_LIST)
def list_payments(call: Call) -> Obj:
    given = call.params
    intent = given.get("payment", {}).get("payment_intent")
    return call.page(
        "invoice_payment",
        lambda payment: (
            all(given.get(name) in (None, payment[name]) for name in ("invoice", "status"))
            and intent in (None, payment["payment"]["payment_intent"])
        ),
    )
