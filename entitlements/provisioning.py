"""Slots for whoever knows devices across tenants: the platform's services, and operators with a file.

A device id names one device to them, so one that is in a slot of a tenant is released there before another tenant gets
a slot for it. To a tenant its ids are its own: members and keys of one tenant go through `slots` and `bulk`, which look
at no other tenant, so that nobody learns from a refusal what another one has.

Two tenants that claim the same id at once are told apart by locks on ids. They come before all other locks (see
`room`), so these verbs are called outside of any transaction that has taken slots.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final
from zlib import crc32

from django.db import connection, transaction

from entitlements import bulk, room, slots
from entitlements.bulk import Outcome, Wish
from entitlements.errors import StillAssigned
from entitlements.slots import DEVICE_ID, Slot, check_device_id
from subscriptions.audit import Actor

# Ids share locks, so that however many are claimed at once, no more locks than this are in the server's table of them.
LOCKS: Final = 1_024

# In the order of the array. A statement of its own: what is read after it is read with nobody else between.
_LOCK = """
    SELECT count(pg_advisory_xact_lock('devices'::regclass::oid::int, number))
      FROM unnest(%(locks)s::int[]) AS number"""

# For each id one look by its index, and no further than the first tenant that has it in a slot.
_ELSEWHERE = """
    SELECT given.device_id, other.slug
      FROM unnest(%(devices)s::text[]) AS given (device_id)
     CROSS JOIN LATERAL (
           SELECT tenants.slug
             FROM devices AS d JOIN slot_assignments AS x ON x.device_id = d.id AND x.released_at IS NULL
             JOIN tenants ON tenants.id = d.tenant_id
            WHERE d.device_id = given.device_id AND d.tenant_id <> %(tenant)s LIMIT 1) AS other
      LEFT JOIN LATERAL (
           SELECT true AS is_here
             FROM devices AS d JOIN slot_assignments AS x ON x.device_id = d.id AND x.released_at IS NULL
            WHERE d.tenant_id = %(tenant)s AND d.device_id = given.device_id LIMIT 1) AS own ON true
     WHERE own.is_here IS NULL"""


def claim(
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
    """`slots.assign` for a device that no other tenant has in a slot. One that has its slot here keeps it.

    Raises StillAssigned, and what `slots.assign` raises.
    """
    check_device_id(device_id)
    with transaction.atomic():
        if refused := _locked(tenant_id, [device_id]):
            raise refused[device_id]
        return slots.assign(
            tenant_id, device_id, tier, subscription_id=subscription_id,
            actor=actor, now=now, source_id=source_id, reason=reason,
        )  # fmt: skip


def claim_many(
    tenant_id: int,
    wishes: Sequence[Wish],
    *,
    all_or_nothing: bool = True,
    actor: Actor,
    now: datetime,
    subscription_id: int | None = None,
    source_id: str = "",
    reason: str = "",
) -> list[Outcome]:
    """`bulk.assign_many` for devices that no other tenant has in a slot; the others' outcome is a StillAssigned. Two
    statements and a savepoint more, however many devices.
    """
    bulk.check_number(wishes)
    with transaction.atomic():
        refused = _locked(tenant_id, [wish.device_id for wish in wishes])
        return bulk.assign_many(
            tenant_id, wishes, all_or_nothing=all_or_nothing, subscription_id=subscription_id, refused=refused,
            actor=actor, now=now, source_id=source_id, reason=reason,
        )  # fmt: skip


def elsewhere(tenant_id: int, device_ids: Collection[str]) -> dict[str, StillAssigned]:
    """Of these devices, which need a slot here and are in one of another tenant. One statement, and no lock: an answer
    for whoever only looks.
    """
    rows = room.every(_ELSEWHERE, {"tenant": tenant_id, "devices": sorted(_ids(device_ids))})
    return {
        device_id: StillAssigned(f"{device_id} has a slot at the tenant {slug}: release it there first.", tenant=slug)
        for device_id, slug in rows
    }


def _locked(tenant_id: int, device_ids: Collection[str]) -> dict[str, StillAssigned]:
    """`elsewhere`, and true until the transaction ends of all who claim."""
    with connection.cursor() as cursor:
        cursor.execute(_LOCK, {"locks": locks(device_ids)})
    return elsewhere(tenant_id, device_ids)


def locks(device_ids: Collection[str]) -> list[int]:
    """The numbers of the locks of these ids, in the order in which everybody takes them."""
    return sorted({crc32(device_id.encode()) % LOCKS for device_id in _ids(device_ids)})


def _ids(device_ids: Collection[str]) -> set[str]:
    """Those that may be ids: the database is not asked for others."""
    return {device_id for device_id in device_ids if DEVICE_ID.fullmatch(device_id)}
