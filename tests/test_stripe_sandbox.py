"""The Stripe sandbox keeps Stripe's published contract: every route, every refusal, keys and lists."""

import base64
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import stripe

from tests import stripe_spec
from tests.stripe_sandbox.api import ROUTES
from tests.stripe_sandbox.client import Sandbox, SandboxError
from tests.stripe_sandbox.params import names
from tests.stripe_sandbox_cast import Stripe, period, routes_of

# the contract


def test_every_route_answers_in_the_shape_that_stripe_publishes(api: Stripe, sandbox: Sandbox) -> None:
    account = api("GET", "/v1/account")
    assert account["object"] == "account"

    product = api("POST", "/v1/products", id="prod_main", name="Main", metadata={"plan": "main"})
    assert product["id"] == "prod_main"
    api("POST", "/v1/products/prod_main", description="The main one", metadata={"plan": None, "tier": "basic"})
    assert api("GET", "/v1/products/prod_main")["metadata"] == {"tier": "basic"}
    assert [p["id"] for p in api("GET", "/v1/products", active=True)["data"]] == ["prod_main"]
    price = api(
        "POST",
        "/v1/prices",
        product="prod_main",
        currency="eur",
        unit_amount=1200,
        recurring={"interval": "month"},
        lookup_key="main_monthly",
        nickname="Main, monthly",
    )
    api("POST", f"/v1/prices/{price['id']}", metadata={"slots": "10"})
    assert api("GET", f"/v1/prices/{price['id']}", expand=["product"])["product"]["name"] == "Main"
    assert api("GET", "/v1/prices", lookup_keys=["main_monthly"])["data"][0]["id"] == price["id"]
    assert api("GET", "/v1/prices", lookup_keys=["another"])["data"] == []

    customer = api.customer(metadata={"tenant": "7"}, address={"city": "Berlin", "country": "DE"})
    path = f"/v1/customers/{customer['id']}"
    api("POST", path, phone="+49 30 1", invoice_settings={"default_payment_method": "pm_card_visa"})
    assert api("GET", "/v1/customers", email="anna@acme.test")["data"][0]["id"] == customer["id"]
    assert api("GET", "/v1/payment_methods/pm_card_visa")["customer"] == customer["id"]

    subscription = api.subscription(customer["id"], items=[{"price": price["id"], "quantity": 2}])
    assert subscription["status"] == "active"
    path_of_it = f"/v1/subscriptions/{subscription['id']}"
    api("POST", path_of_it, metadata={"note": "hello"})
    shown = api("GET", path_of_it, expand=["customer", "latest_invoice.payments", "items.data.price.product"])
    assert shown["customer"]["name"] == "Acme GmbH"
    assert shown["latest_invoice"]["status"] == "paid"
    assert shown["items"]["data"][0]["price"]["product"]["id"] == "prod_main"
    payment = shown["latest_invoice"]["payments"]["data"][0]
    intent = api("GET", f"/v1/payment_intents/{payment['payment']['payment_intent']}")
    assert (intent["status"], intent["amount_received"]) == ("succeeded", 2400)
    assert len(api("GET", path, expand=["subscriptions"])["subscriptions"]["data"]) == 1
    assert len(api("GET", "/v1/subscriptions", customer=customer["id"], expand=["data.latest_invoice"])["data"]) == 1

    sandbox.fail(subscription["id"])
    invoice = api("GET", "/v1/invoices", subscription=subscription["id"], status="open")["data"][0]
    assert invoice["parent"]["subscription_details"]["subscription"] == subscription["id"]
    assert api("POST", f"/v1/invoices/{invoice['id']}/pay")["status"] == "paid"
    assert len(api("GET", f"/v1/invoices/{invoice['id']}/lines")["data"]) == 1
    details = api("GET", f"/v1/invoices/{invoice['id']}", expand=["parent.subscription_details.subscription"])
    assert details["parent"]["subscription_details"]["subscription"]["status"] == "active"
    assert len(api("GET", "/v1/invoice_payments", invoice=invoice["id"])["data"]) == 1

    sandbox.pause(subscription["id"])
    assert api("POST", f"{path_of_it}/resume")["status"] == "active"
    assert api("DELETE", path_of_it)["status"] == "canceled"

    session = api(
        "POST",
        "/v1/checkout/sessions",
        mode="subscription",
        customer=customer["id"],
        line_items=[{"price": price["id"], "quantity": 1}],
        success_url="https://portal.test/done?s={CHECKOUT_SESSION_ID}",
        cancel_url="https://portal.test/back",
        subscription_data={"metadata": {"tenant": "7"}},
    )
    at = f"/v1/checkout/sessions/{session['id']}"
    assert api("GET", at, expand=["line_items"])["line_items"]["data"][0]["quantity"] == 1
    assert api("GET", f"{at}/line_items")["data"][0]["amount_total"] == 1200
    sandbox.complete(session["id"])
    done = api("GET", at, expand=["subscription", "subscription.latest_invoice"])
    assert (done["status"], done["payment_status"]) == ("complete", "paid")
    assert done["subscription"]["metadata"] == {"tenant": "7"}
    assert len(api("GET", "/v1/checkout/sessions", customer=customer["id"], status="complete")["data"]) == 1
    given: dict[str, Any] = {"line_items": [{"price": price["id"]}], "success_url": "https://portal.test/done"}
    another = api("POST", "/v1/checkout/sessions", mode="subscription", **given)
    assert api("POST", f"/v1/checkout/sessions/{another['id']}/expire")["status"] == "expired"
    portal = api("POST", "/v1/billing_portal/sessions", customer=customer["id"], return_url="https://portal.test/")
    assert portal["url"].startswith(sandbox.url)

    endpoint = api("POST", "/v1/webhook_endpoints", url="http://127.0.0.1:9/hook", enabled_events=["invoice.paid"])
    where = f"/v1/webhook_endpoints/{endpoint['id']}"
    assert endpoint["secret"].startswith("whsec_")
    assert "secret" not in api("GET", where)
    assert api("POST", where, disabled=True)["status"] == "disabled"
    assert len(api("GET", "/v1/webhook_endpoints")["data"]) == 1
    assert api("DELETE", where)["deleted"] is True

    event = api("GET", "/v1/events", type="checkout.session.completed")["data"][0]
    assert api("GET", f"/v1/events/{event['id']}")["data"]["object"]["id"] == session["id"]
    assert api("DELETE", path)["deleted"] is True
    assert api("GET", path)["deleted"] is True

    families = ("catalogue_routes", "checkout_routes", "event_routes", "invoice_routes", "subscription_routes")
    assert routes_of(*families) - api.called == set()


def test_no_parameter_is_accepted_that_stripe_does_not_publish() -> None:
    for route in ROUTES:
        published = dict.fromkeys(_spec_names(stripe_spec.form_schema(route.method, route.path.replace("{}", "x"))))
        invented = [name for name in names(route.accepts) if name not in published]
        assert not invented, f"{route.method} {route.path}: {invented}"


def _spec_names(schema: Any, path: str = "") -> Iterator[str]:
    for option in schema.get("anyOf", ()):
        yield from _spec_names(option, path)
    for name, inner in schema.get("properties", {}).items():
        here = f"{path}.{name}" if path else name
        yield here
        yield from _spec_names(inner, here)
    if "items" in schema:
        yield from _spec_names(schema["items"], path + "[]")


def test_the_official_client_reads_subscriptions_and_their_items(api: Stripe, sandbox: Sandbox) -> None:
    made = api.subscription()
    client = stripe.StripeClient(sandbox.api_key, base_addresses={"api": sandbox.url}, max_network_retries=0)

    found = client.v1.subscriptions.retrieve(made["id"], {"expand": ["latest_invoice"]})

    assert found.status == "active"
    assert found["items"].data[0].quantity == 3
    assert found["items"].data[0].current_period_end == period(made)[1]
    assert found.latest_invoice.status == "paid"  # type: ignore[union-attr]
    page = client.v1.subscriptions.list({"customer": made["customer"], "limit": 1})
    assert [subscription.id for subscription in page.auto_paging_iter()] == [made["id"]]


def test_the_check_against_the_document_refuses_old_shapes_and_foreign_parameters(api: Stripe) -> None:
    subscription = api.subscription()
    path = f"/v1/subscriptions/{subscription['id']}"
    for change, complaint in (
        ({"current_period_end": 1}, "current_period_end"),
        ({"status": "hibernating"}, "status: 'hibernating' is not one of"),
        ({"customer": 7}, "customer"),
        ({"items": None}, "items"),
    ):
        with pytest.raises(AssertionError, match=complaint):
            stripe_spec.validate_response("GET", path, 200, subscription | change)
    del subscription["items"]["data"][0]["current_period_end"]
    with pytest.raises(AssertionError, match=r"items.data\[0\]: 'current_period_end' is a required property"):
        stripe_spec.validate_response("GET", path, 200, subscription)
    with pytest.raises(AssertionError, match=r"subscription_data\[cancel_at\] is not a parameter"):
        stripe_spec.validate_request("POST", "/v1/checkout/sessions", {"subscription_data": {"cancel_at": 1}})
    with pytest.raises(AssertionError, match="limit must be a integer"):
        stripe_spec.validate_request("GET", "/v1/events", {"limit": "ten"})
    with pytest.raises(AssertionError, match="Stripe publishes no"):
        stripe_spec.validate_response("GET", "/v1/unicorns", 200, {})


# asking wrongly


def test_an_unknown_parameter_is_refused_wherever_it_hides(api: Stripe) -> None:
    status, error = api.refused("POST", "/v1/customers", colour="red")
    assert (status, error["code"], error["param"]) == (400, "parameter_unknown", "colour")
    items = [{"price": api.price()["id"]}]
    given = {"mode": "subscription", "success_url": "https://x.test/", "line_items": items}
    status, error = api.refused("POST", "/v1/checkout/sessions", **given, subscription_data={"cancel_at": 4102444800})
    assert (status, error["param"]) == (400, "subscription_data[cancel_at]")
    assert api("GET", "/v1/checkout/sessions")["data"] == []


def test_missing_and_malformed_parameters_are_named(api: Stripe) -> None:
    assert api.refused("POST", "/v1/prices", unit_amount=1)[1]["param"] == "currency"
    assert api.refused("GET", "/v1/customers", limit="many")[1]["code"] == "parameter_invalid_integer"
    assert api.refused("GET", "/v1/customers", limit=101)[1]["param"] == "limit"
    assert api.refused("POST", "/v1/subscriptions", customer="cus_none", items=[{"price": "p"}])[0] == 400
    customer = api.customer()["id"]
    status, error = api.refused("POST", "/v1/subscriptions", customer=customer, items=[{"price": "price_none"}])
    assert (status, error["code"], error["param"]) == (400, "resource_missing", "items[0][price]")
    assert "cannot be expanded" in api.refused("GET", f"/v1/customers/{customer}", expand=["email"])[1]["message"]


def test_what_does_not_exist_is_404_resource_missing(api: Stripe) -> None:
    for path in ("customers/cus_x", "subscriptions/sub_x", "invoices/in_x", "prices/p", "events/evt_x"):
        status, error = api.refused("GET", f"/v1/{path}")
        assert (status, error["type"], error["code"]) == (404, "invalid_request_error", "resource_missing"), path


def test_a_wrong_or_missing_key_is_401_and_basic_auth_works(api: Stripe, sandbox: Sandbox) -> None:
    assert api.refused("GET", "/v1/account", headers={"Authorization": "Bearer sk_test_wrong"})[0] == 401
    assert api.refused("GET", "/v1/account", headers={"Authorization": ""})[0] == 401
    basic = "Basic " + base64.b64encode(f"{sandbox.api_key}:".encode()).decode()
    assert api("GET", "/v1/account", headers={"Authorization": basic})["object"] == "account"


def test_an_unknown_url_is_404_in_stripes_words(sandbox: Sandbox) -> None:
    with pytest.raises(SandboxError, match="Unrecognized request URL") as caught:
        sandbox.api("GET", "/v1/unicorns")
    assert caught.value.status == 404


# idempotency


def test_the_same_key_gets_the_same_answer_and_acts_once(api: Stripe) -> None:
    key = {"Idempotency-Key": "renew-7"}
    first = api("POST", "/v1/customers", headers=key, email="a@acme.test")
    assert api("POST", "/v1/customers", headers=key, email="a@acme.test") == first
    assert len(api("GET", "/v1/customers")["data"]) == 1


def test_the_same_key_with_other_parameters_is_an_idempotency_error(api: Stripe) -> None:
    key = {"Idempotency-Key": "renew-7"}
    api("POST", "/v1/customers", headers=key, email="a@acme.test")
    status, error = api.refused("POST", "/v1/customers", headers=key, email="b@acme.test")
    assert (status, error["type"]) == (400, "idempotency_error")
    assert api.refused("POST", "/v1/products", headers=key, name="x")[1]["type"] == "idempotency_error"


def test_a_key_whose_answer_was_lost_still_acts_once(api: Stripe, sandbox: Sandbox) -> None:
    sandbox.knobs(errors=[{"method": "POST", "close": True, "after": True}])
    key = {"Idempotency-Key": "lost"}
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        sandbox.api("POST", "/v1/customers", headers=key, email="a@acme.test")
    again = api("POST", "/v1/customers", headers=key, email="a@acme.test")
    assert [customer["id"] for customer in api("GET", "/v1/customers")["data"]] == [again["id"]]


def test_concurrent_requests_with_one_key_act_once(api: Stripe, sandbox: Sandbox) -> None:
    def create(_: int) -> str:
        made = sandbox.api("POST", "/v1/customers", headers={"Idempotency-Key": "race"}, email="a@acme.test")
        return str(made["id"])

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(create, range(16)))) == 1


def test_a_request_that_was_refused_for_its_parameters_may_use_its_key_again(api: Stripe) -> None:
    key = {"Idempotency-Key": "typo"}
    api.refused("POST", "/v1/customers", headers=key, emial="a@acme.test")
    assert api("POST", "/v1/customers", headers=key, email="a@acme.test")["email"] == "a@acme.test"


# lists


def test_lists_page_in_both_directions_newest_first(api: Stripe) -> None:
    ids = [api("POST", "/v1/customers", email=f"{n}@acme.test")["id"] for n in range(5)][::-1]
    first = api("GET", "/v1/customers", limit=2)
    assert ([c["id"] for c in first["data"]], first["has_more"]) == (ids[:2], True)
    second = api("GET", "/v1/customers", limit=2, starting_after=ids[1])
    assert ([c["id"] for c in second["data"]], second["has_more"]) == (ids[2:4], True)
    last = api("GET", "/v1/customers", limit=2, starting_after=ids[3])
    assert ([c["id"] for c in last["data"]], last["has_more"]) == (ids[4:], False)
    back = api("GET", "/v1/customers", limit=2, ending_before=ids[3])
    assert ([c["id"] for c in back["data"]], back["has_more"]) == (ids[1:3], True)


def test_subscription_lists_hide_the_canceled_unless_asked(api: Stripe, sandbox: Sandbox) -> None:
    price = api.price()["id"]
    live, gone = api.subscription(items=[{"price": price}]), api.subscription()
    sandbox.cancel(gone["id"])
    assert [s["id"] for s in api("GET", "/v1/subscriptions")["data"]] == [live["id"]]
    assert len(api("GET", "/v1/subscriptions", status="all")["data"]) == 2
    assert [s["id"] for s in api("GET", "/v1/subscriptions", status="canceled")["data"]] == [gone["id"]]
    assert [s["id"] for s in api("GET", "/v1/subscriptions", price=price)["data"]] == [live["id"]]
