"""Slots follow subscriptions: what was bought gets its slots, what is over gives them back, what is free is filled.

Who changes a subscription calls `follow` in the same transaction. What changes by the clock, or by somebody who did not
call it, is read off the audit by `catch_up`, a recurring job: an effect that was forgotten comes a little later.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from django.db import connection, transaction
from django.db.models import Exists, F, OuterRef, Q, QuerySet
from django.db.models.functions import Coalesce

from entitlements import limits, room
from entitlements.limits import Park, ParkWhom
from entitlements.models import SlotAssignment, TierAllocation
from subscriptions import serving, unread
from subscriptions.audit import CLOCK, INSERT, Actor, Change, said, write
from subscriptions.errors import IllegalTransition
from subscriptions.models import AuditEntry, Subscription
from subscriptions.states import GRANTS_ACCESS, Action, Status

READER = "slots"
BATCH = 500  # tenants a transaction
WHAT_SELLS = {"plan_id", "quantity"}  # the columns that say how many slots were bought


def follow(
    entries: Sequence[AuditEntry],
    *,
    actor: Actor,
    now: datetime,
    packs: Mapping[int, int] | None = None,
    park: ParkWhom = Park.NEWEST,
    source_id: str = "",
    reason: str = "",
) -> bool:
    """Bring a tenant's slots to what these entries say, which the caller's transaction has written, with these packs
    beside the plan if some are named; whether there was anything to do.

    Raises SlotsInUse where a plan with fewer slots would take some from devices, and `park` does not say from which.
    """
    by: dict[str, Any] = {"actor": actor, "now": now, "source_id": source_id}
    begun = [entry for entry in entries if entry.action == Action.STARTED]
    moved = [entry for entry in entries if entry.action != Action.STARTED and entry.changes.keys() & WHAT_SELLS]
    ended = [entry.subscription_id for entry in entries if entry.action == Action.EXPIRED]
    for entry in begun:
        if packs:
            limits.hold_packs(entry.subscription, packs)
        _begin(entry, reason=reason, **by)
    for entry in moved:
        if packs is None:
            limits.sync_from_plan(entry.subscription_id, park=park, reason=reason, **by)
        else:
            limits.set_packs(entry.subscription_id, packs, park=park, reason=reason, **by)
    if ended or any(_serves_again(entry) for entry in entries if entry not in begun):
        _settle([entries[0].tenant_id], ended, **by)
    return bool(begun or moved or ended)


_BOUGHT = {"subscription": "s.id", "plan": "s.plan_id", "quantity": "s.quantity"}
# The tenant is locked, as `room.lock` does: whoever holds it has seen every allocation that there is.
_BEGIN = f"""
    WITH whose AS MATERIALIZED (
        SELECT tenants.id FROM tenants WHERE id = %(tenant)s FOR NO KEY UPDATE
    ), sold AS (
        SELECT tier.id, tier.code, sells.slots
          FROM subscriptions AS s
          CROSS JOIN LATERAL ({limits.SELLS.format(**_BOUGHT)}) AS sells
          JOIN device_tiers AS tier ON tier.id = sells.tier_id
         WHERE s.id = %(subscription)s AND sells.slots > 0
    ), given AS (
        SELECT features.id, features.code, gives.amount
          FROM subscriptions AS s CROSS JOIN LATERAL ({limits.GIVES.format(**_BOUGHT)}) AS gives
          JOIN features ON features.id = gives.feature_id
         WHERE s.id = %(subscription)s AND gives.amount > 0
    ), said AS (
        SELECT jsonb_object_agg(name, jsonb_build_array(0, amount)) AS changes
          FROM (SELECT 'slots.' || code, slots FROM sold UNION ALL SELECT 'features.' || code, amount FROM given)
               AS every (name, amount)
    ), moved AS (
        UPDATE subscriptions AS s SET version = s.version + 1 FROM whose
         WHERE s.id = %(subscription)s AND s.tenant_id = whose.id AND (SELECT changes FROM said) IS NOT NULL
        RETURNING s.id, s.tenant_id, s.version
    ), entry AS (
        {INSERT}
        SELECT id, tenant_id, version, '{Action.SLOTS_CHANGED}', %(at)s, %(actor)s, %(source_id)s, %(reason)s,
               %(request_id)s, %(address)s::inet,
               (SELECT changes FROM said)
          FROM moved
    ), made AS (
        INSERT INTO tier_allocations (subscription_id, tier_id, slot_limit, slots_used, is_open)
        SELECT moved.id, sold.id, sold.slots, 0, true FROM moved, sold ORDER BY sold.id
    ), gave AS (
        INSERT INTO subscription_features (subscription_id, feature_id, amount)
        SELECT moved.id, given.id, given.amount FROM moved, given ORDER BY given.id
    )
    SELECT EXISTS (SELECT FROM devices WHERE tenant_id = moved.tenant_id AND parked_at IS NOT NULL) FROM moved"""


def _begin(entry: AuditEntry, *, actor: Actor, now: datetime, source_id: str, reason: str) -> None:
    """Give what has just begun the slots and features that its plan sells. One statement, unless somebody waits."""
    parameters = said(actor, source_id, reason) | {
        "tenant": entry.tenant_id, "subscription": entry.subscription_id, "at": entry.effective_at,
    }  # fmt: skip
    waits = room.one(_BEGIN, parameters)
    if waits and waits[0]:
        _settle([entry.tenant_id], [], actor=actor, now=now, source_id=source_id)


def _serves_again(entry: AuditEntry) -> bool:
    before, after = entry.changes.get("status", (None, None))
    return before not in GRANTS_ACCESS and after in GRANTS_ACCESS


def catch_up(*, now: datetime, batch: int = BATCH) -> int:
    """Follow what the audit says since the last look, and fill what is free with who is parked: a term that was sold
    ahead has begun, say. How many tenants had something to do.

    Safe to run late, twice, and in two workers at once. Killed anywhere, it looks again.
    """
    with transaction.atomic():
        news = unread.locked(READER)
    told = AuditEntry.objects.filter(transaction_id__gte=news.since, transaction_id__lt=news.horizon)
    forgotten = [*_forgotten(told).values_list("tenant_id", "subscription_id")]
    for _, subscription_id in forgotten:
        _sync(subscription_id, now)
    over = told.filter(action=Action.EXPIRED, subscription__allocations__is_open=True)
    ended: dict[int, list[int]] = {tenant_id: [] for tenant_id in _could_return(now)}
    for tenant_id, subscription_id in over.order_by().values_list("tenant_id", "subscription_id").distinct():
        ended.setdefault(tenant_id, []).append(subscription_id)
    tenant_ids = sorted(ended)
    for first in range(0, len(tenant_ids), batch):
        some = tenant_ids[first : first + batch]
        _settle(some, [pk for tenant_id in some for pk in ended[tenant_id]], actor=CLOCK, now=now)
    unread.have_read(READER, news)
    return len({*tenant_ids, *(tenant_id for tenant_id, _ in forgotten)})


def _forgotten(told: QuerySet[AuditEntry]) -> QuerySet[AuditEntry]:
    """Entries that moved a plan, where nothing in their transaction has followed."""
    actions = [Action.SLOTS_CHANGED, Action.DEVICES_PARKED]
    same = {"subscription": OuterRef("subscription"), "transaction_id": OuterRef("transaction_id")}
    followed = AuditEntry.objects.filter(action__in=actions, **same)
    return told.filter(~Exists(followed), changes__has_any_keys=[*WHAT_SELLS]).order_by("pk")


def _sync(subscription_id: int, now: datetime) -> None:
    with suppress(IllegalTransition):  # it is over meanwhile, and has no slots
        limits.sync_from_plan(subscription_id, park=Park.NEWEST, actor=CLOCK, now=now)


# A jump from one tenant and tier to the next: what it costs does not grow with how many wait there.
_COULD_RETURN = f"""
    WITH RECURSIVE waits AS (
        (SELECT tenant_id, parked_tier_id FROM devices WHERE parked_at IS NOT NULL
          ORDER BY tenant_id, parked_tier_id LIMIT 1)
        UNION ALL
        SELECT next.tenant_id, next.parked_tier_id FROM waits CROSS JOIN LATERAL (
            SELECT tenant_id, parked_tier_id FROM devices
             WHERE parked_at IS NOT NULL AND (tenant_id, parked_tier_id) > (waits.tenant_id, waits.parked_tier_id)
             ORDER BY tenant_id, parked_tier_id LIMIT 1) AS next
    )
    SELECT coalesce(array_agg(DISTINCT tenant_id), '{{}}') FROM waits WHERE EXISTS (
        SELECT FROM {room.ANY_SERVING} a.tenant_id = waits.tenant_id AND a.tier_id = waits.parked_tier_id
           AND a.slots_used < a.slot_limit)"""


def _could_return(now: datetime) -> list[int]:
    """The tenants that have somebody parked, and room."""
    with connection.cursor() as cursor:
        cursor.execute(_COULD_RETURN, {"now": now, **serving.windows()})
        found: list[int] = cursor.fetchone()[0]
    return found


@transaction.atomic
def _settle(
    tenant_ids: Sequence[int], ended: Sequence[int], *, actor: Actor, now: datetime, source_id: str = ""
) -> None:
    """Empty and close what those held that are over, and let the parked return where there is room."""
    roots = Subscription.objects.filter(pk__in=Subscription.objects.filter(pk__in=ended).values(
        root=Coalesce(F("parent_id"), F("pk"))))  # fmt: skip
    [*roots.select_for_update(no_key=True).order_by("pk").values_list("pk", flat=True)]
    room.lock(*tenant_ids)
    with_addons = Q(pk__in=ended) | Q(parent_id__in=ended)
    over = Subscription.objects.filter(with_addons, status=Status.EXPIRED).in_bulk()
    closing = {
        a.pk: a for a in TierAllocation.objects.filter(subscription__in=over, is_open=True).select_related("tier")
    }
    leaving = SlotAssignment.objects.filter(allocation__in=closing, released_at=None).values_list("pk", flat=True)
    parked = limits.evict(
        tenant_ids, [*leaving], [*closing], actor=actor, now=now, source_id=source_id, reason="Its subscription is over"
    )
    TierAllocation.objects.filter(pk__in=closing).update(is_open=False)
    lost: dict[int, dict[str, tuple[object, object]]] = {}
    for pk, count in sorted(parked.items()):
        lost.setdefault(closing[pk].subscription_id, {})[f"parked.{closing[pk].tier.code}"] = (0, count)
    changes = [Change(over[pk], Action.DEVICES_PARKED, now, {}, beside) for pk, beside in lost.items()]
    write(changes, actor=actor, source_id=source_id, reason="Its subscription is over")
    room.return_parked(*tenant_ids, actor=actor, now=now, source_id=source_id)
