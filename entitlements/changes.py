"""What changed since, for whoever keeps a copy: a feed that names what to read again, and never skips a commit.

It is a feed of what was modified last: a device that changed twice appears once, at its later place. Transactions come
in the order of their ids, and only once no older one is open: what was still open when the feed was read is told later,
and not behind the reader's back. So a reader that begins here takes its cursor first, and reads what it keeps
afterwards: whatever it may have read too early is named by the feed.

By the clock alone things change without a commit: every answer that may be kept says until when (`valid_until`).
"""

import base64
import re
from binascii import Error as NotBase64
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from entitlements import room
from entitlements.errors import CursorExpired, InvalidCursor
from subscriptions.unread import HORIZON

MOST_CHANGES: Final = 1_000  # a page


class Kind(StrEnum):
    """What is to be read again."""

    DEVICE = "device"  # the device, or its slot
    SUBSCRIPTION = "subscription"  # what the tenant may use, and the devices of the subscription and of its add-ons
    OVERRIDE = "override"  # what the tenant may use
    CATALOGUE = "catalogue"  # everything: what tiers and plans give has changed


@dataclass(frozen=True)
class Source:
    """Where changes of a kind are found: in a table with a `transaction_id`, an `id` and an index over both.

    Its number is its place among the changes of one transaction, and stands in cursors that others keep: a new source
    gets a new number.
    """

    number: int
    kind: Kind
    table: str
    tenant: str  # the column that says whose it is
    names: str  # what else names it: columns device_id, subscription, action, feature
    joins: str = ""


SOURCES: Final = (
    Source(0, Kind.CATALOGUE, "catalogue_changes", "NULL::bigint", "NULL, NULL, NULL, NULL"),
    Source(1, Kind.OVERRIDE, "feature_overrides", "x.tenant_id", "NULL, NULL, NULL, features.code",
           "JOIN features ON features.id = x.feature_id"),
    Source(2, Kind.SUBSCRIPTION, "subscription_audit", "x.tenant_id", "NULL, s.number, x.action, NULL",
           "JOIN subscriptions AS s ON s.id = x.subscription_id"),
    Source(3, Kind.DEVICE, "devices", "x.tenant_id", "x.device_id, NULL, NULL, NULL"),
)  # fmt: skip


@dataclass(frozen=True)
class Change:
    """One thing to read again."""

    kind: str
    tenant: str | None  # its slug; None: everybody
    device_id: str | None = None
    subscription: str | None = None  # its number
    action: str | None = None  # what happened to it, as its audit says
    feature: str | None = None


@dataclass(frozen=True)
class Page:
    """Changes, oldest first; where the next page begins; whether there is more by now."""

    cursor: str
    more: bool = False
    changes: list[Change] = field(default_factory=list)


# --- cursors ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Everything up to this change has been read, in this database."""

    database: str
    transaction_id: int
    source: int
    id: int


_CURSOR = re.compile(r"1:([0-9a-f]{32}):(\d{1,18}):(\d):(\d{1,18})", re.ASCII)  # 1: the version of this form
_BEFORE_ALL = (0, 0)  # of a transaction: no row has this id


def _written(place: Place) -> str:
    text = f"1:{place.database}:{place.transaction_id}:{place.source}:{place.id}"
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _read(cursor: str) -> Place:
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (NotBase64, ValueError):
        raise InvalidCursor from None
    match = _CURSOR.fullmatch(text)
    if match is None:
        raise InvalidCursor
    place = Place(match[1], int(match[2]), int(match[3]), int(match[4]))
    if _written(place) != cursor:  # one place has one cursor
        raise InvalidCursor
    return place


# --- the feed --------------------------------------------------------------------------------------------------------

# Which database this is, and where its history forks: transactions are counted by a cluster; a restore to a point in
# time begins a new timeline; a dump that is restored makes a new database, or at least new tables.
_DATABASE = """
    md5(concat_ws(':', (SELECT system_identifier FROM pg_control_system()),
                  left(pg_walfile_name(pg_current_wal_lsn()), 8),
                  (SELECT oid FROM pg_database WHERE datname = current_database()), 'devices'::regclass::oid))"""

# A cursor may lie within a transaction. Sources before its own have been read to the transaction's end, those after it
# have not been read at all.
_AFTER = f"CASE WHEN {{number}} < %(source)s THEN {2**63 - 1} WHEN {{number}} = %(source)s THEN %(id)s ELSE 0 END"


def _rows(source: Source) -> str:
    """The source's next rows: a range of its index, no more than can be on the page."""
    after = _AFTER.format(number=source.number)
    return f"""(
        SELECT x.transaction_id, {source.number}, x.id, '{source.kind}', {source.tenant}, {source.names}
          FROM (SELECT * FROM {source.table} AS x
                 WHERE (x.transaction_id, x.id) > (%(transaction)s, {after}) AND x.transaction_id < {HORIZON}
                 ORDER BY x.transaction_id, x.id LIMIT %(limit)s) AS x {source.joins})"""


# The horizon and the rows are of one statement, so of one snapshot.
_PAGE = f"""
    SELECT position.database, position.horizon, c.transaction_id, c.source, c.id, c.tenant_id, c.kind, tenants.slug,
           c.device_id, c.subscription, c.action, c.feature
      FROM (SELECT {_DATABASE} AS database, {HORIZON} AS horizon) AS position
      LEFT JOIN ({" UNION ALL ".join(_rows(source) for source in SOURCES)})
             AS c (transaction_id, source, id, kind, tenant_id, device_id, subscription, action, feature) ON true
      LEFT JOIN tenants ON tenants.id = c.tenant_id
     ORDER BY c.transaction_id, c.source, c.id LIMIT %(limit)s"""
_POSITION = f"SELECT {_DATABASE}, {HORIZON}"


def beginning() -> Page:
    """No changes, and a cursor that all later commits are after; those of transactions that are open now, too."""
    database, horizon = room.one(_POSITION, {}) or ("", 0)
    return Page(_written(Place(database, horizon, *_BEFORE_ALL)))


def changes(after: str, *, limit: int = MOST_CHANGES, tenant_id: int | None = None) -> Page:
    """Up to `limit` changes after a cursor; with `tenant_id`, of this tenant and the catalogue. One statement, which
    reads at most `limit` + 1 rows of each source: for a tenant that had few of them, a page may be empty and have more
    behind it.

    Safe to repeat. Raises InvalidCursor for what is no cursor, CursorExpired for one of another history.
    """
    place = _read(after)
    said: Mapping[str, Any] = {
        "transaction": place.transaction_id, "source": place.source, "id": place.id, "limit": limit + 1,
    }  # fmt: skip
    rows = room.every(_PAGE, dict(said))
    database, horizon = rows[0][:2]
    if place.database != database or place.transaction_id > horizon:
        raise CursorExpired
    found = [row[2:] for row in rows if row[2] is not None]
    more, found = len(found) > limit, found[:limit]
    # At the end, the cursor is the horizon itself: nothing that is younger has been read.
    last = found[-1][:3] if more else (horizon, *_BEFORE_ALL)
    theirs = [row for row in found if tenant_id is None or row[3] in (tenant_id, None)]
    return Page(_written(Place(database, *last)), more, [Change(*row[4:]) for row in theirs])
