"""How many slots a subscription holds, and what becomes of the devices where there are fewer.

Limits change with an audit entry of their subscription, in the same transaction: the database insists.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from django.db import connection

from entitlements import room
from entitlements.errors import InvalidSlots, SlotsInUse
from entitlements.models import (
    DeviceTier,
    Feature,
    PlanSlots,
    SlotAssignment,
    SlotPack,
    SubscriptionPack,
    TierAllocation,
)
from subscriptions import families, serving
from subscriptions.audit import Actor, Change, Differences, check_reason, write
from subscriptions.errors import IllegalTransition
from subscriptions.models import AuditEntry, Subscription
from subscriptions.states import Action, Status
from subscriptions.unread import THIS

MOST_SLOTS = 1_000_000


class Park(Enum):
    """Whom a downsizing parks, where the caller names nobody."""

    NOBODY = "nobody"  # it is refused while there are more devices than slots
    NEWEST = "newest"  # who came last


ParkWhom = Park | Sequence[str]  # or these devices, by their ids


@dataclass(frozen=True)
class Limits:
    """What a change of limits came to."""

    entry: AuditEntry | None  # None where nothing changed
    parked: dict[str, int] = field(default_factory=dict)  # tier → devices that lost their slot and found no other


def resize(
    subscription_id: int,
    tier: str,
    slots: int,
    *,
    park: ParkWhom = Park.NOBODY,
    actor: Actor,
    now: datetime,
    source_id: str = "",
    reason: str = "",
) -> Limits:
    """Set how many slots of a tier a subscription holds. A device that loses its slot moves into a free one elsewhere
    in the tenant, and only then parks; parked ones return into slots that are new.

    Raises SlotsInUse where devices would lose their slots and `park` does not say which, IllegalTransition for a
    subscription that is over, NoSuchTier, InvalidSlots, SourceReused.
    """
    return _set_limits(subscription_id, {tier: slots}, park, actor, now, source_id, reason)


def sync_from_plan(
    subscription_id: int,
    *,
    park: ParkWhom = Park.NOBODY,
    actor: Actor,
    now: datetime,
    source_id: str = "",
    reason: str = "",
) -> Limits:
    """Set how many slots of each tier a subscription holds, and what it gives of each feature, to what its plan and its
    packs sell now. Raises as `resize` does.
    """
    return _set_limits(subscription_id, None, park, actor, now, source_id, reason)


def set_packs(
    subscription_id: int,
    packs: Mapping[int, int],
    *,
    park: ParkWhom = Park.NOBODY,
    actor: Actor,
    now: datetime,
    source_id: str = "",
    reason: str = "",
) -> Limits:
    """Let a subscription hold so many units of these packs (by their ids) and of no others, and the slots that they and
    its plan sell. Raises as `resize` does.
    """
    return _set_limits(subscription_id, None, park, actor, now, source_id, reason, packs)


def would_sell(plan_id: int, quantity: int, packs: Mapping[int, int]) -> dict[str, int]:
    """Tier → slots that so many units of a plan and of these packs (by their ids) sell. Up to two queries.

    Raises InvalidSlots for more than a subscription can hold: whoever paid for these would get none.
    """
    slots: dict[str, int] = {}
    for code, per_unit in PlanSlots.objects.filter(plan=plan_id).values_list("tier__code", "slots"):
        slots[code] = per_unit * quantity
    if packs:
        for pk, code, per_unit in SlotPack.objects.filter(pk__in=packs).values_list("pk", "tier__code", "slots"):
            slots[code] = slots.get(code, 0) + per_unit * packs[pk]
    for code, many in slots.items():
        if many > MOST_SLOTS:
            raise InvalidSlots(f"{many:,} slots of {code} are more than {MOST_SLOTS:,}.")
    return slots


_IN_USE = f"""
    SELECT tier.code, a.slot_limit, a.slots_used, (
        SELECT coalesce(sum(x.slot_limit - x.slots_used), 0) FROM (
            SELECT a.* FROM {room.SERVING}) AS x WHERE x.tier_id = a.tier_id AND x.subscription_id <> a.subscription_id)
      FROM tier_allocations AS a JOIN device_tiers AS tier ON tier.id = a.tier_id
     WHERE a.subscription_id = %(subscription)s AND a.is_open ORDER BY tier.code"""


@dataclass(frozen=True)
class InUse:
    """The slots of one tier that a subscription holds, and those of the tenant's others that are free."""

    limit: int
    used: int
    free_elsewhere: int

    def parked_by(self, limit: int) -> int:
        """The devices that would find no slot if there were so many here."""
        return max(0, self.used - limit - self.free_elsewhere)


def in_use(subscription: Subscription, *, now: datetime) -> dict[str, InUse]:
    """By tier. One query."""
    parameters = {"subscription": subscription.pk, "tenant": subscription.tenant_id, "now": now, **serving.windows()}
    with connection.cursor() as cursor:
        cursor.execute(_IN_USE, parameters)
        return {code: InUse(*counts) for code, *counts in cursor.fetchall()}


def _set_limits(
    subscription_id: int,
    limits: Mapping[str, int] | None,
    park: ParkWhom,
    actor: Actor,
    now: datetime,
    source_id: str,
    reason: str,
    packs: Mapping[int, int] | None = None,
) -> Limits:
    actions = (Action.SLOTS_CHANGED, Action.DEVICES_PARKED)
    with families.locked(subscription_id, now, source_id, *actions) as family:
        if family.repeated:
            return Limits(None)
        check_reason(actor, reason)
        subject = family.subject
        if subject.status == Status.EXPIRED:
            raise IllegalTransition(f"{subject.number} is EXPIRED: it has no slots.", status=subject.status, allowed=[])
        room.lock(subject.tenant_id)
        held = {a.tier.code: a for a in _allocations(subject)}
        is_sync = limits is None
        bought = {} if packs is None else hold_packs(subject, packs)
        if limits is None:
            limits = dict.fromkeys(held, 0) | _sold(subject)
        tiers = {tier.code: tier for tier in DeviceTier.objects.filter(code__in=limits)}
        for code, slots in limits.items():
            if code not in tiers:
                raise room.no_such_tier(code)
            if isinstance(slots, bool) or not isinstance(slots, int) or not 0 <= slots <= MOST_SLOTS:
                raise InvalidSlots(f"{slots!r} is no number of slots.")
        was = {code: held[code].slot_limit if code in held else 0 for code in limits}
        changed = {code: slots for code, slots in limits.items() if slots != was[code]}
        given = _set_features(subject) if is_sync else {}
        if not (changed or given or bought):
            return Limits(None)
        leaving = _who_leaves(held, changed, park)
        words = reason or f"{subject.number} has fewer slots"
        parked = evict([subject.tenant_id], leaving, [], actor=actor, now=now, source_id=source_id, reason=words)
        _write_limits(subject, {tiers[code].pk: slots for code, slots in changed.items()})
        lost = {
            held[code].tier.code: parked[held[code].pk] for code in changed if code in held and held[code].pk in parked
        }
        beside: Differences = {f"slots.{code}": (was[code], slots) for code, slots in sorted(changed.items())}
        beside |= bought | given | {f"parked.{code}": (0, count) for code, count in sorted(lost.items())}
        action = Action.DEVICES_PARKED if lost else Action.SLOTS_CHANGED
        (entry,) = write([Change(subject, action, now, {}, beside)], actor=actor, source_id=source_id, reason=reason)
        room.return_parked(subject.tenant_id, actor=actor, now=now, source_id=source_id)
        return Limits(entry, lost)


def _allocations(subscription: Subscription) -> Sequence[TierAllocation]:
    return [*TierAllocation.objects.filter(subscription=subscription).select_related("tier").order_by("pk")]


# What was bought, as SQL: the slots per tier of so many units of a plan and of the packs beside it; and what the plan
# gives of each feature. A quota counts per unit, a switch is on or off.
SELLS = """
    SELECT tier_id, sum(slots)::bigint AS slots FROM (
        SELECT tier_id, slots::bigint * {quantity} AS slots FROM plan_slots WHERE plan_id = {plan}
        UNION ALL
        SELECT pack.tier_id, pack.slots::bigint * held.quantity
          FROM subscription_packs AS held JOIN slot_packs AS pack ON pack.id = held.pack_id
         WHERE held.subscription_id = {subscription}
    ) AS every GROUP BY tier_id"""
GIVES = f"""
    SELECT feature_id, CASE kind WHEN '{Feature.Kind.QUOTA}' THEN amount * {{quantity}} ELSE amount END AS amount
      FROM plan_features JOIN features ON features.id = feature_id WHERE plan_id = {{plan}}"""

_SUBSCRIPTION = {"subscription": "%(subscription)s", "plan": "%(plan)s", "quantity": "%(quantity)s"}
_SOLD = f"""
    SELECT code, sells.slots FROM ({SELLS.format(**_SUBSCRIPTION)}) AS sells
      JOIN device_tiers AS tier ON tier.id = sells.tier_id"""


def _sold(subscription: Subscription) -> dict[str, int]:
    """Tier → slots that its plan, times its quantity, and its packs sell now."""
    with connection.cursor() as cursor:
        cursor.execute(_SOLD, _of(subscription))
        return dict(cursor.fetchall())


def _of(subscription: Subscription) -> dict[str, int]:
    return {
        "subscription": subscription.pk, "plan": subscription.plan_id, "quantity": subscription.quantity,
    }  # fmt: skip


def hold_packs(subscription: Subscription, packs: Mapping[int, int]) -> Differences:
    """Hold these packs and no others; what that changes, as the audit says it. The slots follow."""
    held = SubscriptionPack.objects.filter(subscription=subscription)
    was = dict(held.values_list("pack_id", "quantity"))
    differs = {pk: packs.get(pk, 0) for pk in {*was, *packs} if packs.get(pk, 0) != was.get(pk, 0)}
    if not differs:
        return {}
    held.filter(pack__in=[pk for pk, quantity in differs.items() if not quantity]).delete()
    SubscriptionPack.objects.bulk_create(
        [
            SubscriptionPack(subscription=subscription, pack_id=pk, quantity=quantity)
            for pk, quantity in sorted(differs.items())
            if quantity
        ],
        update_conflicts=True,
        unique_fields=["subscription", "pack"],
        update_fields=["quantity"],
    )
    codes = dict(SlotPack.objects.filter(pk__in=differs).values_list("pk", "code"))
    return {f"packs.{codes[pk]}": (was.get(pk, 0), differs[pk]) for pk in sorted(differs)}


_SET_FEATURES = f"""
    WITH differs AS (
        SELECT feature_id, coalesce(held.amount, 0) AS was, coalesce(sold.amount, 0) AS becomes
          FROM (SELECT feature_id, amount FROM subscription_features WHERE subscription_id = %(subscription)s) AS held
          FULL JOIN ({GIVES.format(**_SUBSCRIPTION)}) AS sold USING (feature_id)
         WHERE coalesce(held.amount, 0) <> coalesce(sold.amount, 0)
    ), written AS (
        INSERT INTO subscription_features (subscription_id, feature_id, amount)
        SELECT %(subscription)s, feature_id, becomes FROM differs ORDER BY feature_id
        ON CONFLICT (subscription_id, feature_id) DO UPDATE SET amount = EXCLUDED.amount
    )
    SELECT code, was, becomes FROM differs JOIN features ON features.id = feature_id ORDER BY code"""


def _set_features(subscription: Subscription) -> Differences:
    """Give the features that its plan gives now; what that changes, as the audit says it."""
    with connection.cursor() as cursor:
        cursor.execute(_SET_FEATURES, _of(subscription))
        return {f"features.{code}": (was, becomes) for code, was, becomes in cursor.fetchall()}


def _write_limits(subscription: Subscription, limits: Mapping[int, int]) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO tier_allocations (subscription_id, tier_id, slot_limit, slots_used, is_open)"
            " SELECT %s, tier, slots, 0, true FROM unnest(%s::bigint[], %s::int[]) AS t (tier, slots) ORDER BY tier"
            " ON CONFLICT (subscription_id, tier_id) DO UPDATE SET slot_limit = EXCLUDED.slot_limit",
            [subscription.pk, [*limits], [*limits.values()]],
        )


def _who_leaves(held: Mapping[str, TierAllocation], changed: Mapping[str, int], park: ParkWhom) -> list[int]:
    """The assignments that end, so that no more are left than there are slots. Raises SlotsInUse."""
    too_many = {code: held[code].slots_used - slots for code, slots in changed.items() if code in held}
    too_many = {code: count for code, count in too_many.items() if count > 0}
    leaving: list[int] = []
    for code, count in too_many.items():
        open_ones = SlotAssignment.objects.filter(allocation=held[code], released_at=None)
        if park is Park.NEWEST:
            leaving += open_ones.order_by("-pk").values_list("pk", flat=True)[:count]
            continue
        named = [
            *open_ones.filter(device__device_id__in=[] if isinstance(park, Park) else [*park]).values_list(
                "pk", flat=True
            )
        ]
        if len(named) < count:
            raise SlotsInUse(
                f"{held[code].slots_used} devices of the tier {code} are in use, {changed[code]} slots would be left.",
                tier=code, limit=changed[code], used=held[code].slots_used, to_park=count - len(named),
                would_help="Name the devices to park, park the newest, or release devices first.",
            )  # fmt: skip
        leaving += named
    return leaving


_EVICT = f"""
    WITH {room.ROOM}, leaving AS MATERIALIZED (
        SELECT x.id, x.device_id AS device_pk, x.allocation_id, x.tenant_id, x.tier_id,
               row_number() OVER (PARTITION BY x.tenant_id, x.tier_id ORDER BY x.id) AS place
          FROM slot_assignments AS x WHERE x.id = ANY(%(leaving)s) AND x.released_at IS NULL
    ), waiting AS (SELECT device_pk, tenant_id, tier_id, place FROM leaving), {room.PLACE}, freed AS (
        UPDATE tier_allocations AS a SET slots_used = a.slots_used - by_allocation.count
          FROM (SELECT allocation_id, count(*) AS count FROM leaving GROUP BY allocation_id) AS by_allocation
         WHERE a.id = by_allocation.allocation_id
        RETURNING a.id
    ), closed AS (
        UPDATE slot_assignments AS x
           SET released_at = greatest(%(now)s, x.assigned_at), released_by = %(actor)s, end_reason = %(reason)s,
               ended = CASE WHEN placed.device_pk IS NULL THEN '{SlotAssignment.Ended.PARKED}'
                            ELSE '{SlotAssignment.Ended.MOVED}' END
          FROM leaving JOIN freed ON freed.id = leaving.allocation_id
          LEFT JOIN placed ON placed.device_pk = leaving.device_pk
         WHERE x.id = leaving.id
        RETURNING x.device_id
    ), touched AS (
        UPDATE devices AS d SET transaction_id = {THIS},
               parked_at = CASE WHEN placed.device_pk IS NULL THEN %(now)s END,
               parked_tier_id = CASE WHEN placed.device_pk IS NULL THEN leaving.tier_id END
          FROM leaving JOIN closed ON closed.device_id = leaving.device_pk
          LEFT JOIN placed ON placed.device_pk = leaving.device_pk
         WHERE d.id = leaving.device_pk
        RETURNING d.id
    ), {room.ASSIGN_PLACED.format(also="JOIN touched ON touched.id = placed.device_pk")}
    SELECT leaving.allocation_id, count(*) FILTER (WHERE assigned.id IS NULL)
      FROM leaving LEFT JOIN assigned ON assigned.device_id = leaving.device_pk
     GROUP BY leaving.allocation_id HAVING count(*) FILTER (WHERE assigned.id IS NULL) > 0"""


def evict(
    tenant_ids: Sequence[int],
    leaving: list[int],
    closing: list[int],
    *,
    actor: Actor,
    now: datetime,
    source_id: str,
    reason: str,
) -> dict[int, int]:
    """End these assignments: their devices move into free slots elsewhere in their tenant (of none of the
    allocations that are `closing`), the longest assigned first, and only then park. How many parked, per allocation.
    The caller holds `room.lock`.
    """
    if not leaving:
        return {}
    # The slots that they leave are not room for them.
    left = SlotAssignment.objects.filter(pk__in=leaving).values_list("allocation_id", flat=True)
    parameters = room.said(tenant_ids, now, actor, source_id, reason)
    parameters |= {"leaving": leaving, "closing": sorted({*closing, *left})}
    with connection.cursor() as cursor:
        cursor.execute(_EVICT, parameters)
        return dict(cursor.fetchall())
