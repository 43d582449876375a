"""Proof that the audit is what it was when it was sealed, and that each subscription is what its audit tells.

Entries are held to their seals, and the seals to each other. Who may rewrite entries may rewrite the seals over them,
too: only a head that was noted elsewhere shows that. What has not been sealed yet is not proven.

Everything is read in portions: memory does not grow with the audit.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from django.db import DataError

from subscriptions.audit import COLUMNS, FIELDS
from subscriptions.models import AuditSeal, Subscription, Tenant
from subscriptions.seals import (
    AT_MOST,
    BEFORE_THE_FIRST,
    FORM,
    Era,
    canonical,
    entry_digest,
    goes_on,
    header,
    nonce,
    outside,
    read,
    rows,
    seal_digest,
    unpack,
)

Tick = Callable[[str, int], None]  # told what is looked at, and how many have been


def _silent(what: str, count: int) -> None:
    pass


class DoesNotFit(Exception):
    """The first thing that is not what it should be."""

    def __init__(self, how: str, message: str, **which: object) -> None:
        self.how, self.which = how, which
        super().__init__(message)


def _rewritten(entry_id: int, number: int) -> DoesNotFit:
    return DoesNotFit("rewritten", f"Entry {entry_id} was rewritten since seal {number}.", entry=entry_id, seal=number)


def _missing(entry_id: int, number: int) -> DoesNotFit:
    return DoesNotFit("missing", f"Entry {entry_id} of seal {number} is missing.", entry=entry_id, seal=number)


def _slipped_in(entry_id: int, number: int) -> DoesNotFit:
    message = f"Entry {entry_id} was slipped in: seal {number} covers its place and does not know it."
    return DoesNotFit("slipped in", message, entry=entry_id, seal=number)


@dataclass
class Proof:
    """What fits. `others` are entries of other tenants, of which an export has digests only."""

    entries: int = 0
    seals: int = 0
    unsealed: int = 0
    head: str = BEFORE_THE_FIRST
    others: int = 0
    subscriptions: int = 0

    def __str__(self) -> str:
        others = f", beside {self.others} of others" if self.others else ""
        unsealed = "1 entry is" if self.unsealed == 1 else f"{self.unsealed} entries are"
        return (
            f"{_many(self.entries, 'entry', 'entries')}{others} in {_many(self.seals, 'seal', 'seals')} "
            f"{'fits' if (self.entries, self.others) == (1, 0) else 'fit'}; {unsealed} not sealed yet; "
            f"head {self.head}"
        )

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def _many(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


# --- the chain -------------------------------------------------------------------------------------------------------


class Chain:
    """The seals so far, each of which follows from the one before; and whether a noted head was among them."""

    def __init__(self, expected: str = "") -> None:
        self.expected = expected.lower()
        self.last: Mapping[str, Any] | None = None
        self.head, self.entries = BEFORE_THE_FIRST, 0
        self.found = self.expected in ("", self.head)

    @property
    def number(self) -> int:
        return self.last["number"] if self.last else 0

    def follow(self, says: Mapping[str, Any], entries: bytes, digest: str) -> None:
        due = self.number + 1
        if says["number"] != due:
            raise self._broken(due, "is missing")
        if seal_digest(says, entries) != digest:
            raise self._broken(due, "was rewritten: its digest is not that of what it holds")
        if says["previous"] != self.head:
            raise self._broken(due, f"does not follow from seal {due - 1}")
        if len(entries) != 40 * says["count"] or not self._continues(says):
            raise self._broken(due, "contradicts itself or the one before")
        self.last, self.head, self.entries = says, digest, self.entries + says["count"]
        self.found = self.found or digest == self.expected

    def end(self) -> None:
        if not self.found:
            message = f"The head {self.expected} is not in the chain: seals were rewritten or removed."
            raise DoesNotFit("head unknown", message, head=self.expected)

    def _continues(self, says: Mapping[str, Any]) -> bool:
        if not says["after"] < says["until"]:
            return False
        if says["era"] == says["number"]:
            return True
        last = self.last or {}
        return [says["era"], says["cluster"], says["after"]] == [last.get(key) for key in ("era", "cluster", "until")]

    def _broken(self, number: int, how: str) -> DoesNotFit:
        return DoesNotFit("chain broken", f"Seal {number} {how}: the chain is broken.", seal=number)


# --- the tables ------------------------------------------------------------------------------------------------------


def verify(*, expected: str = "", portion: int = AT_MOST, tick: Tick = _silent) -> Proof:
    """Hold the audit to its seals, and subscriptions to their audit. Raises DoesNotFit for the first that differs."""
    try:
        return _verify(expected, portion, tick)
    except (DataError, RecursionError, OverflowError) as error:
        raise DoesNotFit("unreadable", f"Something in the audit cannot be read: {error}") from None


def _verify(expected: str, portion: int, tick: Tick) -> Proof:
    chain = Chain(expected)
    eras = _follow(chain)
    proof = Proof(seals=chain.number, head=chain.head)
    for seals in _portions(chain.number, portion):
        _hold(seals, eras)
        proof.entries += sum(seal.count for seal in seals)
        tick("entries", proof.entries)
    new, parameters = outside([*eras.values()])
    ((proof.unsealed,),) = rows(f"SELECT count(*) FROM subscription_audit AS a WHERE {new}", parameters)
    _hold_to_subscriptions()
    proof.subscriptions = replay(tick=tick)
    return proof


_ASTRAY = """
    SELECT a.id FROM subscription_audit AS a LEFT JOIN subscriptions AS s ON s.id = a.subscription_id
     WHERE s.id IS NULL OR s.tenant_id <> a.tenant_id OR a.id < 1 OR a.transaction_id < 1
     ORDER BY a.id LIMIT 1"""


def _hold_to_subscriptions() -> None:
    """Each entry is of a subscription that is there, and of its tenant; none stands before the first place."""
    for (entry_id,) in rows(_ASTRAY, {}):
        message = f"Entry {entry_id} is of no subscription of its tenant, or stands where no entry can."
        raise DoesNotFit("astray", message, entry=entry_id)


def _follow(chain: Chain) -> dict[int, Era]:
    """Follow the chain to its end; the eras by their first seal's number."""
    eras: dict[int, Era] = {}
    last = None
    for last in _seals():
        says = header(last)
        chain.follow(says, bytes(last.entries), last.digest)
        after = eras[last.era].after if last.era in eras else tuple(says["after"])
        eras[last.era] = Era(after, tuple(says["until"]), last.greatest_id)
    if last and goes_on(last):  # whatever has a place in its range belongs to it, also with an id of today
        eras[last.era] = Era(eras[last.era].after, eras[last.era].until, None)
    chain.end()
    return eras


def _seals(up_to: int | None = None) -> Iterator[AuditSeal]:
    number = 0
    while page := list(AuditSeal.objects.filter(number__gt=number).order_by("number")[:20]):
        for seal in page:
            if up_to is not None and seal.number > up_to:
                return
            yield seal
        number = page[-1].number


def _portions(up_to: int, at_most: int) -> Iterator[list[AuditSeal]]:
    """Seals of one era, each portion with about so many entries."""
    portion: list[AuditSeal] = []
    for seal in _seals(up_to):
        if portion and (portion[0].era != seal.era or sum(s.count for s in portion) + seal.count > at_most):
            yield portion
            portion = []
        portion.append(seal)
    if portion:
        yield portion


def _hold(portion: list[AuditSeal], eras: dict[int, Era]) -> None:
    """Hold the entries of these seals to their digests, and the range of the seals to their entries."""
    sealed = {entry_id: (seal, digest) for seal in portion for entry_id, digest in unpack(seal.entries).items()}
    found = {entry["id"]: entry for entry in read("WHERE a.id = ANY(%(ids)s)", {"ids": [*sealed]})}
    for entry_id, (seal, digest) in sealed.items():
        if entry_id not in found:
            raise _missing(entry_id, seal.number)
        if entry_digest(found[entry_id], nonce(seal.salt, entry_id)) != digest:
            raise _rewritten(entry_id, seal.number)
    first, last = portion[0], portion[-1]
    new, parameters = outside([era for number, era in eras.items() if number < first.era])
    greatest_id = eras[first.era].greatest_id
    in_range = f"""
        SELECT a.id, a.transaction_id FROM subscription_audit AS a
         WHERE (a.transaction_id, a.id) > (%(after_transaction_id)s, %(after_id)s)
           AND (a.transaction_id, a.id) <= (%(until_transaction_id)s, %(until_id)s)
           AND (%(greatest_id)s::bigint IS NULL OR a.id <= %(greatest_id)s) AND {new}
         ORDER BY a.transaction_id, a.id"""
    ends: dict[str, Any] = {
        "after_transaction_id": first.after_transaction_id,
        "after_id": first.after_id,
        "until_transaction_id": last.until_transaction_id,
        "until_id": last.until_id,
        "greatest_id": greatest_id,
    }
    for entry_id, transaction_id in rows(in_range, parameters | ends):
        if entry_id not in sealed:
            place = (transaction_id, entry_id)
            over = next(s for s in portion if place <= (s.until_transaction_id, s.until_id))
            elsewhere = _sealed_by(entry_id)
            raise _rewritten(entry_id, elsewhere) if elsewhere else _slipped_in(entry_id, over.number)


def _sealed_by(entry_id: int) -> int | None:
    """The seal that knows this entry: its transaction was rewritten, then, and it stands where it never stood."""
    return next((seal.number for seal in _seals() if entry_id in unpack(seal.entries)), None)


# --- subscriptions and their audit -----------------------------------------------------------------------------------

# A column that subscriptions got after there were some is known from the first entry on that names it.
_GOT_LATER = ("anniversary",)
_DIFFERS = ", ".join(
    f"CASE WHEN s.{c} IS DISTINCT FROM told.{c} AND (replayed.columns ? '{c}' OR {c not in _GOT_LATER}) THEN '{c}' END"
    for c in COLUMNS
)
_REPLAY = f"""
    WITH entry AS (
        SELECT * FROM subscription_audit WHERE subscription_id > %(after)s AND subscription_id <= %(until)s
    ), counted AS (
        SELECT subscription_id, count(*) AS entries, min(version) AS first, max(version) AS last
          FROM entry GROUP BY subscription_id
    ), latest AS (
        SELECT DISTINCT ON (entry.subscription_id, change.key)
               entry.subscription_id, change.key, change.value->1 AS value
          FROM entry CROSS JOIN LATERAL jsonb_each(entry.changes) AS change
         ORDER BY entry.subscription_id, change.key, entry.version DESC
    ), replayed AS (
        SELECT subscription_id, jsonb_object_agg(key, value) AS columns FROM latest GROUP BY subscription_id
    )
    SELECT s.id, s.number, s.version, coalesce(counted.entries, 0), counted.first, counted.last, differ.columns
      FROM subscriptions AS s
      LEFT JOIN counted ON counted.subscription_id = s.id
      LEFT JOIN replayed ON replayed.subscription_id = s.id
     CROSS JOIN LATERAL jsonb_populate_record(
               NULL::subscriptions, %(unsaid)s::jsonb || coalesce(replayed.columns, '{{}}')) AS told
     CROSS JOIN LATERAL (SELECT array_remove(ARRAY[{_DIFFERS}], NULL) AS columns) AS differ
     WHERE s.id > %(after)s AND s.id <= %(until)s
       AND ((counted.entries, counted.first, counted.last) IS DISTINCT FROM (s.version, 1, s.version)
            OR differ.columns <> '{{}}')
     ORDER BY s.id LIMIT 1"""


def replay(*, tick: Tick = _silent) -> int:
    """Hold each subscription's versions to 1, 2, 3, …, and its row to the replay of its changes; how many there are.

    What no entry has ever said has its default.
    """
    count, after = 0, -(2**62)
    while ids := list(Subscription.objects.filter(pk__gt=after).order_by("pk").values_list("pk", flat=True)[:AT_MOST]):
        _replay(after, ids)
        count, after = count + len(ids), ids[-1]
        tick("subscriptions", count)
    return count


def _replay(after: int, ids: list[int]) -> None:
    unsaid = {field.attname: field.get_default() for field in FIELDS.values()}
    try:
        found = rows(_REPLAY, {"after": after, "until": ids[-1], "unsaid": json.dumps(unsaid)})
    except DataError:  # an entry whose changes are none: look for the subscription
        if len(ids) == 1:
            message = f"The audit of subscription {ids[0]} has changes that cannot be read."
            raise DoesNotFit("unreadable", message, subscription=ids[0]) from None
        half = len(ids) // 2
        _replay(after, ids[:half])
        _replay(ids[half - 1], ids[half:])
        return
    for _, number, version, entries, first, last, columns in found:
        if (entries, first, last) != (version, 1, version):
            has = f"{_many(entries, 'entry', 'entries')}" + (f" of versions {first} to {last}" if entries else "")
            message = f"{number} is at version {version}; its audit has {has}: versions have a gap."
            raise DoesNotFit("versions", message, subscription=number)
        message = f"{number} is not what its audit tells: {', '.join(columns)}."
        raise DoesNotFit("replay", message, subscription=number, columns=columns)


# --- an export -------------------------------------------------------------------------------------------------------

# JSON Lines. The first: {"export": {"form": 1, "tenant": SLUG or null}}. Then for each seal its entries, a line each
# ({"entry", "nonce", "digest"}), and a line for the seal: {"seal": header, "entries": ids and digests in hexadecimal,
# "digest", "shown": the ids of the entries above}. Then entries not sealed yet, {"entry"}. The last: {"end": {"seals",
# "entries", "unsealed", "head"}}. For one tenant, the entries of others are not shown.


def export(tenant: Tenant | None = None, *, tick: Tick = _silent) -> Iterator[str]:
    """The whole audit, or a tenant's, line by line, with what is needed to verify it anywhere."""
    mine = "a.tenant_id = %(tenant)s" if tenant else "true"
    of = {"tenant": tenant.pk if tenant else None}
    yield _line(export={"form": 1, "tenant": tenant.slug if tenant else None})
    chain, shown_so_far = Chain(), 0
    eras = _follow(chain)
    for seal in _seals(chain.number):
        digests = unpack(seal.entries)
        found = {
            entry["id"]: entry for entry in read(f"WHERE a.id = ANY(%(ids)s) AND {mine}", of | {"ids": [*digests]})
        }
        shown = [entry_id for entry_id in digests if entry_id in found]
        for entry_id in shown:
            entry, its_nonce = found[entry_id], nonce(seal.salt, entry_id)
            yield _line(entry=entry, nonce=its_nonce.hex(), digest=entry_digest(entry, its_nonce).hex())
        yield _line(seal=header(seal), entries=bytes(seal.entries).hex(), digest=seal.digest, shown=shown)
        shown_so_far += len(shown)
        tick("entries", shown_so_far)
    unsealed, after = 0, -(2**62)
    new, parameters = outside([*eras.values()])
    where = f"WHERE a.id > %(after)s AND {mine} AND {new} ORDER BY a.id LIMIT {AT_MOST}"
    while page := read(where, parameters | of | {"after": after}):
        for entry in page:
            yield _line(entry=entry)
        unsealed, after = unsealed + len(page), page[-1]["id"]
    yield _line(end={"seals": chain.number, "entries": shown_so_far, "unsealed": unsealed, "head": chain.head})


def _line(**said: object) -> str:
    return canonical(said).decode()


def verify_export(lines: Iterable[str], *, expected: str = "", tick: Tick = _silent) -> Proof:
    """Hold an export to its own seals, without the database. Raises DoesNotFit for the first that differs.

    For one tenant: what is shown is what was sealed. That nothing of the tenant was left out is only its word.
    """
    reader = _Reader(Chain(expected))
    for number, line in enumerate(lines, start=1):
        try:
            reader.take(line)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
            raise DoesNotFit("unreadable", f"Line {number} is not a line of an export.", line=number) from None
        if number % 1000 == 0:
            tick("lines", number)
    if not reader.ended:
        raise DoesNotFit("missing", "The end of the export is missing.")
    reader.chain.end()
    return reader.proof


class _Reader:
    def __init__(self, chain: Chain) -> None:
        self.chain, self.proof = chain, Proof()
        self.whole: bool | None = None  # not for one tenant only; unknown before the first line
        self.waiting: dict[int, bool] = {}  # entries whose seal is yet to come → whether they are what their line says
        self.digests: dict[int, bytes] = {}
        self.unsealed_id = -1
        self.ended = False

    def take(self, line: str) -> None:
        said = json.loads(line)
        if canonical(said).decode() != line.rstrip("\n"):  # two readers of another form might read two things
            raise ValueError
        (kind,) = {"export", "entry", "seal", "end"} & said.keys()
        if (self.whole is None) != (kind == "export") or self.ended:
            raise ValueError
        getattr(self, f"_{kind}")(said)

    def _export(self, said: dict[str, Any]) -> None:
        if said["export"]["form"] != 1:
            raise ValueError
        self.whole = said["export"]["tenant"] is None

    def _entry(self, said: dict[str, Any]) -> None:
        entry_id = int(said["entry"]["id"])
        if said["entry"].keys() != FORM.keys() or said.keys() - {"entry", "nonce", "digest"}:
            raise ValueError
        if "nonce" not in said:
            self._not_sealed(entry_id, said["entry"]["transaction_id"])
            return
        if entry_id in self.digests:
            raise _slipped_in(entry_id, self.chain.number + 1)
        digest = bytes.fromhex(said["digest"])
        self.waiting[entry_id] = entry_digest(said["entry"], bytes.fromhex(said["nonce"])) == digest
        self.digests[entry_id] = digest

    def _not_sealed(self, entry_id: int, transaction_id: int) -> None:
        """It stands after all that is sealed, and once."""
        last = self.chain.last
        if last and ([transaction_id, entry_id] <= list(last["until"]) and entry_id <= last["greatest_id"]):
            raise _slipped_in(entry_id, self.chain.number)
        if entry_id <= self.unsealed_id:
            raise ValueError
        self.unsealed_id = entry_id
        self.proof.unsealed += 1

    def _seal(self, said: dict[str, Any]) -> None:
        packed = bytes.fromhex(said["entries"])
        self.chain.follow(said["seal"], packed, said["digest"])
        sealed, number = unpack(packed), self.chain.number
        for entry_id in [*sealed] if self.whole else said["shown"]:
            if entry_id not in self.waiting:
                raise _missing(entry_id, number)
        for entry_id, is_honest in self.waiting.items():
            if entry_id not in sealed:
                raise _slipped_in(entry_id, number)
            if not is_honest or self.digests[entry_id] != sealed[entry_id]:
                raise _rewritten(entry_id, number)
        if self.proof.unsealed:  # they come after the last seal
            raise ValueError
        shown = len(self.waiting)
        self.proof.entries, self.proof.others = self.proof.entries + shown, self.proof.others + len(sealed) - shown
        self.proof.seals, self.proof.head = number, self.chain.head
        self.waiting, self.digests = {}, {}

    def _end(self, said: dict[str, Any]) -> None:
        for entry_id in self.waiting:
            raise _slipped_in(entry_id, self.chain.number)
        end, proof = said["end"], self.proof
        there = {"seals": proof.seals, "entries": proof.entries, "unsealed": proof.unsealed, "head": proof.head}
        if end != there:
            raise DoesNotFit("missing", f"The export says that it has {_told(end)}; it has {_told(there)}.")
        self.ended = True


def _told(end: Mapping[str, Any]) -> str:
    return f"{end['entries']} sealed and {end['unsealed']} other entries in {end['seals']} seals"
