"""The sandbox's webhooks arrive signed, and go wrong as the knobs say."""

import json
import time
from typing import Any

import pytest
import stripe

from tests import stripe_spec
from tests.stripe_sandbox.client import Sandbox
from tests.stripe_sandbox.receiver import Receiver
from tests.stripe_sandbox_cast import DAY, SECRET, Stripe, good, period, until

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


def test_stripes_schedule_tries_for_three_days_of_the_sandboxs_time(
    api: Stripe, sandbox: Sandbox, receiver: Receiver
) -> None:
    invoice = api.subscription()["latest_invoice"]
    sandbox.wait_quiet()
    receiver.forget()
    sandbox.knobs(retry="stripe")
    receiver.answers = [500] * 20
    sandbox.emit("invoice.paid", invoice)
    sandbox.wait_quiet()
    assert (len(receiver.got), sandbox.health()["deliveries"]["waiting_for_the_clock"]) == (1, 1)
    tries = []
    for hours in (0.9, 1.1, 2.9, 3.1, 7.1, 15.1):
        sandbox.clock(int(hours * 3600))
        sandbox.wait_quiet()
        tries.append(len(receiver.got))
    assert tries == [1, 2, 2, 3, 4, 5]
    sandbox.clock(20 * DAY)  # the rest of it in one go, and then it is over
    sandbox.wait_quiet()
    assert len([e for e in receiver.events if e["created"] < time.time() + DAY]) == 7
    assert sandbox.health()["deliveries"]["waiting_for_the_clock"] == 0


def test_a_signature_may_tell_the_sandboxs_time(api: Stripe, sandbox: Sandbox, receiver: Receiver) -> None:
    invoice = api.subscription()["latest_invoice"]
    sandbox.wait_quiet()
    sandbox.clock(10 * DAY)
    stamps = []
    for clock in ("real", "sandbox"):
        sandbox.knobs(timestamp_clock=clock)
        sandbox.emit("invoice.paid", invoice)
        sandbox.wait_quiet()
        stamps.append(int(receiver.got[-1][0]["stripe-signature"].split(",")[0].removeprefix("t=")))
    assert stamps[1] - stamps[0] in range(10 * DAY, 10 * DAY + 5)


def test_duplicates_arrive_at_the_same_moment(api: Stripe, sandbox: Sandbox, receiver: Receiver) -> None:
    invoice = api.subscription()["latest_invoice"]
    sandbox.wait_quiet()
    receiver.forget()
    sandbox.knobs(duplicate=6)
    receiver.answer_after.clear()
    sandbox.emit("invoice.paid", invoice)
    until(lambda: len(receiver.got) == 6)  # all six are in before the first is answered
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
