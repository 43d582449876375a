"""`manage.py verify_slots`: each rule of slots broken by hand, found, named and brought back."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from entitlements import limits, slots
from entitlements.limits import Park
from entitlements.models import Device, SlotAssignment, TierAllocation
from entitlements.verify import CHECKS, Broken, repair, verify
from subscriptions import lifecycle
from subscriptions.errors import ReasonMissing
from subscriptions.models import Subscription
from subscriptions.states import Action, EndReason, Type
from tests.builders import ALICE, TenantFactory, subscription, tier
from tests.history import at_once, entries, nothing_changes, refused

pytestmark = pytest.mark.django_db

TODAY = timezone.now().replace(hour=0, minute=0, second=0, microsecond=0)  # the command acts now
TERM = (TODAY - timedelta(days=10), TODAY + timedelta(days=20))
BY: dict[str, Any] = {"actor": ALICE, "now": TERM[0], "reason": "as agreed"}


@dataclass(frozen=True)
class Ran:
    out: list[str]
    err: list[str]
    error: str = ""  # a shell would see a non-zero exit code


def run(*words: str) -> Ran:
    out, err, error = StringIO(), StringIO(), ""
    try:
        call_command("verify_slots", *words, stdout=out, stderr=err)
    except CommandError as refusal:
        error = str(refusal)
    return Ran(out.getvalue().splitlines(), err.getvalue().splitlines(), error)


def fleet(devices: int = 3, slots_: int = 3, type: Type = Type.MAIN, **bought: Any) -> Subscription:
    """A subscription with devices d-1, d-2, … in its slots of the tier basic."""
    s = subscription(type, slots={"basic": slots_}, term=TERM, now=TERM[0], **bought)
    for number in range(1, devices + 1):
        slots.assign(s.tenant_id, f"d-{number}", "basic", **BY)
    return s


def by_hand(*statements: str, **said: Any) -> None:
    """SQL with nothing of ours in its way: constraints and triggers of slots are gone, until the test is over."""
    settle = "SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED"
    away = (
        settle,
        "ALTER TABLE tier_allocations DISABLE TRIGGER USER",
        "ALTER TABLE slot_assignments DISABLE TRIGGER USER",
        "ALTER TABLE devices DISABLE TRIGGER USER",
        "ALTER TABLE tier_allocations DROP CONSTRAINT IF EXISTS slots_are_never_oversold",
        "ALTER TABLE tier_allocations DROP CONSTRAINT IF EXISTS nothing_is_in_use_of_what_is_over",
        "ALTER TABLE devices DROP CONSTRAINT IF EXISTS a_parked_device_waits_for_a_tier",
        "ALTER TABLE slot_assignments DROP CONSTRAINT IF EXISTS an_assignment_is_of_its_allocations_tier_and_tenant",
        "ALTER TABLE slot_assignments DROP CONSTRAINT IF EXISTS an_assignment_is_of_its_devices_tenant",
        "DROP INDEX IF EXISTS one_open_assignment_per_device",
    )
    back = [
        settle,
        *(f"ALTER TABLE {table} ENABLE TRIGGER USER" for table in ("tier_allocations", "slot_assignments", "devices")),
    ]
    with connection.cursor() as cursor:
        for statement in away:
            cursor.execute(statement)
        for statement in statements:
            cursor.execute(statement, said)
        for statement in back:
            cursor.execute(statement)


PARK = "UPDATE devices SET parked_at = %(then)s, parked_tier_id = %(tier)s WHERE device_id = 'd-1'"
ASSIGN = (
    "INSERT INTO slot_assignments (allocation_id, tier_id, device_id, tenant_id, assigned_at, assigned_by, source_id,"
    " reason, released_by, ended, end_reason)"
    " SELECT {allocation}, %(tier)s, id, %(tenant)s, %(then)s, 'staff:1', '', '', '', '', ''"
    " FROM devices WHERE device_id = '{device}'"
)

# What is broken, how, what is told of it, and the devices in slots, the parked, and the limit afterwards.
BROKEN: list[tuple[str, list[str], list[str], int, int, int]] = [
    ("wrong_counter", ["UPDATE tier_allocations SET slots_used = 1"],
     ["basic  –  counts 1 devices in its slots, and has 3"], 3, 0, 3),
    ("limit_without_evidence", ["UPDATE tier_allocations SET slot_limit = 9"],
     ["basic  –  has a limit of 9, and its audit says 3"], 3, 0, 3),
    ("oversold", ["INSERT INTO devices (tenant_id, device_id) VALUES (%(tenant)s, 'd-4')",
                  ASSIGN.format(allocation="%(allocation)s", device="d-4"),
                  "UPDATE tier_allocations SET slots_used = 4"],
     ["basic  d-4  is one of 4 devices in 3 slots"], 3, 1, 3),
    ("deleted_in_a_slot", ["UPDATE devices SET deleted_at = %(then)s WHERE device_id = 'd-1'"],
     ["basic  d-1  is deleted, and has a slot"], 2, 0, 3),
    ("wrongly_parked", [PARK], ["basic  d-1  has a slot, and is parked"], 3, 0, 3),
    ("two_slots", [ASSIGN.format(allocation="%(allocation)s", device="d-1")],
     ["basic  d-1  is in an older slot, too", "basic  d-1  is one of 4 devices in 3 slots",
      "basic  –  counts 3 devices in its slots, and has 4"], 3, 0, 3),
    ("slot_of_what_is_over", ["UPDATE tier_allocations SET is_open = false"],
     ["basic  d-1  is in a slot of what is closed", "basic  d-2  is in a slot of what is closed",
      "basic  d-3  is in a slot of what is closed", "basic  –  is not over, and its slots are closed"], 3, 0, 3),
    ("stray_assignment",
     ["UPDATE slot_assignments SET tier_id = %(other)s WHERE id = (SELECT min(id) FROM slot_assignments)"],
     ["basic  d-1  its assignment says another tier or tenant than its slot"], 2, 0, 3),
    ("lost_allocation", ["DELETE FROM slot_assignments", "DELETE FROM tier_allocations"],
     ["basic  –  holds none of it, and its audit says 3"], 0, 0, 3),
]  # fmt: skip


@pytest.mark.parametrize(("check", "breaking", "told", "used", "parked", "limit"), BROKEN, ids=[b[0] for b in BROKEN])
def test_what_is_broken_is_found_named_and_repaired_with_evidence(
    check: str, breaking: list[str], told: list[str], used: int, parked: int, limit: int
) -> None:
    s = fleet()
    its = s.allocations.get()
    by_hand(*breaking, then=TERM[0], tier=its.tier_id, tenant=s.tenant_id, allocation=its.pk, other=tier("gold").pk)
    found = run()
    assert [line.removeprefix(f"{s.number}  ").rpartition("  (")[0] for line in found.out[:-1]] == told
    assert f"({check})" in found.out[0]
    assert found.error == f"{len(told)} {'row' if len(told) == 1 else 'rows'}."
    repaired = run("--repair", "--reason", "ticket 7")
    assert (repaired.error, repaired.out[-1], repaired.err) == ("", "Every rule of slots holds.", [])
    a = s.allocations.get()
    assert (a.slots_used, a.slot_limit, a.is_open) == (used, limit, True)
    assert SlotAssignment.objects.filter(released_at=None).count() == used
    assert Device.objects.filter(parked_at__isnull=False).count() == parked
    assert (entries(s)[-1].action, entries(s)[-1].reason) == (Action.SLOTS_REPAIRED, "ticket 7")
    assert run().error == ""


def test_the_evidence_of_a_repair_says_what_the_counter_was_and_is() -> None:
    s = fleet()
    by_hand("UPDATE tier_allocations SET slots_used = 1")
    (entry,) = repair(s.tenant_id, **BY | {"now": timezone.now()})
    assert entry.changes == {"slots_used.basic": [1, 3]}


def test_who_came_last_parks_where_there_are_more_devices_than_the_audit_says_slots() -> None:
    s = fleet(devices=3, slots_=3)
    limits.resize(s.pk, "basic", 1, park=Park.NEWEST, **BY)
    for number in (2, 3):
        slots.release(s.tenant_id, f"d-{number}", **BY)
    by_hand("UPDATE tier_allocations SET slot_limit = 3")
    for number in (2, 3):
        slots.assign(s.tenant_id, f"d-{number}", "basic", **BY)
    (entry,) = repair(s.tenant_id, **BY | {"now": timezone.now()})
    assert entry.changes == {"slots.basic": [3, 1], "slots_used.basic": [3, 1]}
    assert [*Device.objects.filter(parked_at=None).values_list("device_id", flat=True)] == ["d-1"]


def over(s: Subscription, **said: Any) -> None:
    lifecycle.expire(s.pk, why=EndReason.CANCELLED, **BY | said)


def checks(*, late: bool) -> list[str]:
    return [row.check for row in verify(now=timezone.now() + timedelta(minutes=6 if late else 0))]


def test_slots_of_what_is_over_are_left_to_the_job_for_a_few_minutes() -> None:
    over(fleet(devices=1))
    assert checks(late=False) == []
    assert checks(late=True) == ["slot_of_what_is_over", "open_though_over"]


def test_devices_of_what_is_over_find_room_elsewhere_or_park() -> None:
    s = fleet(devices=2, slots_=2)
    other = fleet(devices=0, slots_=1, type=Type.TEMPORARY, tenant=s.tenant)
    over(s)
    repair(s.tenant_id, **BY | {"now": timezone.now() + timedelta(minutes=6)})
    assert checks(late=True) == []
    assert [a.slots_used for a in TierAllocation.objects.order_by("pk")] == [0, 1]
    assert entries(s)[-1].changes == {"slots_open.basic": [True, False], "slots_used.basic": [2, 0]}
    assert [*other.allocations.get().assignments.values_list("device__device_id", flat=True)] == ["d-1"]


def test_who_is_parked_beside_room_is_left_to_the_job_for_a_few_minutes_and_then_returns() -> None:
    s = fleet(devices=1)
    slots.release(s.tenant_id, "d-1", **BY)
    by_hand(PARK, then=TERM[0], tier=tier("basic").pk)
    assert checks(late=False) == []
    assert checks(late=True) == ["parked_beside_room"]
    repair(s.tenant_id, **BY | {"now": timezone.now() + timedelta(minutes=6)})
    assert (checks(late=True), s.allocations.get().slots_used) == ([], 1)


def test_a_device_of_another_tenant_leaves_the_slot() -> None:
    s = fleet(devices=1)
    by_hand("UPDATE devices SET tenant_id = %(other)s", other=TenantFactory.create().pk)
    assert checks(late=False) == ["stray_assignment"]
    repair(s.tenant_id, **BY | {"now": timezone.now()})
    assert (checks(late=False), s.allocations.get().slots_used) == ([], 0)


def test_slots_of_another_tenant_than_their_subscriptions_are_told_and_left_to_a_person() -> None:
    s = fleet(devices=0)
    by_hand("UPDATE tier_allocations SET tenant_id = %(other)s", other=TenantFactory.create().pk)
    told = f"{s.number}  basic  –  is another tenant's than its slots  (another_tenants_slots)"
    assert run().out[0] == told
    with nothing_changes():
        repaired = run("--repair", "--reason", "ticket 7")
    assert (repaired.out[-2], repaired.error) == (told, "1 row left.")


def test_every_check_is_broken_by_a_test_here() -> None:
    elsewhere = {"open_though_over", "closed_though_alive", "another_tenants_slots", "parked_beside_room"}
    assert {check.name for check in CHECKS} == {name for name, *_ in BROKEN} | elsewhere


def test_another_tenants_rows_are_neither_told_nor_repaired() -> None:
    s, other = fleet(), fleet()
    by_hand("UPDATE tier_allocations SET slots_used = 1")
    assert len(run("--tenant", s.tenant.slug).out) == 2
    assert run("--tenant", s.tenant.slug, "--repair", "--reason", "ticket 7").error == ""
    assert run().out[0].startswith(other.number)
    assert run("--tenant", "nobody").error == "There is no tenant nobody."


def test_a_repair_says_why() -> None:
    s = fleet()
    by_hand("UPDATE tier_allocations SET slots_used = 1")
    with refused(ReasonMissing):
        repair(s.tenant_id, actor=ALICE, now=timezone.now(), reason="")
    assert run("--repair").error == ""
    assert (entries(s)[-1].action, entries(s)[-1].reason) == (
        Action.SLOTS_REPAIRED, "verify_slots found rows that break a rule",
    )  # fmt: skip


def test_json_is_an_object_a_line_and_nothing_else() -> None:
    s = fleet()
    assert run("--json").out == []
    by_hand("UPDATE tier_allocations SET slots_used = 1")
    (line,) = run("--json").out
    assert json.loads(line) == {
        "check": "wrong_counter", "rule": "The counter is the number of devices.", "tenant_id": s.tenant_id,
        "subscription": s.number, "tier": "basic", "device_id": None,
        "how": "counts 1 devices in its slots, and has 3",
    }  # fmt: skip


def queries(look: Callable[[], object]) -> int:
    with CaptureQueriesContext(connection) as asked:
        look()
    return len([query for query in asked if "SAVEPOINT" not in query["sql"]])


def test_looking_takes_as_many_statements_for_many_slots_as_for_one() -> None:
    fleet(devices=1)
    first = queries(run)
    for _ in range(5):
        fleet()
    assert queries(run) == first == len(CHECKS)


def test_a_second_repair_finds_nothing_to_do() -> None:
    s = fleet()
    with nothing_changes():
        assert repair(s.tenant_id, **BY | {"now": timezone.now()}) == []


@pytest.mark.django_db(transaction=True)
def test_a_busy_system_is_never_told_to_be_broken() -> None:
    s = fleet(devices=0, slots_=40)

    def assign(caller: int) -> list[Broken]:
        for number in range(10):
            slots.assign(s.tenant_id, f"d-{caller}-{number}", "basic", **BY)
            if number % 3 == 0:
                slots.release(s.tenant_id, f"d-{caller}-{number}", **BY)
        return []

    def look() -> list[Broken]:
        return [row for _ in range(5) for row in verify(now=timezone.now() + timedelta(minutes=6))]

    found = at_once(*(partial(assign, caller) for caller in range(6)), look, look)
    assert [rows for rows in found if rows != []] == []
    with transaction.atomic():
        assert s.allocations.get().slots_used == 36
