"""What tests ask of the past: what an entry says, what is written anywhere, and that a refusal wrote nothing."""

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

import pytest
from django.db import connection, transaction

from billing_site.local.process import wait_until
from entitlements import verify
from entitlements.models import (
    Device,
    FeatureOverride,
    FeatureOverrideEntry,
    QuotaOperation,
    QuotaUsage,
    SlotAssignment,
    TierAllocation,
)
from subscriptions import lifecycle, sweep
from subscriptions.errors import DomainError
from subscriptions.lifecycle import CancelAt
from subscriptions.models import AuditEntry, Subscription
from subscriptions.states import EndReason, Status
from tests.builders import ALICE, subscription

T = TypeVar("T")
WRITTEN: tuple[type[Any], ...] = (
    Subscription, AuditEntry, TierAllocation, SlotAssignment, Device,
    FeatureOverride, FeatureOverrideEntry, QuotaUsage, QuotaOperation,
)  # fmt: skip


def on(month: int, day: int, hour: int = 0, minute: int = 0) -> datetime:
    """An instant of 2026, UTC."""
    return datetime(2026, month, day, hour, minute, tzinfo=UTC)


def by(now: datetime, source_id: str = "") -> dict[str, Any]:
    """Alice, with a reason: the part of every verb's arguments that most tests do not mind."""
    return {"actor": ALICE, "now": now, "reason": "as agreed", "source_id": source_id}


def advance(now: datetime, batch_size: int = sweep.BATCH) -> list[AuditEntry]:
    """Let the clock take every step that is due; what it wrote."""
    return [entry for steps in sweep.advance(now=now, batch_size=batch_size) for entry in steps.entries()]


def in_state(state: str, **bought: Any) -> Subscription:
    """A subscription for January in this status since the 5th; HOLD and CANCELLED (at term end) are statuses here."""
    s = subscription(status=Status.TRIAL if state == "TRIAL" else None, **bought)
    match state:
        case "GRACE":
            lifecycle.enter_grace(s.pk, **by(on(1, 5)))
        case "SUSPENDED" | "HOLD":
            lifecycle.suspend(s.pk, hold=state == "HOLD", **by(on(1, 5)))
        case "CANCELLED":
            lifecycle.cancel(s.pk, at=CancelAt.TERM_END, **by(on(1, 5)))
        case "EXPIRED":
            lifecycle.expire(s.pk, why=EndReason.CANCELLED, **by(on(1, 5)))
    s.refresh_from_db()
    return s


def state(s: Subscription) -> str:
    s.refresh_from_db()
    return "HOLD" if s.on_hold else s.status


def entries(s: Subscription) -> list[AuditEntry]:
    return [*s.audit.order_by("version")]


def steps(s: Subscription) -> list[tuple[str, datetime]]:
    """What happened since it was started, and when it became true."""
    return [(entry.action, entry.effective_at) for entry in entries(s)[1:]]


def changed(entry: AuditEntry | None) -> dict[str, tuple[object, object]]:
    """Column → before and after, with dates as dates; without those that only follow from others: the clock's own date
    of the end of a term, and the anniversary.
    """
    assert entry is not None
    return {
        column: (_parsed(column, old), _parsed(column, new))
        for column, (old, new) in entry.changes.items()
        if column not in ("term_deadline", "anniversary")
    }


def _parsed(column: str, value: Any) -> object:
    is_date = column.startswith("term_") or column in ("anniversary", "grace_end", "suspension_end", "ended_at")
    return datetime.fromisoformat(value) if is_date and value else value


def replayed(s: Subscription) -> dict[str, object]:
    """The tracked columns as the audit alone tells them."""
    row: dict[str, object] = {"end_reason": ""}
    for entry in entries(s):
        for column, (old, new) in entry.changes.items():
            assert row.get(column) == old, f"v{entry.version} says that {column} was {old!r}"
            row[column] = new
    return {column: _parsed(column, value) for column, value in row.items()}


def written() -> list[Mapping[str, Any]]:
    """All that a verb may write: every row of these tables, every column."""
    return [row for table in WRITTEN for row in table.objects.order_by("pk").values()]


def settle() -> None:
    """Until whatever is open now is over, so that readers of what was committed see it. The cluster counts, and other
    test runs use it, too.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
        (end,) = cursor.fetchone()

    def is_over() -> bool:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint >= %s", [end])
            return bool(cursor.fetchone()[0])

    assert wait_until(is_over, seconds=60)


def broken() -> list[verify.Broken]:
    """Rows that break a rule of slots, long after the server's clock recorded what is in the audit."""
    return [*verify.verify(now=datetime(2100, 1, 1, tzinfo=UTC))]


@contextmanager
def nothing_changes() -> Iterator[None]:
    before = written()
    yield
    assert written() == before


@contextmanager
def refused(error: type[DomainError], match: str = "") -> Iterator[None]:
    """A verb refuses, and had written nothing when it did: its transaction is still open here, and would show it."""
    with nothing_changes():
        with pytest.raises(error, match=match or None):
            yield
        transaction.set_rollback(False)


@contextmanager
def stuck(s: Subscription, how: str) -> Iterator[None]:
    """A change of this subscription fails when it is committed."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"CREATE FUNCTION stuck() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"IF NEW.id = {s.pk} THEN {how}; END IF; RETURN NEW; END $$;"
            "CREATE CONSTRAINT TRIGGER stuck AFTER UPDATE ON subscriptions DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION stuck()"
        )
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP FUNCTION stuck CASCADE")


def at_once(*calls: Callable[[], T]) -> list[T | Exception]:
    """What each call answered or raised, each in a thread and a connection of its own, let go at the same moment."""
    gate = threading.Barrier(len(calls))

    def run(call: Callable[[], T]) -> T | Exception:
        try:
            with connection.cursor():  # connecting takes longer than what is raced here
                gate.wait(timeout=30)
            return call()
        except Exception as error:
            return error
        finally:
            connection.close()

    with ThreadPoolExecutor(len(calls)) as pool:
        return [*pool.map(run, calls)]
