"""The verbs of a subscription's life, and the clock. What may follow what is a table in `states`; dates are in `terms`.

When a term ends, nobody need do anything: `advance` takes a subscription from TRIAL or ACTIVE to GRACE at `term_end`,
to SUSPENDED at `grace_end`, to EXPIRED at `suspension_end`, and straight to EXPIRED where it was cancelled.

Every verb: lock the family's root, check, decide, write change and evidence, in one transaction. Each is safe to
repeat with the same `source_id` (a Stripe event id, a request id): the second time it changes nothing and answers None.
Each raises IllegalTransition, with nothing changed, where the present status does not allow it, AddonFollowsMain for an
add-on where only its MAIN can do it (see `families`), ReasonMissing, InvalidTerm for a `now` without a time zone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import datetime
from enum import Enum

from django.db import IntegrityError, connection, transaction
from django.db.models import QuerySet
from django.db.models.functions import Coalesce

from subscriptions import families, terms
from subscriptions.audit import CLOCK, Actor, Change, write, write_first
from subscriptions.errors import (
    AddonFollowsMain,
    AddonTermDiffers,
    IllegalTransition,
    InvalidFamily,
    InvalidPlan,
    InvalidTerm,
    LiveMainExists,
)
from subscriptions.families import STATE, Family, consistent, into
from subscriptions.models import STEPS_BY_ITSELF, AuditEntry, Plan, PlanPrice, Subscription
from subscriptions.numbers import new_number
from subscriptions.states import ACTION_OF_STATUS, DEADLINES, TRANSITIONS, Action, EndReason, Status, Type


@dataclass(frozen=True)
class Purchase:
    """What was bought, and for which term."""

    plan: Plan
    term_start: datetime
    term_end: datetime
    price: PlanPrice | None = None
    auto_renews: bool = False
    cancel_at_term_end: bool = False


class CancelAt(Enum):
    NOW = "now"
    TERM_END = "term_end"


# --- the clock -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One thing that the clock will do by itself."""

    at: datetime
    status: Status
    end_reason: EndReason | None = None


def next_step(subscription: Subscription) -> Step | None:
    """What the clock does next with this subscription, and when; None if nothing. Pure: reads DEADLINES and the row."""
    rule = DEADLINES.get(Status(subscription.status))
    at: datetime | None = getattr(subscription, rule.column) if rule else None
    if rule is None or at is None:
        return None
    if subscription.cancel_at_term_end:
        return Step(at, rule.if_cancelled, EndReason.CANCELLED_AT_TERM_END)
    return Step(at, rule.then, EndReason.SUSPENSION_OVER if rule.then == Status.EXPIRED else None)


def advance(*, now: datetime, batch_size: int = 1000) -> Iterator[AuditEntry]:
    """Take every step whose deadline has passed, each at its own `effective_at`, so that a clock that slept a month
    writes the history that should have happened. One commit a batch, made as the answer is read.

    Several callers may sweep at once: a family that another transaction holds is left to it, or to the next sweep.
    """
    terms.aware(now, "now")
    due = Subscription.objects.filter(STEPS_BY_ITSELF, next_deadline__lte=now).order_by("next_deadline", "pk")
    root_ids = [*dict.fromkeys(due.values_list(Coalesce("parent_id", "pk"), flat=True))]
    for first in range(0, len(root_ids), batch_size):
        with transaction.atomic():
            entries: list[AuditEntry] = []
            batch = families.lock_idle(root_ids[first : first + batch_size])
            while steps := [change for family in batch for change in _due_changes(family, now)]:
                entries += write(steps, actor=CLOCK)
        yield from entries


def _due_changes(family: Family, now: datetime) -> list[Change]:
    """The earliest step of this family that is due, with what follows from it; cancelled add-ons before their root."""
    alone = [addon for addon in family.addons if addon.cancel_at_term_end]
    due = [(step, member) for member in (*alone, family.root) if (step := next_step(member)) and step.at <= now]
    if not due:
        return []
    step, member = min(due, key=lambda pair: pair[0].at)
    moving = family if member is family.root else Family(family.root, [], subject=member)
    return moving.changes(ACTION_OF_STATUS[step.status], step.at, into(step.status, member, step.at, step.end_reason))


# --- the verbs -------------------------------------------------------------------------------------------------------


def start(
    tenant_id: int,
    purchase: Purchase,
    *,
    actor: Actor,
    now: datetime,
    status: Status | None = None,
    parent_id: int | None = None,
    source_id: str = "",
    reason: str = "",
) -> AuditEntry | None:
    """Begin a subscription; its type is the plan's. Its status is TRIAL for a plan of that type, else ACTIVE, unless
    said; an add-on begins as its MAIN is.

    Raises InvalidTerm, InvalidPlan, LiveMainExists, InvalidFamily (a parent is a live MAIN of the same tenant).
    """
    terms.aware(now, "now")
    terms.check_term(purchase.term_start, purchase.term_end)
    plan = purchase.plan
    try:
        with transaction.atomic(savepoint=False), _one_live_main():
            number = _free_number(now, source_id)
            if number is None:
                return None
            _check_price(plan, purchase.price)
            if (plan.type == Type.ADDON) != (parent_id is not None):
                raise InvalidFamily
            subscription = Subscription(
                number=number, tenant_id=tenant_id, parent_id=parent_id, type=plan.type, **_bought(purchase)
            )
            if parent_id is not None:
                parent = _live_main(parent_id, tenant_id)
                if purchase.term_end != parent.term_end:
                    raise AddonTermDiffers
                state = {name: getattr(parent, name) for name in STATE}
            else:
                state = into(status or (Status.TRIAL if plan.type == Type.TRIAL else Status.ACTIVE), subscription, now)
            if state["status"] == Status.EXPIRED:
                raise IllegalTransition("A subscription does not begin EXPIRED.")
            for column, value in consistent(subscription, state).items():
                setattr(subscription, column, value)
            effective_at = min(purchase.term_start, now)
            return write_first(subscription, effective_at=effective_at, actor=actor, source_id=source_id, reason=reason)
    except (IntegrityError, LiveMainExists):
        # Twice the same source at the same moment: the constraints chose one, this is the other.
        if connection.in_atomic_block or not _started(source_id).exists():
            raise
        return None


def activate(
    subscription_id: int,
    *,
    actor: Actor,
    now: datetime,
    purchase: Purchase | None = None,
    source_id: str = "",
    reason: str = "",
) -> AuditEntry | None:
    """Make a TRIAL, GRACE or SUSPENDED subscription ACTIVE: with a purchase (a trial becomes what was bought), or,
    without one, for what is left of its term.

    Raises InvalidTerm when nothing is left of it, InvalidPlan for a purchase of another type by what is no trial,
    LiveMainExists.
    """
    with families.locked(subscription_id, now, source_id, Action.ACTIVATED) as family, _one_live_main():
        if family.repeated:
            return None
        _only_main(family)
        is_trial_at_work = family.subject.type == Type.TRIAL and family.subject.status == Status.ACTIVE
        if not (purchase and is_trial_at_work):  # one whose hold was lifted
            _allow(family.subject, Status.ACTIVE)
        values: dict[str, object] = {"status": Status.ACTIVE}
        if purchase:
            _check_price(purchase.plan, purchase.price)
            becomes = Type(purchase.plan.type)
            if becomes == Type.ADDON or (becomes != family.subject.type != Type.TRIAL):
                raise InvalidPlan
            values |= {"type": becomes, **_bought(purchase)}
        elif family.subject.term_end <= now:
            raise InvalidTerm("The term is over: renew it instead.")
        return family.write(Action.ACTIVATED, now, values, actor=actor, source_id=source_id, reason=reason)


def renew(
    subscription_id: int,
    *,
    term_end: datetime,
    actor: Actor,
    now: datetime,
    cancel_at_term_end: bool = False,
    source_id: str = "",
    reason: str = "",
) -> AuditEntry | None:
    """Extend the term to `term_end` and make the family ACTIVE, except that a hold stays. It ends a cancellation,
    unless the new term is said to be the last one.

    A term that is over is followed by a new one that starts where it ended; one that still runs grows. A `term_end` not
    later than the present one changes nothing and answers None.
    """
    with families.locked(subscription_id, now, source_id, Action.RENEWED) as family:
        if family.repeated:
            return None
        subject = family.subject
        _only_main(family)
        _alive(subject, "it cannot become ACTIVE.")
        if terms.aware(term_end, "term_end") <= subject.term_end:
            return None
        term_start = subject.term_end if subject.term_end <= now else subject.term_start
        values: dict[str, object] = {"term_start": term_start, "term_end": term_end}
        values |= {"cancel_at_term_end": cancel_at_term_end} | ({} if subject.on_hold else {"status": Status.ACTIVE})
        return family.write(Action.RENEWED, now, values, actor=actor, source_id=source_id, reason=reason)


def amend_term(
    subscription_id: int, *, term_end: datetime, actor: Actor, now: datetime, source_id: str = "", reason: str = ""
) -> AuditEntry | None:
    """Move `term_end` and nothing else: a trial that was extended, a date that was wrong. Raises InvalidTerm."""
    with families.locked(subscription_id, now, source_id, Action.AMENDED) as family:
        if family.repeated:
            return None
        _only_main(family)
        _alive(family.subject, "its term is history.")
        values = {"term_end": terms.aware(term_end, "term_end")}
        return family.write(Action.AMENDED, now, values, actor=actor, source_id=source_id, reason=reason)


def change_plan(
    subscription_id: int,
    *,
    plan: Plan,
    price: PlanPrice | None,
    actor: Actor,
    now: datetime,
    source_id: str = "",
    reason: str = "",
) -> AuditEntry | None:
    """Sell another plan of the same type from now on; the term stays. Raises InvalidPlan."""
    with families.locked(subscription_id, now, source_id, Action.PLAN_CHANGED) as family:
        if family.repeated:
            return None
        _alive(family.subject, "its plan is history.")
        _check_price(plan, price)
        if plan.type != family.subject.type:
            raise InvalidPlan
        values = {"plan": plan, "price": price}
        return family.write(Action.PLAN_CHANGED, now, values, actor=actor, source_id=source_id, reason=reason)


def enter_grace(
    subscription_id: int, *, actor: Actor, now: datetime, source_id: str = "", reason: str = ""
) -> AuditEntry | None:
    """Full service goes on while payment is awaited, until the end of the grace window."""
    with families.locked(subscription_id, now, source_id, Action.GRACE_STARTED) as family:
        if family.repeated:
            return None
        _only_main(family)
        _allow(family.subject, Status.GRACE)
        values = into(Status.GRACE, family.subject, now)
        return family.write(Action.GRACE_STARTED, now, values, actor=actor, source_id=source_id, reason=reason)


def suspend(
    subscription_id: int, *, actor: Actor, now: datetime, hold: bool = False, source_id: str = "", reason: str = ""
) -> AuditEntry | None:
    """Withhold service and remember everything. With a hold neither the clock nor a payment lifts it, only `lift_hold`.

    A hold may be put on what is suspended already, and on an add-on alone.
    """
    with families.locked(subscription_id, now, source_id, Action.SUSPENDED) as family:
        if family.repeated:
            return None
        subject = family.subject
        if not hold:
            _only_main(family)
        if not hold or subject.on_hold or subject.status != Status.SUSPENDED:
            _allow(subject, Status.SUSPENDED)
        values = into(Status.SUSPENDED, subject, now)
        if hold:
            values |= {"on_hold": True, "suspension_end": None}
        return family.write(Action.SUSPENDED, now, values, actor=actor, source_id=source_id, reason=reason)


def lift_hold(
    subscription_id: int, *, actor: Actor, now: datetime, source_id: str = "", reason: str = ""
) -> AuditEntry | None:
    """Return a subscription on hold to what its dates say now: ACTIVE while its term runs, else SUSPENDED with an end.

    An add-on whose MAIN is suspended is suspended with it; while the MAIN is on hold itself, AddonFollowsMain.
    """
    with families.locked(subscription_id, now, source_id, Action.HOLD_LIFTED) as family:
        if family.repeated:
            return None
        subject, root = family.subject, family.root
        if not subject.on_hold:
            raise IllegalTransition(f"{subject.number} is not on hold.")
        if subject is not root and root.on_hold:
            raise AddonFollowsMain("Its main subscription is on hold, too: lift that hold instead.")
        if subject is not root and root.status == Status.SUSPENDED:
            values = {name: getattr(root, name) for name in STATE}
        else:
            runs = now < subject.term_deadline
            values = into(Status.ACTIVE if runs else Status.SUSPENDED, subject, now) | {"on_hold": False}
        return family.write(Action.HOLD_LIFTED, now, values, actor=actor, source_id=source_id, reason=reason)


def cancel(
    subscription_id: int, *, at: CancelAt, actor: Actor, now: datetime, source_id: str = "", reason: str = ""
) -> AuditEntry | None:
    """End it at once, or when its paid term ends (at once where that is over). None if it is so cancelled already."""
    with families.locked(subscription_id, now, source_id, Action.CANCEL_SCHEDULED, Action.EXPIRED) as family:
        if family.repeated:
            return None
        _allow(family.subject, Status.EXPIRED)
        if at is CancelAt.TERM_END and now < family.subject.term_end:
            values: dict[str, object] = {"cancel_at_term_end": True}
            return family.write(Action.CANCEL_SCHEDULED, now, values, actor=actor, source_id=source_id, reason=reason)
        values = into(Status.EXPIRED, family.subject, now, EndReason.CANCELLED)
        return family.write(Action.EXPIRED, now, values, actor=actor, source_id=source_id, reason=reason)


def resume(
    subscription_id: int, *, actor: Actor, now: datetime, source_id: str = "", reason: str = ""
) -> AuditEntry | None:
    """Undo a cancellation at term end. None if there is none."""
    with families.locked(subscription_id, now, source_id, Action.CANCEL_UNDONE) as family:
        if family.repeated:
            return None
        _allow(family.subject, Status.EXPIRED)
        if family.subject.term_end != family.root.term_end:
            raise AddonFollowsMain("Its main subscription has been renewed without it.")
        values = {"cancel_at_term_end": False}
        return family.write(Action.CANCEL_UNDONE, now, values, actor=actor, source_id=source_id, reason=reason)


def expire(
    subscription_id: int,
    *,
    why: EndReason,
    actor: Actor,
    now: datetime,
    ended_at: datetime | None = None,
    source_id: str = "",
    reason: str = "",
) -> AuditEntry | None:
    """End it for good, as of `ended_at` (default: now). A new subscription is the only way back.

    Raises InvalidTerm for an `ended_at` that is yet to come.
    """
    with families.locked(subscription_id, now, source_id, Action.EXPIRED) as family:
        if family.repeated:
            return None
        _allow(family.subject, Status.EXPIRED)
        at = terms.aware(ended_at or now, "ended_at")
        if at > now:
            raise InvalidTerm(f"ended_at ({at.isoformat()}) is yet to come.")
        values = into(Status.EXPIRED, family.subject, at, why)
        return family.write(Action.EXPIRED, at, values, actor=actor, source_id=source_id, reason=reason)


# --- what the verbs ask first ----------------------------------------------------------------------------------------


def _alive(subscription: Subscription, so: str) -> None:
    if subscription.status == Status.EXPIRED:
        raise IllegalTransition(f"{subscription.number} is EXPIRED: {so}", status=Status.EXPIRED, allowed=[])


def _allow(subscription: Subscription, to: Status) -> None:
    allowed = TRANSITIONS[Status(subscription.status)]
    if to not in allowed:
        detail = f"{subscription.number} is {subscription.status}: it cannot become {to}."
        raise IllegalTransition(detail, status=subscription.status, allowed=sorted(allowed))
    if subscription.on_hold and to == Status.ACTIVE:
        raise IllegalTransition(f"{subscription.number} is on hold: only lifting the hold brings it back.")


def _only_main(family: Family) -> None:
    if family.subject is not family.root:
        raise AddonFollowsMain


def _live_main(parent_id: int, tenant_id: int) -> Subscription:
    """The parent of an add-on, locked."""
    parent = Subscription.objects.select_for_update(no_key=True).filter(pk=parent_id).first()
    if not parent or (parent.tenant_id, parent.type) != (tenant_id, Type.MAIN) or parent.status == Status.EXPIRED:
        raise InvalidFamily
    return parent


def _check_price(plan: Plan, price: PlanPrice | None) -> None:
    if price and price.plan_id != plan.pk:
        raise InvalidPlan


def _bought(purchase: Purchase) -> dict[str, object]:
    return {field.name: getattr(purchase, field.name) for field in fields(purchase)}


@contextmanager
def _one_live_main() -> Iterator[None]:
    """The constraint decides a race for the one live MAIN; its refusal gets the name that people know."""
    try:
        yield
    except IntegrityError as error:
        if "one_live_main_per_tenant" in str(error):
            raise LiveMainExists from error
        raise


def _started(source_id: str) -> QuerySet[AuditEntry]:
    return AuditEntry.objects.filter(source_id=source_id, action=Action.STARTED).exclude(source_id="")


def _free_number(now: datetime, source_id: str) -> str | None:
    """A number that nobody has; None if this source has started a subscription already. Constraints decide a race."""
    while True:
        number = new_number(now)
        same_number = Subscription.objects.filter(number=number).values_list("number")
        found = set(same_number.union(_started(source_id).values_list("subscription__number")))
        if not found:
            return number
        if found != {(number,)}:
            return None
