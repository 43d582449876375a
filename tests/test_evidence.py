"""What the database itself refuses, also from psql: change without evidence, a rewritten past, an impossible row.

The promises are kept at commit. Most tests ask for the commit's checks without committing; those that are named after
a commit, or after another transaction, do commit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction
from django.db.backends.utils import CursorWrapper

from subscriptions import lifecycle
from subscriptions.audit import COLUMNS, FIELDS, TRACKED, Actor
from subscriptions.models import AuditEntry, Subscription
from subscriptions.states import EndReason, Status, Type
from tests.builders import JAN_1, MAR_1, PlanFactory, PlanPriceFactory, subscription
from tests.history import by, entries, in_state, nothing_changes, on, replayed, state

EVIDENCE = "no_change_without_evidence"
pytestmark = pytest.mark.django_db
commits = pytest.mark.django_db(transaction=True)


@contextmanager
def refused_by(constraint: str) -> Iterator[CursorWrapper]:
    """A transaction that cannot commit, for the reason of this name, and leaves nothing."""
    with nothing_changes():
        with pytest.raises(IntegrityError) as refusal, transaction.atomic(), connection.cursor() as cursor:  # noqa: PT012
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
            cursor.execute("SET CONSTRAINTS ALL DEFERRED")
            yield cursor
            if connection.savepoint_ids:  # this test does not commit
                cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        cause: Any = refusal.value.__cause__
        assert cause.diag.constraint_name == constraint


def bear_witness(cursor: CursorWrapper, s: Subscription, version: int, *, tenant_id: int | None = None) -> None:
    """An audit entry by hand that names every column, and the status that the row has now."""
    cursor.execute(
        """INSERT INTO subscription_audit
               (subscription_id, tenant_id, version, action, effective_at, actor, source_id, reason, changes)
           SELECT id, %s, %s, 'amended', now(), 'staff:1', '', 'by hand',
                  (SELECT jsonb_object_agg(key, jsonb_build_array(NULL, value)) FROM jsonb_each(to_jsonb(s)))
             FROM subscriptions AS s WHERE id = %s""",
        [tenant_id or s.tenant_id, version, s.pk],
    )


def copy(cursor: CursorWrapper, s: Subscription, **other: object) -> int:
    """Insert a row like this one, with other values; answers its id."""
    names = ["number", "tenant_id", "parent_id", "version", *COLUMNS]
    row = {name: getattr(s, name) for name in names} | {"number": f"SUB-COPY-{s.pk}", "version": 1} | other
    marks = ", ".join("%s" for _ in row)
    cursor.execute(f"INSERT INTO subscriptions ({', '.join(row)}) VALUES ({marks}) RETURNING id", [*row.values()])
    return int(cursor.fetchone()[0])


# --- no change without evidence --------------------------------------------------------------------------------------


def test_the_trigger_watches_what_the_audit_tracks() -> None:
    assert set(CHANGES) == set(TRACKED)


CHANGES: dict[str, tuple[str, Any]] = {  # tracked field: the state to change it in, another value for it
    "type": ("ACTIVE", "TEMPORARY"),
    "status": ("ACTIVE", "TRIAL"),
    "plan": ("ACTIVE", lambda: PlanFactory.create().pk),
    "price": ("ACTIVE", lambda: PlanPriceFactory.create().pk),
    "quantity": ("ACTIVE", 2),
    "term_start": ("ACTIVE", on(1, 2)),
    "term_end": ("ACTIVE", on(1, 31)),
    "anniversary": ("ACTIVE", on(1, 2)),
    "time_zone": ("ACTIVE", "Europe/Berlin"),
    "term_deadline": ("ACTIVE", MAR_1),
    "grace_end": ("GRACE", MAR_1),
    "suspension_end": ("SUSPENDED", on(6, 1)),
    "on_hold": ("HOLD", False),
    "own_hold": ("HOLD", True),
    "auto_renews": ("ACTIVE", True),
    "cancel_at_term_end": ("ACTIVE", True),
    "ended_at": ("EXPIRED", MAR_1),
    "end_reason": ("EXPIRED", "never_paid"),
}


@pytest.mark.parametrize("version", ["version", "version + 1"])
@pytest.mark.parametrize("name", TRACKED)
def test_a_change_of_one_tracked_column_without_an_audit_entry_cannot_commit(name: str, version: str) -> None:
    before, value = CHANGES[name]
    s = in_state(before)
    value = value() if callable(value) else value
    column = FIELDS[name].attname
    with refused_by(EVIDENCE) as cursor:
        # A hold without its hold is no row at all, nor is a main subscription's own; here they are to be no change.
        cursor.execute("ALTER TABLE subscriptions DROP CONSTRAINT suspension_has_an_end_or_a_hold")
        cursor.execute("ALTER TABLE subscriptions DROP CONSTRAINT only_an_addon_has_a_hold_of_its_own")
        cursor.execute(f"UPDATE subscriptions SET {column} = %s, version = {version} WHERE id = %s", [value, s.pk])
        assert cursor.rowcount == 1


@commits
def test_the_same_change_with_its_audit_entry_commits() -> None:
    s = subscription()
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("UPDATE subscriptions SET term_end = %s, version = 2 WHERE id = %s", [on(1, 31), s.pk])
        bear_witness(cursor, s, version=2)
    s.refresh_from_db()
    assert (s.term_end, s.version, s.audit.count()) == (on(1, 31), 2, 2)


def test_an_entry_that_does_not_name_what_changed_is_no_evidence() -> None:
    s = subscription()
    with refused_by(EVIDENCE) as cursor:
        cursor.execute("UPDATE subscriptions SET term_end = %s, version = 2 WHERE id = %s", [on(1, 31), s.pk])
        cursor.execute(
            """INSERT INTO subscription_audit
                   (subscription_id, tenant_id, version, action, effective_at, actor, source_id, reason, changes)
               VALUES (%s, %s, 2, 'amended', now(), 'staff:1', '', 'by hand', '{"status": ["ACTIVE", "ACTIVE"]}')""",
            [s.pk, s.tenant_id],
        )


@pytest.mark.parametrize(
    "changes",
    ["""{"term_end": [null, "2026-01-30T00:00:00Z"]}""", """{"term_end": [null, null]}""", """["term_end"]"""],
)
def test_an_entry_that_says_something_else_than_what_is_written_is_no_evidence(changes: str) -> None:
    s = subscription()
    with refused_by(EVIDENCE) as cursor:
        cursor.execute("UPDATE subscriptions SET term_end = %s, version = 2 WHERE id = %s", [on(1, 31), s.pk])
        cursor.execute(
            """INSERT INTO subscription_audit
                   (subscription_id, tenant_id, version, action, effective_at, actor, source_id, reason, changes)
               VALUES (%s, %s, 2, 'amended', now(), 'staff:1', '', 'by hand', %s)""",
            [s.pk, s.tenant_id, changes],
        )


def test_an_entry_of_another_tenant_is_no_evidence() -> None:
    s, other = subscription(), subscription()
    with refused_by(EVIDENCE) as cursor:
        cursor.execute("UPDATE subscriptions SET term_end = %s, version = 2 WHERE id = %s", [on(1, 31), s.pk])
        bear_witness(cursor, s, version=2, tenant_id=other.tenant_id)


def test_a_temporary_table_that_looks_like_the_audit_is_no_evidence() -> None:
    s = subscription()
    with refused_by(EVIDENCE) as cursor:
        cursor.execute(
            "CREATE TEMP TABLE subscription_audit (LIKE public.subscription_audit INCLUDING ALL) ON COMMIT DROP"
        )
        cursor.execute("UPDATE subscriptions SET term_end = %s, version = 2 WHERE id = %s", [on(1, 31), s.pk])
        bear_witness(cursor, s, version=2)


@pytest.mark.parametrize("column", ["id", "tenant_id", "number"])
def test_the_identity_of_a_subscription_never_changes(column: str) -> None:
    s, other = subscription(), subscription()
    value: Any = {"id": -1, "tenant_id": other.tenant_id, "number": "SUB-HIJACKED"}[column]
    with refused_by("identity_never_changes") as cursor:
        cursor.execute(f"UPDATE subscriptions SET {column} = %s WHERE id = %s", [value, s.pk])


def test_when_an_entry_was_written_is_not_its_writers_to_say() -> None:
    s = subscription()
    with connection.cursor() as cursor:
        cursor.execute(
            """INSERT INTO subscription_audit
                   (subscription_id, tenant_id, version, action, effective_at, actor, source_id, reason, changes,
                    recorded_at, transaction_id)
               VALUES (%s, %s, 2, 'amended', now(), 'staff:1', '', 'by hand', '{}', '1999-01-01Z', 7)
               RETURNING recorded_at > now() - interval '1 minute',
                         transaction_id = pg_current_xact_id()::text::bigint""",
            [s.pk, s.tenant_id],
        )
        assert cursor.fetchone() == (True, True)


def test_a_change_that_leaves_its_version_cannot_commit_even_with_an_entry() -> None:
    s = subscription()
    with refused_by(EVIDENCE) as cursor:
        cursor.execute("UPDATE subscriptions SET term_end = %s WHERE id = %s", [on(1, 31), s.pk])
        bear_witness(cursor, s, version=2)


@pytest.mark.parametrize("version", [0, 3])
def test_a_version_moves_by_one_or_not_at_all(version: int) -> None:
    s = subscription()
    with refused_by(EVIDENCE) as cursor:
        cursor.execute("UPDATE subscriptions SET version = %s WHERE id = %s", [version, s.pk])
        bear_witness(cursor, s, version=version)


def test_two_changes_with_one_audit_entry_cannot_commit() -> None:
    s = subscription()
    with refused_by(EVIDENCE) as cursor:
        for version, day in ((2, 30), (3, 31)):
            cursor.execute(
                "UPDATE subscriptions SET term_end = %s, version = %s WHERE id = %s", [on(1, day), version, s.pk]
            )
        bear_witness(cursor, s, version=3)


@commits
def test_an_audit_entry_of_an_earlier_transaction_is_no_evidence() -> None:
    s = subscription()
    with connection.cursor() as cursor:
        bear_witness(cursor, s, version=2)
    with refused_by(EVIDENCE) as cursor:
        cursor.execute("UPDATE subscriptions SET term_end = %s, version = 2 WHERE id = %s", [on(1, 31), s.pk])


def test_an_audit_entry_of_another_subscription_is_no_evidence() -> None:
    s, other = subscription(), subscription()
    with refused_by(EVIDENCE) as cursor:
        cursor.execute("UPDATE subscriptions SET term_end = %s, version = 2 WHERE id = %s", [on(1, 31), s.pk])
        bear_witness(cursor, other, version=2)


@commits
def test_an_update_through_the_orm_cannot_commit_either() -> None:
    s = subscription()
    with refused_by(EVIDENCE):
        Subscription.objects.filter(pk=s.pk).update(status=Status.TRIAL)
    with refused_by(EVIDENCE):
        s.term_end = on(1, 31)
        s.save()


@commits
@pytest.mark.parametrize("version", [1, 2])
def test_a_subscription_cannot_begin_without_its_first_entry(version: int) -> None:
    s = subscription(Type.TEMPORARY)
    with refused_by(EVIDENCE) as cursor:
        copy(cursor, s, version=version)


@commits
def test_a_subscription_may_begin_with_its_first_entry() -> None:
    s = subscription(Type.TEMPORARY)
    with transaction.atomic(), connection.cursor() as cursor:
        born = Subscription(pk=copy(cursor, s), tenant_id=s.tenant_id)
        bear_witness(cursor, born, version=1)
    assert Subscription.objects.get(pk=born.pk).audit.get().version == 1


def test_a_subscription_with_a_past_cannot_be_deleted() -> None:
    s = subscription()
    with nothing_changes(), pytest.raises(IntegrityError, match="subscription_audit"), transaction.atomic():  # noqa: PT012
        connection.cursor().execute("DELETE FROM subscriptions WHERE id = %s", [s.pk])
        connection.check_constraints()


def test_a_verb_that_fails_halfway_leaves_neither_change_nor_evidence() -> None:
    s = subscription()
    with nothing_changes(), pytest.raises(ZeroDivisionError), transaction.atomic():  # noqa: PT012
        lifecycle.renew(s.pk, term_end=MAR_1, **by(on(1, 10)))
        raise ZeroDivisionError


def test_the_row_can_be_told_from_its_audit_alone() -> None:
    s = subscription(auto_renews=True)
    lifecycle.enter_grace(s.pk, **by(on(1, 10)))
    lifecycle.suspend(s.pk, hold=True, **by(on(1, 11)))
    lifecycle.lift_hold(s.pk, **by(on(1, 12)))
    s.refresh_from_db()
    told = replayed(s)
    assert {column: told.get(column) or None for column in COLUMNS} == {
        column: getattr(s, column) or None for column in COLUMNS
    }
    assert [entry.version for entry in entries(s)] == [1, 2, 3, 4]


# --- the audit only grows --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rewriting",
    [
        "UPDATE subscription_audit SET reason = 'another' WHERE id = %s",
        "UPDATE subscription_audit SET changes = '{}' WHERE id = %s",
        "DELETE FROM subscription_audit WHERE id = %s",
        "DELETE FROM subscription_audit WHERE id = -%s",  # also where it would hit nothing
    ],
)
def test_the_audit_cannot_be_rewritten(rewriting: str) -> None:
    entry = subscription().audit.get()
    with refused_by("the_audit_only_grows") as cursor:
        cursor.execute(rewriting, [entry.pk])


def test_the_audit_cannot_be_emptied() -> None:
    subscription()
    with refused_by("the_audit_only_grows") as cursor:
        cursor.execute("ALTER TABLE subscription_audit ENABLE TRIGGER the_audit_is_never_emptied")
        cursor.execute("TRUNCATE subscription_audit CASCADE")


def test_the_orm_cannot_rewrite_the_audit_either() -> None:
    entry = subscription().audit.get()
    with refused_by("the_audit_only_grows"):
        AuditEntry.objects.filter(pk=entry.pk).update(actor="clock")
    with refused_by("the_audit_only_grows"):
        entry.delete()


def test_an_entry_names_its_actor() -> None:
    s = subscription()
    with refused_by("an_audit_entry_names_its_actor"):
        lifecycle.enter_grace(s.pk, actor=Actor(""), now=JAN_1)


@pytest.mark.parametrize(
    ("constraint", "columns"),
    [
        ("one_audit_entry_per_version", {}),
        ("a_source_applies_once_per_subscription_and_action", {"version": 9, "action": "grace_started"}),
        ("a_source_starts_one_subscription", {"version": 9, "action": "started", "source_id": "start-of-source"}),
    ],
)
def test_no_entry_tells_the_same_thing_twice(constraint: str, columns: dict[str, Any]) -> None:
    s, other = subscription(), subscription()
    if constraint == "a_source_starts_one_subscription":
        AuditEntry.objects.create(**_entry(s) | columns | {"version": 8})
        s = other
    else:
        lifecycle.enter_grace(s.pk, **by(on(1, 10), "request-1"))
    with refused_by(constraint):
        AuditEntry.objects.create(**_entry(s) | columns)


def _entry(s: Subscription) -> dict[str, Any]:
    return {
        "subscription": s, "tenant": s.tenant, "version": 2, "action": "amended", "effective_at": JAN_1,
        "actor": "clock", "source_id": "request-1", "changes": {},
    }  # fmt: skip


# --- impossible rows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("constraint", "before", "values"),
    [
        ("an_addon_has_a_parent_and_nothing_else_has", "ACTIVE", "type = 'ADDON'"),
        ("a_term_is_not_empty", "ACTIVE", "term_start = term_end"),
        ("a_term_is_not_empty", "ACTIVE", "term_start = term_end + interval '1 day'"),
        ("the_clock_never_acts_before_term_end", "ACTIVE", "term_deadline = term_end - interval '1 microsecond'"),
        ("grace_has_an_end", "ACTIVE", "status = 'GRACE'"),
        ("grace_has_an_end", "GRACE", "grace_end = NULL"),
        ("suspension_has_an_end_or_a_hold", "ACTIVE", "status = 'SUSPENDED'"),
        ("suspension_has_an_end_or_a_hold", "SUSPENDED", "suspension_end = NULL"),
        ("suspension_has_an_end_or_a_hold", "SUSPENDED", "on_hold = true"),
        ("suspension_has_an_end_or_a_hold", "HOLD", "on_hold = false"),
        ("suspension_has_an_end_or_a_hold", "ACTIVE", "on_hold = true"),
        ("expired_says_when_and_why", "ACTIVE", "status = 'EXPIRED'"),
        ("expired_says_when_and_why", "ACTIVE", "status = 'EXPIRED', ended_at = now()"),
        ("expired_says_when_and_why", "ACTIVE", "status = 'EXPIRED', end_reason = 'cancelled'"),
        ("expired_says_when_and_why", "ACTIVE", "ended_at = now()"),
        ("expired_says_when_and_why", "ACTIVE", "end_reason = 'cancelled'"),
        ("expired_says_when_and_why", "EXPIRED", "ended_at = NULL"),
        ("status_is_known", "ACTIVE", "status = 'PAUSED'"),
        ("type_is_known", "ACTIVE", "type = 'GIFT'"),
    ],
)
def test_an_impossible_row_cannot_be_written(constraint: str, before: str, values: str) -> None:
    s = in_state(before)
    with refused_by(constraint) as cursor:
        cursor.execute(f"UPDATE subscriptions SET {values}, version = version + 1 WHERE id = %s", [s.pk])


def test_a_number_is_taken_once() -> None:
    s = subscription(Type.TEMPORARY)
    with nothing_changes(), pytest.raises(IntegrityError, match="number"), transaction.atomic():
        copy(connection.cursor(), s, number=s.number)


@pytest.mark.parametrize("before", ["TRIAL", "ACTIVE", "GRACE", "SUSPENDED", "HOLD"])
def test_a_tenant_cannot_have_two_live_mains(before: str) -> None:
    main = in_state(before)
    with refused_by("one_live_main_per_tenant") as cursor:
        copy(cursor, main)


def test_a_tenant_may_have_a_live_main_beside_those_that_expired() -> None:
    ended = in_state("EXPIRED")
    assert state(subscription(tenant=ended.tenant)) == "ACTIVE"


def test_next_deadline_is_the_databases_own() -> None:
    s = subscription()
    with pytest.raises(Exception, match="generated column"), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("UPDATE subscriptions SET next_deadline = NULL WHERE id = %s", [s.pk])


@pytest.mark.parametrize("parent_type", [Type.ADDON, Type.TRIAL, Type.TEMPORARY])
def test_a_parent_that_is_no_main_cannot_be_written(parent_type: Type) -> None:
    main = subscription()
    addon = subscription(Type.ADDON, parent=main)
    parent = addon if parent_type == Type.ADDON else subscription(parent_type, tenant=main.tenant)
    with refused_by("a_parent_is_a_main_of_the_same_tenant") as cursor:
        copy(cursor, addon, parent_id=parent.pk)


def test_a_parent_of_another_tenant_cannot_be_written() -> None:
    addon, foreign = subscription(Type.ADDON, parent=subscription()), subscription()
    with refused_by("a_parent_is_a_main_of_the_same_tenant") as cursor:
        copy(cursor, addon, parent_id=foreign.pk)


def test_a_main_with_addons_cannot_become_anything_else() -> None:
    main = subscription()
    subscription(Type.ADDON, parent=main)
    with refused_by("a_parent_is_a_main_of_the_same_tenant") as cursor:
        cursor.execute("UPDATE subscriptions SET type = 'TEMPORARY', version = 2 WHERE id = %s", [main.pk])


def test_a_live_addon_of_an_expired_main_cannot_be_written() -> None:
    main = subscription()
    addon = subscription(Type.ADDON, parent=main)
    lifecycle.expire(main.pk, why=EndReason.CANCELLED, **by(on(1, 5)))
    with refused_by("no_addon_outlives_its_main") as cursor:
        born = Subscription(pk=copy(cursor, addon), tenant_id=addon.tenant_id)
        bear_witness(cursor, born, version=1)


@commits
def test_a_main_cannot_expire_without_its_addons() -> None:
    main = subscription()
    subscription(Type.ADDON, parent=main)
    with refused_by("no_addon_outlives_its_main") as cursor:
        cursor.execute(
            "UPDATE subscriptions SET status = 'EXPIRED', ended_at = now(), end_reason = 'cancelled', version = 2"
            " WHERE id = %s",
            [main.pk],
        )
        bear_witness(cursor, main, version=2)
