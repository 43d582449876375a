"""`manage.py import_devices`: a file is taken whole or told line by line."""

import json
from dataclasses import dataclass
from datetime import timedelta
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from entitlements import imports, slots
from entitlements.imports import Line
from entitlements.models import Device, DeviceTier, SlotAssignment
from subscriptions.models import Subscription
from subscriptions.states import Type
from tests.builders import ALICE, subscription, tier
from tests.history import nothing_changes
from tests.test_slots import used

pytestmark = pytest.mark.django_db

TODAY = timezone.now().replace(hour=0, minute=0, second=0, microsecond=0)  # the command acts now
TERM = (TODAY - timedelta(days=10), TODAY + timedelta(days=20))
BY: dict[str, Any] = {"actor": ALICE, "now": TERM[0], "reason": "as agreed"}


@dataclass(frozen=True)
class Ran:
    out: list[str]
    err: list[str]
    error: str = ""  # a shell would see a non-zero exit code


def fleet(type: Type = Type.MAIN, **slots_: int) -> Subscription:
    return subscription(type, slots=slots_, term=TERM, now=TERM[0])


def run(s: Subscription, content: bytes, *words: str) -> Ran:
    out, err, error = StringIO(), StringIO(), ""
    arguments = [s.tenant.slug, "-", "--reason", "order 7", *words]
    try:
        call_command("import_devices", *arguments, stdout=out, stderr=err, standard_input=BytesIO(content))
    except CommandError as refusal:
        error = str(refusal)
    return Ran(out.getvalue().splitlines(), err.getvalue().splitlines(), error)


def in_slots() -> dict[str, str]:
    rows = SlotAssignment.objects.filter(released_at=None).order_by("pk")
    return dict(rows.values_list("device__device_id", "tier__code"))


@pytest.mark.parametrize(
    "content",
    [
        b"d-1,basic\nd-2,premium\n",
        b"device_id,tier\nd-1,basic\nd-2,premium",
        b"\xef\xbb\xbfDevice_ID,Tier\r\n\r\nd-1 , basic\r\n\"d-2\",\"premium\"\r\n",
    ],
    ids=["plain", "header", "as a spreadsheet writes it"],
)  # fmt: skip
def test_the_devices_of_a_file_get_slots_of_their_tiers(content: bytes) -> None:
    s = fleet(basic=2, premium=1)
    assert run(s, content) == Ran(["2 got a slot, 0 have theirs, 0 failed."], [])
    assert in_slots() == {"d-1": "basic", "d-2": "premium"}


def test_a_file_on_disk_is_named_in_the_history_with_who_and_why(tmp_path: Path) -> None:
    s = fleet(basic=1)
    bob = User.objects.create(username="bob", is_staff=True)
    (tmp_path / "meters.csv").write_bytes(b"d-1\n")
    words = (s.tenant.slug, str(tmp_path / "meters.csv"), "--tier", "basic", "--reason", "order 7", "--as", "bob")
    call_command("import_devices", *words, stdout=StringIO())
    taken = SlotAssignment.objects.get()
    assert (taken.assigned_by, taken.source_id, taken.reason) == (f"staff:{bob.pk}", "file:meters.csv", "order 7")


def test_a_line_without_a_tier_gets_the_one_that_is_named_else_the_default_one() -> None:
    s = fleet(basic=1, premium=2)
    assert run(s, b"d-1\n").err == ["line 1  d-1  no_such_tier  Name a tier: none is the default."]
    DeviceTier.objects.filter(code="premium").update(is_default=True)
    run(s, b"d-1\nd-2,basic\n")
    run(s, b"d-3,\n", "--tier", "premium")
    assert in_slots() == {"d-1": "premium", "d-2": "basic", "d-3": "premium"}


MALFORMED = [
    (b"d-1\n\xff\xfe\n", "line 2  not_utf_8  This is not UTF-8."),
    (b"d-1\nd\0x\n", "line 2  malformed_line  There is a NUL in it."),
    (b'd-1\n"d-2,basic\nd-3\n', "line 2  malformed_line  A quote is not closed, or is in the wrong place: "
                                "unexpected end of data."),
    (b"d-1\n" + b"x" * 5_000 + b"\nd-3\n", "line 2  malformed_line  It is longer than 1000 bytes."),
    (b"d-1,basic,7\n", "line 1  malformed_line  It has 3 columns, where there are two: device_id and tier."),
    (b"", "line 1  empty_file  There is no device in it."),
    (b"device_id,tier\n", "line 1  empty_file  There is no device in it."),
    (b"d-1\n\nd-2\nd-1,basic\n", "line 4  d-1  named_twice  d-1 is in line 1 already."),
    (b"d-1,gold\n", "line 1  d-1  no_such_tier  There is no device tier gold."),
    (b"d-1\nd 2\n", "line 2  d 2  invalid_device_id  A device id is 1 to 128 letters, digits and . _ : @ + = ~ -, "
                    "and begins with a letter or a digit."),
]  # fmt: skip


@pytest.mark.parametrize(("content", "told"), MALFORMED)
def test_what_is_wrong_with_a_line_is_told_with_its_number_and_nothing_is_written(content: bytes, told: str) -> None:
    s = fleet(basic=9)
    with nothing_changes():
        ran = run(s, content, "--tier", "basic")
    assert ran.err == [told]
    assert ran.error.startswith("1 of ")
    assert ran.error.endswith(" failed: nothing was written.")
    assert ran.out[0].startswith("0 got a slot")


def test_more_devices_than_free_slots_are_told_line_by_line_and_nothing_is_written() -> None:
    s = fleet(basic=2, premium=1)
    slots.assign(s.tenant_id, "d-0", "basic", **BY)
    with nothing_changes():
        ran = run(s, b"d-0,basic\nd-1,basic\nd-2,basic\nd-3,premium\nd-0x,gold\n")
    full = "1 of 2 slots of the tier basic are in use, 2 more are wanted."
    assert ran.err == [
        f"line 3  d-2  no_free_slot  {full}",
        "line 5  d-0x  no_such_tier  There is no device tier gold.",
    ]
    assert ran.error == "2 of 5 lines failed: nothing was written."


def test_a_device_in_a_slot_of_another_tier_and_a_tier_that_is_not_sold_are_told() -> None:
    s = fleet(basic=2)
    tier("gold")
    slots.assign(s.tenant_id, "d-1", "basic", **BY)
    assert run(s, b"d-1,gold\nd-2,gold\n").err == [
        "line 1  d-1  tier_differs  d-1 has a slot of the tier basic.",
        "line 2  d-2  tier_not_sold  No subscription of this tenant that serves now sells slots of this tier.",
    ]


def test_a_device_in_a_slot_of_another_tenant_is_told_until_it_is_released_there() -> None:
    s, other = fleet(basic=2), fleet(basic=2)
    slots.assign(other.tenant_id, "d-1", "basic", **BY)
    with nothing_changes():
        ran = run(s, b"d-1,basic\nd-2,basic\n")
        written = imports.write(s.tenant_id, lines(2), actor=ALICE, now=lambda: TERM[0], reason="order 7")
    slug = other.tenant.slug
    assert ran.err == [f"line 1  d-1  still_assigned  d-1 has a slot at the tenant {slug}: release it there first."]
    assert [(f.line, f.code) for f in written.failures] == [(1, "still_assigned"), (2, "batch_refused")]
    slots.release(other.tenant_id, "d-1", **BY)
    assert run(s, b"d-1,basic\nd-2,basic\n").out == ["2 got a slot, 0 have theirs, 0 failed."]


def test_the_same_file_again_changes_nothing() -> None:
    s = fleet(basic=2)
    run(s, b"d-1,basic\n")
    assert run(s, b"d-1,basic\nd-2,basic\n").out == ["1 got a slot, 1 have theirs, 0 failed."]
    with nothing_changes():
        assert run(s, b"d-1,basic\nd-2,basic\n") == Ran(["0 got a slot, 2 have theirs, 0 failed."], [])


def test_a_dry_run_says_what_would_happen_and_writes_nothing() -> None:
    s = fleet(basic=2)
    with nothing_changes():
        assert run(s, b"d-1,basic\n", "--dry-run") == Ran(["1 would get a slot, 0 have theirs, 0 failed."], [])
        assert run(s, b"d-1,gold\n", "--dry-run").error == "1 of 1 lines failed: nothing was written."


def test_slots_are_taken_of_the_subscription_that_is_named() -> None:
    s = fleet(basic=5)
    other = subscription(Type.TEMPORARY, tenant=s.tenant, slots={"basic": 1}, term=TERM, now=TERM[0])
    run(s, b"d-1,basic\n", "--subscription", other.number)
    assert (used(s), used(other)) == ({"basic": (0, 5)}, {"basic": (1, 1)})
    with nothing_changes():
        assert run(s, b"d-2,basic\n", "--subscription", other.number).err[0].startswith("line 1  d-2  no_free_slot")
    strange = fleet(basic=1).number
    assert run(s, b"d-2,basic\n", "--subscription", strange).error == f"{s.tenant.slug} has no subscription {strange}."


def test_who_and_what_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    s = fleet(basic=1)
    assert run(s, b"d-1\n", "--tier", "gold").error == "There is no device tier gold."
    assert run(s, b"d-1\n", "--as", "nobody").error == "nobody is no active member of staff."
    with pytest.raises(CommandError, match=r"There is no tenant nobody\."):
        call_command("import_devices", "nobody", "-", "--reason", "order 7")
    with pytest.raises(CommandError, match=r"x\.csv cannot be read: No such file"):
        call_command("import_devices", s.tenant.slug, str(tmp_path / "x.csv"), "--reason", "order 7")


def test_json_is_an_object_a_line_that_failed_and_one_for_the_file() -> None:
    s = fleet(basic=1)
    ran = run(s, b"d-1,gold\n", "--json")
    assert [json.loads(line) for line in ran.out] == [
        {"line": 1, "device_id": "d-1", "code": "no_such_tier", "detail": "There is no device tier gold."},
        {"assigned": 0, "unchanged": 0, "failed": 1, "written": False},
    ]
    done = {"assigned": 1, "unchanged": 0, "failed": 0, "written": True}
    assert [json.loads(line) for line in run(s, b"d-1,basic\n", "--json").out] == [done]


def lines(count: int, first: int = 1) -> list[Line]:
    return [Line(n, f"d-{n}", "basic") for n in range(first, first + count)]


def test_a_batch_that_lost_its_room_meanwhile_is_told_line_by_line_and_others_are_written() -> None:
    s = fleet(basic=1_001)
    tier("gold")
    all_ = [*lines(1_000), *lines(2, 1_001), Line(1_003, "d-1003", "gold")]
    done = imports.write(s.tenant_id, all_, actor=ALICE, now=lambda: TERM[0], reason="order 7")
    assert (done.assigned, [(f.line, f.code) for f in done.failures]) == (
        1_000, [(1_001, "batch_refused"), (1_002, "no_free_slot"), (1_003, "tier_not_sold")],
    )  # fmt: skip
    assert used(s) == {"basic": (1_000, 1_001)}


def statements(count: int, first: int) -> int:
    s = fleet(basic=5_000)
    with CaptureQueriesContext(connection) as asked:
        imports.check(s.tenant_id, lines(count, first), now=TERM[0])
        imports.write(s.tenant_id, lines(count, first), actor=ALICE, now=lambda: TERM[0], reason="order 7")
    return len([query for query in asked if "SAVEPOINT" not in query["sql"]])


def test_a_thousand_devices_take_as_many_statements_as_one() -> None:
    assert statements(1, 1) == statements(1_000, 2) == 9
    assert Device.objects.count() == 1_001


def test_a_long_line_is_read_in_pieces() -> None:
    found = imports.read(BytesIO(b"x" * 3_000_000 + b"\nd-2,basic\n"))
    assert ([f.line for f in found.failures], found.lines) == ([1], [Line(2, "d-2", "basic")])
