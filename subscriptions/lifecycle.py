"""The verbs of a subscription's life. What may follow what is a table in `states`; dates are in `terms`.

When a term ends, nobody need do anything: `sweep.advance` takes a subscription from TRIAL or ACTIVE to GRACE at
`term_end`, to SUSPENDED at `grace_end`, to EXPIRED at `suspension_end`, and straight to EXPIRED where it was cancelled.

Every verb: lock the family's root, check, decide, write change and evidence, in one transaction. Each is safe to
repeat with the same `source_id` (a Stripe event id, a request id): the second time it changes nothing and answers None.
Each raises IllegalTransition, with nothing changed, where the present status does not allow it, AddonFollowsMain for an
add-on where only its MAIN can do it (see `families`), ReasonMissing, InvalidTerm for a `now` without a time zone,
SourceReused for a source that did the same to another member of the family.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import datetime
from enum import Enum

from django.db import IntegrityError, connection, transaction
from django.db.models import Max, Q, QuerySet

from subscriptions import families, terms
from subscriptions.audit import Actor, write_first
from subscriptions.errors import (
    AddonFollowsMain,
    AddonTermDiffers,
    DomainError,
    IllegalTransition,
    InvalidFamily,
    InvalidPlan,
    InvalidTerm,
    LiveMainExists,
    NoPrice,
    SourceReused,
    TenantClosed,
    TrialUsed,
)
from subscriptions.families import (
    CALENDAR,
    STATE,
    Family,
    amended,
    as_its_main,
    by_its_dates,
    cancelled,
    consistent,
    continued,
    into,
    renewed,
)
from subscriptions.models import AuditEntry, Plan, PlanPrice, Subscription, Tenant
from subscriptions.numbers import new_number
from subscriptions.states import TRANSITIONS, Action, EndReason, Status, Type


@dataclass(frozen=True)
class Purchase:
    """What was bought, and for which term."""

    plan: Plan
    term_start: datetime
    term_end: datetime
    price: PlanPrice | None = None
    auto_renews: bool = False
    cancel_at_term_end: bool = False
    quantity: int = 1


class CancelAt(Enum):
    NOW = "now"
    TERM_END = "term_end"


def start(
    tenant_id: int,
    purchase: Purchase,
    *,
    actor: Actor,
    now: datetime,
    status: Status | None = None,
    parent_id: int | None = None,
    converts_id: int | None = None,
    another_trial: bool = False,
    source_id: str = "",
    reason: str = "",
) -> AuditEntry | None:
    """Begin a subscription; its type is the plan's. Its status is TRIAL for a plan of that type, else ACTIVE, unless
    said; an add-on begins as its MAIN is. One that is sold ahead serves from its `term_start` on.

    `converts_id` names the trial that it takes over from, which ends at once; `another_trial` grants a tenant that had
    its trial one more (edges ask for the permission).

    Raises InvalidTerm, InvalidPlan, LiveMainExists, InvalidFamily (a parent is a live MAIN of the same tenant),
    TrialUsed, TenantClosed, and whatever forbids the trial to end.
    """
    terms.aware(now, "now")
    terms.check_term(purchase.term_start, purchase.term_end)
    plan = purchase.plan
    try:
        with transaction.atomic(savepoint=False), _constraints_by_name():
            number = _free_number(now, source_id, tenant_id, parent_id)
            if number is None:
                return None
            _check_price(plan, purchase.price)
            is_trial = plan.type == Type.TRIAL or (status == Status.TRIAL and parent_id is None)
            if (plan.type == Type.ADDON) != (parent_id is not None):
                raise InvalidFamily
            if converts_id is not None:
                _end_converted(converts_id, tenant_id, plan, actor=actor, now=now, source_id=source_id, reason=reason)
            subscription = Subscription(
                number=number,
                tenant_id=tenant_id,
                parent_id=parent_id,
                type=plan.type,
                trial_ordinal=_next_trial(tenant_id, another_trial) if is_trial else None,
                **_bought(purchase, tenant_id),
            )
            if parent_id is not None:
                parent = _live_main(parent_id, tenant_id)
                if purchase.term_end != parent.term_end:
                    raise AddonTermDiffers
                state = {name: getattr(parent, name) for name in (*STATE, *CALENDAR)}
            else:
                state = into(status or (Status.TRIAL if plan.type == Type.TRIAL else Status.ACTIVE), subscription, now)
            if state["status"] == Status.EXPIRED:
                raise IllegalTransition("A subscription does not begin EXPIRED.")
            for column, value in consistent(subscription, state).items():
                setattr(subscription, column, value)
            effective_at = min(purchase.term_start, now)
            return write_first(subscription, effective_at=effective_at, actor=actor, source_id=source_id, reason=reason)
    except (IntegrityError, LiveMainExists, TrialUsed):
        # Twice the same source at the same moment: the constraints chose one, this is the other.
        if connection.in_atomic_block or not _has_started(source_id, tenant_id, parent_id):
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
    with families.locked(subscription_id, now, source_id, Action.ACTIVATED) as family, _constraints_by_name():
        if family.repeated:
            return None
        _only_main(family)
        is_trial_at_work = family.subject.type == Type.TRIAL and family.subject.status == Status.ACTIVE
        if not (purchase and is_trial_at_work):  # it has had a payment, and no purchase
            _allow(family.subject, Status.ACTIVE)
        values: dict[str, object] = {"status": Status.ACTIVE}
        if purchase:
            terms.check_term(purchase.term_start, purchase.term_end)
            _check_price(purchase.plan, purchase.price)
            terms.check_not_over(purchase.term_end, now)
            becomes = Type(purchase.plan.type)
            if becomes == Type.ADDON or (becomes != family.subject.type != Type.TRIAL):
                raise InvalidPlan
            values |= {"type": becomes, **_bought(purchase, family.subject.tenant_id)}
        elif family.subject.term_end <= now:
            raise InvalidTerm("The term is over: renew it instead.")
        return family.write(Action.ACTIVATED, now, values, actor=actor, source_id=source_id, reason=reason)


def renew(
    subscription_id: int,
    *,
    actor: Actor,
    now: datetime,
    term_end: datetime | None = None,
    cancel_at_term_end: bool = False,
    source_id: str = "",
    reason: str = "",
) -> AuditEntry | None:
    """Extend the term to `term_end`, or by the interval of its price, and make the family ACTIVE, except that a hold
    stays. It ends a cancellation, unless the new term is said to be the last one.

    A term that is over is followed by a new one that starts where it ended, or, without a `term_end` and after a
    suspension, by the one that covers `now`; one that still runs grows. The anniversary is kept. A `term_end` not later
    than the present one changes nothing, None. What is suspended comes back for a term that covers `now` only:
    InvalidTerm for one that is over.
    Raises NoPrice where neither a price nor a date says how long.
    """
    with families.locked(subscription_id, now, source_id, Action.RENEWED) as family:
        if family.repeated:
            return None
        subject = family.subject
        _only_main(family)
        _alive(subject, "it cannot become ACTIVE.")
        if term_end is None:
            values = continued(subject, now)
        elif terms.aware(term_end, "term_end") > subject.term_end:
            values = renewed(subject, term_end, now)
        else:
            return None
        if cancel_at_term_end:
            values["cancel_at_term_end"] = True
        return family.write(Action.RENEWED, now, values, actor=actor, source_id=source_id, reason=reason)


def first_term_end(tenant_id: int, plan: Plan, price: PlanPrice | None, term_start: datetime) -> datetime:
    """Where a tenant's first term ends by itself: one interval of the price after `term_start`. Raises NoPrice."""
    if price is None:
        raise NoPrice(f"The plan {plan.code} has no price that says how long a term lasts: name its end.")
    return terms.next_term(term_start, price, anniversary=term_start, time_zone=_time_zone(plan, tenant_id))[1]


def amend_term(
    subscription_id: int, *, term_end: datetime, actor: Actor, now: datetime, source_id: str = "", reason: str = ""
) -> AuditEntry | None:
    """Move `term_end`: a trial that was extended, a date that was wrong. What had gone into GRACE or SUSPENDED by the
    wrong date is ACTIVE again while the right one is yet to come. Raises InvalidTerm.
    """
    with families.locked(subscription_id, now, source_id, Action.AMENDED) as family:
        if family.repeated:
            return None
        _only_main(family)
        _alive(family.subject, "its term is history.")
        values = amended(family.subject, terms.aware(term_end, "term_end"), now)
        return family.write(Action.AMENDED, now, values, actor=actor, source_id=source_id, reason=reason)


def change_plan(
    subscription_id: int,
    *,
    plan: Plan,
    price: PlanPrice | None,
    quantity: int | None = None,
    actor: Actor,
    now: datetime,
    source_id: str = "",
    reason: str = "",
) -> AuditEntry | None:
    """Sell another plan of the same type from now on, or another quantity of it; the term stays. Without a quantity
    that stays, too. Raises InvalidPlan.
    """
    with families.locked(subscription_id, now, source_id, Action.PLAN_CHANGED, Action.QUANTITY_CHANGED) as family:
        if family.repeated:
            return None
        _alive(family.subject, "its plan is history.")
        _check_price(plan, price)
        if plan.type != family.subject.type:
            raise InvalidPlan
        values: dict[str, object] = {"plan": plan, "price": price, "quantity": quantity or family.subject.quantity}
        is_same = (plan.pk, price and price.pk) == (family.subject.plan_id, family.subject.price_id)
        action = Action.QUANTITY_CHANGED if is_same else Action.PLAN_CHANGED
        if family.subject is family.root:
            values["time_zone"] = _time_zone(plan, family.subject.tenant_id)
        return family.write(action, now, values, actor=actor, source_id=source_id, reason=reason)


def bill_by_provider(
    subscription_id: int, *, actor: Actor, now: datetime, source_id: str = "", reason: str = ""
) -> AuditEntry | None:
    """From now on a payment provider renews it and tells us: the clock gives each renewal time to settle."""
    with families.locked(subscription_id, now, source_id, Action.BILLING_CHANGED) as family:
        if family.repeated:
            return None
        _alive(family.subject, "nobody pays for it any more.")
        values = {"auto_renews": True}
        return family.write(Action.BILLING_CHANGED, now, values, actor=actor, source_id=source_id, reason=reason)


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


def extend_grace(
    subscription_id: int, *, until: datetime, actor: Actor, now: datetime, source_id: str = "", reason: str = ""
) -> AuditEntry | None:
    """Let a grace period last longer. An `until` not later than the present `grace_end` changes nothing."""
    with families.locked(subscription_id, now, source_id, Action.GRACE_EXTENDED) as family:
        if family.repeated:
            return None
        subject = family.subject
        _only_main(family)
        if subject.status != Status.GRACE or subject.grace_end is None:
            detail = f"{subject.number} is {subject.status}: it has no grace period."
            raise IllegalTransition(detail, status=subject.status, allowed=[Status.GRACE])
        if terms.aware(until, "until") <= subject.grace_end:
            return None
        values = {"grace_end": until}
        return family.write(Action.GRACE_EXTENDED, now, values, actor=actor, source_id=source_id, reason=reason)


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
        is_addon = subject is not family.root
        if not hold:
            _only_main(family)
        is_held = subject.own_hold if is_addon else subject.on_hold
        if not hold or is_held or subject.status != Status.SUSPENDED:
            _allow(subject, Status.SUSPENDED)
        values = into(Status.SUSPENDED, subject, now)
        if hold:
            values |= {"on_hold": True, "own_hold": is_addon, "suspension_end": None}
        return family.write(Action.SUSPENDED, now, values, actor=actor, source_id=source_id, reason=reason)


def lift_hold(
    subscription_id: int, *, actor: Actor, now: datetime, source_id: str = "", reason: str = ""
) -> AuditEntry | None:
    """Return a subscription on hold to what its dates say now: TRIAL or ACTIVE while its term runs, else GRACE or
    SUSPENDED with their ends, EXPIRED only where it was cancelled at a term end that has passed.

    An add-on becomes what its MAIN is, or ends where it was cancelled and its own term is over; one that has no hold
    of its own is lifted with its MAIN: AddonFollowsMain.
    """
    with families.locked(subscription_id, now, source_id, Action.HOLD_LIFTED) as family:
        if family.repeated:
            return None
        subject, root = family.subject, family.root
        if not subject.on_hold:
            raise IllegalTransition(f"{subject.number} is not on hold.")
        if subject is root:
            values = by_its_dates(subject, now, was_on_trial=_was_on_trial(subject))
        elif subject.own_hold:
            values = as_its_main(subject, vars(root), now) | {"own_hold": False}
        else:
            raise AddonFollowsMain("Its main subscription is on hold: lift that hold instead.")
        return family.write(Action.HOLD_LIFTED, now, values, actor=actor, source_id=source_id, reason=reason)


def cancel(
    subscription_id: int, *, at: CancelAt, actor: Actor, now: datetime, source_id: str = "", reason: str = ""
) -> AuditEntry | None:
    """End it at once, or when its paid term ends (at once where that is over). None if it is so cancelled already."""
    with families.locked(subscription_id, now, source_id, Action.CANCEL_SCHEDULED, Action.EXPIRED) as family:
        if family.repeated:
            return None
        _allow(family.subject, Status.EXPIRED)
        action, values = cancelled(family.subject, now, at_term_end=at is CancelAt.TERM_END)
        return family.write(action, now, values, actor=actor, source_id=source_id, reason=reason)


def resume(
    subscription_id: int, *, actor: Actor, now: datetime, source_id: str = "", reason: str = ""
) -> AuditEntry | None:
    """Undo a cancellation at term end. None if there is none."""
    with families.locked(subscription_id, now, source_id, Action.CANCEL_UNDONE) as family:
        if family.repeated:
            return None
        _allow(family.subject, Status.EXPIRED)
        if family.subject.cancel_at_term_end and family.subject.term_end <= now:
            raise IllegalTransition(f"{family.subject.number} has ended with its term: renew it, or sell anew.")
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


def _bought(purchase: Purchase, tenant_id: int) -> dict[str, object]:
    """The columns of what was bought, with the calendar that its terms follow."""
    time_zone = _time_zone(purchase.plan, tenant_id)
    anniversary = terms.kept_anniversary(purchase.term_start, purchase.term_end, time_zone)
    columns = {field.name: getattr(purchase, field.name) for field in fields(purchase)}
    if purchase.plan.type == Type.TEMPORARY:  # it ends by itself: nobody waits for a payment
        columns["cancel_at_term_end"] = True
    return columns | {"time_zone": time_zone, "anniversary": anniversary}


def _time_zone(plan: Plan, tenant_id: int) -> str:
    """Where the days of its terms are counted."""
    if plan.terms_in == Plan.Calendar.UTC:
        return "UTC"
    return Tenant.objects.values_list("time_zone", flat=True).get(pk=tenant_id)


def _next_trial(tenant_id: int, another: bool) -> int:
    """Which trial of the tenant this is. A constraint decides a race for it."""
    had = Subscription.objects.filter(tenant=tenant_id).aggregate(most=Max("trial_ordinal"))["most"] or 0
    if had and not another:
        raise TrialUsed
    return int(had) + 1


def _end_converted(
    trial_id: int, tenant_id: int, plan: Plan, *, actor: Actor, now: datetime, source_id: str, reason: str
) -> None:
    """End the trial that a new subscription takes over from, in the caller's transaction."""
    with families.locked(trial_id, now, source_id, Action.EXPIRED) as family:
        trial = family.subject
        if (trial.tenant_id, trial.type) != (tenant_id, Type.TRIAL) or plan.type != Type.MAIN:
            raise InvalidPlan("Only a trial of the same tenant is taken over, and only by a main subscription.")
        _allow(trial, Status.EXPIRED)
        values = into(Status.EXPIRED, trial, now, EndReason.CONVERTED)
        family.write(Action.EXPIRED, now, values, actor=actor, source_id=source_id, reason=reason)


BY_NAME: dict[str, type[DomainError]] = {
    "one_live_main_per_tenant": LiveMainExists,
    "one_trial_per_tenant_unless_granted": TrialUsed,
    "a_closed_tenant_starts_nothing": TenantClosed,
}


@contextmanager
def _constraints_by_name() -> Iterator[None]:
    """A constraint decides a race for what a tenant may have one of; its refusal gets the name that people know."""
    try:
        yield
    except IntegrityError as error:
        for name, refusal in BY_NAME.items():
            if name in str(error):
                raise refusal from error
        raise


BORN = ("number", "tenant_id", "parent_id")


def _started(source_id: str) -> "QuerySet[AuditEntry, tuple[str, int, int | None]]":
    """BORN of what this source has started."""
    entries = AuditEntry.objects.filter(source_id=source_id, action=Action.STARTED).exclude(source_id="")
    return entries.values_list(*(f"subscription__{column}" for column in BORN))


def _was_on_trial(subscription: Subscription) -> bool:
    """Whether what is suspended was on trial when it was, and nobody has paid since."""
    paid_or_moved = Q(action__in=[Action.RENEWED, Action.ACTIVATED]) | Q(changes__has_key="status")
    last = subscription.audit.filter(paid_or_moved).order_by("-version").first()
    return last is not None and last.changes.get("status") == [Status.TRIAL, Status.SUSPENDED]


def _free_number(now: datetime, source_id: str, tenant_id: int, parent_id: int | None) -> str | None:
    """A number that nobody has; None if this source has started this subscription already. Constraints decide a race.

    Raises SourceReused if it has started another one: for another tenant, or of another family.
    """
    while True:
        number = new_number(now)
        same_number = Subscription.objects.filter(number=number).values_list(*BORN)
        found = set(same_number.union(_started(source_id)))
        if not found:
            return number
        if started := [row for row in found if row[0] != number]:
            _check_same(started[0], tenant_id, parent_id)
            return None


def _has_started(source_id: str, tenant_id: int, parent_id: int | None) -> bool:
    """Whether this source has started this subscription. Raises SourceReused for another one."""
    row = _started(source_id).first()
    if row:
        _check_same(row, tenant_id, parent_id)
    return row is not None


def _check_same(started: tuple[str, int, int | None], tenant_id: int, parent_id: int | None) -> None:
    number, *of = started
    if of != [tenant_id, parent_id]:
        raise SourceReused(f"This source has started {number} already.")
