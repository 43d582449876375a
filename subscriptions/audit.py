"""Change and evidence, written by the same statement.

The database holds the other end of the promise: a change of a tracked column without its audit entry cannot commit,
and an audit entry cannot be changed (`migrations/_evidence.py`, migration 0002).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from django.db import connection, models

from subscriptions.errors import ReasonMissing
from subscriptions.models import AuditEntry, Subscription
from subscriptions.states import Action

# What cannot change without evidence. The trigger compares the same columns (migration 0003).
TRACKED = (
    "type", "status", "plan", "price", "quantity", "term_start", "term_end", "anniversary", "time_zone",
    "term_deadline", "grace_end", "suspension_end", "on_hold", "own_hold", "auto_renews", "cancel_at_term_end",
    "ended_at", "end_reason",
)  # fmt: skip

FIELDS: "dict[str, models.Field[Any, Any]]" = {
    field.name: field for field in Subscription._meta.concrete_fields if field.name in TRACKED
}
COLUMNS = [field.attname for field in FIELDS.values()]  # a field's attribute and its column have one name here

IDENTITY = ("number", "tenant_id", "parent_id", "trial_ordinal")  # what a subscription is born with, for ever

# The columns of an entry that its writer says; `said` has the parameters that those of one statement have in common.
INSERT = (
    "INSERT INTO subscription_audit (subscription_id, tenant_id, version, action, effective_at, actor, source_id,"
    " reason, request_id, address, changes)"
)

Differences = dict[str, tuple[object, object]]  # column → before and after


class Actor(str):
    """Who caused a change: `stripe`, `clock`, `staff:12`, `member:7`; and by which request from where, if by one."""

    __slots__ = ("address", "request_id")
    request_id: str
    address: str | None

    def __new__(cls, name: str, *, request_id: str = "", address: str | None = None) -> "Actor":
        actor = super().__new__(cls, name)
        actor.request_id, actor.address = request_id, address
        return actor

    @classmethod
    def staff(cls, user_id: int, *, request_id: str = "", address: str | None = None) -> "Actor":
        return cls(f"staff:{user_id}", request_id=request_id, address=address)

    @classmethod
    def member(cls, member_id: int, *, request_id: str = "", address: str | None = None) -> "Actor":
        return cls(f"member:{member_id}", request_id=request_id, address=address)

    @classmethod
    def api_key(cls, key_id: int, *, request_id: str = "", address: str | None = None) -> "Actor":
        return cls(f"apikey:{key_id}", request_id=request_id, address=address)

    @classmethod
    def operator(cls, user_id: int) -> "Actor":
        """A person at a terminal, by the number that the operating system knows them by."""
        return cls(f"operator:{user_id}")

    @property
    def must_say_why(self) -> bool:
        return self.startswith(("staff:", "operator:"))

    @property
    def kind(self) -> str:
        """As customers are told: staff, member, apikey, stripe, clock. Of staff never who, nor from where."""
        return "staff" if self.must_say_why else self.partition(":")[0]


CLOCK = Actor("clock")
STRIPE = Actor("stripe")


@dataclass(frozen=True)
class Change:
    """New values of tracked columns of one subscription, which the caller holds locked. `beside` says before and after
    of what hangs on it and stands in other tables.
    """

    subscription: Subscription
    action: Action
    effective_at: datetime
    values: dict[str, object]
    beside: Differences = field(default_factory=dict)

    @property
    def differences(self) -> Differences:
        pairs = {FIELDS[name].attname: _key(value) for name, value in self.values.items()}
        return {
            column: (getattr(self.subscription, column), value)
            for column, value in pairs.items()
            if getattr(self.subscription, column) != value
        }


def write(changes: Sequence[Change], *, actor: Actor, source_id: str = "", reason: str = "") -> list[AuditEntry]:
    """Write the changes and an audit entry for each, in one SQL statement; at most one change per subscription.

    Changes that change nothing are left out. Afterwards the subscriptions in memory equal their rows. The caller holds
    the locks and the transaction. Raises ReasonMissing for staff without a reason.
    """
    check_reason(actor, reason)
    real = [(change, differences) for change in changes if (differences := change.differences) or change.beside]
    if not real:
        return []
    rows = [
        _row(change.subscription, differences) | _evidence(change, differences | change.beside) | {"position": position}
        for position, (change, differences) in enumerate(real)
    ]
    with connection.cursor() as cursor:
        statement = _WRITE_TYPE if any("type" in differences for _, differences in real) else _WRITE
        cursor.execute(statement, said(actor, source_id, reason) | {"rows": json.dumps(rows)})
        written = {subscription_id: row for subscription_id, *row in cursor.fetchall()}
    if len(written) != len(real):
        raise RuntimeError("A subscription moved under its lock: was the family's root locked first?")
    entries = []
    for change, differences in real:
        subscription = change.subscription
        for column, (_, new) in differences.items():
            setattr(subscription, column, new)
        pk, subscription.version, recorded_at = written[subscription.pk]
        told = differences | change.beside
        entry = _entry(subscription, change.action, change.effective_at, told, actor, source_id, reason)
        entry.pk, entry.recorded_at = pk, recorded_at
        entries.append(entry)
    return entries


def write_first(
    subscription: Subscription, *, effective_at: datetime, actor: Actor, source_id: str = "", reason: str = ""
) -> AuditEntry:
    """Insert a subscription and its first audit entry. Raises ReasonMissing; IntegrityError names the constraint."""
    check_reason(actor, reason)
    first = {f.attname: getattr(subscription, f.attname) for f in FIELDS.values()}
    differences: Differences = {column: (None, value) for column, value in first.items() if value not in (None, "")}
    born = _row(subscription, {}) | {name: getattr(subscription, name) for name in IDENTITY}
    evidence: dict[str, Any] = {
        "row": json.dumps(born),
        "effective_at": effective_at,
        "changes": json.dumps(_changes(differences)),
    }
    with connection.cursor() as cursor:
        cursor.execute(_WRITE_FIRST, evidence | said(actor, source_id, reason))
        subscription.pk, pk, recorded_at = cursor.fetchone()
    subscription.version, subscription._state.adding = 1, False
    entry = _entry(subscription, Action.STARTED, effective_at, differences, actor, source_id, reason)
    entry.pk, entry.recorded_at = pk, recorded_at
    return entry


def check_reason(actor: Actor, reason: str) -> None:
    if actor.must_say_why and not reason.strip():
        raise ReasonMissing


def said(actor: Actor, source_id: str, reason: str) -> dict[str, str | None]:
    """What all entries of one statement have in common."""
    return {
        "actor": actor,
        "source_id": source_id,
        "reason": reason,
        "request_id": actor.request_id,
        "address": actor.address,
    }


def _row(subscription: Subscription, differences: Differences) -> dict[str, object]:
    """The row as it shall be; the version is the one that it still has."""
    tracked = {column: getattr(subscription, column) for column in COLUMNS}
    after = tracked | {column: new for column, (_, new) in differences.items()}
    row = {column: _plain(value) for column, value in after.items()}
    return {"id": subscription.pk, "version": subscription.version} | row


def _evidence(change: Change, differences: Differences) -> dict[str, object]:
    effective_at = _plain(change.effective_at)
    return {"action": change.action, "effective_at": effective_at, "changes": _changes(differences)}


def _changes(differences: Differences) -> dict[str, list[object]]:
    return {column: [_plain(old), _plain(new)] for column, (old, new) in differences.items()}


def _entry(
    subscription: Subscription,
    action: Action,
    effective_at: datetime,
    differences: Differences,
    actor: Actor,
    source_id: str,
    reason: str,
) -> AuditEntry:
    """The entry in memory, as the statement wrote it."""
    entry = AuditEntry(
        subscription=subscription,
        tenant_id=subscription.tenant_id,
        version=subscription.version,
        action=action,
        effective_at=effective_at,
        changes=_changes(differences),
        **said(actor, source_id, reason),
    )
    entry._state.adding = False
    return entry


def _key(value: object) -> object:
    return value.pk if isinstance(value, models.Model) else value


def _plain(value: object) -> object:
    """A value as JSON holds it: RFC 3339 in UTC, with microseconds, where Django's encoder would cut them."""
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value


def _write_statement(columns: Sequence[str]) -> str:
    typed = ", ".join(f"{f.attname} {f.db_type(connection)}" for f in FIELDS.values())
    return f"""
        WITH wanted AS (
            SELECT * FROM jsonb_to_recordset(%(rows)s::jsonb) AS w(
                id bigint, version integer, position integer, action text, effective_at timestamptz, changes jsonb,
                {typed})
        ), moved AS (
            UPDATE subscriptions AS s
               SET version = s.version + 1, {", ".join(f"{column} = w.{column}" for column in columns)}
              FROM wanted AS w WHERE s.id = w.id AND s.version = w.version
            RETURNING s.id, s.tenant_id, s.version
        )
        {INSERT}
        SELECT moved.id, moved.tenant_id, moved.version, w.action, w.effective_at,
               %(actor)s, %(source_id)s, %(reason)s, %(request_id)s, %(address)s::inet, w.changes
          FROM moved JOIN wanted AS w ON w.id = moved.id ORDER BY w.position
        RETURNING subscription_id, id, version, recorded_at"""


def _write_first_statement() -> str:
    columns = ", ".join([*IDENTITY, *COLUMNS])
    typed = ", ".join(f"{f.attname} {f.db_type(connection)}" for f in FIELDS.values())
    return f"""
        WITH born AS (
            INSERT INTO subscriptions ({columns}, version)
            SELECT {columns}, 1 FROM jsonb_to_record(%(row)s::jsonb)
                AS w(number text, tenant_id bigint, parent_id bigint, trial_ordinal smallint, {typed})
            RETURNING id, tenant_id, version
        )
        {INSERT}
        SELECT id, tenant_id, version, '{Action.STARTED}', %(effective_at)s, %(actor)s, %(source_id)s, %(reason)s,
               %(request_id)s, %(address)s::inet, %(changes)s::jsonb FROM born
        RETURNING subscription_id, id, recorded_at"""


# A type is part of a key that others refer to: to name it locks the row, changed or not, against all who only refer to
# it. One who holds a tenant's slots and touched an allocation twice does so at the commit, and would wait for whoever
# waits for those slots.
_WRITE = _write_statement([column for column in COLUMNS if column != "type"])
_WRITE_TYPE = _write_statement(COLUMNS)
_WRITE_FIRST = _write_first_statement()
