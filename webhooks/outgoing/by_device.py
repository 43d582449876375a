"""Plans that are sold by the device: a device that is deleted lowers the quantity that is paid for.

Exactly this: when a device that had a slot of such a tier is deleted, through whichever door, the quantity of the
subscription whose slot it was goes down by the units that it leaves empty, never below the units that the devices left
there need, never below one. A device that is parked takes the free slot first. Slots that are merely unused are never
given back by themselves, and nothing is ever bought by itself. Only what Stripe bills counts: the rest is no money.

Deleted devices are read off `devices` as changes are: each transaction once, in their order. What was deleted and came
back before anybody looked has not gone.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connection, transaction

from entitlements import room
from entitlements.follow import follow
from entitlements.limits import Park
from entitlements.models import SlotAssignment
from subscriptions import families, lifecycle, unread
from subscriptions.audit import CLOCK
from subscriptions.errors import DomainError
from subscriptions.states import Status
from webhooks.outgoing import telling

READER = "stripe-devices"
REASON = "Devices were deleted, and the plan is sold by the device"

_LEFT = f"""
    SELECT a.subscription_id, jsonb_object_agg(a.tier_id, a.deleted)
      FROM (SELECT a.subscription_id, a.tier_id, count(*) AS deleted
              FROM devices AS d
              JOIN LATERAL (SELECT allocation_id, ended FROM slot_assignments AS x WHERE x.device_id = d.id
                             ORDER BY x.id DESC LIMIT 1) AS last ON last.ended = '{SlotAssignment.Ended.DELETED}'
              JOIN tier_allocations AS a ON a.id = last.allocation_id AND a.is_open
              JOIN subscriptions AS s ON s.id = a.subscription_id AND s.quantity > 1 AND s.status <> '{Status.EXPIRED}'
              JOIN stripe_links AS link ON link.subscription_id = s.id
              JOIN plan_slots AS sold ON sold.plan_id = s.plan_id AND sold.tier_id = a.tier_id AND sold.by_device
             WHERE d.transaction_id >= %(since)s AND d.transaction_id < %(horizon)s AND d.deleted_at IS NOT NULL
             GROUP BY a.subscription_id, a.tier_id) AS a
     GROUP BY a.subscription_id ORDER BY a.subscription_id"""

# Per tier that is sold by the device: slots per unit of the plan, slots of packs beside it, devices in slots.
_NEEDED = """
    SELECT a.tier_id, sold.slots, a.slots_used, coalesce((
               SELECT sum(pack.slots * held.quantity) FROM subscription_packs AS held
                 JOIN slot_packs AS pack ON pack.id = held.pack_id AND pack.tier_id = a.tier_id
                WHERE held.subscription_id = a.subscription_id), 0)
      FROM tier_allocations AS a
      JOIN plan_slots AS sold ON sold.plan_id = %(plan)s AND sold.tier_id = a.tier_id
     WHERE a.subscription_id = %(subscription)s AND sold.by_device AND sold.slots > 0"""


@dataclass(frozen=True)
class Tier:
    pk: int
    per_unit: int
    used: int
    of_packs: int

    @property
    def units_needed(self) -> int:
        return -(-max(0, self.used - self.of_packs) // self.per_unit)

    def units_left_by(self, devices: int) -> int:
        return -(-devices // self.per_unit)


def lower(*, now: datetime) -> int:
    """Lower the quantity of what devices were deleted from since the last look; of how many subscriptions.

    Safe to run late, twice, and in two workers at once. The first look ever, and that after a restore, only notes where
    to begin. Where a device came at the same moment and needs the slot, the quantity stays.
    """
    with transaction.atomic():
        news = unread.locked(READER)
    count = 0
    if news.since:
        with connection.cursor() as cursor:
            cursor.execute(_LEFT, {"since": news.since, "horizon": news.horizon})
            left = cursor.fetchall()
        for subscription_id, deleted in left:
            by_tier = {int(tier): devices for tier, devices in json.loads(deleted).items()}
            with suppress(DomainError):  # SlotsInUse; or it is over meanwhile
                count += _lower(subscription_id, by_tier, now, source_id=f"devices-deleted:{news.since}")
    unread.have_read(READER, news)
    return count


def _lower(subscription_id: int, deleted: dict[int, int], now: datetime, *, source_id: str) -> bool:
    """One subscription, what its slots are and what Stripe is told, in one transaction. Raises SlotsInUse."""
    by: dict[str, Any] = {"actor": CLOCK, "now": now, "source_id": source_id, "reason": REASON}
    with transaction.atomic(), families.locked(subscription_id, now, "") as family:
        subject = family.subject
        room.lock(subject.tenant_id)  # nobody takes a slot meanwhile
        tiers = _tiers(subject.pk, subject.plan_id)
        left = max((tier.units_left_by(deleted.get(tier.pk, 0)) for tier in tiers), default=0)
        needed = max((tier.units_needed for tier in tiers), default=subject.quantity)
        quantity = max(1, needed, subject.quantity - left)
        if subject.status == Status.EXPIRED or quantity >= subject.quantity:
            return False
        entry = lifecycle.change_plan(subject.pk, plan=subject.plan, price=subject.price, quantity=quantity, **by)
        if entry is None:
            return False
        telling.tell([entry], now=now)
        follow([entry], park=Park.NOBODY, **by)
    return True


def _tiers(subscription_id: int, plan_id: int) -> list[Tier]:
    with connection.cursor() as cursor:
        cursor.execute(_NEEDED, {"subscription": subscription_id, "plan": plan_id})
        return [Tier(*map(int, row)) for row in cursor.fetchall()]
