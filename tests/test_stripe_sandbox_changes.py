"""A change of a subscription costs in the sandbox what its preview said, to the unit."""

from typing import Any

import pytest

from tests.stripe_sandbox.client import Sandbox
from tests.stripe_sandbox.periods import natural_start
from tests.stripe_sandbox.proration import share
from tests.stripe_sandbox_cast import DAY, Stripe, period, routes_of

ALWAYS = {"proration_behavior": "always_invoice"}


def item_of(subscription: Any) -> str:
    return str(subscription["items"]["data"][0]["id"])


def amounts(invoice: Any) -> list[int]:
    return [line["amount"] for line in invoice["lines"]["data"]]


def preview(api: Stripe, subscription: Any, **details: Any) -> Any:
    return api("POST", "/v1/invoices/create_preview", subscription=subscription["id"], subscription_details=details)


def change(api: Stripe, subscription: Any, **given: Any) -> Any:
    return api("POST", f"/v1/subscriptions/{subscription['id']}", expand=["latest_invoice"], **given)


def balance(api: Stripe, subscription: Any) -> int:
    return int(api("GET", f"/v1/customers/{subscription['customer']}")["balance"])


def midway(subscription: Any) -> int:
    return sum(period(subscription)) // 2


def test_a_share_is_whole_units_and_the_two_halves_are_the_whole() -> None:
    assert share(1001, of=(0, 100), rest=50) == 501
    assert share(1000, of=(0, 3), rest=1) == 333
    assert share(1000, of=(0, 3), rest=9) == 1000
    assert share(1000, of=(0, 3), rest=-1) == 0


def test_a_whole_period_is_found_behind_a_short_one() -> None:
    jan_31, feb_28 = 1769817600, 1772236800  # 2026
    assert natural_start(jan_31, feb_28, "month", 1) == jan_31


@pytest.mark.parametrize("behaviour", ["always_invoice", "create_prorations"])
def test_a_change_bills_exactly_what_was_previewed(api: Stripe, sandbox: Sandbox, behaviour: str) -> None:
    subscription = api.subscription()
    items = [{"id": item_of(subscription), "price": api.price(4990)["id"], "quantity": 2}]
    details = {"items": items, "proration_behavior": behaviour, "proration_date": midway(subscription)}
    shown = preview(api, subscription, **details)
    assert shown["id"].startswith("upcoming_in_")
    assert api.retrieve(subscription) == subscription

    change(api, subscription, **details)
    if behaviour == "create_prorations":
        sandbox.pay(subscription["id"])

    billed = api("GET", f"/v1/invoices/{api.retrieve(subscription)['latest_invoice']}")
    assert amounts(billed) == amounts(shown) == [-1500, 4990, 9980][: len(amounts(shown))]
    assert (billed["amount_due"], billed["status"]) == (shown["amount_due"], "paid")
    assert [line["period"] for line in billed["lines"]["data"]] == [line["period"] for line in shown["lines"]["data"]]


def test_without_proration_only_the_next_invoice_shows_the_change(api: Stripe, sandbox: Sandbox) -> None:
    subscription = api.subscription()
    edit = {"items": [{"id": item_of(subscription), "quantity": 5}], "proration_behavior": "none"}
    assert amounts(preview(api, subscription, **edit)) == [5000]
    assert change(api, subscription, **edit)["latest_invoice"]["id"] == subscription["latest_invoice"]
    assert amounts(preview(api, subscription)) == [5000]


def test_what_was_prorated_goes_out_once(api: Stripe, sandbox: Sandbox) -> None:
    subscription = api.subscription()
    change(api, subscription, items=[{"price": api.price(600)["id"]}], proration_date=midway(subscription))
    sandbox.pay(subscription["id"])
    assert amounts(preview(api, subscription)) == [3000, 600]


def test_a_further_item_and_a_removed_one_are_prorated_alone(api: Stripe) -> None:
    subscription = api.subscription()
    at, path = midway(subscription), f"/v1/subscriptions/{subscription['id']}"
    pack = {"price": api.price(500)["id"], "quantity": 2}
    added = change(api, subscription, items=[pack], proration_date=at, **ALWAYS)
    assert amounts(added["latest_invoice"]) == [500]
    extra = added["items"]["data"][1]
    removed = change(api, subscription, items=[{"id": extra["id"], "deleted": True}], proration_date=at, **ALWAYS)
    assert amounts(removed["latest_invoice"]) == [-500]
    update = api("GET", "/v1/events", type="customer.subscription.updated")["data"][0]["data"]
    before = update["previous_attributes"]["items"]["data"]
    assert [(item["price"]["id"], item["quantity"]) for item in before][1] == (pack["price"], 2)
    assert [item["quantity"] for item in update["object"]["items"]["data"]] == [3]
    assert path.endswith(update["object"]["id"])


def test_a_credit_becomes_balance_and_is_used_up_by_the_next_invoice(api: Stripe, sandbox: Sandbox) -> None:
    subscription = api.subscription()
    edit = {"items": [{"id": item_of(subscription), "quantity": 1}], "proration_date": midway(subscription), **ALWAYS}
    shown = preview(api, subscription, **edit)
    assert (shown["total"], shown["amount_due"], shown["ending_balance"]) == (-1000, 0, -1000)
    lowered = change(api, subscription, **edit)["latest_invoice"]
    assert (lowered["total"], lowered["amount_due"], lowered["status"]) == (-1000, 0, "paid")
    assert balance(api, subscription) == -1000
    sandbox.pay(subscription["id"])
    renewal = api("GET", f"/v1/invoices/{api.retrieve(subscription)['latest_invoice']}")
    assert (renewal["total"], renewal["starting_balance"], renewal["amount_due"]) == (1000, -1000, 0)
    assert balance(api, subscription) == 0


def test_another_interval_begins_a_new_period_and_credits_the_old(api: Stripe) -> None:
    subscription = api.subscription()
    at = midway(subscription)
    items = [{"id": item_of(subscription), "price": api.price(12000, "year")["id"], "quantity": 1}]
    shown = preview(api, subscription, items=items, proration_date=at)
    yearly = change(api, subscription, items=items, proration_date=at)
    assert amounts(yearly["latest_invoice"]) == amounts(shown) == [-1500, 12000]
    assert period(yearly)[1] - period(yearly)[0] >= 365 * DAY


def test_a_cancellation_is_previewed_with_what_comes_back(api: Stripe) -> None:
    subscription = api.subscription()
    assert preview(api, subscription, cancel_now=True, proration_date=midway(subscription))["total"] == -1500
    assert preview(api, subscription, cancel_now=True, proration_behavior="none")["total"] == 0
    path = f"/v1/subscriptions/{subscription['id']}"
    assert api("DELETE", path, prorate=True, invoice_now=True)["status"] == "canceled"
    assert balance(api, subscription) in (-3000, -2999)


def test_nothing_is_upcoming_for_what_ends(api: Stripe) -> None:
    subscription = api.subscription()
    ask = {"subscription": subscription["id"], "subscription_details": {"cancel_at_period_end": True}}
    status, error = api.refused("POST", "/v1/invoices/create_preview", **ask)
    assert (status, error["code"]) == (404, "invoice_upcoming_none")
    assert api.retrieve(subscription)["cancel_at_period_end"] is False


def test_a_proration_date_lies_in_the_period(api: Stripe) -> None:
    subscription = api.subscription()
    given = {"items": [{"id": item_of(subscription), "quantity": 4}], "proration_date": period(subscription)[1] + 1}
    path = f"/v1/subscriptions/{subscription['id']}"
    assert api.refused("POST", path, **given)[1]["param"] == "proration_date"
    assert api.retrieve(subscription) == subscription


@pytest.mark.parametrize("decline", ["declined", "insufficient_funds", "expired_card"])
def test_a_declined_card_changes_nothing_where_the_caller_says_so(api: Stripe, sandbox: Sandbox, decline: str) -> None:
    subscription = api.subscription()
    api("POST", f"/v1/customers/{subscription['customer']}", metadata={"card": decline})
    edit = {"items": [{"id": item_of(subscription), "quantity": 9}], "payment_behavior": "error_if_incomplete"}
    events = api.event_types()
    status, error = api.refused("POST", f"/v1/subscriptions/{subscription['id']}", **edit, **ALWAYS)
    assert (status, error["type"]) == (402, "card_error")
    assert error["decline_code"] == {"declined": "generic_decline"}.get(decline, decline)
    assert error["code"] == ("expired_card" if decline == "expired_card" else "card_declined")
    assert (api.retrieve(subscription), api.event_types()) == (subscription, events)


def test_a_declined_card_leaves_the_change_past_due_otherwise(api: Stripe, sandbox: Sandbox) -> None:
    subscription = api.subscription()
    api("POST", f"/v1/customers/{subscription['customer']}", metadata={"card": "declined"})
    changed = change(api, subscription, items=[{"id": item_of(subscription), "quantity": 9}], **ALWAYS)
    assert (changed["status"], changed["items"]["data"][0]["quantity"]) == ("past_due", 9)
    assert changed["latest_invoice"]["status"] == "open"
    assert api.event_types()[-2:] == ["invoice.payment_failed", "customer.subscription.updated"]
    assert sandbox.pay(subscription["id"])["status"] == "active"


def test_what_is_not_modelled_is_refused(api: Stripe) -> None:
    subscription = api.subscription()
    edit = {"items": [{"id": item_of(subscription), "quantity": 9}], "payment_behavior": "pending_if_incomplete"}
    assert api.refused("POST", f"/v1/subscriptions/{subscription['id']}", **edit)[1]["param"] == "payment_behavior"
    assert api.refused("POST", "/v1/invoices/create_preview", customer=subscription["customer"])[0] == 400
    assert routes_of("preview_routes") == {("POST", "/v1/invoices/create_preview")}


def test_a_trial_is_changed_for_nothing(api: Stripe) -> None:
    subscription = api.subscription(trial_period_days=14)
    more = {"items": [{"id": item_of(subscription), "quantity": 9}, {"price": api.price(500)["id"]}], **ALWAYS}
    assert amounts(preview(api, subscription, **more)) == [9000, 500]
    changed = change(api, subscription, **more)
    assert changed["latest_invoice"]["id"] == subscription["latest_invoice"]
    assert {item["current_period_end"] for item in changed["items"]["data"]} == {subscription["trial_end"]}


def test_what_cannot_be_changed_so_is_refused_and_stays(api: Stripe) -> None:
    subscription = api.subscription()
    product = api("POST", "/v1/products", name="Elsewhere")["id"]
    given: dict[str, Any] = {"product": product, "unit_amount": 500, "recurring": {"interval": "month"}}
    dollars = api("POST", "/v1/prices", currency="usd", **given)["id"]
    path, foreign = f"/v1/subscriptions/{subscription['id']}", [{"price": dollars}]
    assert api.refused("POST", path, items=foreign)[1]["param"] == "items"
    assert api.retrieve(subscription) == subscription
    ask: dict[str, Any] = {"subscription": subscription["id"]}
    stranger = api.customer()["id"]
    assert api.refused("POST", "/v1/invoices/create_preview", **ask, customer=stranger)[0] == 400
    api("DELETE", path)
    assert api.refused("POST", "/v1/invoices/create_preview", **ask)[1]["code"] == "invoice_upcoming_none"
