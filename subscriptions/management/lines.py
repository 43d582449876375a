"""What happened, as a line for a person and as JSON for a program."""

from typing import Any

from subscriptions.models import AuditEntry


def line(entry: AuditEntry) -> str:
    """`SUB-20260101-ABCDE  ACTIVE → GRACE  effective 2026-02-01T00:00:00+00:00  grace_end 2026-02-15T00:00:00+00:00`"""
    changes = dict(entry.changes)
    before, after = changes.pop("status", (entry.subscription.status,) * 2)
    rest = "".join(f"  {column} {new}" for column, (_, new) in changes.items() if new not in (None, ""))
    return f"{entry.subscription.number}  {before or 'new'} → {after}  effective {entry.effective_at.isoformat()}{rest}"


def as_json(entry: AuditEntry) -> dict[str, Any]:
    """The columns' changes as the audit has them: column → [before, after], instants as RFC 3339 in UTC."""
    return {
        "subscription": entry.subscription.number,
        "action": entry.action,
        "effective_at": entry.effective_at.isoformat(),
        "recorded_at": entry.recorded_at.isoformat(),
        "actor": entry.actor,
        "source_id": entry.source_id,
        "reason": entry.reason,
        "changes": entry.changes,
    }
