"""Why a device was served at an instant, or was not: answered from history. And what would change it now.

What a subscription was then is what its audit entries say, replayed; where the device was, what its assignments say.
A deadline that had passed counts, whether or not the clock had come to write it down: as for access.
"""

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any

from django.db import models
from django.db.models import Case, Exists, F, OuterRef, Q, Value, When
from django.db.models.functions import Cast

from entitlements import room
from entitlements.access import Reason
from entitlements.errors import DeviceNotFound, NotYet
from entitlements.models import Device, DeviceTier, SlotAssignment, TierAllocation
from subscriptions import serving, terms
from subscriptions.audit import CLOCK, COLUMNS, FIELDS, Actor
from subscriptions.models import AuditEntry, PlanPrice, Subscription
from subscriptions.states import ACTION_OF_STATUS, GRANTS_ACCESS, INSTANTS, LIVE, Status, Type

MOST_FACTS = 20  # of the device, and of its subscription: the latest


class Step(Enum):
    """What would help."""

    ASSIGN = "assign"  # a slot is free
    MOVE = "move"  # one is free in a subscription that serves
    WAIT = "wait"  # until its term begins
    RELEASE = "release"  # another device: then a slot is free
    RENEW = "renew"  # a subscription that is suspended
    BUY = "buy"  # a plan that sells the tier
    CONTACT = "contact"  # a hold is lifted by staff only


@dataclass(frozen=True)
class Fact:
    """One thing that had happened."""

    at: datetime
    what: str  # an action of the audit; assigned, or how an assignment ended
    by: str  # the kind of who did it, never who
    subscription: str  # its number
    tier: str = ""  # of the slot, where it is about one


@dataclass(frozen=True)
class Help:
    """One thing that would have the device served now."""

    step: Step
    subscription: str = ""  # the number of the one that is moved into, waited for or renewed
    plan: str = ""  # what is bought
    price: PlanPrice | None = None  # None: it costs nothing, or its price is not known
    at: datetime | None = None  # until when one waits


@dataclass(frozen=True)
class Explanation:
    """Of one device at one instant."""

    device_id: str
    at: datetime
    reason: Reason
    tier: str  # of its slot, or of the slot that it waited for
    subscription: str  # whose slot it had, or had lost
    facts: Sequence[Fact]  # in their order
    would_help: Sequence[Help]  # now; the cheapest first, none where it is served now

    @property
    def served(self) -> bool:
        return self.reason == Reason.OK


def explain(tenant_id: int, device_id: str, at: datetime, *, now: datetime) -> Explanation:
    """Why a tenant's device was served at the instant `at`, or was not, and what would change it now.

    A deleted device is explained, too. At most six queries. Raises DeviceNotFound, NotYet for an `at` after `now`,
    InvalidTerm for one without a time zone.
    """
    if terms.aware(at, "at") > terms.aware(now, "now"):
        raise NotYet(f"{at.isoformat()} is yet to come: only what has been can be explained.")
    device = Device.objects.filter(tenant=tenant_id, device_id=device_id).first()
    if device is None:
        raise DeviceNotFound
    latest, begun = _assignments(device, at)
    last = begun[0] if begun else None
    without = reason = _without_slot(device, last, at, now)
    facts = [fact for assignment in reversed(begun) for fact in _of_slot(assignment, at)]
    if last is not None:
        until = last.released_at if without and last.released_at else at  # what came of it later is not the device's
        subscription, entries = _as_of(last.allocation.subscription, until)
        reason = reason or reason_of(subscription, at)
        facts = [*_of_subscription(subscription, entries, until), *facts]
    assert reason is not None, "what has no last assignment has no slot"
    its = last if without in (None, Reason.PARKED) else None
    return Explanation(
        device.device_id,
        at,
        reason,
        its.tier.code if its else "",
        its.allocation.subscription.number if its else "",
        sorted(facts, key=lambda fact: fact.at),
        _would_help(device, latest, now),
    )


# --- the device ------------------------------------------------------------------------------------------------------


def _assignments(device: Device, at: datetime) -> tuple[SlotAssignment | None, list[SlotAssignment]]:
    """Its latest assignment of all, and those that had begun by then, the newest first. One query."""
    latest = SlotAssignment.objects.filter(device=device).order_by("-pk").values("pk")[:1]
    found = [
        *SlotAssignment.objects.filter(Q(assigned_at__lte=at) | Q(pk=latest), device=device)
        .select_related(
            "tier",
            "allocation__subscription__plan",
            "allocation__subscription__price",
            "allocation__subscription__parent__price",
        )
        .order_by("-pk")[: MOST_FACTS + 1]
    ]
    return next(iter(found), None), [x for x in found if x.assigned_at <= at][:MOST_FACTS]


def _without_slot(device: Device, last: SlotAssignment | None, at: datetime, now: datetime) -> Reason | None:
    """Why it had no slot then; None if it had one. `last` is its last assignment that had begun.

    When somebody gave up its place among the parked is not remembered: it counts as parked until it got a slot again,
    or until now.
    """
    if last is None:
        return Reason.UNKNOWN_DEVICE if at < device.created_at else Reason.NO_SLOT
    if last.released_at is None or at < last.released_at:
        return None
    if last.ended == SlotAssignment.Ended.DELETED or (device.deleted_at and device.deleted_at <= at):
        return Reason.UNKNOWN_DEVICE
    if last.ended == SlotAssignment.Ended.PARKED and (at < now or device.parked_at):
        return Reason.PARKED
    return Reason.NO_SLOT


def _of_slot(assignment: SlotAssignment, at: datetime) -> Iterable[Fact]:
    number, tier = assignment.allocation.subscription.number, assignment.tier.code
    yield Fact(assignment.assigned_at, "assigned", Actor(assignment.assigned_by).kind, number, tier)
    if assignment.released_at and assignment.released_at <= at:
        yield Fact(assignment.released_at, assignment.ended, Actor(assignment.released_by).kind, number, tier)


# --- its subscription ------------------------------------------------------------------------------------------------

_INSTANTS = frozenset(field.attname for field in FIELDS.values() if isinstance(field, models.DateTimeField))
# What makes the difference between served and not.
_TELLING = frozenset(
    {"status", "term_start", "term_end", "on_hold", "cancel_at_term_end", *(i.column for i in INSTANTS.values())}
)


def replayed(entries: Iterable[AuditEntry]) -> dict[str, Any]:
    """The tracked columns as these entries of one subscription, in the order of its versions, have left them."""
    columns: dict[str, Any] = dict.fromkeys(COLUMNS) | {"end_reason": ""}
    for entry in entries:
        for column, (_, after) in entry.changes.items():
            if column in columns:
                columns[column] = datetime.fromisoformat(after) if column in _INSTANTS and after else after
    return columns


def _as_of(subscription: Subscription, at: datetime) -> tuple[Subscription, list[AuditEntry]]:
    """A subscription as it was then, its main subscription with it, and its entries by then. One query."""
    members = [subscription.pk, *([subscription.parent_id] if subscription.parent_id else [])]
    told: dict[int, list[AuditEntry]] = {pk: [] for pk in members}
    entries = AuditEntry.objects.filter(subscription__in=members, effective_at__lte=at).order_by("version")
    for entry in entries.only("subscription", "action", "effective_at", "actor", "changes"):
        told[entry.subscription_id].append(entry)
    was = _with(subscription, told[subscription.pk])
    if was.parent is not None:
        was.parent = _with(was.parent, told[was.parent.pk])
    return was, told[subscription.pk]


def _with(subscription: Subscription, entries: Sequence[AuditEntry]) -> Subscription:
    """As these entries say. It is counted with the windows of its present plan, whose row is read already."""
    was = copy(subscription)
    if entries:  # else its first entry was written by a clock that is ahead of the caller's
        for column, value in replayed(entries).items():
            if column not in ("plan_id", "price_id"):
                setattr(was, column, value)
    return was


def reason_of(subscription: Subscription, at: datetime) -> Reason:
    """Whether a device in one of its slots is served at this instant, for a subscription as it is then."""
    status = subscription.status
    for _, becomes in _unwritten(subscription, at):
        status = becomes
    if status == Status.SUSPENDED:
        return Reason.SUSPENDED
    if status not in GRANTS_ACCESS:
        return Reason.EXPIRED
    return Reason.NOT_STARTED if at < subscription.term_start else Reason.OK


def _unwritten(subscription: Subscription, at: datetime) -> list[tuple[datetime, Status]]:
    """When it was suspended and expired, where those deadlines have passed and the clock has not come to say so."""
    until, suspension_end = serving.serves_until(subscription), subscription.suspension_end
    steps = []
    if until is not None:
        if serving.ends_with_its_term(subscription):
            steps = [(until, Status.EXPIRED)]
        else:
            rule, zone = INSTANTS[Status.SUSPENDED], subscription.time_zone
            steps = [(until, Status.SUSPENDED)]
            suspension_end = terms.until(rule, subscription.plan, counted_from=until, since=until, time_zone=zone)
    if suspension_end is not None:
        steps.append((suspension_end, Status.EXPIRED))
    return [step for step in steps if step[0] <= at]


def _of_subscription(subscription: Subscription, entries: Sequence[AuditEntry], at: datetime) -> list[Fact]:
    told = [entry for entry in entries if _TELLING & entry.changes.keys()][-MOST_FACTS:]
    number = subscription.number
    facts = [Fact(entry.effective_at, entry.action, Actor(entry.actor).kind, number) for entry in told]
    late = _unwritten(subscription, at) if entries else []
    return facts + [Fact(when, ACTION_OF_STATUS[status], CLOCK.kind, number) for when, status in late]


# --- what would help -------------------------------------------------------------------------------------------------


def _would_help(device: Device, latest: SlotAssignment | None, now: datetime) -> list[Help]:
    """What would have it served now, the cheapest first. Three queries, none where it is served."""
    if latest is None:
        return []
    subscription, tier = latest.allocation.subscription, latest.tier
    without = _without_slot(device, latest, now, now)
    reason = without or reason_of(subscription, now)
    if reason == Reason.OK:
        return []
    limit, free_in = _room(device.tenant_id, tier, now)
    if free_in:
        return [Help(Step.ASSIGN if without else Step.MOVE, subscription=free_in)]
    if reason == Reason.NOT_STARTED:
        return [Help(Step.WAIT, subscription=subscription.number, at=subscription.term_start)]
    root = subscription.parent or subscription
    if reason == Reason.SUSPENDED and (root.price or root.type != Type.TRIAL):  # a trial without a price is not renewed
        return [_renew(subscription, root)]
    free: list[Help] = [Help(Step.RELEASE)] if without and limit else []
    return free + _buy(device.tenant_id, tier, subscription, now)


def _renew(subscription: Subscription, root: Subscription) -> Help:
    """A family is renewed by its root. Money lifts no hold."""
    if subscription.on_hold:
        return Help(Step.CONTACT, subscription=subscription.number)
    return Help(Step.RENEW, subscription=root.number, price=root.price)


_ROOM = f"""
    SELECT coalesce(sum(a.slot_limit), 0),
           (array_agg(s.number ORDER BY {room.MOST_DURABLE}) FILTER (WHERE a.slots_used < a.slot_limit))[1]
      FROM {room.SERVING} AND a.tier_id = %(tier)s"""


def _room(tenant_id: int, tier: DeviceTier, now: datetime) -> tuple[int, str]:
    """How many slots of the tier the tenant has that serve, and the number of the subscription with a free one."""
    parameters = {"tenant": tenant_id, "tier": tier.pk, "now": now, **serving.windows()}
    limit, free_in = room.one(_ROOM, parameters) or (0, None)
    return int(limit), free_in or ""


# What a price comes to per month, to compare it: never shown.
_MONTHS = Case(*[When(interval=name, then=Value(count)) for name, count in terms.MONTHS.items()]) * F("interval_count")
_A_MONTH = Cast("amount_minor", models.DecimalField(max_digits=38, decimal_places=10)) / _MONTHS

_SELLS = {Reason.EXPIRED: [Type.MAIN], Reason.OK: [Type.ADDON]}  # how the main subscription stands → what can be bought


def _buy(tenant_id: int, tier: DeviceTier, lost: Subscription, now: datetime) -> list[Help]:
    """The cheapest plan on sale that sells the tier and that this tenant can buy: in the currency it pays in, or, where
    nothing is sold in that, one of each currency. Two queries.

    A main subscription that serves takes add-ons; one that does not comes first: it is renewed where it has room.
    """
    has_room = TierAllocation.objects.filter(
        subscription=OuterRef("pk"), tier=tier, is_open=True, slots_used__lt=F("slot_limit")
    )
    mains = Subscription.objects.filter(tenant=tenant_id, type=Type.MAIN, status__in=LIVE)
    main = mains.select_related("plan", "price").annotate(has_room=Exists(has_room)).first()
    stands = reason_of(main, now) if main else Reason.EXPIRED
    if main is not None and main.has_room and stands == Reason.SUSPENDED:
        return [_renew(main, main)]
    types = [Type.TEMPORARY, *_SELLS.get(stands, [])]
    on_sale = PlanPrice.objects.filter(
        plan__is_sold=True, plan__type__in=types, plan__slots__tier=tier, plan__slots__slots__gt=0
    )
    cheapest = on_sale.select_related("plan").order_by("currency", _A_MONTH, "pk").distinct("currency")
    offers = [Help(Step.BUY, plan=price.plan.code, price=price) for price in cheapest]
    pays = next((s.price.currency for s in (main, lost) if s and s.price), "")
    return [offer for offer in offers if offer.price and offer.price.currency == pays] or offers
