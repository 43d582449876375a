"""Checkouts in the sandbox: delayed money, trials without a card, links that name nobody."""

from typing import Any

import pytest

from tests.stripe_sandbox.client import Sandbox
from tests.stripe_sandbox_cast import DAY, Stripe


def session(api: Stripe, **given: Any) -> Any:
    items = [{"price": api.price()["id"], "quantity": 1}]
    asked: dict[str, Any] = {"mode": "subscription", "line_items": items, "success_url": "https://portal.test/"}
    return api("POST", "/v1/checkout/sessions", **asked | given)


def bought(api: Stripe, done: Any) -> Any:
    shown = api("GET", f"/v1/checkout/sessions/{done['id']}", expand=["subscription"])
    return shown["subscription"]


def test_a_delayed_way_of_paying_leaves_the_subscription_incomplete_till_the_money_comes(
    api: Stripe, sandbox: Sandbox
) -> None:
    done = sandbox.complete(session(api, payment_method_types=["sepa_debit"])["id"])
    assert (done["status"], done["payment_status"]) == ("complete", "unpaid")
    assert bought(api, done)["status"] == "incomplete"
    sandbox.clock(5 * DAY)
    assert bought(api, done)["status"] == "incomplete"
    assert sandbox.arrive(done["id"])["payment_status"] == "paid"
    assert bought(api, done)["status"] == "active"
    assert api.event_types()[-1] == "checkout.session.async_payment_succeeded"


def test_delayed_money_that_never_comes_lets_the_subscription_expire(api: Stripe, sandbox: Sandbox) -> None:
    done = sandbox.complete(session(api, payment_method_types=["sepa_debit"])["id"])
    sandbox.arrive(done["id"], succeeded=False)
    assert api.event_types()[-1] == "checkout.session.async_payment_failed"
    assert bought(api, done)["status"] == "incomplete"
    sandbox.clock(DAY)
    assert bought(api, done)["status"] == "incomplete_expired"


def test_a_card_beside_a_delayed_way_pays_at_once(api: Stripe, sandbox: Sandbox) -> None:
    done = sandbox.complete(session(api, payment_method_types=["card", "sepa_debit"])["id"])
    assert (done["payment_status"], bought(api, done)["status"]) == ("paid", "active")


@pytest.mark.parametrize(("behaviour", "status"), [("cancel", "canceled"), ("pause", "paused")])
def test_a_trial_that_asked_for_no_card_ends_as_its_settings_say(
    api: Stripe, sandbox: Sandbox, behaviour: str, status: str
) -> None:
    trial = {
        "trial_period_days": 14,
        "trial_settings": {"end_behavior": {"missing_payment_method": behaviour}},
        "metadata": {"tenant": "7"},
    }
    opened = session(api, payment_method_collection="if_required", subscription_data=trial)
    done = sandbox.complete(opened["id"])
    assert done["payment_status"] == "no_payment_required"
    trialing = bought(api, done)
    assert (trialing["status"], trialing["metadata"]) == ("trialing", {"tenant": "7"})
    sandbox.clock(15 * DAY)
    assert bought(api, done)["status"] == status


def test_a_trial_with_a_card_becomes_active(api: Stripe, sandbox: Sandbox) -> None:
    done = sandbox.complete(session(api, subscription_data={"trial_period_days": 14})["id"])
    sandbox.clock(15 * DAY)
    assert bought(api, done)["status"] == "active"


def test_checkout_takes_what_is_left_to_stripe(api: Stripe) -> None:
    opened = session(
        api,
        customer=api.customer()["id"],
        customer_update={"address": "auto", "name": "auto"},
        automatic_tax={"enabled": True},
        allow_promotion_codes=True,
        tax_id_collection={"enabled": True},
        subscription_data={"proration_behavior": "none"},
    )
    assert (opened["automatic_tax"]["enabled"], opened["allow_promotion_codes"]) == (True, True)


def test_a_payment_link_buys_for_somebody_nobody_knows(api: Stripe, sandbox: Sandbox) -> None:
    price = api.price()["id"]
    done = sandbox.bought_by_link(price, quantity=2, email="new@shop.test", name="New GmbH")
    shown = api("GET", f"/v1/checkout/sessions/{done['id']}", expand=["subscription", "customer"])
    assert shown["payment_link"].startswith("plink_")
    assert (shown["status"], shown["payment_status"], shown["client_reference_id"]) == ("complete", "paid", None)
    assert (shown["customer_details"]["email"], shown["customer_details"]["name"]) == ("new@shop.test", "New GmbH")
    assert (shown["metadata"], shown["customer"]["metadata"], shown["subscription"]["metadata"]) == ({}, {}, {})
    assert shown["subscription"]["items"]["data"][0]["quantity"] == 2
    assert api.event_types()[-1] == "checkout.session.completed"
    table = sandbox.bought_by_link(price, pricing_table=True, client_reference_id="t-7", settled=False)
    assert (table["payment_link"], table["client_reference_id"], table["payment_status"]) == (None, "t-7", "unpaid")


def test_one_customer_may_have_the_same_twice_and_loses_all_with_the_customer(api: Stripe) -> None:
    customer, items = api.customer()["id"], [{"price": api.price()["id"]}]
    twice = [api.subscription(customer, items=items) for _ in range(2)]
    assert [s["status"] for s in twice] == ["active", "active"]
    api("DELETE", f"/v1/customers/{customer}")
    assert [api.retrieve(s)["status"] for s in twice] == ["canceled", "canceled"]
