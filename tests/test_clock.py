"""What the clock does by itself. Two clocks at once: test_lifecycle_races; families: test_families."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from subscriptions import lifecycle
from subscriptions.errors import InvalidTerm
from subscriptions.forecast import Step, next_step
from subscriptions.lifecycle import CancelAt
from subscriptions.models import AuditEntry, Subscription
from subscriptions.states import DEADLINES, LIVE, TRANSITIONS, Action, EndReason, Status, Type
from tests.builders import FEB_1, JAN_1, MAR_1, PlanFactory, subscription
from tests.history import advance, by, changed, entries, in_state, nothing_changes, on, state, steps

pytestmark = pytest.mark.django_db
A_MICROSECOND = timedelta(microseconds=1)
DEC_31 = on(12, 31)


# --- the table -------------------------------------------------------------------------------------------------------


def test_every_living_status_has_a_deadline_and_the_clock_takes_legal_steps_only() -> None:
    assert set(DEADLINES) == LIVE
    for status, rule in DEADLINES.items():
        assert {rule.then, rule.if_cancelled} <= TRANSITIONS[status]


@pytest.mark.parametrize(
    ("before", "step"),
    [
        ("TRIAL", Step(FEB_1, Status.GRACE)),
        ("ACTIVE", Step(FEB_1, Status.GRACE)),
        ("CANCELLED", Step(FEB_1, Status.EXPIRED, EndReason.CANCELLED_AT_TERM_END)),
        ("GRACE", Step(on(2, 15), Status.SUSPENDED)),
        ("SUSPENDED", Step(on(3, 6), Status.EXPIRED, EndReason.SUSPENSION_OVER)),
        ("HOLD", None),
        ("EXPIRED", None),
    ],
)
def test_the_next_step_is_the_tables_and_the_databases_date_for_it_is_the_same(before: str, step: Step | None) -> None:
    s = in_state(before)
    assert next_step(s) == step
    assert s.next_deadline == (step and step.at)


# --- one step --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", ["TRIAL", "ACTIVE"])
def test_enters_grace_the_instant_the_term_ends_and_not_a_microsecond_earlier(before: str) -> None:
    s = in_state(before)
    with nothing_changes():
        assert advance(FEB_1 - A_MICROSECOND) == []
    [entry] = advance(FEB_1)
    assert (entry.action, entry.actor, entry.effective_at) == (Action.GRACE_STARTED, "clock", FEB_1)
    assert (entry.reason, entry.source_id) == ("", "")
    assert changed(entry) == {"status": (before, "GRACE"), "grace_end": (None, on(2, 15))}
    assert state(s) == "GRACE"


def test_is_suspended_the_instant_the_grace_period_ends() -> None:
    s = in_state("GRACE")
    assert advance(on(2, 15) - A_MICROSECOND) == []
    [entry] = advance(on(2, 15))
    assert (entry.action, entry.effective_at) == (Action.SUSPENDED, on(2, 15))
    assert changed(entry) == {
        "status": ("GRACE", "SUSPENDED"),
        "grace_end": (on(2, 15), None),
        "suspension_end": (None, on(4, 16)),
    }
    assert state(s) == "SUSPENDED"


def test_expires_the_instant_the_suspension_ends() -> None:
    in_state("SUSPENDED")
    assert advance(on(3, 6) - A_MICROSECOND) == []
    [entry] = advance(on(3, 6))
    assert (entry.action, entry.effective_at) == (Action.EXPIRED, on(3, 6))
    assert changed(entry) == {
        "status": ("SUSPENDED", "EXPIRED"),
        "suspension_end": (on(3, 6), None),
        "ended_at": (None, on(3, 6)),
        "end_reason": ("", "suspension_over"),
    }


def test_what_renews_by_itself_enters_grace_when_the_settlement_window_is_over() -> None:
    subscription(auto_renews=True)
    assert advance(on(2, 4) - A_MICROSECOND) == []
    [entry] = advance(on(2, 4))
    assert entry.effective_at == on(2, 4)
    assert changed(entry)["grace_end"] == (None, on(2, 15))  # still counted from the end of the term


def test_a_grace_window_shorter_than_the_settlement_window_is_over_when_it_begins() -> None:
    s = subscription(plan=PlanFactory.create(grace_days=1), auto_renews=True)
    advance(on(2, 4))
    assert steps(s) == [(Action.GRACE_STARTED, on(2, 4)), (Action.SUSPENDED, on(2, 4))]


def test_what_was_cancelled_at_term_end_expires_then_and_says_so() -> None:
    s = subscription(auto_renews=True)
    lifecycle.cancel(s.pk, at=CancelAt.TERM_END, **by(on(1, 10)))
    assert advance(FEB_1 - A_MICROSECOND) == []
    [entry] = advance(FEB_1)
    assert (entry.action, entry.effective_at) == (Action.EXPIRED, FEB_1)
    assert changed(entry)["end_reason"] == ("", "cancelled_at_term_end")
    assert state(s) == "EXPIRED"


@pytest.mark.parametrize("cancelled", [False, True])
def test_never_expires_a_hold(cancelled: bool) -> None:
    s = in_state("HOLD")
    if cancelled:
        lifecycle.cancel(s.pk, at=CancelAt.TERM_END, **by(on(1, 10)))
    with nothing_changes():
        assert advance(datetime(2999, 1, 1, tzinfo=UTC)) == []


# --- many steps ------------------------------------------------------------------------------------------------------


def test_a_clock_that_slept_a_year_writes_each_step_at_its_own_instant() -> None:
    s = subscription()
    advance(DEC_31)
    assert steps(s) == [
        (Action.GRACE_STARTED, FEB_1),
        (Action.SUSPENDED, on(2, 15)),
        (Action.EXPIRED, on(4, 16)),
    ]
    assert [entry.version for entry in entries(s)] == [1, 2, 3, 4]


def test_the_sweep_answers_each_subscriptions_entries_in_order() -> None:
    subscription(), subscription(Type.TRIAL)
    answered = advance(DEC_31)
    assert [entry.pk for entry in answered] == sorted(entry.pk for entry in answered)
    assert len(answered) == 6


def test_windows_of_no_days_take_all_steps_at_the_same_instant() -> None:
    s = subscription(plan=PlanFactory.create(grace_days=0, suspension_days=0))
    advance(FEB_1)
    assert steps(s) == [(Action.GRACE_STARTED, FEB_1), (Action.SUSPENDED, FEB_1), (Action.EXPIRED, FEB_1)]


def test_takes_no_step_ahead_of_its_instant_though_an_earlier_one_is_due() -> None:
    s = subscription(plan=PlanFactory.create(grace_days=1))
    advance(on(2, 2) - A_MICROSECOND)
    assert steps(s) == [(Action.GRACE_STARTED, FEB_1)]


def test_windows_come_from_the_settings_of_the_moment(settings: Any) -> None:
    settings.GRACE_DAYS, settings.SUSPENSION_DAYS = 1, 2
    s = subscription()
    advance(DEC_31)
    assert [at for _, at in steps(s)] == [FEB_1, on(2, 2), on(2, 4)]


def test_a_term_that_ends_on_a_leap_day_runs_out_on_it() -> None:
    leap_day = datetime(2028, 2, 29, tzinfo=UTC)
    s = subscription(term=(datetime(2027, 2, 28, tzinfo=UTC), leap_day))
    advance(leap_day)
    assert steps(s) == [(Action.GRACE_STARTED, leap_day)]
    s.refresh_from_db()
    assert s.grace_end == datetime(2028, 3, 14, tzinfo=UTC)


def test_the_last_term_of_the_calendar_runs_out_like_any_other() -> None:
    last = datetime(9000, 1, 1, tzinfo=UTC)
    s = subscription(term=(JAN_1, last), plan=PlanFactory.create(grace_days=32767, suspension_days=32767))
    advance(last)
    assert state(s) == "GRACE"


def test_running_twice_changes_nothing() -> None:
    subscription()
    assert len(advance(on(2, 20))) == 2
    with nothing_changes():
        assert advance(on(2, 20)) == []


def test_a_clock_that_goes_back_is_harmless() -> None:
    subscription()
    advance(on(2, 20))
    with nothing_changes():
        assert advance(on(1, 15)) == []
        assert advance(FEB_1) == []


def test_a_renewal_before_the_clock_came_by_leaves_it_nothing_to_do() -> None:
    s = subscription()
    lifecycle.renew(s.pk, term_end=MAR_1, **by(on(2, 1, 0, 1)))
    assert advance(on(2, 10)) == []


def test_a_now_without_a_time_zone_is_refused() -> None:
    with pytest.raises(InvalidTerm):
        advance(datetime(2026, 2, 1))  # noqa: DTZ001


# --- many families ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 1000])
def test_all_that_is_due_is_done_whatever_the_batch(batch_size: int) -> None:
    for _ in range(7):
        subscription()
    assert len(advance(FEB_1, batch_size)) == 7
    assert set(Subscription.objects.values_list("status", flat=True)) == {"GRACE"}


def test_what_is_not_due_is_left_alone() -> None:
    due, later = subscription(), subscription(term=(JAN_1, MAR_1))
    advance(FEB_1)
    assert (state(due), state(later)) == ("GRACE", "ACTIVE")


def statements(now: datetime) -> int:
    with CaptureQueriesContext(connection) as queries:
        advance(now)
    return len(queries)


def test_a_sweep_takes_as_many_statements_for_fifty_families_as_for_one() -> None:
    for _ in range(50):
        main = subscription()
        subscription(Type.ADDON, parent=main)
    fifty = statements(DEC_31)
    subscription()
    assert statements(DEC_31) == fifty
    assert AuditEntry.objects.filter(actor="clock").count() == 50 * 2 * 3 + 3


def test_a_sweep_with_nothing_due_is_one_statement() -> None:
    subscription()
    assert statements(JAN_1) == 1
