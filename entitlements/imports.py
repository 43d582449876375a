"""Devices from a file: read and checked whole, then given slots, a batch at a time.

A line is `device_id` or `device_id,tier`, in UTF-8. What is wrong with a file is told line by line, and a file of which
any line is wrong writes nothing. The same file again changes nothing: devices that have their slot keep it.
"""

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import BinaryIO

from django.db import connection
from django.db.models import F

from entitlements import provisioning, room
from entitlements.bulk import MOST_DEVICES, Wish
from entitlements.errors import TierDiffers
from entitlements.models import DeviceTier, SlotAssignment
from entitlements.slots import check_device_id
from subscriptions import serving
from subscriptions.audit import Actor, check_reason
from subscriptions.errors import DomainError

LONGEST = 1_000  # bytes of a line; the longest device id and tier take a fifth of it
HEADERS = (["device_id"], ["device_id", "tier"])


class MalformedLine(DomainError):
    """This is no line of a CSV file with a device id and a tier."""

    code = "malformed_line"


class NotText(DomainError):
    """This is not UTF-8."""

    code = "not_utf_8"


class NamedTwice(DomainError):
    """This device is in the file before."""

    code = "named_twice"


class NothingInIt(DomainError):
    """There is no device in it."""

    code = "empty_file"


class BatchRefused(DomainError):
    """Nothing of its batch was written, because of another line."""

    code = "batch_refused"


@dataclass(frozen=True, slots=True)
class Line:
    """A device of the file, and where it stands. An empty tier is the default one."""

    number: int
    device_id: str
    tier: str


@dataclass(frozen=True)
class Failure:
    """Why a line has no slot."""

    line: int
    device_id: str
    code: str
    detail: str


@dataclass
class Read:
    """What is in a file: its devices, and what is wrong with it."""

    lines: list[Line] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


@dataclass
class Imported:
    """What became of a file."""

    assigned: int = 0
    unchanged: int = 0
    failures: list[Failure] = field(default_factory=list)


# --- reading ---------------------------------------------------------------------------------------------------------


def read(file: BinaryIO, default_tier: str = "") -> Read:
    """The devices of a file, each once, and what is wrong with which line."""
    found = Read()
    seen: dict[str, int] = {}
    for number, given in _lines(file):
        device_id = ""
        try:
            cells = _cells(given)
            if not cells or (number == 1 and [cell.lower() for cell in cells] in HEADERS):
                continue
            device_id, tier = (*cells, "")[:2]
            check_device_id(device_id)
            if device_id in seen:
                raise NamedTwice(f"{device_id} is in line {seen[device_id]} already.")
            seen[device_id] = number
            found.lines.append(Line(number, device_id, tier or default_tier))
        except DomainError as error:
            found.failures.append(_failure(number, ascii(device_id)[1:-1][:128], error))
    if not seen and not found.failures:
        found.failures.append(_failure(1, "", NothingInIt()))
    return found


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """With their numbers. Of a line that is too long there is as much as shows that it is."""
    number = 0
    while line := file.readline(LONGEST + 1):
        number += 1
        yield number, line
        while len(line) > LONGEST and not line.endswith(b"\n"):
            line = file.readline(LONGEST + 1)


def _cells(line: bytes) -> list[str]:
    """None of a blank line. Raises MalformedLine, NotText."""
    if len(line) > LONGEST:
        raise MalformedLine(f"It is longer than {LONGEST} bytes.")
    try:
        text = line.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise NotText from None
    if "\0" in text:
        raise MalformedLine("There is a NUL in it.")
    try:
        rows = [*csv.reader([text], strict=True, skipinitialspace=True)]
    except csv.Error as error:
        raise MalformedLine(f"A quote is not closed, or is in the wrong place: {error}.") from None
    cells = [cell.strip() for cell in rows[0]] if rows else []
    if len(cells) > 2:
        raise MalformedLine(f"It has {len(cells)} columns, where there are two: device_id and tier.")
    return cells


# --- checking --------------------------------------------------------------------------------------------------------


def check(tenant_id: int, lines: Sequence[Line], *, now: datetime, subscription_id: int | None = None) -> Imported:
    """What would become of these devices: how many would get slots, how many have theirs, and which cannot.

    Two statements for each thousand devices, and a few for all of them. Nothing is written, and nothing is locked.
    """
    codes = dict(DeviceTier.objects.values_list("code", "is_default"))
    default = next((code for code, is_default in codes.items() if is_default), "")
    would = Imported()
    wanted: dict[str, list[Line]] = {}
    for some in _batches(lines):
        present = _present(tenant_id, some)
        elsewhere = provisioning.elsewhere(tenant_id, [line.device_id for line in some])
        for line in some:
            tier = line.tier or default
            its = present.get(line.device_id)
            if tier not in codes:
                would.failures.append(_failure(line.number, line.device_id, room.no_such_tier(tier)))
            elif its == tier:
                would.unchanged += 1
            elif its:
                error = TierDiffers(f"{line.device_id} has a slot of the tier {its}.", tier=its)
                would.failures.append(_failure(line.number, line.device_id, error))
            elif line.device_id in elsewhere:
                would.failures.append(_failure(line.number, line.device_id, elsewhere[line.device_id]))
            else:
                wanted.setdefault(tier, []).append(line)
    free = _free(tenant_id, now, subscription_id)
    for tier, those in wanted.items():
        would.assigned += min(len(those), free.get(tier, 0))
        without = those[free.get(tier, 0) :]
        if without:
            none = room.none_left(tenant_id, tier, len(those), now, subscription_id)
            would.failures += [_failure(line.number, line.device_id, none) for line in without]
    would.failures.sort(key=lambda failure: failure.line)
    return would


def _present(tenant_id: int, lines: Iterable[Line]) -> dict[str, str]:
    """The tiers of the slots that these devices have."""
    its = SlotAssignment.objects.filter(
        device__tenant=tenant_id, device__device_id__in=[line.device_id for line in lines], released_at=None
    )
    return dict(its.values_list(F("device__device_id"), F("tier__code")))


def _free(tenant_id: int, now: datetime, subscription_id: int | None) -> Mapping[str, int]:
    """The free slots of each tier."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT tier.code, sum(a.slot_limit - a.slots_used)::int FROM device_tiers AS tier, {room.SERVING}"
            " AND tier.id = a.tier_id AND (%(only)s::bigint IS NULL OR a.subscription_id = %(only)s)"
            " GROUP BY tier.code",
            {"tenant": tenant_id, "only": subscription_id, "now": now, **serving.windows()},
        )
        return dict(cursor.fetchall())


# --- writing ---------------------------------------------------------------------------------------------------------


def write(
    tenant_id: int,
    lines: Sequence[Line],
    *,
    actor: Actor,
    now: Callable[[], datetime],
    subscription_id: int | None = None,
    source_id: str = "",
    reason: str = "",
    tick: Callable[[int], None] = lambda done: None,
) -> Imported:
    """Give these devices slots, a thousand at a time, each thousand in a transaction of its own: all of it or nothing.

    Of a thousand that cannot, because somebody else took the room since it was checked, every line is told. Safe to
    repeat, also after it was killed. Raises ReasonMissing.
    """
    check_reason(actor, reason)
    done = Imported()
    for some in _batches(lines):
        wishes = [Wish(line.device_id, line.tier) for line in some]
        try:
            outcomes = provisioning.claim_many(
                tenant_id, wishes, subscription_id=subscription_id,
                actor=actor, now=now(), source_id=source_id, reason=reason,
            )  # fmt: skip
        except DomainError as error:
            done.failures += _refused(some, error)
        else:
            given = sum(outcome.slot is not None and outcome.slot.is_new for outcome in outcomes)
            done.assigned += given
            done.unchanged += len(outcomes) - given
        tick(min(len(lines), done.assigned + done.unchanged + len(done.failures)))
    return done


def _refused(lines: Iterable[Line], error: DomainError) -> Iterator[Failure]:
    """Why each line of a batch was not written: its own fault, or another's."""
    said = error.facts.get("errors")
    own = {row["device_id"]: row for row in said} if isinstance(said, list) else {}
    for line in lines:
        its = own.get(line.device_id) or {"code": BatchRefused.code, "detail": BatchRefused.title()}
        yield Failure(line.number, line.device_id, its["code"], its["detail"])


def _batches(lines: Sequence[Line]) -> Iterator[Sequence[Line]]:
    for first in range(0, len(lines), MOST_DEVICES):
        yield lines[first : first + MOST_DEVICES]


def _failure(line: int, device_id: str, error: DomainError) -> Failure:
    return Failure(line, device_id, error.code, error.detail)
