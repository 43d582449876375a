"""From what happened and what comes near to notices: rows, nothing is sent here.

A look costs what is new since the last one, however many subscriptions there are: audit entries that were not read
yet, and milestones that passed meanwhile, each a range of an index. What a subscription is reminded of can change in
two ways only, by time and by an audit entry; so both together find every subscription that has to be decided about.

It may run late, twice, in parallel, and with a clock that went back: a notice is unique on (subscription, kind,
anchor), and what is decided depends on how things are now. A milestone that was not looked for the last time (all of
them at first; later, one that is new in the settings) is looked for from scratch: who has passed it already is told
now, unless a more urgent one was told.
"""

from datetime import UTC, datetime
from typing import Any

from django.db import connection, transaction

from notifications import kinds
from notifications.kinds import LADDERS, ON_AUDIT, SILENT_ENDS, Milestone
from subscriptions import unread

READER = "notices"

_COLUMNS = "subscription_id, tenant_id, kind, anchor, state, attempts, next_attempt_at, recipients, error"
_VALUES = "subscription_id, tenant_id, kind, anchor, {state}, 0, %(now)s, '[]', ''"

# `entry`: a family is spoken for by its root, unless it happened to an add-on alone. That is a window, and no join of
# `entry` with itself: after a sweep the planner does not know yet how many there are. `news`: of what one transaction
# did to a subscription the last is told. `passed`: the most urgent milestone is told, also when it had been cancelled
# because it was untrue for a while; less urgent ones that were never told are recorded as superseded.
MAKE = """
    WITH entry AS MATERIALIZED (
        SELECT e.id, e.subscription_id, e.tenant_id, e.transaction_id, e.version, e.action, e.effective_at, e.changes,
               s.parent_id IS NULL OR NOT bool_or(s.parent_id IS NULL) OVER family AS speaks
          FROM subscription_audit AS e JOIN subscriptions AS s ON s.id = e.subscription_id
         WHERE e.transaction_id >= %(since)s AND e.transaction_id < %(horizon)s
        WINDOW family AS (PARTITION BY e.transaction_id, coalesce(s.parent_id, s.id), e.action, e.effective_at)
    ), news AS (
        SELECT id, subscription_id, tenant_id, rule.kind, effective_at AS anchor,
               row_number() OVER (PARTITION BY transaction_id, subscription_id, beside ORDER BY version DESC) AS place
          FROM entry
          JOIN unnest(%(actions)s::text[], %(departed)s::text[], %(kinds)s::text[], %(beside)s::boolean[])
               AS rule (action, departed, kind, beside)
            ON rule.action = entry.action AND rule.departed = coalesce(changes->'status'->>0, '')
         WHERE speaks AND coalesce(changes->'end_reason'->>1, '') <> ALL (%(silent)s::text[])
    ), candidate AS (
        SELECT subscription_id AS id FROM entry WHERE changes ?| %(columns)s::text[]
        UNION {near}
    ), passed AS (
        SELECT s.id AS subscription_id, s.tenant_id, milestone.kind, milestone.anchor,
               row_number() OVER (PARTITION BY s.id, milestone.anchor ORDER BY milestone.before) AS place
          FROM candidate JOIN subscriptions AS s ON s.id = candidate.id AND s.parent_id IS NULL
          JOIN LATERAL (VALUES {milestones}) AS milestone (kind, status, anchor, begins, before)
            ON milestone.status = s.status AND milestone.anchor > %(now)s
           AND milestone.anchor - milestone.before <= %(now)s
           AND milestone.anchor - milestone.before > milestone.begins
    ), told AS (
        INSERT INTO notices ({columns})
        SELECT {values} FROM news ORDER BY place, id
        ON CONFLICT (subscription_id, kind, anchor) DO NOTHING
        RETURNING state
    ), reminded AS (
        INSERT INTO notices ({columns})
        SELECT {values} FROM passed
         WHERE NOT EXISTS (SELECT FROM notices AS n
                            WHERE n.subscription_id = passed.subscription_id AND n.kind = passed.kind
                              AND n.anchor = passed.anchor AND (n.state <> 'CANCELLED' OR place > 1))
         ORDER BY subscription_id
        ON CONFLICT (subscription_id, kind, anchor) DO UPDATE
           SET state = EXCLUDED.state, attempts = 0, next_attempt_at = EXCLUDED.next_attempt_at, error = ''
         WHERE notices.state = 'CANCELLED'
        RETURNING state
    ), looked AS (
        UPDATE audit_cursors SET transaction_id = greatest(%(since)s, %(horizon)s), last_run_at = %(now)s,
                                 milestones = %(milestones)s::text[]
         WHERE reader = %(reader)s
    )
    SELECT count(*) FILTER (WHERE state = 'PENDING') FROM (TABLE told UNION ALL TABLE reminded) AS made"""


def make_notices(*, now: datetime) -> int:
    """Make notices of what happened and what came near since the last look; how many will be sent.

    Two statements: what is looked at must be younger than the lock.
    """
    schedule = kinds.schedule()
    with transaction.atomic(savepoint=False), connection.cursor() as cursor:
        news = unread.locked(READER)
        # A look with a clock that went ahead has seen nothing of what lies between: as if there had been none.
        ran_at = news.last_run_at if news.last_run_at and news.last_run_at <= now else None
        last_runs = dict.fromkeys(news.milestones, ran_at) if ran_at else {}
        cursor.execute(
            _statement(schedule),
            _news() | _ranges(schedule, last_runs, now) | {
                "reader": READER, "now": now, "since": news.since, "horizon": news.horizon,
                "columns": ["status", *{ladder.column for ladder in LADDERS}],
                "milestones": [kind.name for kind in schedule],
            },
        )  # fmt: skip
        (count,) = cursor.fetchone()
    return int(count)


def _news() -> dict[str, Any]:
    rules = [(action, left, kind) for kind in ON_AUDIT for action, many in kind.on.items() for left in many]
    return {
        "actions": [action for action, _, _ in rules],
        "departed": [left for _, left, _ in rules],
        "kinds": [kind.name for _, _, kind in rules],
        "beside": [kind.beside for _, _, kind in rules],
        "silent": [*SILENT_ENDS],
    }


def _ranges(schedule: tuple[Milestone, ...], last_runs: dict[str, datetime], now: datetime) -> dict[str, Any]:
    """Where each milestone's instant lies if it passed since it was last looked for and is yet to come."""
    return {
        key: value
        for kind in schedule
        for key, value in (
            (f"{kind.name}_after", max(now, last_runs.get(kind.name, _NEVER) + kind.before)),
            (f"{kind.name}_until", now + kind.before),
            (f"{kind.name}_before", kind.before),
        )
    }


_NEVER = datetime(1900, 1, 1, tzinfo=UTC)


def _statement(schedule: tuple[Milestone, ...]) -> str:
    """A range of an index per milestone, with its bounds as literals: the planner sees how little is in it."""
    near = [
        f"SELECT id FROM subscriptions WHERE status = '{kind.status}' AND parent_id IS NULL"
        f" AND {kind.column} > %({kind.name}_after)s AND {kind.column} <= %({kind.name}_until)s"
        for kind in schedule
    ]
    rows = [
        f"('{kind.name}', '{kind.status}', s.{kind.column}, s.{kind.begins}, %({kind.name}_before)s)"
        for kind in schedule
    ]
    return (
        MAKE.replace("{near}", "\n        UNION ".join(near))
        .replace("{milestones}", ", ".join(rows))
        .replace("{columns}", _COLUMNS)
        .replace("{values}", _VALUES.replace("{state}", "CASE place WHEN 1 THEN 'PENDING' ELSE 'SUPERSEDED' END"))
    )
