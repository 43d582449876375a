"""What payments, failures, cancellations and the passing of time do to a subscription in the sandbox."""

from datetime import UTC, datetime

import pytest

from tests.stripe_sandbox.client import Sandbox, SandboxError
from tests.stripe_sandbox.periods import add_interval, next_end
from tests.stripe_sandbox_cast import DAY, Stripe, period


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


# paused collection


@pytest.mark.parametrize(
    ("behavior", "status"), [("void", "void"), ("keep_as_draft", "draft"), ("mark_uncollectible", "uncollectible")]
)
def test_renewals_while_collection_is_paused_ask_for_nothing(
    api: Stripe, sandbox: Sandbox, behavior: str, status: str
) -> None:
    subscription = api.subscription()
    api("POST", f"/v1/subscriptions/{subscription['id']}", pause_collection={"behavior": behavior})
    paid = api.event_types().count("invoice.paid")
    sandbox.clock(32 * DAY)
    renewed = api.retrieve(subscription)
    assert (renewed["status"], period(renewed)[0]) == ("active", period(subscription)[1])
    invoice = api("GET", f"/v1/invoices/{renewed['latest_invoice']}")
    assert (invoice["status"], invoice["total"], invoice["amount_paid"]) == (status, 3000, 0)
    assert api.event_types().count("invoice.paid") == paid


def test_collection_resumes_when_it_said_and_when_told(api: Stripe, sandbox: Sandbox) -> None:
    subscription = api.subscription()
    path, (start, end) = f"/v1/subscriptions/{subscription['id']}", period(subscription)
    api("POST", path, pause_collection={"behavior": "void", "resumes_at": end + DAY})
    sandbox.clock(34 * DAY)
    resumed = api("GET", "/v1/events", type="customer.subscription.updated")["data"][0]
    assert resumed["created"] == end + DAY
    paused = {"behavior": "void", "resumes_at": end + DAY}
    assert resumed["data"]["previous_attributes"] == {"pause_collection": paused}
    assert api.retrieve(subscription)["pause_collection"] is None
    api("POST", path, pause_collection={"behavior": "void"})
    assert api("POST", path, pause_collection=None)["pause_collection"] is None
    sandbox.clock(65 * DAY)
    assert api("GET", "/v1/invoices", subscription=subscription["id"])["data"][0]["status"] == "paid"
    late = {"behavior": "void", "resumes_at": start}
    assert api.refused("POST", path, pause_collection=late)[1]["param"] == "pause_collection[resumes_at]"
