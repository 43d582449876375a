"""Seals over the audit: digests over closed ranges, each chained to the one before. What they prove: `proof`.

Who keeps the digest of a seal elsewhere (a *head*) can show later that nothing sealed up to then was rewritten, removed
or slipped in. Nothing of this is in the way of those who write entries: a job reads what they committed.

What anybody can compute again, with no more than this page:

- The *canonical form* of an entry is a JSON object of all its columns (the keys of `FORM`): keys sorted, nothing
  between tokens, UTF-8 without escapes beyond those that JSON demands. Instants are RFC 3339 in UTC with six digits
  of microseconds and a Z; an address is text; what is absent is null. A number in `changes` that is not a whole one
  of at most 15 digits is the string of its literal. (An instant beyond the years 1 to 9999 is PostgreSQL's text.)
- The *digest of an entry* is SHA-256(nonce ‖ canonical form). The nonce has 32 bytes: HMAC-SHA-256 of the entry's id (8
  bytes, big-endian) under its seal's secret salt. So an entry's digest tells nothing to who was not given its nonce.
- The *digest of a seal* is SHA-256(canonical form of `header` ‖ for each entry, in order, its id (8 bytes) and its
  digest (32)). The header holds the digest of the seal before; before the first there are 64 zeros.

A range is closed when no transaction that is still open could add to it: entries stand in the order of (transaction,
id), and only transactions older than every open one are sealed. A cluster into which a dump was restored counts its
transactions anew; then an *era* begins. Entries with a transaction that this cluster has not reached came with the
dump, whole; they are sealed at once. What an era has sealed is known by its range and its greatest id, for ids go on.
"""

import hashlib
import hmac
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from django.db import connection, transaction

from subscriptions.models import AuditSeal
from subscriptions.terms import aware

AT_MOST = 5_000  # entries a seal
BEFORE_THE_FIRST = "0" * 64

Entry = dict[str, Any]  # column → value, as the canonical form has it
Place = tuple[int, int]  # in the audit's order: transaction, id


# --- the form --------------------------------------------------------------------------------------------------------


def _instant(column: str) -> str:
    return (
        f"CASE WHEN {column} >= '0001-01-01 00:00+00' AND {column} < '9999-12-31 00:00+00'"
        f" THEN to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') ELSE {column}::text END"
    )


_AS_THEY_ARE = ("id", "subscription_id", "tenant_id", "version", "action", "actor", "source_id", "reason", "request_id",
                "transaction_id")  # fmt: skip
FORM = {column: f"a.{column}" for column in _AS_THEY_ARE} | {
    "effective_at": _instant("a.effective_at"),
    "recorded_at": _instant("a.recorded_at"),
    "changes": "a.changes::text",
    "address": "abbrev(a.address)",
}
SELECT_FORM = f"SELECT {', '.join(FORM.values())} FROM subscription_audit AS a"


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def canonical(value: Mapping[str, Any]) -> bytes:
    return _ENCODER.encode(value).encode()


def nonce(salt: bytes | memoryview, entry_id: int) -> bytes:
    return hmac.digest(bytes(salt), _id_bytes(entry_id), "sha256")


def entry_digest(entry: Entry, nonce: bytes) -> bytes:
    return hashlib.sha256(nonce + canonical(entry)).digest()


def seal_digest(header: Mapping[str, Any], entries: bytes | memoryview) -> str:
    return hashlib.sha256(canonical(header) + bytes(entries)).hexdigest()


def header(seal: AuditSeal) -> dict[str, Any]:
    """What a seal says, its entries aside."""
    return {
        "number": seal.number,
        "era": seal.era,
        "cluster": seal.cluster,
        "after": [seal.after_transaction_id, seal.after_id],
        "until": [seal.until_transaction_id, seal.until_id],
        "greatest_id": seal.greatest_id,
        "count": seal.count,
        "sealed_at": seal.sealed_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "previous": seal.previous,
    }


def pack(digests: Mapping[int, bytes]) -> bytes:
    """Entry id → digest, in order, as a seal keeps them."""
    return b"".join(_id_bytes(entry_id) + digest for entry_id, digest in digests.items())


def unpack(packed: bytes | memoryview) -> dict[int, bytes]:
    entries = bytes(packed)
    parts = (entries[at : at + 40] for at in range(0, len(entries), 40))
    return {int.from_bytes(part[:8], "big", signed=True): part[8:] for part in parts}


def read(where: str, parameters: Mapping[str, Any]) -> list[Entry]:
    """Entries of the audit, canonical, by the end of a statement over `subscription_audit AS a`."""
    return [_entry(row) for row in rows(f"{SELECT_FORM} {where}", parameters)]


def rows(statement: str, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        found: list[tuple[Any, ...]] = cursor.fetchall()
    return found


def _entry(row: Sequence[Any]) -> Entry:
    entry = dict(zip(FORM, row, strict=True))
    entry["changes"] = _DECODER.decode(entry["changes"])
    return entry


def _whole(literal: str) -> int | str:
    return int(literal) if len(literal.lstrip("-")) <= 15 else literal


_DECODER = json.JSONDecoder(parse_float=str, parse_int=_whole)


def _id_bytes(entry_id: int) -> bytes:
    return entry_id.to_bytes(8, "big", signed=True)


# --- eras ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Era:
    """What the seals of one era cover: this range of the audit, up to this id if there is one."""

    after: Place
    until: Place
    greatest_id: int | None


_IN_AN_ERA = """EXISTS (
    SELECT FROM unnest(%(after_transactions)s::bigint[], %(after_ids)s::bigint[], %(until_transactions)s::bigint[],
                       %(until_ids)s::bigint[], %(greatest_ids)s::bigint[])
             AS era (after_transaction_id, after_id, until_transaction_id, until_id, greatest_id)
     WHERE (a.transaction_id, a.id) > (era.after_transaction_id, era.after_id)
       AND (a.transaction_id, a.id) <= (era.until_transaction_id, era.until_id)
       AND (era.greatest_id IS NULL OR a.id <= era.greatest_id))"""


def outside(eras: Sequence[Era]) -> tuple[str, dict[str, list[int | None]]]:
    """The condition, and its parameters, that none of these eras covers the entry `a`."""
    if not eras:
        return "true", {}
    return f"NOT {_IN_AN_ERA}", {
        "after_transactions": [era.after[0] for era in eras],
        "after_ids": [era.after[1] for era in eras],
        "until_transactions": [era.until[0] for era in eras],
        "until_ids": [era.until[1] for era in eras],
        "greatest_ids": [era.greatest_id for era in eras],
    }


def goes_on(last: AuditSeal) -> bool:
    """Whether this cluster has counted the transactions of this seal: then its era is still the present one."""
    cluster, next_transaction = here()
    return last.cluster == cluster and last.until_transaction_id < next_transaction


def here() -> tuple[int, int]:
    """The cluster, and a transaction that it has not begun to count."""
    ((cluster, next_transaction),) = rows(
        "SELECT system_identifier, pg_snapshot_xmax(pg_current_snapshot())::text::bigint FROM pg_control_system()", {}
    )
    return int(cluster), int(next_transaction)


def _eras(last: AuditSeal | None) -> list[Era]:
    """The eras that have been, up to this seal: each is known by its first seal and its last."""
    eras = []
    seals = AuditSeal.objects.defer("entries", "salt")
    while last:
        first = seals.get(number=last.era)
        after, until = (first.after_transaction_id, first.after_id), (last.until_transaction_id, last.until_id)
        eras.append(Era(after, until, last.greatest_id))
        last = seals.filter(number=first.number - 1).first()
    return eras


# --- sealing ---------------------------------------------------------------------------------------------------------

# Both ask the snapshot of the statement that reads: what it sees is what it judges.
_OVER = "a.transaction_id < pg_snapshot_xmin(pg_current_snapshot())::text::bigint"
_RESTORED = "a.transaction_id >= pg_snapshot_xmax(pg_current_snapshot())::text::bigint"


def seal(*, now: datetime, at_most: int = AT_MOST) -> AuditSeal | None:
    """Seal the next closed range; None if there is none yet, or another sealer is at work.

    Several may try at once: one of them seals. Killed at any point, it leaves no half seal.
    """
    aware(now, "now")
    with transaction.atomic():
        ((alone,),) = rows("SELECT pg_try_advisory_xact_lock('audit_seals'::regclass::oid::bigint)", {})
        if not alone:
            return None
        last = AuditSeal.objects.defer("entries", "salt").order_by("number").last()
        eras = _eras(last)

        def closed(condition: str, after: Place, covered: Sequence[Era]) -> list[Entry]:
            new, parameters = outside(covered)
            where = f"""WHERE (a.transaction_id, a.id) > (%(transaction)s, %(id)s) AND {condition} AND {new}
                        ORDER BY a.transaction_id, a.id LIMIT %(at_most)s"""
            return read(where, parameters | {"transaction": after[0], "id": after[1], "at_most": at_most})

        made = _continued(last, eras, closed) if last and goes_on(last) else _begun(last, eras, closed)
        if not made:
            return None
        made.sealed_at = now
        made.digest = seal_digest(header(made), made.entries)
        made.save(force_insert=True)
        return made


_Closed = Callable[[str, Place, Sequence[Era]], list[Entry]]


def _continued(last: AuditSeal, eras: Sequence[Era], closed: _Closed) -> AuditSeal | None:
    entries = closed(_OVER, eras[0].until, eras[1:])
    return made_of(entries, last, eras[0].until, last.cluster, era=last.era) if entries else None


def _begun(last: AuditSeal | None, eras: Sequence[Era], closed: _Closed) -> AuditSeal | None:
    """The first seal of an era. What came with a dump is sealed first, each seal an era of its own."""
    if restored := closed(_RESTORED, (0, 0), eras):
        just_before = (restored[0]["transaction_id"], restored[0]["id"] - 1)
        return made_of(restored, last, just_before, None)
    entries = closed(_OVER, (0, 0), eras)
    return made_of(entries, last, (0, 0), here()[0]) if entries else None


def made_of(
    entries: Sequence[Entry], last: AuditSeal | None, after: Place, cluster: int | None, *, era: int | None = None
) -> AuditSeal:
    """A seal over these entries that follows the last one; when, and its digest, are still to be said."""
    number, salt = last.number + 1 if last else 1, secrets.token_bytes(32)
    digests = {entry["id"]: entry_digest(entry, nonce(salt, entry["id"])) for entry in entries}
    return AuditSeal(
        number=number,
        era=era or number,
        cluster=cluster,
        after_transaction_id=after[0],
        after_id=after[1],
        until_transaction_id=entries[-1]["transaction_id"],
        until_id=entries[-1]["id"],
        greatest_id=max(*digests, last.greatest_id if last and era else 0),
        count=len(digests),
        entries=pack(digests),
        salt=salt,
        previous=last.digest if last else BEFORE_THE_FIRST,
    )
