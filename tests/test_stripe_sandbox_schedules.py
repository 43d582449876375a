"""A schedule in the sandbox: phases follow each other at their boundaries, before the renewal is billed."""

from typing import Any

from tests.stripe_sandbox.client import Sandbox
from tests.stripe_sandbox_cast import DAY, Stripe, period, routes_of

PATH = "/v1/subscription_schedules"


def scheduled(api: Stripe, subscription: Any, *phases: dict[str, Any], **given: Any) -> Any:
    """The subscription's present phase and then the given ones."""
    made = api("POST", PATH, from_subscription=subscription["id"])
    first = made["phases"][0]
    items = [{"price": item["price"], "quantity": item["quantity"]} for item in first["items"]]
    present = {"items": items, "start_date": first["start_date"], "end_date": first["end_date"]}
    return api("POST", f"{PATH}/{made['id']}", phases=[present, *phases], **given)


def items(subscription: Any) -> list[tuple[str, int]]:
    return [(item["price"]["id"], item["quantity"]) for item in subscription["items"]["data"]]


def test_every_route_of_schedules_answers_as_published(api: Stripe) -> None:
    subscription = api.subscription()
    made = scheduled(api, subscription)
    assert (made["status"], made["subscription"], made["end_behavior"]) == ("active", subscription["id"], "release")
    assert api.retrieve(subscription)["schedule"] == made["id"]
    found = api("GET", f"{PATH}/{made['id']}", expand=["subscription", "phases.items.price"])
    assert found["phases"][0]["items"][0]["price"]["object"] == "price"
    assert [s["id"] for s in api("GET", PATH, customer=subscription["customer"])["data"]] == [made["id"]]
    expanded = api("GET", "/v1/subscriptions", expand=["data.schedule", "data.customer", "data.latest_invoice"])
    assert expanded["data"][0]["schedule"]["id"] == made["id"]
    released = api("POST", f"{PATH}/{made['id']}/release")
    assert (released["status"], released["released_subscription"]) == ("released", subscription["id"])
    assert api.retrieve(subscription)["schedule"] is None
    again = scheduled(api, subscription)
    assert api("POST", f"{PATH}/{again['id']}/cancel")["status"] == "canceled"
    assert api.retrieve(subscription)["status"] == "canceled"
    assert routes_of("schedule_routes") - api.called == set()


def test_the_next_phase_begins_before_the_renewal_is_billed(api: Stripe, sandbox: Sandbox) -> None:
    subscription, lower = api.subscription(), api.price(400)["id"]
    scheduled(api, subscription, {"items": [{"price": lower, "quantity": 2}]})
    sandbox.clock(32 * DAY)
    after = api.retrieve(subscription)
    assert (items(after), period(after)[0]) == ([(lower, 2)], period(subscription)[1])
    assert api("GET", f"/v1/invoices/{after['latest_invoice']}")["total"] == 800
    assert api.retrieve(subscription)["schedule"] is not None
    sandbox.clock(63 * DAY)
    assert api.retrieve(subscription)["schedule"] is None
    assert api("GET", PATH)["data"][0]["status"] == "released"


def test_a_renewal_through_the_side_door_turns_the_phase_too(api: Stripe, sandbox: Sandbox) -> None:
    subscription, lower = api.subscription(), api.price(400)["id"]
    scheduled(api, subscription, {"items": [{"price": lower}], "duration": {"interval": "year"}})
    after = sandbox.pay(subscription["id"])
    assert items(after) == [(lower, 1)]
    assert api("GET", f"/v1/invoices/{after['latest_invoice']}")["total"] == 400


def test_a_phase_may_change_the_interval(api: Stripe, sandbox: Sandbox) -> None:
    subscription, yearly = api.subscription(), api.price(9900, "year")["id"]
    scheduled(api, subscription, {"items": [{"price": yearly}]})
    after = sandbox.pay(subscription["id"])
    assert period(after)[0] == period(subscription)[1]
    assert period(after)[1] - period(after)[0] >= 365 * DAY


def test_a_boundary_inside_a_period_is_prorated_as_the_phase_says(api: Stripe, sandbox: Sandbox) -> None:
    subscription = api.subscription()
    start, end = period(subscription)
    made = api("POST", PATH, from_subscription=subscription["id"])
    price = subscription["items"]["data"][0]["price"]["id"]
    phases: list[dict[str, Any]] = [
        {"items": [{"price": price, "quantity": 3}], "start_date": start, "end_date": (start + end) // 2},
        {"items": [{"price": price, "quantity": 5}], "proration_behavior": "always_invoice"},
    ]
    api("POST", f"{PATH}/{made['id']}", phases=phases)
    sandbox.clock(17 * DAY)
    after = api.retrieve(subscription)
    assert (items(after), period(after)) == ([(price, 5)], (start, end))
    assert api("GET", f"/v1/invoices/{after['latest_invoice']}")["total"] == 1000


def test_a_schedule_may_end_the_subscription(api: Stripe, sandbox: Sandbox) -> None:
    subscription = api.subscription()
    scheduled(api, subscription, end_behavior="cancel")
    sandbox.clock(32 * DAY)
    assert api.retrieve(subscription)["status"] == "canceled"
    assert api.retrieve(subscription)["ended_at"] == period(subscription)[1]


def test_a_canceled_subscription_takes_its_schedule_along(api: Stripe) -> None:
    subscription = api.subscription()
    made = scheduled(api, subscription)
    api("DELETE", f"/v1/subscriptions/{subscription['id']}")
    assert api("GET", f"{PATH}/{made['id']}")["status"] == "canceled"
    assert api.refused("POST", f"{PATH}/{made['id']}/release")[0] == 400


def test_what_stripe_refuses_of_schedules_is_refused(api: Stripe) -> None:
    subscription = api.subscription()
    made = scheduled(api, subscription)
    start = made["phases"][0]["start_date"]
    price = made["phases"][0]["items"][0]["price"]
    assert "already attached" in api.refused("POST", PATH, from_subscription=subscription["id"])[1]["message"]
    path = f"/v1/subscriptions/{subscription['id']}"
    assert "managed by the" in api.refused("POST", path, cancel_at_period_end=True)[1]["message"]
    moved = [{"items": [{"price": price}], "start_date": start + 1}]
    assert api.refused("POST", f"{PATH}/{made['id']}", phases=moved)[1]["param"] == "phases[0][start_date]"
    past = [{"items": [{"price": price}], "start_date": start, "end_date": start}]
    assert api.refused("POST", f"{PATH}/{made['id']}", phases=past)[1]["param"] == "phases[0][end_date]"
    unknown = [{"items": [{"price": "price_none"}], "start_date": start}]
    assert api.refused("POST", f"{PATH}/{made['id']}", phases=unknown)[1]["code"] == "resource_missing"
    assert api("GET", f"{PATH}/{made['id']}") == made
