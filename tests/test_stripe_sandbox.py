"""The Stripe sandbox keeps Stripe's published contract, and its knobs do what they say.

Every answer and every event that appears in this file is held to Stripe's own OpenAPI document.
"""

import base64
import hashlib
import hmac
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import stripe

from tests import stripe_spec
from tests.stripe_sandbox.api import FAMILIES
from tests.stripe_sandbox.calls import ROUTES
from tests.stripe_sandbox.client import Sandbox, SandboxError
from tests.stripe_sandbox.params import names
from tests.stripe_sandbox.periods import add_interval, next_end
from tests.stripe_sandbox.receiver import Receiver

SECRET = "whsec_of_the_tests"
DAY = 86_400


class Stripe:
    """The API and the side door, with every answer checked against the published schema."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.called: set[tuple[str, str]] = set()

    def __call__(self, method: str, path: str, *, headers: dict[str, str] | None = None, **params: Any) -> Any:
        self.called |= {
            (route.method, route.path) for route in ROUTES if route.pattern.match(path) and route.method == method
        }
        try:
            body = self.sandbox.api(method, path, headers=headers, **params)
        except SandboxError as error:
            stripe_spec.validate_response(method, path, error.status, error.body)
            raise
        stripe_spec.validate_request(
            method, path, {key: "" if value is None else value for key, value in params.items()}
        )
        stripe_spec.validate_response(method, path, 200, body)
        return body

    def refused(self, method: str, path: str, **params: Any) -> tuple[int, dict[str, Any]]:
        with pytest.raises(SandboxError) as caught:
            self(method, path, **params)
        return caught.value.status, caught.value.body["error"]

    # the cast

    def customer(self, **given: Any) -> Any:
        return self("POST", "/v1/customers", email="anna@acme.test", name="Acme GmbH", **given)

    def price(self, amount: int = 1000, interval: str = "month", **given: Any) -> Any:
        product = self("POST", "/v1/products", name="Termkeeper Standard")
        recurring = {"interval": interval}
        return self(
            "POST",
            "/v1/prices",
            product=product["id"],
            currency="eur",
            unit_amount=amount,
            recurring=recurring,
            **given,
        )

    def subscription(self, customer: str | None = None, **given: Any) -> Any:
        items = given.pop("items", None) or [{"price": self.price()["id"], "quantity": 3}]
        return self("POST", "/v1/subscriptions", customer=customer or self.customer()["id"], items=items, **given)

    def retrieve(self, subscription: Any) -> Any:
        return self("GET", f"/v1/subscriptions/{subscription['id']}")

    def event_types(self) -> list[str]:
        return [event["type"] for event in self("GET", "/v1/events", limit=100)["data"]][::-1]


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.stop()


@pytest.fixture(scope="module")
def running(receiver: Receiver) -> Iterator[Sandbox]:
    with Sandbox.start(webhook_url=receiver.url, webhook_secret=SECRET) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(running: Sandbox, receiver: Receiver) -> Iterator[Sandbox]:
    running.reset()
    receiver.forget()
    yield running
    receiver.answer_after.set()
    for event in running.api("GET", "/v1/events", limit=100)["data"]:
        if event["api_version"] == stripe_spec.document()["version"] and event["livemode"] is False:
            stripe_spec.validate_event(event)


@pytest.fixture
def api(sandbox: Sandbox) -> Stripe:
    return Stripe(sandbox)


def period(subscription: Any) -> tuple[int, int]:
    item = subscription["items"]["data"][0]
    return item["current_period_start"], item["current_period_end"]


def good(headers: dict[str, str], body: bytes, secret: str = SECRET) -> bool:
    parts = dict(part.split("=", 1) for part in headers["stripe-signature"].split(","))
    expected = hmac.new(secret.encode(), f"{parts['t']}.".encode() + body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected, parts["v1"])


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

    assert FAMILIES
    assert {(route.method, route.path) for route in ROUTES} == api.called


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


# billing


def test_periods_keep_the_day_of_their_anchor() -> None:
    def at(text: str) -> int:
        return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())

    assert add_interval(at("2026-01-31"), "month", 1) == at("2026-02-28")
    assert next_end(at("2026-01-31"), at("2026-02-28"), "month", 1) == at("2026-03-31")
    assert next_end(at("2024-02-29"), at("2025-02-28"), "year", 1) == at("2026-02-28")
    assert next_end(at("2024-02-29"), at("2027-06-01"), "year", 1) == at("2028-02-29")
    assert next_end(at("2026-06-15"), at("2026-01-01"), "month", 1) == at("2026-01-15")
    assert next_end(at("2026-06-15"), at("2020-01-01"), "month", 3) == at("2020-03-15")


def test_a_first_payment_makes_the_subscription_active(api: Stripe, sandbox: Sandbox) -> None:
    subscription = api.subscription(
        payment_behavior="default_incomplete", expand=["latest_invoice.confirmation_secret"]
    )
    assert subscription["status"] == "incomplete"
    assert subscription["latest_invoice"]["status"] == "open"
    assert subscription["latest_invoice"]["confirmation_secret"]["type"] == "payment_intent"
    assert sandbox.pay(subscription["id"])["status"] == "active"
    assert api.event_types() == [
        "customer.subscription.created",
        "invoice.paid",
        "invoice.payment_succeeded",
        "customer.subscription.updated",
    ]


def test_without_a_card_the_card_knob_and_metadata_decide(api: Stripe, sandbox: Sandbox) -> None:
    sandbox.knobs(card="none")
    items = [{"price": api.price()["id"]}]
    customer = api.customer()["id"]
    assert api.refused("POST", "/v1/subscriptions", customer=customer, items=items)[1]["code"] == "resource_missing"
    declined = api.customer(metadata={"card": "declined"})["id"]
    assert api.subscription(declined, items=items)["status"] == "incomplete"
    status, error = api.refused(
        "POST", "/v1/subscriptions", customer=declined, items=items, payment_behavior="error_if_incomplete"
    )
    assert (status, error["type"], error["code"]) == (402, "card_error", "card_declined")
    assert api.subscription(api.customer(metadata={"card": "ok"})["id"], items=items)["status"] == "active"


def test_paying_an_active_subscription_moves_its_period_on_from_its_end(api: Stripe, sandbox: Sandbox) -> None:
    subscription = api.subscription()
    start, end = period(subscription)
    renewed = sandbox.pay(subscription["id"])
    assert period(renewed) == (end, next_end(start, end, "month", 1))
    assert renewed["latest_invoice"] != subscription["latest_invoice"]
    update = api("GET", "/v1/events", type="customer.subscription.updated")["data"][0]
    assert update["data"]["previous_attributes"]["items"]["data"][0]["current_period_end"] == end


def test_a_failed_renewal_is_past_due_then_recovers_when_paid(api: Stripe, sandbox: Sandbox) -> None:
    subscription = api.subscription()
    end = period(subscription)[1]
    failed = sandbox.fail(subscription["id"])
    assert (failed["status"], period(failed)[0]) == ("past_due", end)
    assert api.event_types()[-2:] == ["invoice.payment_failed", "customer.subscription.updated"]
    recovered = sandbox.pay(subscription["id"])
    assert (recovered["status"], period(recovered)) == ("active", period(failed))
    assert sandbox.unpaid(subscription["id"])["status"] == "unpaid"
    assert sandbox.pay(subscription["id"])["status"] == "active"


def test_a_payment_that_needs_the_customer_says_so(api: Stripe, sandbox: Sandbox) -> None:
    sandbox.fail(api.subscription()["id"], action_required=True)
    assert "invoice.payment_action_required" in api.event_types()


def test_a_trial_has_a_free_paid_invoice_and_ends_when_paid(api: Stripe, sandbox: Sandbox) -> None:
    subscription = api.subscription(trial_period_days=14, expand=["latest_invoice"])
    assert subscription["status"] == "trialing"
    assert (subscription["latest_invoice"]["status"], subscription["latest_invoice"]["total"]) == ("paid", 0)
    assert period(subscription)[1] == subscription["trial_end"]
    paid = sandbox.pay(subscription["id"])
    assert paid["status"] == "active"
    assert paid["trial_end"] == period(paid)[0]
    another = api.subscription(trial_period_days=14)
    assert api("POST", f"/v1/subscriptions/{another['id']}", trial_end="now")["status"] == "active"


def test_the_clock_bills_what_falls_due_each_at_its_own_instant(api: Stripe, sandbox: Sandbox) -> None:
    subscription = api.subscription()
    start, _ = period(subscription)
    sandbox.clock(100 * DAY)
    third = add_interval(start, "month", 3)
    assert period(api.retrieve(subscription))[0] == third
    assert len(api("GET", "/v1/invoices", subscription=subscription["id"])["data"]) == 4
    renewal = api("GET", "/v1/events", type="invoice.paid")["data"][0]
    assert renewal["created"] == third


def test_dunning_ends_as_the_knob_says(api: Stripe, sandbox: Sandbox) -> None:
    for policy, status in (("unpaid", "unpaid"), ("cancel", "canceled"), ("past_due", "past_due")):
        sandbox.reset()
        sandbox.knobs(after_dunning=policy)
        subscription = api.subscription(api.customer(metadata={"card": "ok"})["id"])
        api("POST", f"/v1/customers/{subscription['customer']}", metadata={"card": "declined"})
        sandbox.clock(32 * DAY)
        assert api.retrieve(subscription)["status"] == "past_due"
        sandbox.clock(50 * DAY)
        assert api.retrieve(subscription)["status"] == status


def test_a_trial_is_announced_to_end_and_pauses_without_a_card(api: Stripe, sandbox: Sandbox) -> None:
    sandbox.knobs(card="none")
    settings = {"end_behavior": {"missing_payment_method": "pause"}}
    subscription = api.subscription(trial_period_days=14, trial_settings=settings)
    sandbox.clock(12 * DAY)
    assert api.event_types()[-1] == "customer.subscription.trial_will_end"
    sandbox.clock(15 * DAY)
    assert api.retrieve(subscription)["status"] == "paused"
    assert "customer.subscription.paused" in api.event_types()


def test_cancelling_at_period_end_is_planned_undone_and_carried_out(api: Stripe, sandbox: Sandbox) -> None:
    subscription = api.subscription()
    path, end = f"/v1/subscriptions/{subscription['id']}", period(subscription)[1]
    planned = api("POST", path, cancel_at_period_end=True)
    assert (planned["cancel_at"], planned["cancellation_details"]["reason"]) == (end, "cancellation_requested")
    undone = api("POST", path, cancel_at_period_end=False)
    assert (undone["cancel_at"], undone["canceled_at"]) == (None, None)
    dated = api("POST", path, cancel_at=end)
    assert (dated["cancel_at"], dated["cancel_at_period_end"]) == (end, False)
    sandbox.clock(32 * DAY)
    ended = api.retrieve(subscription)
    assert (ended["status"], ended["ended_at"]) == ("canceled", end)
    assert api.event_types()[-1] == "customer.subscription.deleted"
    assert api.refused("DELETE", path)[0] == 404
    assert api.refused("POST", path, cancel_at_period_end=True)[0] == 400


def test_items_change_quantity_price_and_number(api: Stripe) -> None:
    subscription = api.subscription()
    path, item = f"/v1/subscriptions/{subscription['id']}", subscription["items"]["data"][0]["id"]
    extra = api.price(500)["id"]
    changed = api("POST", path, items=[{"id": item, "quantity": 5}, {"price": extra, "quantity": 2}])
    assert [line["quantity"] for line in changed["items"]["data"]] == [5, 2]
    assert {line["current_period_end"] for line in changed["items"]["data"]} == {period(subscription)[1]}
    removed = api("POST", path, items=[{"id": item, "deleted": True}], proration_behavior="none")
    assert [line["price"]["id"] for line in removed["items"]["data"]] == [extra]
    yearly = api(
        "POST", path, items=[{"id": removed["items"]["data"][0]["id"], "price": api.price(9900, "year")["id"]}]
    )
    assert period(yearly)[1] - period(yearly)[0] >= 365 * DAY
    assert api("GET", f"/v1/invoices/{yearly['latest_invoice']}")["billing_reason"] == "subscription_update"


def test_an_anchored_subscription_renews_where_its_parent_does(api: Stripe, sandbox: Sandbox) -> None:
    parent = api.subscription()
    sandbox.clock(10 * DAY)
    addon = api.subscription(billing_cycle_anchor=period(parent)[1], expand=["latest_invoice"])
    assert period(addon)[1] == period(parent)[1]
    assert 0 < addon["latest_invoice"]["total"] < 3000
    late = period(parent)[1] + 40 * DAY
    items = [{"price": api.price()["id"]}]
    refusal = api.refused(
        "POST", "/v1/subscriptions", customer=addon["customer"], items=items, billing_cycle_anchor=late
    )
    assert refusal[1]["param"] == "billing_cycle_anchor"


def test_money_that_arrives_later_completes_the_checkout_in_two_steps(api: Stripe, sandbox: Sandbox) -> None:
    for succeeded, outcome in ((True, "succeeded"), (False, "failed")):
        session = api(
            "POST",
            "/v1/checkout/sessions",
            mode="subscription",
            line_items=[{"price": api.price()["id"], "quantity": 1}],
            success_url="https://portal.test/",
        )
        sandbox.complete(session["id"], settled=False)
        waiting = api("GET", f"/v1/checkout/sessions/{session['id']}")
        assert (waiting["status"], waiting["payment_status"]) == ("complete", "unpaid")
        sandbox.arrive(session["id"], succeeded=succeeded)
        assert api.event_types()[-1] == f"checkout.session.async_payment_{outcome}"


def test_a_checkout_that_nobody_completes_expires(api: Stripe, sandbox: Sandbox) -> None:
    items = [{"price": api.price()["id"], "quantity": 1}]
    session = api("POST", "/v1/checkout/sessions", mode="subscription", line_items=items, success_url="https://x.test/")
    sandbox.clock(2 * DAY)
    assert api("GET", f"/v1/checkout/sessions/{session['id']}")["status"] == "expired"
    with pytest.raises(SandboxError, match="is expired: only an open session can be completed"):
        sandbox.complete(session["id"])


def test_the_side_door_says_why_it_cannot(api: Stripe, sandbox: Sandbox) -> None:
    subscription = api.subscription()
    sandbox.cancel(subscription["id"])
    with pytest.raises(SandboxError, match="nothing more can be paid") as caught:
        sandbox.pay(subscription["id"])
    assert caught.value.status == 409
    with pytest.raises(SandboxError, match="no such knob: colour"):
        sandbox.knobs(colour=1)
    with pytest.raises(SandboxError, match="there is no sub_none"):
        sandbox.pay("sub_none")


# hostile shapes


def test_any_status_and_any_shape_can_be_put_into_answers(api: Stripe, sandbox: Sandbox) -> None:
    subscription = api.subscription()
    sandbox.status(subscription["id"], "hibernating")
    path = f"/v1/subscriptions/{subscription['id']}"
    assert sandbox.api("GET", path)["status"] == "hibernating"
    sandbox.override(subscription["id"], {"customer": None, "$remove": ["items"], "metadata": {"x": "1"}})
    shown = sandbox.api("GET", path)
    assert (shown["customer"], "items" in shown, shown["metadata"]) == (None, False, {"x": "1"})
    assert sandbox.api("GET", "/v1/subscriptions", status="all")["data"][0]["customer"] is None
    sandbox.override(subscription["id"], {"$generation": "2024"})
    assert sandbox.api("GET", path)["current_period_end"] == period(subscription)[1]
    sandbox.override(subscription["id"], {})
    sandbox.status(subscription["id"], "active")
    assert api.retrieve(subscription)["status"] == "active"
    forgotten = sandbox.api("GET", "/v1/events", limit=1)["data"][0]
    sandbox.reset()  # the events with a status Stripe does not have are not for the check at the end
    assert forgotten["type"] == "customer.subscription.updated"


def test_any_event_can_be_emitted_in_both_generations(api: Stripe, sandbox: Sandbox, receiver: Receiver) -> None:
    invoice = api.subscription()["latest_invoice"]
    sandbox.wait_quiet()
    receiver.forget()
    new = sandbox.emit("invoice.payment_failed", invoice)
    old = sandbox.emit("invoice.paid", invoice, generation="2024")
    foreign = sandbox.emit("invoice.paid", invoice, overrides={"livemode": True, "type": "invoice.invented"})
    sandbox.wait_quiet()
    assert "subscription" not in new["data"]["object"]
    assert old["data"]["object"]["subscription"].startswith("sub_")
    assert old["data"]["object"]["paid"] is True
    assert old["api_version"] == "2024-06-20"
    assert sorted(event["id"] for event in receiver.events) == sorted([new["id"], old["id"], foreign["id"]])
    assert foreign["type"] == "invoice.invented"
    assert foreign["livemode"] is True


def test_a_caller_pinned_to_an_old_version_sees_the_old_shape(api: Stripe, sandbox: Sandbox) -> None:
    made = api.subscription()
    old = sandbox.api("GET", f"/v1/subscriptions/{made['id']}", headers={"Stripe-Version": "2024-06-20"})
    assert old["current_period_end"] == period(made)[1]
    assert "current_period_end" not in old["items"]["data"][0]


# webhooks


def test_events_arrive_signed_with_the_secret(api: Stripe, sandbox: Sandbox, receiver: Receiver) -> None:
    api.subscription()
    sandbox.wait_quiet()
    assert sorted(receiver.types) == [
        "customer.subscription.created",
        "customer.subscription.updated",
        "invoice.paid",
        "invoice.payment_succeeded",
    ]
    for headers, body in receiver.got:
        assert good(headers, body)
        assert stripe.Webhook.construct_event(body, headers["stripe-signature"], SECRET).object == "event"
        stripe_spec.validate_event(json.loads(body))
    assert {attempt["status"] for attempt in sandbox.deliveries()} == {200}


def test_registered_endpoints_get_what_they_asked_for_with_their_own_secret(
    api: Stripe, sandbox: Sandbox, receiver: Receiver
) -> None:
    made = api("POST", "/v1/webhook_endpoints", url=f"{receiver.url}/2", enabled_events=["invoice.paid"])
    api.subscription()
    sandbox.wait_quiet()
    theirs = [(headers, body) for headers, body in receiver.got if good(headers, body, made["secret"])]
    assert [json.loads(body)["type"] for _, body in theirs] == ["invoice.paid"]
    assert len(receiver.got) == 5


def test_an_endpoint_that_cannot_be_reached_costs_the_others_nothing(
    api: Stripe, sandbox: Sandbox, receiver: Receiver
) -> None:
    sandbox.knobs(retry=[])
    for url in ("http://127.0.0.1:1/closed", "http://127.0.0.1:port/", "http://[half/"):
        api("POST", "/v1/webhook_endpoints", url=url, enabled_events=["*"])
    api.subscription()
    sandbox.wait_quiet()
    assert len(receiver.got) == 4
    assert [attempt["outcome"] for attempt in sandbox.deliveries()].count("failed") == 12


def test_an_endpoint_pinned_to_an_old_version_gets_old_shapes(
    api: Stripe, sandbox: Sandbox, receiver: Receiver
) -> None:
    given: dict[str, Any] = {"enabled_events": ["invoice.paid"], "api_version": "2024-06-20"}
    made = api("POST", "/v1/webhook_endpoints", url=receiver.url, **given)
    api.subscription()
    sandbox.wait_quiet()
    (old,) = [json.loads(body) for headers, body in receiver.got if good(headers, body, made["secret"])]
    assert old["data"]["object"]["subscription"].startswith("sub_")
    assert "parent" not in old["data"]["object"]


def test_a_refused_delivery_is_tried_again_with_the_same_body(
    api: Stripe, sandbox: Sandbox, receiver: Receiver
) -> None:
    sandbox.knobs(deliver=False, retry=[0, 0, 0])
    invoice = api.subscription()["latest_invoice"]
    sandbox.flush()
    receiver.forget()
    receiver.answers = [500, 503]
    event = sandbox.emit("invoice.paid", invoice)
    sandbox.flush()
    assert [attempt["status"] for attempt in sandbox.deliveries() if attempt["event"] == event["id"]] == [500, 503, 200]
    assert len({body for _, body in receiver.got}) == 1


def test_retries_end_where_the_schedule_ends(api: Stripe, sandbox: Sandbox, receiver: Receiver) -> None:
    sandbox.knobs(retry=[0.01])
    receiver.answers = [500] * 50
    api.subscription()
    sandbox.wait_quiet()
    assert len(receiver.got) == 8


def test_duplicates_arrive_at_the_same_moment(api: Stripe, sandbox: Sandbox, receiver: Receiver) -> None:
    invoice = api.subscription()["latest_invoice"]
    sandbox.wait_quiet()
    receiver.forget()
    sandbox.knobs(duplicate=6)
    receiver.answer_after.clear()
    sandbox.emit("invoice.paid", invoice)
    _until(lambda: len(receiver.got) == 6)  # all six are in before the first is answered
    receiver.answer_after.set()
    sandbox.wait_quiet()
    assert len({event["id"] for event in receiver.events}) == 1


def test_held_deliveries_wait_for_a_flush(api: Stripe, sandbox: Sandbox, receiver: Receiver) -> None:
    sandbox.knobs(deliver=False)
    api.subscription()
    sandbox.wait_quiet()
    assert receiver.got == []
    assert sandbox.health()["deliveries"]["held"] == 4
    sandbox.flush()
    assert len(receiver.got) == 4


def test_held_deliveries_go_when_delivering_is_on_again(api: Stripe, sandbox: Sandbox, receiver: Receiver) -> None:
    sandbox.knobs(deliver=False)
    api.subscription()
    sandbox.knobs()
    sandbox.wait_quiet()
    assert len(receiver.got) == 4


def test_a_delay_holds_a_delivery_back_without_holding_up_the_answer(
    api: Stripe, sandbox: Sandbox, receiver: Receiver
) -> None:
    sandbox.knobs(delay_seconds=0.3)
    began = time.monotonic()
    api.subscription()
    assert receiver.got == []
    sandbox.wait_quiet()
    assert len(receiver.got) == 4
    assert time.monotonic() - began >= 0.3


def test_reordering_shuffles_a_batch_the_same_way_for_the_same_seed(
    api: Stripe, sandbox: Sandbox, receiver: Receiver
) -> None:
    def order(seed: int) -> list[str]:
        sandbox.reset()
        receiver.forget()
        sandbox.knobs(reorder=7, seed=seed)
        subscription = api.subscription()
        sandbox.pay(subscription["id"])
        sandbox.wait_quiet()
        sent = [event["id"] for event in api("GET", "/v1/events")["data"]][::-1]
        return [str(sent.index(event["id"])) for event in receiver.events]

    first = order(1)
    assert sorted(first) == list("0123456")
    assert first != list("0123456")
    assert order(1) == first


def test_dropped_deliveries_never_arrive_and_a_seed_always_drops_the_same(
    api: Stripe, sandbox: Sandbox, receiver: Receiver
) -> None:
    sandbox.knobs(drop=1)
    api.subscription()
    sandbox.wait_quiet()
    assert receiver.got == []
    assert {attempt["outcome"] for attempt in sandbox.deliveries()} == {"dropped"}

    def survivors() -> list[bool]:
        sandbox.reset()
        sandbox.knobs(drop=0.5, seed=3)
        subscription = api.subscription()
        for _ in range(5):
            sandbox.pay(subscription["id"])
        sandbox.wait_quiet()
        arrived = {attempt["event"] for attempt in sandbox.deliveries() if attempt["outcome"] == "delivered"}
        return [event["id"] in arrived for event in api("GET", "/v1/events", limit=100)["data"]]

    first = survivors()
    assert True in first
    assert False in first
    assert survivors() == first


def test_corrupt_signatures_and_shifted_timestamps_do_not_verify(
    api: Stripe, sandbox: Sandbox, receiver: Receiver
) -> None:
    sandbox.knobs(corrupt=1)
    api.subscription()
    sandbox.wait_quiet()
    assert not any(good(headers, body) for headers, body in receiver.got)
    receiver.forget()
    sandbox.knobs(timestamp_offset=-4000)
    api.subscription()
    sandbox.wait_quiet()
    headers, body = receiver.got[0]
    assert good(headers, body)
    with pytest.raises(stripe.SignatureVerificationError, match="tolerance"):
        stripe.Webhook.construct_event(body, headers["stripe-signature"], SECRET)


# API faults


def test_faults_answer_as_told_and_then_end(api: Stripe, sandbox: Sandbox) -> None:
    sandbox.knobs(
        errors=[
            {"path_prefix": "/v1/customers", "status": 429, "times": 1, "retry_after": 1},
            {"path_prefix": "/v1/customers", "method": "GET", "status": 503, "times": 1, "body": "garbage"},
            {"path_prefix": "/v1/customers", "status": 500, "times": 1, "body": "empty"},
        ]
    )
    assert api("GET", "/v1/account")["object"] == "account"
    status, error = api.refused("GET", "/v1/customers")
    assert (status, error["code"]) == (429, "rate_limit")
    for expected in (503, 500):
        with pytest.raises(SandboxError) as caught:
            sandbox.api("GET", "/v1/customers")
        assert (caught.value.status, type(caught.value.body)) == (expected, bytes)
    assert api("GET", "/v1/customers")["data"] == []


def test_a_hanging_answer_outlasts_the_callers_timeout(api: Stripe, sandbox: Sandbox) -> None:
    sandbox.knobs(errors=[{"path_prefix": "/v1/account", "hang_seconds": 30}])
    request = urllib.request.Request(
        f"{sandbox.url}/v1/account", headers={"Authorization": f"Bearer {sandbox.api_key}"}
    )
    with pytest.raises(TimeoutError):
        urllib.request.urlopen(request, timeout=0.2)
    assert api("GET", "/v1/account")["object"] == "account"


def test_a_dropped_connection_is_no_answer_at_all(api: Stripe, sandbox: Sandbox) -> None:
    sandbox.knobs(errors=[{"close": True, "times": 1}])
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        sandbox.api("GET", "/v1/account")
    assert api("GET", "/v1/account")["object"] == "account"


def test_requests_are_remembered_with_what_identifies_them(api: Stripe, sandbox: Sandbox) -> None:
    headers = {"Idempotency-Key": "k-1", "Stripe-Version": "2026-05-27.dahlia"}
    api("POST", "/v1/customers", headers=headers, email="a@acme.test", metadata={"tenant": "7"})
    asked = sandbox.requests()[-1]
    assert (asked["method"], asked["path"], asked["status"]) == ("POST", "/v1/customers", 200)
    assert asked["params"] == {"email": "a@acme.test", "metadata": {"tenant": "7"}}
    assert (asked["idempotency_key"], asked["stripe_version"]) == ("k-1", "2026-05-27.dahlia")
    assert sandbox.api_key not in json.dumps(sandbox.requests())


# the page


def test_the_page_shows_subscriptions_and_its_buttons_work(api: Stripe, sandbox: Sandbox) -> None:
    customer = api.customer()
    api("POST", f"/v1/customers/{customer['id']}", name="<Robert> & Söhne")
    subscription = api.subscription(customer["id"])
    with urllib.request.urlopen(sandbox.url) as answer:
        shown = answer.read().decode()
    assert subscription["id"] in shown
    assert "&lt;Robert&gt; &amp; Söhne" in shown
    action = f"{sandbox.url}/_sandbox/subscriptions/{subscription['id']}/fail"
    with urllib.request.urlopen(action, data=b"back=%2F") as answer:
        assert answer.url == f"{sandbox.url}/"
    assert api.retrieve(subscription)["status"] == "past_due"
    knobs = b"deliver=false&latency_seconds=0.0&reorder=3&card=declined"
    with urllib.request.urlopen(f"{sandbox.url}/_sandbox/knobs", data=knobs) as answer:
        assert answer.status == 200
    turned = sandbox.control("GET", "/knobs")
    assert (turned["deliver"], turned["reorder"], turned["card"]) == (False, 3, "declined")


def test_the_hosted_pages_show_what_is_bought(api: Stripe, sandbox: Sandbox) -> None:
    subscription = api.subscription(expand=["latest_invoice"])
    session = api(
        "POST",
        "/v1/checkout/sessions",
        mode="subscription",
        customer=subscription["customer"],
        line_items=[{"price": api.price(4990)["id"], "quantity": 2}],
        success_url=f"{sandbox.url}/?done={{CHECKOUT_SESSION_ID}}",
        cancel_url="javascript:alert(1)",
    )
    with urllib.request.urlopen(session["url"]) as answer:
        shown = answer.read().decode()
    assert "99.80 EUR" in shown
    assert "javascript:" not in shown
    with urllib.request.urlopen(f"{sandbox.url}/_sandbox/checkout/{session['id']}/complete", data=b"back=/") as answer:
        assert answer.url.endswith(f"?done={session['id']}")
    portal = api("POST", "/v1/billing_portal/sessions", customer=subscription["customer"])
    for url in (portal["url"], subscription["latest_invoice"]["hosted_invoice_url"]):
        with urllib.request.urlopen(url) as answer:
            assert answer.status == 200


def test_a_page_elsewhere_cannot_steer_the_sandbox(sandbox: Sandbox) -> None:
    for headers in ({"Origin": "https://evil.test"}, {"Host": "evil.test"}):
        request = urllib.request.Request(f"{sandbox.url}/_sandbox/reset", data=b"{}", headers=headers)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request)
        assert caught.value.code == 403


# the process


def test_a_kill_loses_nothing_and_undelivered_events_go_out_after_the_restart(
    tmp_path: Path, receiver: Receiver
) -> None:
    receiver.forget()
    state = tmp_path / "stripe.json"
    first = Sandbox.spawn(webhook_url=receiver.url, webhook_secret=SECRET, state=state)
    api = Stripe(first)
    first.knobs(deliver=False)
    made = [api.subscription() for _ in range(3)]
    key = {"Idempotency-Key": "before"}
    customer = api("POST", "/v1/customers", headers=key, email="z@acme.test")
    first.clock(3600)
    first.kill()
    with state.open("ab") as file:
        file.write(b'[["customer","cus_torn",{"id"')  # a change that was cut off has no effect

    with Sandbox.start(webhook_url=receiver.url, webhook_secret=SECRET, state=state) as second:
        api = Stripe(second)
        assert [api.retrieve(subscription) for subscription in made] == made
        assert api("POST", "/v1/customers", headers=key, email="z@acme.test") == customer
        assert second.health()["objects"]["customer"] == 4
        assert second.control("GET", "/clock")["offset_seconds"] == 3600
        assert receiver.got == []
        second.knobs()
        second.wait_quiet()
        assert len({json.loads(body)["id"] for _, body in receiver.got}) == 12  # at least once, each of them


def test_a_taken_port_is_one_line_and_exit_1() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "tests.stripe_sandbox", "--port", str(port)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=Path(__file__).parents[1])
    assert ended.returncode == 1
    assert ended.stderr.strip() == f"stripe_sandbox: cannot listen on 127.0.0.1:{port}: it is taken"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_promptly_and_cleanly_even_while_an_answer_hangs(how: signal.Signals) -> None:
    sandbox = Sandbox.spawn()
    assert sandbox.process is not None
    sandbox.knobs(errors=[{"path_prefix": "/v1/account", "hang_seconds": 60}])
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(sandbox.api, "GET", "/v1/account")
        _until(lambda: sandbox.control("GET", "/knobs")["errors"] == [])
        os.kill(sandbox.process.pid, how)
        assert sandbox.process.wait(timeout=3) == 0
        assert isinstance(asked.exception(timeout=3), OSError)
    sandbox.stop()


def test_it_ends_when_its_parent_does() -> None:
    sandbox = Sandbox.spawn()
    assert sandbox.process is not None
    assert sandbox.process.stdin is not None
    sandbox.process.stdin.close()
    assert sandbox.process.wait(timeout=3) == 0


def _until(condition: Callable[[], bool], *, timeout_seconds: float = 5) -> None:
    deadline = time.monotonic() + timeout_seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        pause.wait(0.01)
