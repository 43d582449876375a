"""Where there is room: the allocations of a tenant that serve, the most durable first; and the locks over them.

The order of locks, for everybody: device ids across tenants (`provisioning`, by their numbers), a family's root
(`families.locked`), the tenant, its allocations by id, devices. Whoever takes a single slot locks that allocation and
that device and nothing else (for the platform: its id, before them), so that a busy tenant queues on no row but the
slots themselves. Everybody else locks the tenant first, so no two of them can wait for each other.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import psycopg
from django.db import connection

from entitlements.errors import NoFreeSlot, NoSuchTier, TierNotSold
from entitlements.models import PlanSlots, TierAllocation
from subscriptions import serving
from subscriptions.errors import DomainError
from subscriptions.states import Type
from subscriptions.unread import THIS

DURABILITY = (Type.MAIN, Type.ADDON, Type.TRIAL, Type.TEMPORARY)

_RANK = " ".join(f"WHEN '{type}' THEN {place}" for place, type in enumerate(DURABILITY))
MOST_DURABLE = f"CASE s.type {_RANK} END, s.term_end DESC, a.id"

# What may be assigned from now, joined to `s` and to what `serving` needs. `is_open`: a subscription that is over may
# be read here as it was a moment ago; its allocation was closed under the lock that taking a slot waits for.
ANY_SERVING = f"""
    tier_allocations AS a JOIN subscriptions AS s ON s.id = a.subscription_id {serving.JOIN}
     WHERE a.is_open AND {serving.NOW} AND"""
SERVING = f"{ANY_SERVING} a.tenant_id = %(tenant)s"
HAS_ROOM = "a.is_open AND a.slots_used < a.slot_limit"

# Free slots as one numbered row per tenant and tier: an allocation gives the places after `before`, `free` of them.
ROOM = f"""
    room AS MATERIALIZED (
        SELECT a.id, a.tenant_id, a.tier_id, a.slot_limit - a.slots_used AS free,
               sum(a.slot_limit - a.slots_used) OVER (PARTITION BY a.tenant_id, a.tier_id ORDER BY {MOST_DURABLE})
                   - (a.slot_limit - a.slots_used) AS before
          FROM {ANY_SERVING} a.tenant_id = ANY(%(tenants)s) AND a.slots_used < a.slot_limit AND a.id <> ALL(%(closing)s)
           AND (%(only)s::bigint IS NULL OR a.subscription_id = %(only)s)
    )"""

# From `waiting` (device_pk, tenant_id, tier_id, place) into `room`. Counters move by what was really written.
PLACE = """
    placed AS MATERIALIZED (
        SELECT waiting.device_pk, room.id AS allocation_id, room.tenant_id, room.tier_id
          FROM waiting JOIN room ON room.tenant_id = waiting.tenant_id AND room.tier_id = waiting.tier_id
           AND waiting.place > room.before AND waiting.place <= room.before + room.free
    ), taken AS (
        UPDATE tier_allocations AS a SET slots_used = a.slots_used + by_allocation.count
          FROM (SELECT allocation_id, count(*) AS count FROM placed GROUP BY allocation_id) AS by_allocation
         WHERE a.id = by_allocation.allocation_id
        RETURNING a.id
    )"""
INTO_ASSIGNMENTS = (
    "INSERT INTO slot_assignments (allocation_id, tier_id, device_id, tenant_id, assigned_at, assigned_by, source_id,"
    " reason, released_by, ended, end_reason)"
)
ASSIGN_PLACED = f"""
    assigned AS (
        {INTO_ASSIGNMENTS}
        SELECT placed.allocation_id, placed.tier_id, placed.device_pk, placed.tenant_id, %(now)s, %(actor)s, %(source)s,
               %(reason)s, '', '', ''
          FROM placed JOIN taken ON taken.id = placed.allocation_id {{also}}
         ORDER BY placed.device_pk
        RETURNING id, device_id, allocation_id
    )"""

# The longest parked first, no more than there is room for.
RETURN_PARKED = f"""
    WITH {ROOM}, waiting AS (
        SELECT parked.id AS device_pk, tiers.tenant_id, tiers.tier_id,
               row_number() OVER (PARTITION BY tiers.tenant_id, tiers.tier_id ORDER BY parked_at, parked.id) AS place
          FROM (SELECT tenant_id, tier_id, sum(free) AS free FROM room GROUP BY tenant_id, tier_id) AS tiers
         CROSS JOIN LATERAL (
               SELECT d.id, d.parked_at FROM devices AS d
                WHERE d.tenant_id = tiers.tenant_id AND d.parked_tier_id = tiers.tier_id AND d.parked_at IS NOT NULL
                ORDER BY d.parked_at, d.id LIMIT tiers.free) AS parked
    ), {PLACE}, back AS (
        UPDATE devices AS d SET parked_at = NULL, parked_tier_id = NULL, transaction_id = {THIS}
          FROM placed WHERE d.id = placed.device_pk
        RETURNING d.id
    ), {ASSIGN_PLACED.format(also="JOIN back ON back.id = placed.device_pk")}
    SELECT count(*) FROM assigned"""


def lock(*tenant_ids: int) -> None:
    """All slots of these tenants, until the transaction ends. What is read of them is read by later statements."""
    with connection.cursor() as cursor:
        for statement in (
            "SELECT FROM tenants WHERE id = ANY(%s) ORDER BY id FOR NO KEY UPDATE",
            "SELECT FROM tier_allocations WHERE tenant_id = ANY(%s) AND is_open ORDER BY id FOR NO KEY UPDATE",
        ):
            cursor.execute(statement, [[*tenant_ids]])


def said(tenant_ids: Sequence[int], now: datetime, actor: str, source_id: str, reason: str) -> dict[str, Any]:
    """The parameters that every statement here takes."""
    return {
        "tenants": [*tenant_ids], "now": now, "actor": actor, "source": source_id, "reason": reason, "closing": [],
        "only": None, **serving.windows(),
    }  # fmt: skip


def one(statement: str, parameters: dict[str, Any]) -> Sequence[Any] | None:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        row: Sequence[Any] | None = cursor.fetchone()
        return row


def prepared(statement: str, parameters: dict[str, Any]) -> Sequence[Any] | None:
    """`one`, for a statement that is asked all day: Django's own cursor binds on the client, so the server parses and
    plans it each time, which takes longer than to do it. Whether it is prepared is `DATABASE_PREPARES`' to say.
    """
    connection.close_if_health_check_failed()
    connection.ensure_connection()
    wrapped = connection.make_debug_cursor if connection.queries_logged else connection.make_cursor
    with wrapped(psycopg.Cursor(connection.connection)) as cursor:  # type: ignore[arg-type]
        cursor.execute(statement, parameters)
        row: Sequence[Any] | None = cursor.fetchone()
        return row


def every(statement: str, parameters: dict[str, Any]) -> Sequence[Sequence[Any]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        rows: Sequence[Sequence[Any]] = cursor.fetchall()
        return rows


def return_parked(*tenant_ids: int, actor: str, now: datetime, source_id: str = "") -> int:
    """Parked devices go back into free slots, the longest parked first; how many did. The caller holds `lock`."""
    back = one(RETURN_PARKED, said(tenant_ids, now, actor, source_id, "Room came back"))
    return int(back[0]) if back else 0


def by_tier(tenant_id: int, now: datetime) -> dict[int, tuple[int, int]]:
    """How many slots of each tier serve a tenant now, and how many of them are in use; by the tier's key. One query."""
    statement = f"SELECT a.tier_id, sum(a.slot_limit), sum(a.slots_used) FROM {SERVING} GROUP BY a.tier_id"
    rows = every(statement, {"tenant": tenant_id, "now": now, **serving.windows()})
    return {tier_id: (int(limit), int(used)) for tier_id, limit, used in rows}


# --- why there is none -----------------------------------------------------------------------------------------------


def no_such_tier(code: str) -> NoSuchTier:
    return NoSuchTier(f"There is no device tier {code}." if code else "Name a tier: none is the default.", tier=code)


def none_left(
    tenant_id: int, tier: str, wanted: int, now: datetime, subscription_id: int | None, *, given_back: int = 0
) -> DomainError:
    """Why there is no slot, in numbers, and what would help: a TierNotSold or a NoFreeSlot. `given_back` are in use
    only until the caller's transaction is rolled back.
    """
    statement = f"""
        SELECT count(*), coalesce(sum(a.slot_limit), 0), coalesce(sum(a.slots_used), 0) FROM {SERVING}
           AND a.tier_id = (SELECT id FROM device_tiers WHERE code = %(tier)s) AND a.slot_limit > 0
           AND (%(only)s::bigint IS NULL OR a.subscription_id = %(only)s)"""
    parameters = {"tenant": tenant_id, "tier": tier, "only": subscription_id, "now": now, **serving.windows()}
    count, limit, used = one(statement, parameters) or (0, 0, 0)
    used -= given_back
    sells = PlanSlots.objects.filter(tier__code=tier, plan__is_sold=True).order_by("plan__code")
    plans = [*sells.values_list("plan__code", flat=True)[:20]]
    facts: dict[str, Any] = {"tier": tier, "limit": int(limit), "used": int(used), "available": int(limit - used)}
    if not count:
        held = TierAllocation.objects.filter(tenant=tenant_id, tier__code=tier, is_open=True, slot_limit__gt=0)
        if numbers := [*held.order_by("pk").values_list("subscription__number", flat=True)[:3]]:
            help_ = f"{', '.join(numbers)} would, and does not serve now: renew it, or wait until it begins."
        else:
            help_ = f"Buy a plan that sells it: {', '.join(plans)}." if plans else "No plan on sale sells it."
        return TierNotSold(would_help=help_, plans=plans, **facts)
    detail = f"{used} of {limit} slots of the tier {tier} are in use" + (
        f", {wanted} more are wanted." if wanted > 1 else "."
    )
    help_ = "Release a device, or buy more slots" + (f": {', '.join(plans)}." if plans else ".")
    return NoFreeSlot(detail, would_help=help_, plans=plans, **facts)
