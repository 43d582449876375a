"""The door to slots: every path that gives a device a slot or takes it away comes through here, or, for many at once,
through `bulk`, or, where there are fewer or more slots, through `limits`.

A slot is taken from the most durable allocation that has room (see `room`), by a statement that moves the counter and
writes the assignment: nothing is compared in Python, and the database refuses a counter above its limit. An assignment
is its own history: who, when, why, until when.

Every verb is safe to repeat. Each raises ReasonMissing for staff who do not say why, and DomainErrors with numbers.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import IntegrityError, connection, transaction

from entitlements import room
from entitlements.errors import DeviceNotFound, InvalidDeviceId, NotAssigned, TierDiffers
from entitlements.models import Device, DeviceTier, SlotAssignment
from subscriptions import terms
from subscriptions.audit import Actor, check_reason
from subscriptions.unread import THIS

DEVICE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+=~-]{0,127}", re.ASCII)  # stands in a URL as it is


@dataclass(frozen=True)
class Slot:
    """A device's slot: its tier, whose it is, since when; whether it was given just now."""

    device_id: str
    tier: str
    subscription: str  # its number
    assigned_at: datetime
    is_new: bool


def _said(tenant_id: int, *of: Any) -> dict[str, Any]:
    return room.said([tenant_id], *of) | {"tenant": tenant_id}


def check_device_id(device_id: str) -> None:
    if not DEVICE_ID.fullmatch(device_id):
        raise InvalidDeviceId


# --- one device ------------------------------------------------------------------------------------------------------

_TAKE = f"""
    WITH tier AS (
        SELECT id, code FROM device_tiers WHERE CASE WHEN %(tier)s = '' THEN is_default ELSE code = %(tier)s END
    ), present AS MATERIALIZED (  -- row by row: a plan that was made while the tables were empty is still a good one
        SELECT x.assigned_at, tiers.code, s.number
          FROM (SELECT id FROM devices WHERE tenant_id = %(tenant)s AND device_id = %(device)s LIMIT 1) AS d
         CROSS JOIN LATERAL (SELECT assigned_at, tier_id, allocation_id FROM slot_assignments
                              WHERE device_id = d.id AND released_at IS NULL LIMIT 1) AS x
         CROSS JOIN LATERAL (SELECT code FROM device_tiers WHERE id = x.tier_id LIMIT 1) AS tiers
         CROSS JOIN LATERAL (SELECT subscription_id FROM tier_allocations WHERE id = x.allocation_id LIMIT 1) AS a
         CROSS JOIN LATERAL (SELECT number FROM subscriptions WHERE id = a.subscription_id LIMIT 1) AS s
    ), found AS MATERIALIZED (
        SELECT a.id, s.number FROM {room.SERVING} AND a.slots_used < a.slot_limit
           AND a.tier_id = (SELECT id FROM tier) AND NOT EXISTS (SELECT FROM present)
           AND (%(only)s::bigint IS NULL OR a.subscription_id = %(only)s)
         ORDER BY {room.MOST_DURABLE} LIMIT 1
    ), taken AS (
        UPDATE tier_allocations AS a SET slots_used = a.slots_used + 1
          FROM found WHERE a.id = found.id AND {room.HAS_ROOM}
        RETURNING a.id, a.tier_id
    ), device AS (
        INSERT INTO devices (tenant_id, device_id) SELECT %(tenant)s, %(device)s FROM taken
        ON CONFLICT (tenant_id, device_id) DO UPDATE
           SET deleted_at = NULL, parked_at = NULL, parked_tier_id = NULL, transaction_id = {THIS}
        RETURNING id
    ), assigned AS (
        {room.INTO_ASSIGNMENTS}
        SELECT taken.id, taken.tier_id, device.id, %(tenant)s, %(now)s, %(actor)s, %(source)s, %(reason)s, '', '', ''
          FROM taken, device
        RETURNING assigned_at
    )
    SELECT (SELECT code FROM tier), found.number, assigned.assigned_at,
           present.code, present.number, present.assigned_at
      FROM (VALUES (1)) AS answer LEFT JOIN present ON true LEFT JOIN assigned ON true LEFT JOIN found ON true"""


def assign(
    tenant_id: int,
    device_id: str,
    tier: str = "",
    *,
    actor: Actor,
    now: datetime,
    subscription_id: int | None = None,
    source_id: str = "",
    reason: str = "",
) -> Slot:
    """Give a device a slot of a tier (default: the default tier), and register it where it is new. One statement.

    A device that has a slot of that tier keeps it. Raises NoFreeSlot, TierNotSold, TierDiffers, NoSuchTier,
    InvalidDeviceId.
    """
    check_reason(actor, reason)
    check_device_id(device_id)
    terms.aware(now, "now")
    parameters = _said(tenant_id, now, actor, source_id, reason)
    parameters |= {"device": device_id, "tier": tier, "only": subscription_id}
    while True:
        try:
            code, number, assigned_at, its_code, its_number, its_time = _taken(parameters)
        except IntegrityError as error:
            if "one_open_assignment_per_device" not in str(error):
                raise
            continue  # somebody else gave it a slot at the same moment: it is there now
        if assigned_at:
            return Slot(device_id, code, number, assigned_at, is_new=True)
        if its_code:
            if code and its_code != code:
                raise TierDiffers(
                    f"{device_id} has a slot of the tier {its_code}.", tier=its_code, subscription=its_number
                )
            return Slot(device_id, its_code, its_number, its_time, is_new=False)
        if not code:
            raise room.no_such_tier(tier)
        if number is None:  # else it went to somebody else as we reached for it: there may be another one
            raise room.none_left(tenant_id, code, 1, now, subscription_id)


def _taken(parameters: Mapping[str, Any]) -> Sequence[Any]:
    if not connection.in_atomic_block:
        return room.prepared(_TAKE, dict(parameters)) or ()
    with transaction.atomic():  # what is refused is asked again, which the caller's transaction must outlive
        return room.prepared(_TAKE, dict(parameters)) or ()


def release(
    tenant_id: int, device_id: str, *, actor: Actor, now: datetime, source_id: str = "", reason: str = ""
) -> bool:
    """Take a device's slot away, or its place among the parked; whether it had one. It stays registered.

    Whoever is parked for that tier the longest gets the slot. Raises DeviceNotFound.
    """
    return _leave(tenant_id, device_id, SlotAssignment.Ended.RELEASED, actor, now, source_id, reason)


def delete(
    tenant_id: int, device_id: str, *, actor: Actor, now: datetime, source_id: str = "", reason: str = ""
) -> bool:
    """Forget a device, and release its slot; whether there was such a device. `assign` registers it again."""
    try:
        _leave(tenant_id, device_id, SlotAssignment.Ended.DELETED, actor, now, source_id, reason)
    except DeviceNotFound:
        return False
    return True


_RELEASE = f"""
    WITH device AS (
        SELECT d.id, x.id AS assignment_id, x.allocation_id, d.parked_at
          FROM devices AS d LEFT JOIN slot_assignments AS x ON x.device_id = d.id AND x.released_at IS NULL
         WHERE d.tenant_id = %(tenant)s AND d.device_id = %(device)s AND d.deleted_at IS NULL
    ), freed AS (
        UPDATE tier_allocations AS a SET slots_used = a.slots_used - 1 FROM device WHERE a.id = device.allocation_id
        RETURNING a.id
    ), left_it AS (
        UPDATE slot_assignments AS x
           SET released_at = greatest(%(now)s, x.assigned_at), released_by = %(actor)s, ended = %(ended)s,
               end_reason = %(reason)s
          FROM device JOIN freed ON freed.id = device.allocation_id WHERE x.id = device.assignment_id
        RETURNING x.id
    ), touched AS (
        UPDATE devices AS d SET parked_at = NULL, parked_tier_id = NULL, transaction_id = {THIS},
                                deleted_at = CASE WHEN %(ended)s = '{SlotAssignment.Ended.DELETED}' THEN %(now)s END
          FROM device WHERE d.id = device.id RETURNING d.id
    )
    SELECT id, EXISTS (SELECT FROM left_it), parked_at IS NOT NULL FROM device"""


def _leave(
    tenant_id: int,
    device_id: str,
    ended: SlotAssignment.Ended,
    actor: Actor,
    now: datetime,
    source_id: str,
    reason: str,
) -> bool:
    check_reason(actor, reason)
    terms.aware(now, "now")
    if not DEVICE_ID.fullmatch(device_id):
        raise DeviceNotFound
    with transaction.atomic():
        room.lock(tenant_id)
        parameters = _said(tenant_id, now, actor, source_id, reason) | {"device": device_id, "ended": ended}
        row = room.one(_RELEASE, parameters)
        if row is None:
            raise DeviceNotFound
        _, had_a_slot, was_parked = row
        if had_a_slot:
            room.return_parked(tenant_id, actor=actor, now=now, source_id=source_id)
    return bool(had_a_slot or was_parked)


# --- from one slot into another --------------------------------------------------------------------------------------

_MOVE = f"""
    WITH tier AS (
        SELECT id, code FROM device_tiers WHERE code = %(tier)s
    ), present AS MATERIALIZED (
        SELECT d.id, x.id AS assignment_id, x.allocation_id
          FROM devices AS d JOIN slot_assignments AS x ON x.device_id = d.id AND x.released_at IS NULL
         WHERE d.tenant_id = %(tenant)s AND d.device_id = %(device)s
    ), found AS MATERIALIZED (
        SELECT a.id, a.tier_id, s.number FROM {room.SERVING} AND a.slots_used < a.slot_limit
           AND a.tier_id = (SELECT id FROM tier) AND a.id <> (SELECT allocation_id FROM present)
           AND (%(only)s::bigint IS NULL OR a.subscription_id = %(only)s)
         ORDER BY {room.MOST_DURABLE} LIMIT 1
    ), counted AS (
        UPDATE tier_allocations AS a SET slots_used = a.slots_used + CASE a.id WHEN found.id THEN 1 ELSE -1 END
          FROM found, present WHERE a.id IN (found.id, present.allocation_id)
        RETURNING a.id
    ), left_it AS (
        UPDATE slot_assignments AS x
           SET released_at = greatest(%(now)s, x.assigned_at), released_by = %(actor)s,
               ended = '{SlotAssignment.Ended.MOVED}', end_reason = %(reason)s
          FROM present WHERE x.id = present.assignment_id AND (SELECT count(*) FROM counted) = 2
        RETURNING x.device_id
    ), touched AS (
        UPDATE devices AS d SET transaction_id = {THIS} FROM left_it WHERE d.id = left_it.device_id RETURNING d.id
    ), assigned AS (
        {room.INTO_ASSIGNMENTS}
        SELECT found.id, found.tier_id, touched.id, %(tenant)s, %(now)s, %(actor)s, %(source)s, %(reason)s, '', '', ''
          FROM found, touched
        RETURNING assigned_at
    )
    SELECT tier.code, found.number, assigned.assigned_at FROM tier, found, assigned"""


def move(
    tenant_id: int,
    device_id: str,
    subscription_id: int,
    *,
    actor: Actor,
    now: datetime,
    source_id: str = "",
    reason: str = "",
) -> Slot:
    """Move a device into a slot of its tier of another subscription of the tenant.

    Raises NotAssigned, DeviceNotFound, NoFreeSlot, TierNotSold.
    """
    return _moved(tenant_id, device_id, None, subscription_id, actor, now, source_id, reason)


def change_tier(
    tenant_id: int,
    device_id: str,
    tier: str,
    *,
    actor: Actor,
    now: datetime,
    subscription_id: int | None = None,
    source_id: str = "",
    reason: str = "",
) -> Slot:
    """Move a device into a slot of another tier, or give it one where it has none. It keeps its slot where the other
    tier has no room.

    Raises DeviceNotFound, NoFreeSlot, TierNotSold, NoSuchTier.
    """
    return _moved(tenant_id, device_id, tier, subscription_id, actor, now, source_id, reason)


def _moved(
    tenant_id: int,
    device_id: str,
    tier: str | None,
    subscription_id: int | None,
    actor: Actor,
    now: datetime,
    source_id: str,
    reason: str,
) -> Slot:
    check_reason(actor, reason)
    terms.aware(now, "now")
    if not DEVICE_ID.fullmatch(device_id):
        raise DeviceNotFound
    with transaction.atomic():
        room.lock(tenant_id)
        device = Device.objects.filter(tenant=tenant_id, device_id=device_id, deleted_at=None).first()
        if device is None:
            raise DeviceNotFound
        present = device.assignments.filter(released_at=None).select_related("tier", "allocation__subscription").first()
        if present is None:
            if tier is None:
                raise NotAssigned
            return assign(
                tenant_id, device_id, tier, subscription_id=subscription_id,
                actor=actor, now=now, source_id=source_id, reason=reason,
            )  # fmt: skip
        subscription = present.allocation.subscription
        wanted = present.tier.code if tier is None else tier
        if wanted == present.tier.code and subscription_id in (None, subscription.pk):
            return Slot(device_id, wanted, subscription.number, present.assigned_at, is_new=False)
        if not DeviceTier.objects.filter(code=wanted).exists():
            raise room.no_such_tier(wanted)
        parameters = _said(tenant_id, now, actor, source_id, reason)
        row = room.one(_MOVE, parameters | {"device": device_id, "tier": wanted, "only": subscription_id})
        if row is None:
            raise room.none_left(tenant_id, wanted, 1, now, subscription_id)
        room.return_parked(tenant_id, actor=actor, now=now, source_id=source_id)
        code, number, assigned_at = row
        return Slot(device_id, code, number, assigned_at, is_new=True)
