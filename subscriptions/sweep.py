"""The clock: every step whose deadline has passed, taken set by set.

A step is one row of DEADLINES; what it sets is one row of INSTANTS; which add-ons may follow is TRANSITIONS. The
statement is made of these tables, so that a rule stands in one place: `families` says the same of one family at a time,
for the verbs and the forecast, and a test holds the two to each other.

A batch is one transaction: it locks its families' roots, passing by those that another transaction holds, and writes
statuses and audit entries in one statement a round, until nothing of the batch is due any more. Killed anywhere, it has
taken whole batches or none. Several may sweep at once.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import DataError, IntegrityError, ProgrammingError, connection, transaction
from django.db.models import Exists, OuterRef, Q, QuerySet
from psycopg.errors import RaiseException

from subscriptions import serving, terms
from subscriptions.audit import CLOCK
from subscriptions.models import STEPS_BY_ITSELF, AuditEntry, SetAside, Subscription
from subscriptions.states import ACTION_OF_STATUS, DEADLINES, INSTANTS, TRANSITIONS, EndReason, Status, end_reason

log = logging.getLogger(__name__)

BATCH = 5_000
RETRY_AFTER = timedelta(hours=1)
REFUSALS = (IntegrityError, DataError, ProgrammingError)  # of which those of the rows themselves: see _blames_a_row


@dataclass(frozen=True)
class Steps:
    """What one batch wrote: the ids of its audit entries, in the order of what happened."""

    entry_ids: list[int]

    def __len__(self) -> int:
        return len(self.entry_ids)

    def entries(self) -> QuerySet[AuditEntry]:
        return AuditEntry.objects.filter(pk__in=self.entry_ids).select_related("subscription").order_by("pk")


def advance(*, now: datetime, batch_size: int = BATCH) -> Iterator[Steps]:
    """Take every step whose deadline has passed, each at its own `effective_at`, so that a clock that slept a month
    writes the history that should have happened. One commit a batch, made as the answer is read.

    A family whose step the database refuses is set aside with the error and tried again in an hour; the others go on.
    Raises InvalidTerm for a `now` without a time zone.
    """
    terms.aware(now, "now")
    page = _due(now, (terms.EARLIEST, 0), batch_size)
    while page.last:
        yield from _take(page.root_ids, now)
        page = _due(now, page.last, batch_size)
    if page.some_are_set_aside:
        _return_those_no_longer_due(now)


def set_aside() -> QuerySet[SetAside]:
    return SetAside.objects.select_related("root", "root__tenant")


Place = tuple[datetime, int]  # in the order in which the due are taken: a deadline, an id


@dataclass(frozen=True)
class Page:
    """Some of what is due: the roots of its families, and where it ends; None if nothing was left."""

    root_ids: list[int]
    last: Place | None
    some_are_set_aside: bool


def _due(now: datetime, after: Place, limit: int) -> Page:
    with connection.cursor() as cursor:
        cursor.execute(DUE, {"now": now, "deadline": after[0], "id": after[1], "limit": limit})
        root_ids, deadline, last_id, some_are_set_aside = cursor.fetchone()
    return Page(root_ids or [], (deadline, last_id) if deadline else None, some_are_set_aside)


def _take(root_ids: list[int], now: datetime) -> Iterator[Steps]:
    """Every due step of these families. Where the database refuses, in halves, until whoever is to blame is alone."""
    try:
        with transaction.atomic():
            steps = _move(_locked(root_ids), now)
            connection.check_constraints()  # what a commit would refuse is refused here: a dry run commits nothing
    except REFUSALS as error:
        if not _blames_a_row(error):
            raise
        if len(root_ids) == 1:
            _set_aside(root_ids[0], error, now)
            return
        middle = len(root_ids) // 2
        yield from _take(root_ids[:middle], now)
        yield from _take(root_ids[middle:], now)
    else:
        if steps:
            yield steps


def _blames_a_row(error: Exception) -> bool:
    """Whether the rows are to blame, by a constraint, a value or a trigger. Whatever else fails is nobody's fault."""
    return not isinstance(error, ProgrammingError) or isinstance(error.__cause__, RaiseException)


def _locked(root_ids: list[int]) -> list[int]:
    """These roots, locked, but for those that another transaction holds. A statement of its own: what is read of the
    families must be younger than their locks.
    """
    with connection.cursor() as cursor:
        cursor.execute(LOCK, {"roots": root_ids})
        return cursor.fetchone()[0] or []


def _move(root_ids: list[int], now: datetime) -> Steps:
    entry_ids: list[int] = []
    is_due = bool(root_ids)
    while is_due:
        with connection.cursor() as cursor:
            cursor.execute(MOVE, {"roots": root_ids, "now": now, **serving.windows()})
            written, moved, is_due = cursor.fetchone()
        if len(written or []) != moved:
            raise RuntimeError("A subscription moved under its lock: was the family's root locked first?")
        entry_ids += written or []
    return Steps(entry_ids)


def _set_aside(root_id: int, error: Exception, now: datetime) -> None:
    why = str(error).strip()[:1000]
    log.error("The family of subscription %s was set aside: %s", root_id, why.splitlines()[0])
    SetAside.objects.bulk_create(
        [SetAside(root_id=root_id, error=why, since=now, retry_at=now + RETRY_AFTER)], ignore_conflicts=True
    )
    SetAside.objects.filter(root=root_id).update(error=why, retry_at=now + RETRY_AFTER)


def _return_those_no_longer_due(now: datetime) -> None:
    of_this_family = Q(pk=OuterRef("root_id")) | Q(parent_id=OuterRef("root_id"))
    due = Subscription.objects.filter(of_this_family, STEPS_BY_ITSELF, next_deadline__lte=now)
    SetAside.objects.filter(~Exists(due)).delete()


# --- the statements --------------------------------------------------------------------------------------------------

DUE = """
    WITH due AS (
        SELECT coalesce(parent_id, id) AS root_id, next_deadline, id
          FROM subscriptions
         WHERE (parent_id IS NULL OR cancel_at_term_end)
           AND next_deadline <= %(now)s AND (next_deadline, id) > (%(deadline)s, %(id)s)
         ORDER BY next_deadline, id LIMIT %(limit)s
    ), last AS (SELECT next_deadline, id FROM due ORDER BY next_deadline DESC, id DESC LIMIT 1)
    SELECT (SELECT array_agg(DISTINCT root_id) FROM due
             WHERE root_id NOT IN (SELECT root_id FROM families_set_aside WHERE retry_at > %(now)s)),
           (SELECT next_deadline FROM last), (SELECT id FROM last), EXISTS (SELECT FROM families_set_aside)"""

LOCK = """
    WITH locked AS (
        SELECT id FROM subscriptions WHERE id = ANY(%(roots)s) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
    ) SELECT array_agg(id) FROM locked"""

# What a step may write. The columns of INSTANTS are those of the status that is entered, and empty in every other.
COLUMNS = ("status", *(rule.column for rule in INSTANTS.values()), "on_hold", "own_hold", "end_reason")


def _rows(rows: Sequence[Sequence[object]]) -> str:
    """A VALUES list of our own constants."""
    return "VALUES " + ", ".join(f"({', '.join(_literal(value) for value in row)})" for row in rows)


def _literal(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"'{value}'"


def _entered(s: str) -> str:
    """The columns of `s`, which takes `step` at its next deadline."""
    at = f"{s}.next_deadline"
    instants = [
        f"CASE step.status WHEN '{status}' THEN {serving.instant(rule, s, at)} END AS {rule.column}"
        for status, rule in INSTANTS.items()
    ]
    return f"{s}.id, {at} AS at, step.action, step.status, {', '.join(instants)}, step.end_reason, {s} AS was"


def _move_statement() -> str:
    steps = [
        (was, is_cancelled, then, ACTION_OF_STATUS[then], end_reason(then, is_cancelled=is_cancelled))
        for was, rule in DEADLINES.items()
        for is_cancelled, then in ((False, rule.then), (True, rule.if_cancelled))
    ]
    legal = [(was, becomes) for was, nexts in TRANSITIONS.items() for becomes in sorted({was, *nexts})]
    copied = ", ".join(f"root_step.{rule.column}" for rule in INSTANTS.values())
    changed = ", ".join(
        f"'{column}', CASE WHEN (was).{column} IS DISTINCT FROM becomes.{column}"
        f" THEN jsonb_build_array((was).{column}, becomes.{column}) END"
        for column in COLUMNS
    )
    return f"""
        WITH step (was, is_cancelled, status, action, end_reason) AS ({_rows(steps)}),
        legal (was, becomes) AS ({_rows(legal)}),
        root_step AS (
            SELECT {_entered("s")}
              FROM subscriptions AS s JOIN plans ON plans.id = s.plan_id
              JOIN step ON (step.was, step.is_cancelled) = (s.status, s.cancel_at_term_end)
             WHERE s.id = ANY(%(roots)s) AND s.next_deadline <= %(now)s
        ), addon AS MATERIALIZED (
            SELECT s, root.next_deadline AS root_deadline,
                   s.cancel_at_term_end AND s.next_deadline <= %(now)s AS is_due
              FROM subscriptions AS s JOIN subscriptions AS root ON root.id = s.parent_id
             WHERE s.parent_id = ANY(%(roots)s) AND s.status <> '{Status.EXPIRED}'
        ), own_step AS (  -- an add-on that was cancelled ends by itself, unless its main subscription steps first
            SELECT {_entered("(s)")}
              FROM addon JOIN plans ON plans.id = (s).plan_id
              JOIN step ON (step.was, step.is_cancelled) = ((s).status, (s).cancel_at_term_end)
             WHERE is_due AND (root_deadline IS NULL OR (s).next_deadline <= root_deadline)
        ), following AS (
            SELECT (s).id, root_step.at, root_step.action, root_step.status, {copied},
                   CASE root_step.status WHEN '{Status.EXPIRED}' THEN '{EndReason.MAIN_ENDED}' ELSE '' END, s
              FROM addon JOIN root_step ON root_step.id = (s).parent_id
              JOIN legal ON (legal.was, legal.becomes) = ((s).status, root_step.status)
             WHERE (s).id NOT IN (SELECT id FROM own_step)
               AND (NOT (s).own_hold OR root_step.status = '{Status.EXPIRED}')
        ), becomes AS (
            SELECT *, false AS on_hold, false AS own_hold
              FROM (SELECT *, 1 AS rank FROM root_step UNION ALL SELECT *, 0 FROM own_step
                    UNION ALL SELECT *, 2 FROM following) AS every
        ), written AS (
            INSERT INTO subscription_audit (subscription_id, tenant_id, version, action, effective_at, actor,
                                            source_id, reason, changes)
            SELECT id, (was).tenant_id, (was).version + 1, action, at, '{CLOCK}', '', '',
                   jsonb_strip_nulls(jsonb_build_object({changed}))
              FROM becomes ORDER BY at, rank, id
            RETURNING id
        ), moved AS (
            UPDATE subscriptions AS s
               SET version = s.version + 1, {", ".join(f"{column} = becomes.{column}" for column in COLUMNS)}
              FROM becomes WHERE s.id = becomes.id
            RETURNING s.parent_id IS NULL OR s.cancel_at_term_end AS by_itself, s.next_deadline
        )
        SELECT (SELECT array_agg(id ORDER BY id) FROM written), count(*),
               coalesce(bool_or(by_itself AND next_deadline <= %(now)s), false)
               OR (SELECT count(*) FROM addon WHERE is_due) > (SELECT count(*) FROM own_step)
          FROM moved"""


MOVE = _move_statement()
