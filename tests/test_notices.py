"""Which notices there are, and when: rows read off the audit and off terms. What becomes of them: test_delivery."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection, transaction

from billing_site.local.process import wait_until
from notifications import kinds
from notifications.models import AuditCursor, Notice
from notifications.schedule import pass_milestones, read_audit
from subscriptions import lifecycle
from subscriptions.models import AuditEntry, Subscription
from subscriptions.states import Status, Type
from tests.builders import APR_1, FEB_1, JAN_1, subscription
from tests.history import advance, at_once, by, in_state, on

DAY, INSTANT = timedelta(days=1), timedelta(microseconds=1)
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
    """Read the audit when nothing older is open. The cluster counts, and other test runs use it, too."""
    settle()
    return read_audit(now=now)


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
def test_an_outage_of_a_month_tells_each_thing_that_happened_once() -> None:
    s = subscription(term=(JAN_1, FEB_1))
    advance(on(3, 3))
    assert read(on(3, 3)) == 2
    assert told() == [(s.pk, "grace_started", FEB_1, "PENDING"), (s.pk, "suspended", on(2, 15), "PENDING")]


@pytest.mark.usefixtures("committed")
def test_a_family_is_told_once() -> None:
    main = subscription(term=(JAN_1, FEB_1))
    subscription(Type.ADDON, parent=main, term=(JAN_1, FEB_1))
    advance(FEB_1)
    assert (AuditEntry.objects.filter(action="grace_started").count(), read(FEB_1)) == (2, 1)
    assert told() == [(main.pk, "grace_started", FEB_1, "PENDING")]


@pytest.mark.usefixtures("committed")
def test_what_is_not_worth_a_letter_makes_no_notice() -> None:
    s = subscription(term=(JAN_1, FEB_1))
    lifecycle.renew(s.pk, term_end=on(3, 1), **by(on(1, 10)))
    lifecycle.cancel(s.pk, at=lifecycle.CancelAt.NOW, **by(on(1, 11)))
    assert (read(FEB_1), told()) == (0, [])


@pytest.mark.usefixtures("committed")
def test_a_second_grace_period_is_told_anew() -> None:
    s = in_state("GRACE")
    read(on(1, 5))
    lifecycle.activate(s.pk, **by(on(1, 6)))
    lifecycle.enter_grace(s.pk, **by(on(1, 9)))
    assert read(on(1, 9)) == 1
    assert [anchor for _, _, anchor, _ in told()] == [on(1, 5), on(1, 9)]


@pytest.mark.usefixtures("committed")
def test_eight_readers_at_once_tell_each_thing_once() -> None:
    for _ in range(5):
        in_state("GRACE")
    settle()
    assert sorted(at_once(*[lambda: read_audit(now=FEB_1)] * 8)) == [0] * 7 + [5]  # type: ignore[type-var]
    assert Notice.objects.count() == 5


@pytest.mark.usefixtures("committed")
def test_no_entry_of_a_transaction_that_was_open_while_we_read_is_missed() -> None:
    """Its entry comes before what we have read: a reader that remembers the last id would never see it."""
    slow, quick = subscription(), subscription()
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
        while_open = read_audit(now=on(1, 6))
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
def test_reading_the_audit_takes_two_queries_however_much_there_is(django_assert_num_queries: Any) -> None:
    read(JAN_1)
    for _ in range(10):
        in_state("GRACE")
    settle()
    with django_assert_num_queries(2):
        assert read_audit(now=FEB_1) == 10


# --- milestones before the end of a term -----------------------------------------------------------------------------


@pytest.mark.django_db
def test_thirty_days_before_the_end_of_a_term_by_default() -> None:
    s = subscription(term=A_YEAR)
    assert pass_milestones(now=MONTH_BEFORE - INSTANT) == 0
    assert pass_milestones(now=MONTH_BEFORE) == 1
    assert told() == [(s.pk, "renewal_30", A_YEAR[1], "PENDING")]


@pytest.mark.django_db
def test_a_milestone_is_told_once_however_often_one_looks() -> None:
    subscription(term=A_YEAR)
    assert [pass_milestones(now=MONTH_BEFORE + n * DAY) for n in range(30)] == [1] + [0] * 29


@pytest.mark.usefixtures("committed")
def test_eight_schedulers_at_once_tell_a_milestone_once() -> None:
    for _ in range(5):
        subscription(term=A_YEAR)
    found = at_once(*[lambda: pass_milestones(now=MONTH_BEFORE)] * 8)
    assert (sum(found), Notice.objects.count()) == (5, 5)  # type: ignore[arg-type]


@pytest.mark.django_db
def test_after_an_outage_a_milestone_is_still_told_until_the_term_ends() -> None:
    subscription(term=A_YEAR)
    assert pass_milestones(now=A_YEAR[1]) == 0
    assert pass_milestones(now=A_YEAR[1] - INSTANT) == 1


@pytest.mark.django_db
def test_a_term_that_moves_opens_a_new_round() -> None:
    s = subscription(term=(JAN_1, APR_1))
    pass_milestones(now=on(3, 10))
    lifecycle.renew(s.pk, term_end=on(7, 1), **by(on(3, 11)))
    assert [pass_milestones(now=now) for now in (on(3, 12), on(6, 1))] == [0, 1]
    assert [(kind, anchor) for _, kind, anchor, _ in told()] == [("renewal_30", APR_1), ("renewal_30", on(7, 1))]


@pytest.mark.django_db
@pytest.mark.parametrize(("days", "notices"), [(7, 0), (30, 0), (31, 1)])
def test_a_milestone_that_lies_before_the_term_began_is_none(days: int, notices: int) -> None:
    subscription(term=(JAN_1, JAN_1 + days * DAY))
    assert pass_milestones(now=JAN_1 + (days - 1) * DAY) == notices


@pytest.mark.django_db
@pytest.mark.parametrize("state", ["TRIAL", "GRACE", "SUSPENDED", "HOLD", "EXPIRED"])
def test_only_an_active_subscription_comes_near_its_end(state: str) -> None:
    in_state(state, term=A_YEAR)
    assert (pass_milestones(now=MONTH_BEFORE), told()) == (0, [])


@pytest.mark.django_db
def test_the_end_of_a_family_comes_near_once() -> None:
    main = subscription(term=A_YEAR)
    subscription(Type.ADDON, parent=main, term=A_YEAR)
    assert (pass_milestones(now=MONTH_BEFORE), [pk for pk, *_ in told()]) == (1, [main.pk])


@pytest.mark.django_db
def test_of_several_passed_milestones_only_the_most_urgent_is_told(settings: Any) -> None:
    settings.NOTICE_DAYS = [90, 7, 60, 30, 14, 1]
    s = subscription(term=(JAN_1, on(3, 31)))  # 89 days: the first milestone lies before it
    assert pass_milestones(now=on(3, 21)) == 1
    assert {(kind, state) for _, kind, _, state in told()} == {
        ("renewal_60", "SUPERSEDED"), ("renewal_30", "SUPERSEDED"), ("renewal_14", "PENDING"),
    }  # fmt: skip
    assert pass_milestones(now=on(3, 24)) == 1
    assert Notice.objects.get(kind="renewal_7").state == "PENDING"
    assert Notice.objects.filter(subscription=s).count() == 4


@pytest.mark.django_db
def test_milestones_come_from_the_settings_the_most_urgent_first(settings: Any) -> None:
    assert [kind.name for kind in kinds.schedule()] == ["renewal_30"]
    settings.NOTICE_DAYS = [30, 1, 90, 30]
    assert [(kind.name, kind.before_term_end) for kind in kinds.schedule()] == [
        ("renewal_1", DAY), ("renewal_30", 30 * DAY), ("renewal_90", 90 * DAY),
    ]  # fmt: skip


@pytest.mark.django_db
def test_passing_milestones_takes_one_query_however_many_there_are(django_assert_num_queries: Any) -> None:
    for _ in range(10):
        subscription(term=A_YEAR)
    with django_assert_num_queries(1):
        assert pass_milestones(now=MONTH_BEFORE) == 10
    assert Subscription.objects.filter(status=Status.ACTIVE).count() == 10
