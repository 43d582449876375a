"""Test clocks in the sandbox: one customer's months pass while everybody else's stand still."""

from typing import Any

from tests.stripe_sandbox.client import Sandbox
from tests.stripe_sandbox.periods import add_interval
from tests.stripe_sandbox_cast import DAY, Stripe, period, routes_of

PATH = "/v1/test_helpers/test_clocks"
NEW_YEAR = 1767225600  # 2026-01-01


def on_clock(api: Stripe, **customer: Any) -> tuple[str, str]:
    """(clock, customer)"""
    clock = api("POST", PATH, frozen_time=NEW_YEAR, name="Acme's years")["id"]
    return clock, api.customer(test_clock=clock, **customer)["id"]


def advance(api: Stripe, clock: str, to: int) -> None:
    answered = api("POST", f"{PATH}/{clock}/advance", frozen_time=to)
    assert (answered["status"], answered["status_details"]["advancing"]["target_frozen_time"]) == ("advancing", to)
    ready = api("GET", f"{PATH}/{clock}")
    assert (ready["status"], ready["frozen_time"]) == ("ready", to)


def test_every_route_of_test_clocks_answers_as_published(api: Stripe) -> None:
    clock, customer = on_clock(api)
    subscription = api.subscription(customer)
    assert [c["id"] for c in api("GET", PATH)["data"]] == [clock]
    advance(api, clock, NEW_YEAR + DAY)
    assert api.refused("POST", f"{PATH}/{clock}/advance", frozen_time=NEW_YEAR)[1]["param"] == "frozen_time"
    shown = api("GET", f"/v1/subscriptions/{subscription['id']}", expand=["test_clock"])
    assert shown["test_clock"]["frozen_time"] == NEW_YEAR + DAY
    assert api("DELETE", f"{PATH}/{clock}")["deleted"] is True
    assert api.retrieve(subscription)["status"] == "canceled"
    assert api("GET", f"/v1/customers/{customer}")["deleted"] is True
    assert api.refused("GET", f"{PATH}/{clock}")[0] == 404
    assert routes_of("clock_routes") - api.called == set()


def test_a_customer_on_a_clock_lives_through_months_alone(api: Stripe, sandbox: Sandbox) -> None:
    clock, customer = on_clock(api)
    there, here = api.subscription(customer), api.subscription()
    assert (there["created"], period(there)[0]) == (NEW_YEAR, NEW_YEAR)
    advance(api, clock, NEW_YEAR + 400 * DAY)
    assert period(api.retrieve(there))[0] == add_interval(NEW_YEAR, "month", 13)
    assert len(api("GET", "/v1/invoices", subscription=there["id"], limit=100)["data"]) == 14
    assert api.retrieve(here) == here
    sandbox.clock(DAY)
    assert period(api.retrieve(there))[0] == add_interval(NEW_YEAR, "month", 13)


def test_a_card_that_stops_working_is_dunned_in_the_clocks_time(api: Stripe) -> None:
    clock, customer = on_clock(api, metadata={"card": "ok"})
    subscription = api.subscription(customer)
    api("POST", f"/v1/customers/{customer}", metadata={"card": "declined"})
    renewal = add_interval(NEW_YEAR, "month", 1)
    advance(api, clock, renewal + DAY)
    assert api.retrieve(subscription)["status"] == "past_due"
    advance(api, clock, renewal + 15 * DAY)
    assert api.retrieve(subscription)["status"] == "unpaid"
    failed = api("GET", "/v1/events", type="invoice.payment_failed")["data"]
    assert failed[-1]["created"] == renewal


def test_a_checkout_on_a_clock_expires_and_completes_in_its_time(api: Stripe, sandbox: Sandbox) -> None:
    clock, customer = on_clock(api)
    given: dict[str, Any] = {
        "mode": "subscription",
        "line_items": [{"price": api.price()["id"], "quantity": 1}],
        "success_url": "https://portal.test/",
        "customer": customer,
    }
    first, second = (api("POST", "/v1/checkout/sessions", **given) for _ in range(2))
    assert first["expires_at"] == NEW_YEAR + DAY
    done = sandbox.complete(first["id"])
    assert period(api("GET", f"/v1/subscriptions/{done['subscription']}"))[0] == NEW_YEAR
    advance(api, clock, NEW_YEAR + 2 * DAY)
    assert api("GET", f"/v1/checkout/sessions/{second['id']}")["status"] == "expired"


def test_lists_show_what_is_on_a_clock_only_to_who_asks(api: Stripe) -> None:
    clock, customer = on_clock(api)
    subscription = api.subscription(customer)
    assert api("GET", "/v1/customers")["data"] == []
    assert api("GET", "/v1/subscriptions")["data"] == []
    assert [c["id"] for c in api("GET", "/v1/customers", test_clock=clock)["data"]] == [customer]
    assert [s["id"] for s in api("GET", "/v1/subscriptions", test_clock=clock)["data"]] == [subscription["id"]]
    assert len(api("GET", "/v1/subscriptions", customer=customer)["data"]) == 1
