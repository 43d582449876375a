"""What will happen by itself, when and why; and what would, if: subscriptions' own, and everyone's in one list."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from billing_site import timeline
from notifications.models import Notice
from subscriptions import forecast as forecasts
from subscriptions import lifecycle
from subscriptions.errors import AddonFollowsMain, DomainError, IllegalTransition, InvalidTerm, NoPrice
from subscriptions.forecast import Cancelled, Paid, Renewed, WhatIf, forecast
from subscriptions.lifecycle import CancelAt, Purchase
from subscriptions.models import PlanPrice, Subscription
from subscriptions.states import Action, EndReason, Status, Type
from tests.builders import ALICE, APR_1, FEB_1, JAN_1, MAR_1, PlanPriceFactory, TenantFactory, subscription
from tests.history import advance, by, in_state, nothing_changes, on

pytestmark = pytest.mark.django_db

JAN_10 = on(1, 10)
TOO_LONG = "It was suspended for too long"


def said(s: Subscription, *what_if: WhatIf, now: datetime = JAN_10, **how: Any) -> list[tuple[datetime, str, str]]:
    """When, what and why, of everyone in its family."""
    moments = forecast(forecasts.of_subscription(s), now=now, what_if=what_if, **how)
    return [(moment.at, moment.action, moment.why) for moment in moments]


def priced(interval: str = PlanPrice.Interval.MONTH) -> Subscription:
    price = PlanPriceFactory.create(interval=interval)
    bought = Purchase(price.plan, JAN_1, FEB_1, price)
    entry = lifecycle.start(TenantFactory.create().pk, bought, actor=ALICE, now=JAN_1, reason="ordered by letter")
    assert entry
    return Subscription.objects.get(pk=entry.subscription_id)


# --- by itself -------------------------------------------------------------------------------------------------------


def test_nobody_pays_and_it_ends_in_three_steps_each_with_its_reason() -> None:
    assert said(subscription()) == [
        (FEB_1, "grace_started", "The term is over and not renewed"),
        (on(2, 15), "suspended", "The grace period is over and nothing was paid"),
        (on(4, 16), "expired", TOO_LONG),
    ]


def test_each_moment_has_the_subscription_as_it_is_then() -> None:
    s = subscription()
    grace, suspended, expired = (m.subscription for m in forecast(forecasts.of_subscription(s), now=JAN_10))
    assert (grace.status, grace.grace_end, grace.version, grace.next_deadline) == ("GRACE", on(2, 15), 2, on(2, 15))
    assert (suspended.status, suspended.grace_end, suspended.suspension_end) == ("SUSPENDED", None, on(4, 16))
    assert (expired.ended_at, expired.end_reason) == (on(4, 16), EndReason.SUSPENSION_OVER)
    assert (expired.version, expired.next_deadline) == (4, None)


def test_what_was_cancelled_ends_with_its_term() -> None:
    assert said(in_state("CANCELLED")) == [(FEB_1, "expired", "It was cancelled at its term's end")]


def test_what_is_overdue_comes_first_at_its_own_instant() -> None:
    assert [(at, what) for at, what, _ in said(subscription(), now=MAR_1)] == [
        (FEB_1, "grace_started"), (on(2, 15), "suspended"), (on(4, 16), "expired"),
    ]  # fmt: skip


def test_addons_follow_their_main_and_one_that_was_cancelled_does_not() -> None:
    main = subscription()
    follows, leaves = (subscription(Type.ADDON, parent=main) for _ in range(2))
    lifecycle.cancel(leaves.pk, at=CancelAt.TERM_END, **by(on(1, 5)))
    moments = forecast(forecasts.of_subscription(main), now=JAN_10, until=on(2, 2))
    assert [(m.subscription.number, m.action, m.why) for m in moments] == [
        (leaves.number, "expired", "It was cancelled at its term's end"),
        (main.number, "grace_started", "The term is over and not renewed"),
        (follows.number, "grace_started", "Its main subscription does"),
    ]


def test_asked_of_an_addon_the_main_takes_its_own_steps_all_the_same() -> None:
    main = subscription()
    addon = subscription(Type.ADDON, parent=main)
    of_main, of_addon = (forecast(forecasts.of_subscription(s), now=JAN_10) for s in (main, addon))
    assert [(m.at, m.subscription.pk, m.why) for m in of_addon] == [(m.at, m.subscription.pk, m.why) for m in of_main]


def test_what_was_sold_ahead_begins_then() -> None:
    main = subscription(term=(FEB_1, MAR_1))
    addon = subscription(Type.ADDON, parent=main, term=(on(2, 10), MAR_1))
    moments = forecast(forecasts.of_subscription(main), now=JAN_10, until=MAR_1)
    assert [(m.at, m.subscription.pk, m.action, m.why) for m in moments] == [
        (FEB_1, main.pk, Action.STARTED, "Its term begins"), (on(2, 10), addon.pk, Action.STARTED, "Its term begins"),
    ]  # fmt: skip
    assert said(main, now=FEB_1, until=on(2, 10)) == []


def test_what_ends_before_it_begins_does_not_begin() -> None:
    s = subscription(term=(FEB_1, MAR_1))
    assert [what for _, what, _ in said(s, Cancelled(on(1, 20)))] == ["expired"]


@pytest.mark.parametrize("state", ["HOLD", "EXPIRED"])
def test_nothing_happens_by_itself_to_what_is_on_hold_or_over(state: str) -> None:
    s = in_state(state)
    assert said(s) == []
    assert timeline.of_subscription(s, now=JAN_10) == []


def test_an_addon_that_is_over_has_no_future_though_its_main_has_one() -> None:
    main = subscription()
    addon = subscription(Type.ADDON, parent=main)
    lifecycle.cancel(addon.pk, at=CancelAt.NOW, **by(on(1, 5)))
    addon.refresh_from_db()
    assert timeline.of_subscription(addon, now=JAN_10) == []


def test_the_horizon_is_the_first_instant_that_is_not_told() -> None:
    s = subscription()
    assert said(s, until=FEB_1) == []
    assert len(said(s, until=FEB_1 + timedelta(microseconds=1))) == 1


# --- what if ---------------------------------------------------------------------------------------------------------


def test_paid_in_time_the_term_is_one_interval_longer() -> None:
    assert said(priced(), Paid(on(1, 20)), until=on(3, 16)) == [
        (on(1, 20), "renewed", "If it is paid then"),
        (MAR_1, "grace_started", "The term is over and not renewed"),
        (on(3, 15), "suspended", "The grace period is over and nothing was paid"),
    ]


def test_paid_in_its_grace_period_it_is_active_again() -> None:
    moments = forecast(forecasts.of_subscription(priced()), now=JAN_10, what_if=[Paid(on(2, 5))], until=on(3, 2))
    assert [(m.at, m.action, m.subscription.status) for m in moments] == [
        (FEB_1, "grace_started", "GRACE"), (on(2, 5), "renewed", "ACTIVE"), (MAR_1, "grace_started", "GRACE"),
    ]  # fmt: skip
    assert (moments[1].subscription.term_start, moments[1].subscription.term_end) == (FEB_1, MAR_1)


def test_several_things_may_be_done_and_each_at_its_own_instant() -> None:
    cancelled_first: list[WhatIf] = [Cancelled(on(2, 20), at_term_end=True), Renewed(on(1, 20), APR_1), Paid(on(2, 10))]
    assert said(priced(), *cancelled_first) == [
        (on(1, 20), "renewed", "If it is renewed then"),
        (on(2, 10), "renewed", "If it is paid then"),
        (on(2, 20), "cancel_scheduled", "If it is cancelled then"),
        (on(5, 1), "expired", "It was cancelled at its term's end"),
    ]


def test_cancelled_at_once_it_ends_then_and_with_it_its_addons() -> None:
    main = subscription()
    subscription(Type.ADDON, parent=main)
    assert said(main, Cancelled(on(1, 20))) == [
        (on(1, 20), "expired", "If it is cancelled then"), (on(1, 20), "expired", "Its main subscription does"),
    ]  # fmt: skip


def test_an_addon_is_cancelled_alone() -> None:
    main = subscription()
    addon = subscription(Type.ADDON, parent=main)
    moments = forecast(forecasts.of_subscription(addon), now=JAN_10, what_if=[Cancelled(on(1, 20))], until=MAR_1)
    assert [(m.at, m.subscription.pk, m.action) for m in moments] == [
        (on(1, 20), addon.pk, "expired"), (FEB_1, main.pk, "grace_started"), (on(2, 15), main.pk, "suspended"),
    ]  # fmt: skip


def test_a_renewal_to_no_later_end_changes_nothing() -> None:
    s = subscription()
    assert said(s, Renewed(on(1, 20), FEB_1)) == said(s)


def test_a_payment_lifts_no_hold() -> None:
    s = priced()
    lifecycle.suspend(s.pk, hold=True, **by(on(1, 5)))
    (renewed,) = forecast(forecasts.of_subscription(s), now=JAN_10, what_if=[Paid(on(1, 20))])
    assert (renewed.subscription.status, renewed.subscription.on_hold) == ("SUSPENDED", True)
    assert renewed.subscription.term_end == MAR_1


@pytest.mark.parametrize(
    ("what_if", "error"),
    [
        (Paid(on(1, 9)), InvalidTerm),
        (Cancelled(on(1, 9)), InvalidTerm),
        (Renewed(on(1, 9), MAR_1), InvalidTerm),
        (Paid(datetime(2026, 1, 20)), InvalidTerm),  # noqa: DTZ001
        (Renewed(on(1, 20), datetime(2026, 3, 1)), InvalidTerm),  # noqa: DTZ001
        (Paid(on(1, 20)), NoPrice),
        (Renewed(on(3, 10), MAR_1), InvalidTerm),  # suspended by then, and that term is over
        (Renewed(on(12, 1), on(12, 31)), IllegalTransition),
        (Cancelled(on(12, 1)), IllegalTransition),
    ],
)
def test_what_cannot_be_done_then_is_refused(what_if: WhatIf, error: type[DomainError]) -> None:
    s = subscription()
    with pytest.raises(error):
        said(s, what_if)


@pytest.mark.parametrize("what_if", [Paid(on(1, 20)), Renewed(on(1, 20), MAR_1), Paid(on(12, 1))])
def test_an_addon_is_not_renewed_alone(what_if: WhatIf) -> None:
    addon = subscription(Type.ADDON, parent=subscription())
    with pytest.raises(AddonFollowsMain):
        said(addon, what_if)


def test_an_instant_without_a_zone_is_refused() -> None:
    s = subscription()
    for how in ({"now": datetime(2026, 1, 10)}, {"until": datetime(2026, 1, 10)}):  # noqa: DTZ001
        with pytest.raises(InvalidTerm):
            said(s, **how)


# --- how it asks -----------------------------------------------------------------------------------------------------


def test_the_family_is_left_as_it_is() -> None:
    main = priced()
    subscription(Type.ADDON, parent=main)
    family = forecasts.of_subscription(main)
    before = [dict(vars(member)) for member in (family.root, *family.addons)]
    what_if: list[WhatIf] = [Paid(on(1, 20)), Cancelled(on(2, 20), at_term_end=True)]
    first = forecast(family, now=JAN_10, what_if=what_if)
    assert [dict(vars(member)) for member in (family.root, *family.addons)] == before
    assert len(what_if) == 2
    again = forecast(family, now=JAN_10, what_if=what_if)
    assert [(m.at, m.action) for m in again] == [(m.at, m.action) for m in first]


def with_subscriptions(many: int) -> Subscription:
    """A tenant's main subscription; half of the others are its add-ons."""
    main = subscription()
    for number in range(many - 1):
        if number % 2:
            subscription(Type.ADDON, parent=main, plan=None)
        else:
            subscription(Type.TEMPORARY, tenant=main.tenant)
    return main


def test_a_tenant_with_two_hundred_subscriptions_takes_one_query_and_three_with_notices_and_slots(
    django_assert_num_queries: Any,
) -> None:
    for many in (2, 200):
        main = with_subscriptions(many)
        deadlines = 3 * many - 2 * (many // 2)  # those of temporary ones are one
        with django_assert_num_queries(1):
            families = forecasts.of_tenant(main.tenant_id)
            moments = [moment for family in families for moment in forecast(family, now=JAN_10)]
        assert len(moments) == deadlines
        with django_assert_num_queries(3):
            lines = timeline.of_tenant(main.tenant, now=JAN_10)
        assert [line.source for line in lines].count("deadline") == deadlines
        with django_assert_num_queries(3):
            timeline.of_subscription(main, now=JAN_10, what_if=[Cancelled(on(1, 20))])


def test_asking_writes_nothing_and_locks_nothing() -> None:
    main = priced()
    with nothing_changes(), CaptureQueriesContext(connection) as asked:
        timeline.of_tenant(main.tenant, now=MAR_1)
        timeline.of_subscription(main, now=JAN_10, what_if=[Paid(on(1, 20)), Cancelled(on(2, 20))])
    for query in asked:
        assert query["sql"].startswith("SELECT")
        assert " FOR " not in query["sql"]


# --- one list --------------------------------------------------------------------------------------------------------


@pytest.fixture
def milestones(settings: Any) -> None:
    settings.NOTICE_DAYS = [60, 30, 14, 7, 1]


def lines(s: Subscription, now: datetime = JAN_10, **how: Any) -> list[tuple[datetime, str, str]]:
    return [(line.at, line.source, line.what) for line in timeline.of_subscription(s, now=now, **how)]


@pytest.mark.usefixtures("milestones")
def test_deadlines_and_notices_are_one_list_in_the_order_of_what_happens() -> None:
    assert lines(subscription(), until=on(2, 16)) == [
        (on(1, 10), "notice", "renewal_30"),
        (on(1, 18), "notice", "renewal_14"),
        (on(1, 25), "notice", "renewal_7"),
        (on(1, 31), "notice", "renewal_1"),
        (FEB_1, "deadline", "grace_started"),
        (FEB_1, "notice", "grace_started"),
        (on(2, 12), "notice", "grace_ending_3"),
        (on(2, 15), "deadline", "suspended"),
        (on(2, 15), "notice", "suspended"),
    ]


@pytest.mark.usefixtures("milestones")
def test_a_notice_says_what_it_is_about() -> None:
    why = {
        line.what: line.why for line in timeline.of_subscription(subscription(), now=JAN_10) if "notice" in line.source
    }
    assert why["renewal_7"] == "Its term end comes near: 1 February 2026"
    assert why["grace_ending_3"] == "Its grace end comes near: 15 February 2026"
    assert why["suspended"] == "The tenant is told that it happened"


@pytest.mark.usefixtures("milestones")
@pytest.mark.parametrize(("state", "comes"), [("SENT", False), ("SUPERSEDED", False), ("CANCELLED", True)])
def test_what_was_told_is_not_told_again_unless_it_was_cancelled(state: str, comes: bool) -> None:
    s = subscription()
    Notice.objects.create(
        subscription=s, tenant=s.tenant, kind="renewal_14", anchor=FEB_1, next_attempt_at=JAN_1, state=state,
        sent_at=JAN_1 if state == "SENT" else None,
    )  # fmt: skip
    assert ((on(1, 18), "notice", "renewal_14") in lines(s)) == comes


@pytest.mark.usefixtures("milestones")
def test_what_if_moves_the_notices_too() -> None:
    s = subscription()
    told = lines(s, what_if=[Renewed(on(1, 12), APR_1)], until=MAR_1)
    assert told == [
        (on(1, 10), "notice", "renewal_30"),
        (on(1, 12), "deadline", "renewed"),
        (on(1, 12), "notice", "renewed"),
        (on(1, 31), "notice", "renewal_60"),
    ]


def test_the_list_of_an_addon_is_its_own() -> None:
    main = subscription()
    addon = subscription(Type.ADDON, parent=main)
    assert {line.subscription for line in timeline.of_subscription(addon, now=JAN_10)} == {addon.number}
    assert {line.subscription for line in timeline.of_subscription(main, now=JAN_10)} == {main.number, addon.number}


def test_the_list_of_a_tenant_has_all_that_it_has_and_nobody_elses() -> None:
    main = subscription()
    trial = subscription(Type.TRIAL, tenant=main.tenant, term=(JAN_1, on(1, 20)))
    in_state("EXPIRED", tenant=main.tenant, plan=None, type=Type.TEMPORARY)
    subscription()
    told = timeline.of_tenant(main.tenant, now=JAN_10)
    assert {line.subscription for line in told} == {main.number, trial.number}
    assert [line.at for line in told] == sorted(line.at for line in told)


def test_the_forecast_and_the_clock_agree_on_what_was_overdue() -> None:
    s = subscription()
    foretold = [(line.what, line.at) for line in timeline.of_subscription(s, now=MAR_1) if line.source == "deadline"]
    assert [(entry.action, entry.effective_at) for entry in advance(on(12, 31))] == foretold
    assert Subscription.objects.get(pk=s.pk).status == Status.EXPIRED
