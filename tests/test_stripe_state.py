"""The pure mapping: a Stripe subscription in, what we want out. Both generations of Stripe's shapes."""

from datetime import UTC, datetime
from typing import Any

import pytest

from subscriptions.states import EndReason, Status
from webhooks.stripe_state import Unmappable, Wanted, outlasts_what_was_paid, unpausing, wanted

JAN_1 = datetime(2026, 1, 1, tzinfo=UTC)
FEB_1 = datetime(2026, 2, 1, tzinfo=UTC)
DEC_1 = datetime(2025, 12, 1, tzinfo=UTC)


def seconds(instant: datetime) -> int:
    return int(instant.timestamp())


def at_stripe(status: str = "active", *, invoice: dict[str, Any] | str | None = None, **more: Any) -> dict[str, Any]:
    """A subscription in today's shapes: the period is on the item."""
    item = {
        "price": {"id": "price_fleet"},
        "quantity": 2,
        "current_period_start": seconds(JAN_1),
        "current_period_end": seconds(FEB_1),
    }
    return {
        "id": "sub_1",
        "object": "subscription",
        "customer": "cus_1",
        "status": status,
        "created": seconds(DEC_1),
        "start_date": seconds(DEC_1),
        "items": {"data": [item]},
        "latest_invoice": invoice or {"status": "paid", "billing_reason": "subscription_cycle"},
    } | more


def of_2024(status: str = "active", *, paid: bool = True, **more: Any) -> dict[str, Any]:
    """The same in the shapes of before March 2025: the period is on the subscription, `paid` on the invoice."""
    found = at_stripe(status, invoice={"paid": paid, "billing_reason": "subscription_cycle"}, **more)
    item = found["items"]["data"][0]
    found |= {name: item.pop(name) for name in ("current_period_start", "current_period_end")}
    return found


def term(state: Wanted) -> tuple[datetime, datetime]:
    return state.term(state.items[0])


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("trialing", Status.TRIAL),
        ("active", Status.ACTIVE),
        ("past_due", Status.GRACE),
        ("unpaid", Status.SUSPENDED),
        ("paused", Status.SUSPENDED),
        ("canceled", Status.EXPIRED),
        ("incomplete", None),
        ("incomplete_expired", Status.EXPIRED),
    ],
)
@pytest.mark.parametrize("shape", [at_stripe, of_2024])
def test_each_status_of_stripe_has_one_meaning(shape: Any, theirs: str, ours: Status | None) -> None:
    assert wanted(shape(theirs)).status == ours


@pytest.mark.parametrize("status", ["brand_new", "ACTIVE", "", None, 1, ["active"], {"a": 1}])
def test_a_status_that_we_do_not_know_never_becomes_service(status: Any) -> None:
    with pytest.raises(Unmappable) as refused:
        wanted(at_stripe() | {"status": status})
    assert refused.value.code == "unknown_status"


@pytest.mark.parametrize("shape", [at_stripe, of_2024])
def test_a_paid_period_is_the_term(shape: Any) -> None:
    assert term(wanted(shape())) == (JAN_1, FEB_1)


@pytest.mark.parametrize("status", ["draft", "open", "uncollectible", "void"])
def test_a_period_whose_invoice_is_not_paid_counts_up_to_where_it_begins(status: str) -> None:
    invoice = {"status": status, "billing_reason": "subscription_cycle"}
    assert term(wanted(at_stripe(invoice=invoice))) == (DEC_1, JAN_1)


def test_an_unpaid_invoice_of_the_old_shape_counts_up_to_where_its_period_begins() -> None:
    assert term(wanted(of_2024(paid=False))) == (DEC_1, JAN_1)


@pytest.mark.parametrize("reason", ["subscription_update", "manual", "subscription_create"])
def test_an_open_invoice_never_extends_a_term_whatever_it_is_for(reason: str) -> None:
    assert term(wanted(at_stripe(invoice={"status": "open", "billing_reason": reason}))) == (DEC_1, JAN_1)


def test_a_trial_runs_to_its_period_end_whatever_its_invoice_of_zero_says() -> None:
    state = wanted(at_stripe("trialing", invoice={"status": "draft", "billing_reason": "subscription_create"}))
    assert (state.status, term(state)) == (Status.TRIAL, (JAN_1, FEB_1))


@pytest.mark.parametrize(
    ("flags", "is_last"),
    [
        ({"cancel_at_period_end": True}, True),
        ({"cancel_at": seconds(FEB_1)}, True),
        ({"cancel_at": seconds(FEB_1) + 1}, False),  # in a later period
        ({}, False),
    ],
    ids=["at period end", "at an instant in this period", "in a later period", "not at all"],
)
def test_a_period_is_the_last_one_if_the_cancellation_falls_into_it(flags: dict[str, Any], is_last: bool) -> None:
    state = wanted(at_stripe(**flags))
    assert state.is_last(state.items[0]) is is_last


@pytest.mark.parametrize("status", ["past_due", "unpaid"])
@pytest.mark.parametrize("invoice", [{"status": "paid", "billing_reason": "subscription_update"}, None])
def test_what_is_overdue_is_not_paid_whatever_was_paid_last(status: str, invoice: Any) -> None:
    assert not wanted(at_stripe(status, latest_invoice=invoice)).period_is_paid


def test_an_end_says_when_and_why() -> None:
    state = wanted(at_stripe("canceled", ended_at=seconds(JAN_1)))
    assert (state.ended_at, state.end_reason) == (JAN_1, EndReason.CANCELLED)
    assert wanted(at_stripe("incomplete_expired")).end_reason == EndReason.NEVER_PAID


def test_ids_may_come_as_themselves_or_as_expanded_objects_and_a_customer_may_be_missing() -> None:
    assert wanted(at_stripe(customer={"id": "cus_9"})).customer_id == "cus_9"
    assert wanted(at_stripe(customer=None)).customer_id == ""


def test_an_item_of_before_prices_names_its_plan() -> None:
    found = at_stripe()
    found["items"]["data"][0]["plan"] = found["items"]["data"][0].pop("price")
    assert wanted(found).items[0].price_id == "price_fleet"


def test_the_quantity_of_an_item_is_kept() -> None:
    assert wanted(at_stripe()).items[0].quantity == 2


@pytest.mark.parametrize(
    "broken",
    [
        {"items": None},
        {"items": {"data": None}},
        {"items": {"data": ["si_1"]}},
        {"items": {"data": [{"price": {"id": "p"}, "current_period_start": 1, "current_period_end": "soon"}]}},
        {"items": {"data": [{"price": {"id": "p"}, "current_period_start": 1, "current_period_end": 10**20}]}},
        {"items": {"data": [{"price": {"id": "p"}, "current_period_start": 2, "current_period_end": 1}]}},
        {"start_date": "yesterday"},
        {"ended_at": "then"},
    ],
    ids=str,
)
def test_an_object_that_lacks_what_every_subscription_has_is_refused_by_name(broken: dict[str, Any]) -> None:
    with pytest.raises(Unmappable) as refused:
        wanted(at_stripe() | broken)
    assert refused.value.code == "unreadable_subscription"


@pytest.mark.parametrize(
    ("paused", "begins_anew"),
    [
        (at_stripe(invoice={"status": "void"}), True),
        (at_stripe(invoice={"status": "paid"}), False),
        (at_stripe(invoice={"status": "open"}), False),
        (at_stripe(invoice="in_1"), False),
        (at_stripe("past_due", invoice={"status": "void"}), False),
        (at_stripe(invoice={"status": "void"}, schedule="sub_sched_1"), False),
    ],
)
def test_a_pause_ends_with_a_new_period_only_where_the_present_one_was_voided_and_no_schedule_moves_it(
    paused: dict[str, Any], begins_anew: bool
) -> None:
    anew = {"billing_cycle_anchor": "now", "proration_behavior": "none"} if begins_anew else {}
    assert unpausing(anew=outlasts_what_was_paid(paused)) == {"pause_collection": ""} | anew
