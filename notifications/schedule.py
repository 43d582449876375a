"""From what happened and what comes near to notices: rows, nothing is sent here.

Both readers may run late, twice and in parallel: a notice is unique on (subscription, kind, anchor). One family gets
one message: its root's.
"""

from datetime import datetime
from typing import Any

from django.db import connection

from notifications import kinds
from notifications.models import AuditCursor

# Reads every transaction once, in the order of their ids, and none that an older open one could still come before. A
# database restored elsewhere counts its transactions anew: then everything is read again, and nothing is told twice.
READ_AUDIT = """
    WITH span AS (
        SELECT CASE WHEN transaction_id > pg_current_xact_id()::text::bigint THEN 0 ELSE transaction_id END AS since,
               horizon
          FROM audit_cursors, (SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS horizon) AS h
         WHERE reader = %(reader)s FOR UPDATE OF audit_cursors
    ), told AS (
        INSERT INTO notices (subscription_id, tenant_id, kind, anchor, state, attempts, next_attempt_at, recipients,
                             error)
        SELECT entry.subscription_id, entry.tenant_id, rule.kind, entry.effective_at, 'PENDING', 0, %(now)s, '[]', ''
          FROM span
          JOIN subscription_audit AS entry ON entry.transaction_id >= span.since AND entry.transaction_id < span.horizon
          JOIN unnest(%(actions)s::text[], %(kinds)s::text[]) AS rule (action, kind) ON rule.action = entry.action
          JOIN subscriptions AS s ON s.id = entry.subscription_id AND s.parent_id IS NULL
         ORDER BY entry.id
        ON CONFLICT (subscription_id, kind, anchor) DO NOTHING
        RETURNING id
    ), moved AS (
        UPDATE audit_cursors
           SET transaction_id = CASE span.since WHEN 0 THEN horizon ELSE greatest(span.since, horizon) END
          FROM span WHERE reader = %(reader)s
    )
    SELECT count(*) FROM told"""

# The most urgent milestone that has passed is told; less urgent ones that were never told are recorded as superseded.
# A milestone that lies before the term began is none.
MILESTONES = """
    WITH passed AS (
        SELECT s.id, s.tenant_id, s.term_end, rule.kind,
               row_number() OVER (PARTITION BY s.id ORDER BY rule.seconds) AS urgency
          FROM unnest(%(seconds)s::bigint[], %(kinds)s::text[]) AS rule (seconds, kind)
          JOIN subscriptions AS s
            ON s.status = 'ACTIVE' AND s.parent_id IS NULL AND s.term_end > %(now)s
           AND s.term_end <= %(now)s + rule.seconds * interval '1 second'
           AND s.term_start < s.term_end - rule.seconds * interval '1 second'
         WHERE NOT EXISTS (SELECT FROM notices AS n
                            WHERE n.subscription_id = s.id AND n.kind = rule.kind AND n.anchor = s.term_end)
    ), told AS (
        INSERT INTO notices (subscription_id, tenant_id, kind, anchor, state, attempts, next_attempt_at, recipients,
                             error)
        SELECT id, tenant_id, kind, term_end, CASE urgency WHEN 1 THEN 'PENDING' ELSE 'SUPERSEDED' END, 0, %(now)s,
               '[]', ''
          FROM passed ORDER BY id
        ON CONFLICT (subscription_id, kind, anchor) DO NOTHING
        RETURNING state
    )
    SELECT count(*) FILTER (WHERE state = 'PENDING') FROM told"""

READER = "notices"


def read_audit(*, now: datetime) -> int:
    """Make notices of what the audit says happened since the last reading; how many."""
    AuditCursor.objects.get_or_create(reader=READER)
    actions, names = [kind.action for kind in kinds.ON_AUDIT], [kind.name for kind in kinds.ON_AUDIT]
    return _count(READ_AUDIT, {"reader": READER, "now": now, "actions": actions, "kinds": names})


def pass_milestones(*, now: datetime) -> int:
    """Make notices of the milestones before `term_end` that have passed; how many."""
    schedule = kinds.schedule()
    seconds = [int(kind.before_term_end.total_seconds()) for kind in schedule]
    return _count(MILESTONES, {"now": now, "seconds": seconds, "kinds": [kind.name for kind in schedule]})


def _count(statement: str, parameters: dict[str, Any]) -> int:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        (count,) = cursor.fetchone()
    return int(count)
