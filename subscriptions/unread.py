"""Reading the audit to its end, again and again, missing nothing.

Every transaction is read once, in the order of their ids, and none that an older open one could still come before. A
database restored elsewhere counts its transactions anew: then everything is read again, and whoever reads must be safe
to repeat.
"""

from dataclasses import dataclass
from datetime import datetime

from django.db import connection

from subscriptions.models import AuditCursor

# The two ends of what may be read now, in the words of SQL: this transaction's own id, and the oldest that is open.
THIS = "pg_current_xact_id()::text::bigint"
HORIZON = "pg_snapshot_xmin(pg_current_snapshot())::text::bigint"

_LOCK = f"""
    INSERT INTO audit_cursors (reader, transaction_id, milestones) VALUES (%(reader)s, 0, '{{}}')
    ON CONFLICT (reader) DO UPDATE SET reader = EXCLUDED.reader
    RETURNING CASE WHEN transaction_id > {THIS} THEN 0 ELSE transaction_id END, {HORIZON}, last_run_at, milestones"""


@dataclass(frozen=True)
class Unread:
    """The transactions `since <= id < horizon`; when the reader looked last, and for which milestones."""

    since: int
    horizon: int
    last_run_at: datetime | None
    milestones: list[str]


def locked(reader: str) -> Unread:
    """What this reader has not read yet. The caller is in a transaction, and no other reads meanwhile under this name;
    what it reads is read by a later statement, for it must be younger than the lock.
    """
    with connection.cursor() as cursor:
        cursor.execute(_LOCK, {"reader": reader})
        return Unread(*cursor.fetchone())


def have_read(reader: str, unread: Unread) -> None:
    """The next look begins where this one ended."""
    AuditCursor.objects.filter(reader=reader).update(transaction_id=max(unread.since, unread.horizon))
