"""Slots for many devices at once, in as many statements as for one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType

from django.db import connection, transaction

from entitlements import room
from entitlements.errors import InvalidDeviceId, TierDiffers, TooMany
from entitlements.slots import Slot, check_device_id
from subscriptions import terms
from subscriptions.audit import Actor, check_reason
from subscriptions.errors import DomainError
from subscriptions.unread import THIS

MOST_DEVICES = 1_000  # a call


@dataclass(frozen=True)
class Wish:
    """A slot that is wanted for a device. An empty tier is the default one."""

    device_id: str
    tier: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of one wish: its slot, or why it has none."""

    device_id: str
    slot: Slot | None = None
    error: DomainError | None = None


# The planner takes what comes out of a CTE for a handful of rows, and joins two of them by comparing each with each: a
# million comparisons for a thousand devices. So `lucky` is counted rather than joined, and what was written is brought
# together with who wished for it outside.
_ASSIGN_MANY = f"""
    WITH {room.ROOM}, has AS MATERIALIZED (
        SELECT tier_id, sum(free) AS free FROM room GROUP BY tier_id
    ), wish AS MATERIALIZED (
        SELECT given.device_id, given.place, tier.id AS tier_id, tier.code, x.id IS NULL AS has_none,
               x.tier_id AS present_tier_id, x.allocation_id, x.assigned_at
          FROM unnest(%(devices)s::text[], %(tiers)s::text[]) WITH ORDINALITY AS given (device_id, tier, place)
          JOIN device_tiers AS tier ON CASE WHEN given.tier = '' THEN tier.is_default ELSE tier.code = given.tier END
          LEFT JOIN LATERAL (
               SELECT d.id FROM devices AS d WHERE d.tenant_id = %(tenant)s AND d.device_id = given.device_id
                LIMIT 1) AS d ON true  -- LIMIT: by its index, however many devices the tenant has
          LEFT JOIN slot_assignments AS x ON x.device_id = d.id AND x.released_at IS NULL
    ), lucky AS MATERIALIZED (
        SELECT wish.device_id, wish.tier_id, wish.place
          FROM (SELECT *, row_number() OVER (PARTITION BY tier_id ORDER BY place) AS number
                  FROM wish WHERE has_none) AS wish
         WHERE wish.number <= (SELECT free FROM has WHERE has.tier_id = wish.tier_id)
    ), device AS (
        INSERT INTO devices (tenant_id, device_id) SELECT %(tenant)s, device_id FROM lucky ORDER BY device_id
        ON CONFLICT (tenant_id, device_id) DO UPDATE
           SET deleted_at = NULL, parked_at = NULL, parked_tier_id = NULL, transaction_id = {THIS}
        RETURNING id, device_id
    ), waiting AS (
        SELECT device.id AS device_pk, %(tenant)s AS tenant_id, lucky.tier_id,
               row_number() OVER (PARTITION BY lucky.tier_id ORDER BY lucky.place) AS place
          FROM lucky JOIN device ON device.device_id = lucky.device_id
    ), {room.PLACE}, {room.ASSIGN_PLACED.format(also="")}
    SELECT 'WISH', NULL, wish.device_id, wish.code, present.code, s.number, wish.assigned_at
      FROM wish LEFT JOIN device_tiers AS present ON present.id = wish.present_tier_id
      LEFT JOIN tier_allocations AS a ON a.id = wish.allocation_id
      LEFT JOIN subscriptions AS s ON s.id = a.subscription_id
    UNION ALL
    SELECT 'DEVICE', id, device_id, NULL, NULL, NULL, NULL FROM device
    UNION ALL
    SELECT 'SLOT', assigned.device_id, NULL, NULL, NULL, s.number, NULL
      FROM assigned JOIN tier_allocations AS a ON a.id = assigned.allocation_id
      JOIN subscriptions AS s ON s.id = a.subscription_id"""


def check_number(wishes: Sequence[Wish]) -> None:
    if len(wishes) > MOST_DEVICES:
        raise TooMany(f"{len(wishes)} devices, where up to {MOST_DEVICES} are taken.", limit=MOST_DEVICES)


def assign_many(
    tenant_id: int,
    wishes: Sequence[Wish],
    *,
    all_or_nothing: bool = True,
    actor: Actor,
    now: datetime,
    subscription_id: int | None = None,
    source_id: str = "",
    reason: str = "",
    refused: Mapping[str, DomainError] = MappingProxyType({}),
) -> list[Outcome]:
    """Give up to 1,000 devices slots, in the order of the wishes; an outcome each. As many statements as for one.

    All or nothing: raises the first error, with `errors` for every device that has one, and nothing is written. Else
    whoever can gets one. Of a device that is named twice the first counts. `refused` is why some get none, whatever
    room there is. Raises TooMany.
    """
    check_reason(actor, reason)
    terms.aware(now, "now")
    check_number(wishes)
    errors = dict(refused)
    for wish in wishes:
        try:
            check_device_id(wish.device_id)
        except InvalidDeviceId as error:
            errors[wish.device_id] = error
    with transaction.atomic():
        room.lock(tenant_id)
        by_device: dict[str, Wish] = {}
        for wish in wishes:
            by_device.setdefault(wish.device_id, wish)
        good = [wish for wish in by_device.values() if wish.device_id not in errors]
        parameters = room.said([tenant_id], now, actor, source_id, reason)
        parameters |= {"tenant": tenant_id, "only": subscription_id}
        parameters |= {"devices": [wish.device_id for wish in good], "tiers": [wish.tier for wish in good]}
        with connection.cursor() as cursor:
            cursor.execute(_ASSIGN_MANY, parameters)
            rows = cursor.fetchall()
        found = {row[2]: row[3:] for row in rows if row[0] == "WISH"}
        names = {row[1]: row[2] for row in rows if row[0] == "DEVICE"}
        taken = {names[row[1]]: row[5] for row in rows if row[0] == "SLOT"}  # device id → the subscription's number
        slots: dict[str, Slot] = {}
        short: dict[str, list[str]] = {}  # tier → devices without a slot of it
        for wish in good:
            device_id = wish.device_id
            if device_id not in found:
                errors[device_id] = room.no_such_tier(wish.tier)
                continue
            code, present, number, assigned_at = found[device_id]
            if device_id in taken:
                slots[device_id] = Slot(device_id, code, taken[device_id], now, is_new=True)
            elif present == code:
                slots[device_id] = Slot(device_id, code, number, assigned_at, is_new=False)
            elif present:
                errors[device_id] = TierDiffers(f"{device_id} has a slot of the tier {present}.", tier=present)
            else:
                short.setdefault(code, []).append(device_id)
        for code, devices in short.items():
            new = sum(slot.is_new and slot.tier == code for slot in slots.values()) if all_or_nothing else 0
            none = room.none_left(tenant_id, code, len(devices) + new, now, subscription_id, given_back=new)
            errors |= dict.fromkeys(devices, none)
        if errors and all_or_nothing:
            first = next(errors[wish.device_id] for wish in wishes if wish.device_id in errors)
            told = [{"device_id": name, "code": error.code, "detail": error.detail} for name, error in errors.items()]
            raise type(first)(first.detail, **first.facts, errors=told)
    return [Outcome(wish.device_id, slots.get(wish.device_id), errors.get(wish.device_id)) for wish in wishes]
