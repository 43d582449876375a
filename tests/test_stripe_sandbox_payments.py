"""Money in the sandbox that was taken, given back, or disputed."""

from typing import Any

import pytest

from tests.stripe_sandbox.client import Sandbox, SandboxError
from tests.stripe_sandbox_cast import Stripe, routes_of


def intent_of(api: Stripe, subscription: Any) -> str:
    payments = api("GET", "/v1/invoice_payments", invoice=subscription["latest_invoice"])["data"]
    return str(payments[0]["payment"]["payment_intent"])


def test_every_route_of_payments_answers_as_published(api: Stripe, sandbox: Sandbox) -> None:
    subscription = api.subscription()
    intent = api("GET", f"/v1/payment_intents/{intent_of(api, subscription)}", expand=["latest_charge"])
    charge = intent["latest_charge"]
    assert (charge["amount"], charge["paid"]) == (3000, True)
    assert api("GET", f"/v1/charges/{charge['id']}")["customer"] == subscription["customer"]
    assert len(api("GET", "/v1/charges", customer=subscription["customer"])["data"]) == 1
    refund = api("POST", "/v1/refunds", payment_intent=intent["id"], amount=1000, reason="requested_by_customer")
    assert api("GET", f"/v1/refunds/{refund['id']}", expand=["charge"])["charge"]["amount_refunded"] == 1000
    assert api("POST", f"/v1/refunds/{refund['id']}", metadata={"ticket": "7"})["metadata"] == {"ticket": "7"}
    dispute = sandbox.dispute(subscription["latest_invoice"], reason="product_not_received")
    assert api("GET", f"/v1/disputes/{dispute['id']}")["status"] == "needs_response"
    assert api("POST", f"/v1/disputes/{dispute['id']}/close")["status"] == "lost"
    by_intent = {"type": "payment_intent", "payment_intent": intent["id"]}
    paid = api("GET", "/v1/invoice_payments", payment=by_intent)["data"]
    assert [payment["invoice"] for payment in paid] == [subscription["latest_invoice"]]
    api("POST", f"/v1/customers/{subscription['customer']}", invoice_settings={"default_payment_method": "pm_x"})
    api("GET", "/v1/payment_methods/pm_x")
    api("GET", "/v1/refunds")
    api("GET", "/v1/disputes")
    assert routes_of("payment_routes") - api.called == set()


def test_a_refund_gives_back_what_is_left_and_no_more(api: Stripe) -> None:
    subscription = api.subscription()
    intent = intent_of(api, subscription)
    api("POST", "/v1/refunds", payment_intent=intent, amount=1000)
    status, error = api.refused("POST", "/v1/refunds", payment_intent=intent, amount=2001)
    assert (status, error["param"]) == (400, "amount")
    rest = api("POST", "/v1/refunds", payment_intent=intent)
    assert (rest["amount"], rest["status"]) == (2000, "succeeded")
    assert api.refused("POST", "/v1/refunds", payment_intent=intent)[1]["code"] == "charge_already_refunded"
    assert api.event_types()[-2:] == ["refund.created", "charge.refunded"]
    assert api.retrieve(subscription) == subscription
    assert api("GET", f"/v1/invoices/{subscription['latest_invoice']}")["status"] == "paid"


def test_refunds_and_disputes_are_listed_by_what_they_are_about_and_when(api: Stripe, sandbox: Sandbox) -> None:
    first, second = api.subscription(), api.subscription()
    refunds = [api("POST", "/v1/refunds", payment_intent=intent_of(api, s)) for s in (first, second)]
    disputed = sandbox.dispute(second["latest_invoice"])
    at = refunds[0]["created"]
    assert [r["id"] for r in api("GET", "/v1/refunds", created={"gte": at})["data"]] == [r["id"] for r in refunds[::-1]]
    assert api("GET", "/v1/refunds", created={"gt": at + 60})["data"] == []
    assert [r["id"] for r in api("GET", "/v1/refunds", charge=refunds[0]["charge"])["data"]] == [refunds[0]["id"]]
    assert [d["id"] for d in api("GET", "/v1/disputes", charge=disputed["charge"])["data"]] == [disputed["id"]]
    assert api("GET", "/v1/disputes", payment_intent=refunds[0]["payment_intent"])["data"] == []


def test_a_dispute_opens_once_and_closes_once(api: Stripe, sandbox: Sandbox) -> None:
    subscription = api.subscription()
    dispute = sandbox.dispute(subscription["latest_invoice"])
    with pytest.raises(SandboxError, match="is disputed already"):
        sandbox.dispute(subscription["latest_invoice"])
    assert sandbox.close_dispute(dispute["id"], status="won")["status"] == "won"
    with pytest.raises(SandboxError, match="is won already"):
        sandbox.close_dispute(dispute["id"])
    assert api.event_types()[-2:] == ["charge.dispute.created", "charge.dispute.closed"]
    assert api.retrieve(subscription)["status"] == "active"


def test_what_was_lost_to_a_dispute_cannot_be_refunded_too(api: Stripe, sandbox: Sandbox) -> None:
    subscription = api.subscription()
    dispute = sandbox.dispute(subscription["latest_invoice"])
    sandbox.close_dispute(dispute["id"], status="lost")
    assert api.refused("POST", "/v1/refunds", charge=dispute["charge"])[1]["code"] == "charge_disputed"
    assert api("GET", "/v1/refunds")["data"] == []
