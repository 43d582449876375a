"""Whether slots are what they must be: rows that break a rule are found, named, and brought back.

The database refuses most of them. What is looked for here is what remains where a constraint was dropped, a backup was
put back in part, or somebody wrote by hand; and what a job should have settled by now. Looking takes no locks: each
check is one statement, which sees the slots as they are between two transactions. Repairing takes all locks of a tenant
and looks again under them. To add a check, add a row to CHECKS: they are repaired in its order.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import connection, transaction
from django.db.models import F, Q
from django.db.models.functions import Coalesce

from entitlements import room
from entitlements.models import SlotAssignment, TierAllocation
from subscriptions import serving
from subscriptions.audit import Actor, Change, Differences, check_reason, write
from subscriptions.models import AuditEntry, Subscription
from subscriptions.states import Action, Status
from subscriptions.unread import THIS

LATE = timedelta(minutes=5)  # after which the job that follows subscriptions (`follow.catch_up`) should have been here
CHUNK = 1_000  # rows that are in memory at once
Ended = SlotAssignment.Ended


@dataclass(frozen=True)
class Broken:
    """A row that breaks a rule: which, whose, and how."""

    check: str
    tenant_id: int
    subscription_id: int | None
    allocation_id: int | None
    tier_id: int | None
    assignment_id: int | None
    device_pk: int | None
    should_be: int | None
    number: str
    tier: str
    device: str
    how: str


@dataclass(frozen=True)
class Check:
    """A rule: its sentence, the rows that break it, and the statements that repair them, which take the rows' columns
    as arrays. None: nobody but a person can.
    """

    name: str
    sentence: str
    rows: str
    repair: Sequence[str] | None
    repaired: str  # how, in words


# --- the rows that break a rule --------------------------------------------------------------------------------------

_OF_ALLOCATION = "a.tenant_id, s.id AS subscription_id, a.id AS allocation_id, a.tier_id"
_ALLOCATIONS = """
    tier_allocations AS a JOIN subscriptions AS s ON s.id = a.subscription_id
    JOIN device_tiers AS tier ON tier.id = a.tier_id"""
_ASSIGNMENTS = f"""
    {_ALLOCATIONS} JOIN slot_assignments AS x ON x.allocation_id = a.id AND x.released_at IS NULL
    JOIN devices AS d ON d.id = x.device_id"""
_OF_TENANT = "(%(tenant)s::bigint IS NULL OR a.tenant_id = %(tenant)s)"
_NEWS = "SELECT FROM subscription_audit AS e WHERE e.subscription_id = s.id AND e.recorded_at > %(late)s"
_LONG_OVER = f"(s.status = '{Status.EXPIRED}' AND NOT EXISTS ({_NEWS}))"
_IN_USE = """
    CROSS JOIN LATERAL (
        SELECT count(*)::int AS devices FROM slot_assignments WHERE allocation_id = a.id AND released_at IS NULL
    ) AS in_use"""


def _allocation(how: str, where: str, *, also: str = "", should_be: str = "NULL::int") -> str:
    return f"""
        SELECT {_OF_ALLOCATION}, NULL::bigint AS assignment_id, NULL::bigint AS device_pk, {should_be} AS should_be,
               s.number, tier.code, '' AS device, {how}
          FROM {_ALLOCATIONS} {also} WHERE {_OF_TENANT} AND {where}"""


def _assignment(how: str, where: str) -> str:
    return f"""
        SELECT {_OF_ALLOCATION}, x.id AS assignment_id, d.id AS device_pk, NULL::int AS should_be,
               s.number, tier.code, d.device_id AS device, {how}
          FROM {_ASSIGNMENTS} WHERE {_OF_TENANT} AND {where}"""


_STRAYS = """
    SELECT coalesce(a.tenant_id, d.tenant_id, x.tenant_id) AS tenant_id, s.id AS subscription_id,
           a.id AS allocation_id, coalesce(a.tier_id, x.tier_id), x.id AS assignment_id, d.id AS device_pk,
           NULL::int AS should_be, coalesce(s.number, ''), coalesce(tier.code, ''), coalesce(d.device_id, '') AS device,
           CASE WHEN a.id IS NULL THEN 'is in a slot of no subscription'
                WHEN d.id IS NULL THEN 'there is no such device'
                WHEN d.tenant_id <> a.tenant_id THEN 'is another tenant''s device'
                ELSE 'its assignment says another tier or tenant than its slot' END
      FROM slot_assignments AS x
      LEFT JOIN tier_allocations AS a ON a.id = x.allocation_id
      LEFT JOIN subscriptions AS s ON s.id = a.subscription_id
      LEFT JOIN devices AS d ON d.id = x.device_id
      LEFT JOIN device_tiers AS tier ON tier.id = coalesce(a.tier_id, x.tier_id)
     WHERE x.released_at IS NULL AND (
           a.id IS NULL OR d.id IS NULL OR d.tenant_id <> a.tenant_id
           OR (x.tier_id, x.tenant_id) IS DISTINCT FROM (a.tier_id, a.tenant_id))
       AND (%(tenant)s::bigint IS NULL OR coalesce(a.tenant_id, d.tenant_id, x.tenant_id) = %(tenant)s)"""

_DOUBLED = """EXISTS (
    SELECT FROM slot_assignments AS older
     WHERE older.device_id = x.device_id AND older.released_at IS NULL AND older.id < x.id)"""

_WRONGLY_PARKED = """
    SELECT d.tenant_id, s.id AS subscription_id, a.id AS allocation_id, a.tier_id, x.id AS assignment_id,
           d.id AS device_pk, NULL::int AS should_be, coalesce(s.number, ''), coalesce(tier.code, ''),
           d.device_id AS device,
           CASE WHEN x.id IS NULL THEN 'is deleted, and parked' ELSE 'has a slot, and is parked' END
      FROM devices AS d
      LEFT JOIN slot_assignments AS x ON x.device_id = d.id AND x.released_at IS NULL
      LEFT JOIN tier_allocations AS a ON a.id = x.allocation_id
      LEFT JOIN subscriptions AS s ON s.id = a.subscription_id
      LEFT JOIN device_tiers AS tier ON tier.id = a.tier_id
     WHERE d.parked_at IS NOT NULL AND (x.id IS NOT NULL OR d.deleted_at IS NOT NULL)
       AND (%(tenant)s::bigint IS NULL OR d.tenant_id = %(tenant)s)"""

_TOLD = """
    CROSS JOIN LATERAL (SELECT 'slots.' || tier.code AS key) AS said
    LEFT JOIN LATERAL (
        SELECT (e.changes->said.key->>1)::int AS slots FROM subscription_audit AS e
         WHERE e.subscription_id = s.id AND jsonb_exists(e.changes, said.key) ORDER BY e.version DESC LIMIT 1
    ) AS told ON true"""
_SAYS = "CASE WHEN told.slots IS NULL THEN 'nothing of it' ELSE told.slots::text END"

_MISSING = f"""
    SELECT s.tenant_id, s.id AS subscription_id, NULL::bigint AS allocation_id, tier.id, NULL::bigint AS assignment_id,
           NULL::bigint AS device_pk, told.slots AS should_be, s.number, tier.code, '' AS device,
           'holds none of it, and its audit says ' || told.slots
      FROM (SELECT DISTINCT e.subscription_id, change.key FROM subscription_audit AS e
             CROSS JOIN LATERAL jsonb_object_keys(e.changes) AS change (key)
             WHERE change.key LIKE 'slots.%%' AND (%(tenant)s::bigint IS NULL OR e.tenant_id = %(tenant)s)) AS spoken
      JOIN subscriptions AS s ON s.id = spoken.subscription_id
      JOIN device_tiers AS tier ON 'slots.' || tier.code = spoken.key {_TOLD}
     WHERE told.slots > 0
       AND NOT EXISTS (SELECT FROM tier_allocations AS a WHERE a.subscription_id = s.id AND a.tier_id = tier.id)"""

_OVERSOLD = f"""
    SELECT {_OF_ALLOCATION}, x.id AS assignment_id, d.id AS device_pk, NULL::int AS should_be, s.number, tier.code,
           coalesce(d.device_id, '') AS device, 'is one of ' || in_use.devices || ' devices in ' || a.slot_limit || ' slots'
      FROM {_ALLOCATIONS} {_IN_USE}
     CROSS JOIN LATERAL (
           SELECT id, device_id FROM slot_assignments WHERE allocation_id = a.id AND released_at IS NULL
            ORDER BY id DESC LIMIT in_use.devices - a.slot_limit) AS x
      LEFT JOIN devices AS d ON d.id = x.device_id
     WHERE {_OF_TENANT} AND in_use.devices > a.slot_limit"""  # noqa: E501

# Room that is newer than `late`, and devices that are parked since then, are the job's: it has not been late yet.
_COULD_RETURN = f"""
    SELECT has.tenant_id, NULL::bigint AS subscription_id, NULL::bigint AS allocation_id, has.tier_id,
           NULL::bigint AS assignment_id, d.id AS device_pk, NULL::int AS should_be, '', tier.code,
           d.device_id AS device, 'is parked, and there is room'
      FROM (SELECT a.tenant_id, a.tier_id, sum(a.slot_limit - a.slots_used) AS free FROM {room.ANY_SERVING}
                   a.slots_used < a.slot_limit AND s.term_start <= %(late)s AND NOT EXISTS ({_NEWS}) AND {_OF_TENANT}
             GROUP BY a.tenant_id, a.tier_id) AS has
      JOIN device_tiers AS tier ON tier.id = has.tier_id
     CROSS JOIN LATERAL (
           SELECT id, device_id FROM devices
            WHERE tenant_id = has.tenant_id AND parked_tier_id = has.tier_id AND parked_at <= %(late)s
            ORDER BY parked_at, id LIMIT has.free) AS d"""

# --- what repairs them -----------------------------------------------------------------------------------------------

_TOUCH = f"UPDATE devices SET transaction_id = {THIS} WHERE id = ANY(%(device_pk)s)"
_PARK = f"""
    UPDATE devices AS d SET transaction_id = {THIS}, parked_at = %(now)s, parked_tier_id = lost.tier_id
      FROM unnest(%(device_pk)s::bigint[], %(tier_id)s::bigint[]) AS lost (device_pk, tier_id)
     WHERE d.id = lost.device_pk AND d.deleted_at IS NULL AND d.parked_at IS NULL
       AND NOT EXISTS (SELECT FROM slot_assignments AS x WHERE x.device_id = d.id AND x.released_at IS NULL)"""
_UNPARK = f"""
    UPDATE devices SET transaction_id = {THIS}, parked_at = NULL, parked_tier_id = NULL WHERE id = ANY(%(device_pk)s)"""
_RECOUNT = """
    UPDATE tier_allocations SET slots_used = should.be
      FROM unnest(%(allocation_id)s::bigint[], %(should_be)s::int[]) AS should (allocation_id, be)
     WHERE id = should.allocation_id"""
_SET_LIMITS = """
    UPDATE tier_allocations SET slot_limit = should.be, slots_used = least(slots_used, should.be)
      FROM unnest(%(allocation_id)s::bigint[], %(should_be)s::int[]) AS should (allocation_id, be)
     WHERE id = should.allocation_id"""
_ALLOCATE = f"""
    INSERT INTO tier_allocations (subscription_id, tier_id, slot_limit, slots_used, is_open)
    SELECT s.id, should.tier_id, should.be, 0, s.status <> '{Status.EXPIRED}'
      FROM unnest(%(subscription_id)s::bigint[], %(tier_id)s::bigint[], %(should_be)s::int[])
           AS should (subscription_id, tier_id, be) JOIN subscriptions AS s ON s.id = should.subscription_id"""
_CLOSE = "UPDATE tier_allocations SET is_open = false WHERE id = ANY(%(allocation_id)s)"
_OPEN = "UPDATE tier_allocations SET is_open = true WHERE id = ANY(%(allocation_id)s)"


def _end(ended: SlotAssignment.Ended) -> str:
    return f"""
        UPDATE slot_assignments
           SET released_at = greatest(%(now)s, assigned_at), released_by = %(actor)s, ended = '{ended}',
               end_reason = %(reason)s
         WHERE id = ANY(%(assignment_id)s)"""


CHECKS = (
    Check(
        "stray_assignment",
        "A device is in a slot of its own tenant and of the assignment's tier.",
        _STRAYS,
        (_end(Ended.RELEASED), _TOUCH),
        "it leaves that slot",
    ),
    Check(
        "two_slots",
        "A device is in one slot at a time.",
        _assignment("'is in an older slot, too'", _DOUBLED),
        (_end(Ended.RELEASED), _TOUCH),
        "it keeps the older one",
    ),
    Check(
        "deleted_in_a_slot",
        "A deleted device is in no slot.",
        _assignment("'is deleted, and has a slot'", "d.deleted_at IS NOT NULL"),
        (_end(Ended.DELETED), _TOUCH),
        "it leaves its slot",
    ),
    Check(
        "slot_of_what_is_over",
        "What is over has no devices.",
        _assignment(
            "'is in a slot of what is ' || CASE WHEN a.is_open THEN 'over' ELSE 'closed' END",
            f"(NOT a.is_open OR {_LONG_OVER})",
        ),
        (_end(Ended.PARKED), _PARK),
        "it parks, and returns where there is room",
    ),
    Check(
        "wrongly_parked",
        "What is parked has no slot, and is not deleted.",
        _WRONGLY_PARKED,
        (_UNPARK,),
        "it is parked no more",
    ),
    Check(
        "limit_without_evidence",
        "A limit is what the audit says last.",
        _allocation(
            f"'has a limit of ' || a.slot_limit || ', and its audit says ' || {_SAYS}",
            "a.slot_limit <> coalesce(told.slots, 0)",
            also=_TOLD,
            should_be="coalesce(told.slots, 0)",
        ),
        (_SET_LIMITS,),
        "it is what the audit says",
    ),
    Check(
        "lost_allocation",
        "What the audit says that was bought is there.",
        _MISSING,
        (_ALLOCATE,),
        "it is made again",
    ),
    Check(
        "oversold",
        "There are no more devices than slots.",
        _OVERSOLD,
        (_end(Ended.PARKED), _PARK),
        "who came last parks, and returns where there is room",
    ),
    Check(
        "wrong_counter",
        "The counter is the number of devices.",
        _allocation(
            "'counts ' || a.slots_used || ' devices in its slots, and has ' || in_use.devices",
            "a.slots_used <> in_use.devices",
            also=_IN_USE,
            should_be="in_use.devices",
        ),
        (_RECOUNT,),
        "it is counted again",
    ),
    Check(
        "open_though_over",
        "What is over is closed.",
        _allocation("'is over, and its slots are open'", f"a.is_open AND {_LONG_OVER}"),
        (_CLOSE,),
        "it is closed",
    ),
    Check(
        "closed_though_alive",
        "What is not over is open.",
        _allocation("'is not over, and its slots are closed'", f"NOT a.is_open AND s.status <> '{Status.EXPIRED}'"),
        (_OPEN,),
        "it is opened",
    ),
    Check(
        "another_tenants_slots",
        "Slots are of their subscription's tenant.",
        _allocation("'is another tenant''s than its slots'", "a.tenant_id <> s.tenant_id"),
        None,
        "by hand: whose slots are never changes, and their history hangs on it",
    ),
    Check(
        "parked_beside_room",
        "Nobody is parked where there is room.",
        _COULD_RETURN,
        (),  # `repair` lets them return
        "it returns",
    ),
)


# --- looking ---------------------------------------------------------------------------------------------------------


def verify(
    *, now: datetime, tenant_id: int | None = None, tick: Callable[[str, int], None] = lambda what, count: None
) -> Iterator[Broken]:
    """Every row that breaks a rule, of all tenants or of one. No locks; a bounded number of rows is in memory."""
    for number, check in enumerate(CHECKS):
        tick(f"of {len(CHECKS)} rules looked at", number)
        yield from _broken(check, now, tenant_id)


def _broken(check: Check, now: datetime, tenant_id: int | None) -> Iterator[Broken]:
    parameters = {"tenant": tenant_id, "now": now, "late": now - LATE, **serving.windows()}
    in_order = f"SELECT * FROM ({check.rows}) AS broken ORDER BY tenant_id, allocation_id, assignment_id, device_pk"
    with transaction.atomic(), connection.chunked_cursor() as cursor:
        cursor.execute(in_order, parameters)
        while rows := cursor.fetchmany(CHUNK):
            yield from (Broken(check.name, *row) for row in rows)


# --- repairing -------------------------------------------------------------------------------------------------------


@transaction.atomic
def repair(tenant_id: int, *, actor: Actor, now: datetime, reason: str, source_id: str = "") -> list[AuditEntry]:
    """Bring back what breaks a rule in a tenant's slots, but for what only a person can; the entries that say so, one
    for each subscription. Its parked devices return where there is room. Safe to repeat. Raises ReasonMissing.
    """
    check_reason(actor, reason)
    _lock(tenant_id)
    before = _slots(tenant_id)
    found: dict[int, Counter[str]] = {}  # subscription → rule and tier → rows
    for check in CHECKS:
        if check.repair is None:
            continue
        rows = [*_broken(check, now, tenant_id)]
        said = {column: [vars(row)[column] for row in rows] for column in _ARRAYS}
        for row in rows:
            if row.subscription_id:
                found.setdefault(row.subscription_id, Counter())[f"{check.name}.{row.tier}"] += 1
        for statement in check.repair if rows else ():
            with connection.cursor() as cursor:
                cursor.execute(statement, said | {"now": now, "actor": actor, "reason": reason})
    entries = _written(found, before, _slots(tenant_id), actor=actor, now=now, reason=reason, source_id=source_id)
    room.return_parked(tenant_id, actor=actor, now=now, source_id=source_id)
    return entries


_ARRAYS = ("subscription_id", "allocation_id", "tier_id", "assignment_id", "device_pk", "should_be")


def _lock(tenant_id: int) -> None:
    """Everything that a repair may write: families first, then slots (see `room`)."""
    held = TierAllocation.objects.filter(tenant=tenant_id).values("subscription")
    its = Subscription.objects.filter(Q(tenant=tenant_id) | Q(pk__in=held))
    roots = Subscription.objects.filter(pk__in=its.values(root=Coalesce(F("parent_id"), F("pk"))))
    [*roots.select_for_update(no_key=True).order_by("pk").values_list("pk", flat=True)]
    room.lock(tenant_id)


_Slots = Mapping[tuple[int, str], Mapping[str, Any]]  # of a subscription and a tier


def _slots(tenant_id: int) -> _Slots:
    rows = TierAllocation.objects.filter(tenant=tenant_id).values_list(
        "subscription_id", "tier__code", "slot_limit", "slots_used", "is_open"
    )
    return {
        (s, tier): {"slots": limit, "slots_used": used, "slots_open": open_} for s, tier, limit, used, open_ in rows
    }


_NO_SLOTS: Mapping[str, Any] = {"slots": 0, "slots_used": 0, "slots_open": None}


def _written(
    found: Mapping[int, Counter[str]],
    before: _Slots,
    after: _Slots,
    *,
    actor: Actor,
    now: datetime,
    reason: str,
    source_id: str,
) -> list[AuditEntry]:
    """An entry for each subscription that had something: what moved, else how many rows of it broke which rule."""
    beside: dict[int, Differences] = {}
    for key, values in sorted(after.items()):
        subscription_id, tier = key
        was = before.get(key, _NO_SLOTS)
        moved = {f"{name}.{tier}": (was[name], value) for name, value in values.items() if was[name] != value}
        if moved:
            beside.setdefault(subscription_id, {}).update(moved)
    for subscription_id, rows in found.items():
        beside.setdefault(subscription_id, {name: (count, 0) for name, count in rows.items()})
    subscriptions = Subscription.objects.in_bulk([*beside])
    changes = [Change(subscriptions[pk], Action.SLOTS_REPAIRED, now, {}, said) for pk, said in sorted(beside.items())]
    return write(changes, actor=actor, source_id=source_id, reason=reason)
