"""Which notices there are, and when: rows read off the audit and off terms. What becomes of them: test_delivery."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection, transaction

from billing_site.local.process import wait_until
from notifications import kinds
from notifications.models import Notice
from notifications.schedule import make_notices
from subscriptions import lifecycle
from subscriptions.lifecycle import CancelAt, Purchase
from subscriptions.models import AuditCursor, AuditEntry, Subscription
from subscriptions.states import EndReason, Status, Type
from tests.builders import APR_1, FEB_1, JAN_1, PlanFactory, subscription
from tests.history import advance, at_once, by, in_state, on
from tests.history import state as state_of

DAY, INSTANT = timedelta(days=1), timedelta(microseconds=1)
JAN_30 = on(1, 30)  # of a term that ends here no milestone has begun
A_YEAR = (JAN_1, datetime(2027, 1, 1, tzinfo=JAN_1.tzinfo))
MONTH_BEFORE = on(12, 2)  # 30 days before the end of that year

# In an order in which nothing is left pointing at what is gone.
OURS = (
    "notices", "audit_cursors", "stripe_events", "stripe_links", "stripe_prices", "subscription_audit", "subscriptions",
    "plan_prices", "plans", "members", "tenants",
)  # fmt: skip


@pytest.fixture
def committed(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """For tests whose rows other connections must see. Emptying all tables of dj-stripe would take seconds a test."""
    with django_db_blocker.unblock():
        yield
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE subscription_audit DISABLE TRIGGER the_audit_only_grows")
            for table in OURS:
                cursor.execute(f"DELETE FROM {table}")
            cursor.execute("ALTER TABLE subscription_audit ENABLE TRIGGER the_audit_only_grows")


def told() -> list[tuple[int, str, datetime, str]]:
    return [*Notice.objects.order_by("anchor", "kind").values_list("subscription", "kind", "anchor", "state")]


def read(now: datetime) -> int:
    """Look when nothing older is open. The cluster counts, and other test runs use it, too."""
    settle()
    return make_notices(now=now)


def settle() -> None:
    assert wait_until(_is_settled, seconds=60)


def _is_settled() -> bool:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint > coalesce(max(transaction_id), 0)"
            "  FROM subscription_audit"
        )
        return bool(cursor.fetchone()[0])


# --- read off the audit ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("committed")
def test_a_term_that_ends_is_told_once_as_of_the_instant_it_ended() -> None:
    s = subscription(term=(JAN_1, FEB_1))
    advance(FEB_1 + 3 * DAY)
    assert [read(FEB_1 + 3 * DAY), read(FEB_1 + 4 * DAY)] == [1, 0]
    assert told() == [(s.pk, "grace_started", FEB_1, "PENDING")]
    notice = Notice.objects.get()
    assert (notice.tenant_id, notice.next_attempt_at, notice.attempts, notice.recipients, notice.error) == (
        s.tenant_id, FEB_1 + 3 * DAY, 0, [], "",
    )  # fmt: skip


@pytest.mark.usefixtures("committed")
def test_after_an_outage_of_a_month_the_last_thing_that_happened_is_told() -> None:
    s = subscription(term=(JAN_1, FEB_1))
    advance(on(3, 3))
    assert [read(on(3, 3)), read(on(3, 4))] == [1, 0]
    assert told() == [(s.pk, "grace_started", FEB_1, "SUPERSEDED"), (s.pk, "suspended", on(2, 15), "PENDING")]


@pytest.mark.usefixtures("committed")
def test_a_family_is_told_once() -> None:
    main = subscription(term=(JAN_1, FEB_1))
    subscription(Type.ADDON, parent=main, term=(JAN_1, FEB_1))
    advance(FEB_1)
    assert (AuditEntry.objects.filter(action="grace_started").count(), read(FEB_1)) == (2, 1)
    assert told() == [(main.pk, "grace_started", FEB_1, "PENDING")]


def renewed(s: Subscription) -> None:
    lifecycle.renew(s.pk, term_end=APR_1, **by(on(1, 10)))


def activated(s: Subscription) -> None:
    lifecycle.activate(s.pk, **by(on(1, 10)))


def lifted(s: Subscription) -> None:
    lifecycle.lift_hold(s.pk, **by(on(1, 10)))


def ended(why: EndReason) -> Callable[[Subscription], object]:
    return lambda s: lifecycle.expire(s.pk, why=why, **by(on(1, 10)))


def cancelled(s: Subscription) -> None:
    lifecycle.cancel(s.pk, at=CancelAt.TERM_END, **by(on(1, 10)))


def amended(s: Subscription) -> None:
    lifecycle.amend_term(s.pk, term_end=on(1, 20), **by(on(1, 10)))


def resold(s: Subscription) -> None:
    lifecycle.change_plan(s.pk, plan=PlanFactory.create(), price=None, **by(on(1, 10)))


@pytest.mark.usefixtures("committed")
@pytest.mark.parametrize(
    ("state", "happens", "kind"),
    [
        ("ACTIVE", renewed, "renewed"),
        ("CANCELLED", renewed, "renewed"),
        ("GRACE", renewed, "renewed"),
        ("SUSPENDED", renewed, "reactivated"),
        ("HOLD", renewed, "renewed"),  # service stays withheld
        ("TRIAL", renewed, "renewed"),
        ("GRACE", activated, "reactivated"),
        ("SUSPENDED", activated, "reactivated"),
        ("TRIAL", activated, ""),
        ("HOLD", lifted, "reactivated"),
        ("ACTIVE", ended(EndReason.CANCELLED), "expired"),
        ("SUSPENDED", ended(EndReason.SUSPENSION_OVER), "expired"),
        ("TRIAL", ended(EndReason.CONVERTED), ""),
        ("ACTIVE", cancelled, ""),
        ("ACTIVE", amended, ""),
        ("ACTIVE", resold, ""),
    ],
)  # fmt: skip
def test_what_happens_is_told_if_it_is_worth_a_letter(
    state: str, happens: Callable[[Subscription], object], kind: str
) -> None:
    s = in_state(state, term=(JAN_1, JAN_30))
    read(on(1, 5))
    Notice.objects.all().delete()
    happens(s)
    assert read(on(1, 10)) == bool(kind)
    assert told() == ([(s.pk, kind, on(1, 10), "PENDING")] if kind else [])


@pytest.mark.usefixtures("committed")
def test_a_hold_that_is_lifted_after_the_term_brings_nothing_back() -> None:
    s = in_state("HOLD")
    read(on(1, 5))
    lifecycle.lift_hold(s.pk, **by(on(2, 20)))
    assert (state_of(s), read(on(2, 20))) == ("SUSPENDED", 0)


@pytest.mark.usefixtures("committed")
def test_of_what_one_transaction_does_the_last_is_told() -> None:
    s = subscription(term=(JAN_1, JAN_30))
    with transaction.atomic():
        renewed(s)
        ended(EndReason.CANCELLED)(s)
    assert read(on(1, 10)) == 1
    assert told() == [(s.pk, "expired", on(1, 10), "PENDING"), (s.pk, "renewed", on(1, 10), "SUPERSEDED")]


@pytest.mark.usefixtures("committed")
def test_the_same_thing_twice_in_one_transaction_is_told_once() -> None:
    s = subscription(term=(JAN_1, JAN_30))
    with transaction.atomic():
        for hold in (False, True):
            lifecycle.suspend(s.pk, hold=hold, **by(on(1, 10)))
    assert (read(on(1, 10)), told()) == (1, [(s.pk, "suspended", on(1, 10), "PENDING")])


@pytest.mark.usefixtures("committed")
def test_what_happens_to_an_addon_alone_is_told() -> None:
    main = subscription(term=(JAN_1, JAN_30))
    addon = subscription(Type.ADDON, parent=main, term=(JAN_1, JAN_30))
    lifecycle.suspend(addon.pk, hold=True, **by(on(1, 10)))
    assert (read(on(1, 10)), told()) == (1, [(addon.pk, "suspended", on(1, 10), "PENDING")])
    lifecycle.lift_hold(addon.pk, **by(on(1, 11)))
    lifecycle.cancel(addon.pk, at=CancelAt.TERM_END, **by(on(1, 12)))
    advance(JAN_30)
    assert read(JAN_30) == 3
    assert told()[1:] == [
        (addon.pk, "reactivated", on(1, 11), "PENDING"), (addon.pk, "expired", JAN_30, "PENDING"),
        (main.pk, "grace_started", JAN_30, "PENDING"),
    ]  # fmt: skip


@pytest.mark.usefixtures("committed")
def test_what_happens_to_a_main_and_an_addon_one_after_the_other_is_told_of_each() -> None:
    main = subscription(term=(JAN_1, JAN_30))
    addon = subscription(Type.ADDON, parent=main, term=(JAN_1, JAN_30))
    for s in (addon, main):  # the same action at the same instant: two transactions
        lifecycle.suspend(s.pk, hold=True, **by(on(1, 10)))
    assert (read(on(1, 10)), {pk for pk, *_ in told()}) == (2, {main.pk, addon.pk})


def test_no_entry_brings_about_two_kinds() -> None:
    brought = [(action, left) for kind in kinds.ON_AUDIT for action, many in kind.on.items() for left in many]
    assert len(brought) == len(set(brought))


@pytest.mark.usefixtures("committed")
def test_a_second_grace_period_is_told_anew() -> None:
    s = in_state("GRACE")
    read(on(1, 5))
    lifecycle.activate(s.pk, **by(on(1, 6)))
    lifecycle.enter_grace(s.pk, **by(on(1, 9)))
    assert read(on(1, 9)) == 2
    assert [(kind, anchor.day) for _, kind, anchor, _ in told()] == [
        ("grace_started", 5), ("reactivated", 6), ("grace_started", 9),
    ]  # fmt: skip


@pytest.mark.usefixtures("committed")
def test_eight_readers_at_once_tell_each_thing_once() -> None:
    for _ in range(5):
        in_state("GRACE")
    settle()
    assert sorted(at_once(*[lambda: make_notices(now=FEB_1)] * 8)) == [0] * 7 + [5]  # type: ignore[type-var]
    assert Notice.objects.count() == 5


@pytest.mark.usefixtures("committed")
def test_no_entry_of_a_transaction_that_was_open_while_we_read_is_missed() -> None:
    """Its entry comes before what we have read: a reader that remembers the last id would never see it."""
    slow, quick = (subscription(term=(JAN_1, JAN_30)) for _ in range(2))
    wrote, go_on = threading.Event(), threading.Event()

    def slowly() -> None:
        with transaction.atomic():
            lifecycle.enter_grace(slow.pk, **by(on(1, 5)))
            wrote.set()
            assert go_on.wait(timeout=30)
        connection.close()

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(slowly)
        assert wrote.wait(timeout=30)
        lifecycle.enter_grace(quick.pk, **by(on(1, 6)))
        while_open = make_notices(now=on(1, 6))
        go_on.set()
        writing.result()
    assert (while_open, read(on(1, 7))) == (0, 2)
    assert [subscription for subscription, *_ in told()] == [slow.pk, quick.pk]
    assert slow.audit.latest("id").pk < quick.audit.latest("id").pk


@pytest.mark.usefixtures("committed")
def test_a_database_that_counts_its_transactions_anew_is_read_again_and_nothing_is_told_twice() -> None:
    in_state("GRACE")
    read(on(1, 5))
    AuditCursor.objects.update(transaction_id=10**15)  # as in a dump of an old and busy cluster
    in_state("SUSPENDED")
    assert [read(on(1, 6)), read(on(1, 6))] == [1, 0]
    assert [kind for _, kind, *_ in told()] == ["grace_started", "suspended"]
    assert AuditCursor.objects.get().transaction_id < 10**15


@pytest.mark.usefixtures("committed")
def test_a_look_takes_two_statements_however_much_there_is(django_assert_num_queries: Any) -> None:
    read(JAN_1)
    for _ in range(10):
        in_state("GRACE")
        subscription(term=(JAN_1, on(2, 20)))
    settle()
    with django_assert_num_queries(2 + 2):  # and BEGIN and COMMIT
        assert make_notices(now=FEB_1) == 20


# --- milestones before the end of a term -----------------------------------------------------------------------------


@pytest.mark.django_db
def test_thirty_days_before_the_end_of_a_term_by_default() -> None:
    s = subscription(term=A_YEAR)
    assert make_notices(now=MONTH_BEFORE - INSTANT) == 0
    assert make_notices(now=MONTH_BEFORE) == 1
    assert told() == [(s.pk, "renewal_30", A_YEAR[1], "PENDING")]


@pytest.mark.django_db
def test_a_milestone_is_told_once_however_often_one_looks() -> None:
    subscription(term=A_YEAR)
    assert [make_notices(now=MONTH_BEFORE + n * DAY) for n in range(30)] == [1] + [0] * 29


@pytest.mark.usefixtures("committed")
def test_eight_schedulers_at_once_tell_a_milestone_once() -> None:
    for _ in range(5):
        subscription(term=A_YEAR)
    found = at_once(*[lambda: make_notices(now=MONTH_BEFORE)] * 8)
    assert (sum(found), Notice.objects.count()) == (5, 5)  # type: ignore[arg-type]


@pytest.mark.django_db
def test_after_an_outage_a_milestone_is_still_told_until_the_term_ends() -> None:
    subscription(term=A_YEAR)
    assert make_notices(now=JAN_1) == 0
    assert make_notices(now=A_YEAR[1] - INSTANT) == 1
    assert make_notices(now=A_YEAR[1]) == 0


@pytest.mark.django_db
def test_after_an_outage_that_a_term_did_not_outlast_nothing_is_told() -> None:
    subscription(term=A_YEAR)
    assert [make_notices(now=now) for now in (JAN_1, A_YEAR[1])] == [0, 0]


@pytest.mark.django_db
def test_a_term_that_moves_opens_a_new_round() -> None:
    s = subscription(term=(JAN_1, APR_1))
    make_notices(now=on(3, 10))
    lifecycle.renew(s.pk, term_end=on(7, 1), **by(on(3, 11)))
    assert [make_notices(now=now) for now in (on(3, 12), on(6, 1))] == [0, 1]
    assert [(kind, anchor) for _, kind, anchor, _ in told()] == [("renewal_30", APR_1), ("renewal_30", on(7, 1))]


@pytest.mark.django_db
@pytest.mark.parametrize(("days", "notices"), [(7, 0), (30, 0), (31, 1)])
def test_a_milestone_that_lies_before_the_term_began_is_none(days: int, notices: int) -> None:
    subscription(term=(JAN_1, JAN_1 + days * DAY))
    assert make_notices(now=JAN_1 + (days - 1) * DAY) == notices


@pytest.mark.django_db
@pytest.mark.parametrize("state", ["TRIAL", "GRACE", "SUSPENDED", "HOLD", "EXPIRED"])
def test_only_an_active_subscription_has_to_be_renewed(state: str) -> None:
    in_state(state, term=A_YEAR)
    assert (make_notices(now=MONTH_BEFORE), told()) == (0, [])


@pytest.mark.django_db
def test_the_end_of_a_family_comes_near_once() -> None:
    main = subscription(term=A_YEAR)
    subscription(Type.ADDON, parent=main, term=A_YEAR)
    assert (make_notices(now=MONTH_BEFORE), [pk for pk, *_ in told()]) == (1, [main.pk])


@pytest.mark.django_db
def test_of_several_passed_milestones_only_the_most_urgent_is_told(settings: Any) -> None:
    settings.NOTICE_DAYS = [90, 7, 60, 30, 14, 1]
    s = subscription(term=(JAN_1, on(3, 31)))  # 89 days: the first milestone lies before it
    assert make_notices(now=on(3, 21)) == 1
    assert {(kind, state) for _, kind, _, state in told()} == {
        ("renewal_60", "SUPERSEDED"), ("renewal_30", "SUPERSEDED"), ("renewal_14", "PENDING"),
    }  # fmt: skip
    assert make_notices(now=on(3, 24)) == 1
    assert Notice.objects.get(kind="renewal_7").state == "PENDING"
    assert Notice.objects.filter(subscription=s).count() == 4


@pytest.mark.django_db
def test_milestones_come_from_the_settings_the_most_urgent_first(settings: Any) -> None:
    others = [("grace_ending_3", 3 * DAY), ("trial_ending_1", DAY), ("trial_ending_7", 7 * DAY)]
    assert [(kind.name, kind.before) for kind in kinds.schedule()] == [("renewal_30", 30 * DAY), *others]
    settings.NOTICE_DAYS = [30, 1, 90, 30]
    assert [(kind.name, kind.before) for kind in kinds.schedule()] == [
        ("renewal_1", DAY), ("renewal_30", 30 * DAY), ("renewal_90", 90 * DAY), *others,
    ]  # fmt: skip


@pytest.mark.django_db
def test_the_end_of_a_trial_comes_near_seven_days_and_one_day_before() -> None:
    s = in_state("TRIAL")
    looks = (on(1, 25) - INSTANT, on(1, 25), on(1, 31) - INSTANT, on(1, 31), FEB_1)
    assert [make_notices(now=now) for now in looks] == [0, 1, 0, 1, 0]
    assert told() == [(s.pk, "trial_ending_1", FEB_1, "PENDING"), (s.pk, "trial_ending_7", FEB_1, "PENDING")]


@pytest.mark.django_db
def test_the_end_of_a_grace_period_comes_near_three_days_before() -> None:
    s = subscription(term=(JAN_1, FEB_1))
    advance(FEB_1)
    assert [make_notices(now=now) for now in (on(2, 12) - INSTANT, on(2, 12), on(2, 14))] == [0, 1, 0]
    assert told() == [(s.pk, "grace_ending_3", on(2, 15), "PENDING")]


@pytest.mark.django_db
@pytest.mark.parametrize(("grace_days", "notices"), [(3, 0), (4, 1)])
def test_a_grace_period_that_has_just_been_told_is_not_told_to_end(grace_days: int, notices: int) -> None:
    subscription(plan=PlanFactory.create(grace_days=grace_days), term=(JAN_1, FEB_1))
    advance(FEB_1)
    assert make_notices(now=FEB_1 + (grace_days - 1) * DAY) == notices


# --- only what is new is looked at -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("committed")
def test_what_was_looked_at_is_not_looked_at_again() -> None:
    subscription(term=A_YEAR)
    assert read(MONTH_BEFORE) == 1
    Notice.objects.all().delete()
    assert read(MONTH_BEFORE + DAY) == 0


@pytest.mark.usefixtures("committed")
@pytest.mark.parametrize("moves", ["STARTED", "AMENDED", "ACTIVATED"])
def test_what_moves_past_a_milestone_is_told(moves: str) -> None:
    """No range of time has it: its milestone lies before the last look."""
    if moves != "STARTED":
        s = subscription(term=(JAN_1, APR_1), status=Status.TRIAL if moves == "ACTIVATED" else None)
    read(on(1, 25))
    if moves == "STARTED":
        s = subscription(term=(JAN_1, on(2, 10)), now=on(1, 26))
    elif moves == "AMENDED":
        lifecycle.amend_term(s.pk, term_end=on(2, 10), **by(on(1, 26)))
    else:
        purchase = Purchase(PlanFactory.create(), JAN_1, on(2, 10))
        lifecycle.activate(s.pk, purchase=purchase, **by(on(1, 26)))
    assert (read(on(1, 26)), told()) == (1, [(s.pk, "renewal_30", on(2, 10), "PENDING")])


@pytest.mark.usefixtures("committed")
def test_a_clock_that_goes_back_tells_nothing_twice_and_misses_nothing() -> None:
    early = subscription(term=A_YEAR)
    assert [read(MONTH_BEFORE + DAY), read(JAN_1)] == [1, 0]
    late = subscription(term=A_YEAR)
    assert [read(now) for now in (MONTH_BEFORE - DAY, MONTH_BEFORE, MONTH_BEFORE + 2 * DAY)] == [0, 1, 0]
    assert {pk for pk, *_ in told()} == {early.pk, late.pk}


@pytest.mark.usefixtures("committed")
def test_a_look_with_a_clock_that_was_a_year_ahead_loses_no_reminder() -> None:
    s = subscription(term=A_YEAR)
    looks = (MONTH_BEFORE - DAY, MONTH_BEFORE + 365 * DAY, MONTH_BEFORE + DAY, MONTH_BEFORE + 2 * DAY)
    assert [read(now) for now in looks] == [0, 0, 1, 0]
    assert {pk for pk, *_ in told()} == {s.pk}


@pytest.mark.usefixtures("committed")
def test_a_milestone_that_is_new_in_the_settings_is_told_to_whom_it_has_passed_unless_a_more_urgent_one_was(
    settings: Any,
) -> None:
    soon, later = subscription(term=(JAN_1, on(6, 20))), subscription(term=(JAN_1, on(7, 20)))
    assert read(on(6, 1)) == 1
    settings.NOTICE_DAYS = [30, 60]
    assert [read(on(6, 1)), read(on(6, 2))] == [1, 0]
    settings.NOTICE_DAYS = [30]
    assert [read(on(6, 3)), read(on(6, 19))] == [0, 0]
    assert told() == [
        (soon.pk, "renewal_30", on(6, 20), "PENDING"), (soon.pk, "renewal_60", on(6, 20), "SUPERSEDED"),
        (later.pk, "renewal_60", on(7, 20), "PENDING"),
    ]  # fmt: skip


@pytest.mark.usefixtures("committed")
@pytest.mark.parametrize("state", ["CANCELLED", "SENT", "FAILED", "SUPERSEDED"])
def test_a_reminder_that_was_cancelled_returns_when_it_is_true_again(state: str) -> None:
    s = subscription(term=(JAN_1, FEB_1))
    read(on(1, 5))
    lifecycle.enter_grace(s.pk, **by(on(1, 6)))
    read(on(1, 6))
    Notice.objects.filter(kind="renewal_30").update(
        state=state, attempts=3, sent_at=on(1, 6) if state == "SENT" else None
    )
    lifecycle.activate(s.pk, **by(on(1, 7)))
    assert read(on(1, 7)) == 1 + (state == "CANCELLED")  # and that it is active again
    notice = Notice.objects.get(kind="renewal_30")
    returned = ("PENDING", 0, on(1, 7))
    assert (notice.state, notice.attempts, notice.next_attempt_at) == (
        returned if state == "CANCELLED" else (state, 3, on(1, 5))
    )


@pytest.mark.usefixtures("committed")
def test_a_cancelled_reminder_does_not_return_beside_a_more_urgent_one(settings: Any) -> None:
    settings.NOTICE_DAYS = [30, 14]
    s = subscription(term=(JAN_1, FEB_1))
    read(on(1, 5))
    lifecycle.enter_grace(s.pk, **by(on(1, 6)))
    Notice.objects.update(state="CANCELLED")
    lifecycle.activate(s.pk, **by(on(1, 20)))
    read(on(1, 20))
    states = dict(Notice.objects.filter(anchor=FEB_1).values_list("kind", "state"))
    assert states == {"renewal_30": "CANCELLED", "renewal_14": "PENDING"}
