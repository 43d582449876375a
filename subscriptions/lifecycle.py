"""The verbs of a subscription's life. The tables of what may follow what are in `states`; dates are in `terms`.

Every verb: lock the family's root, check, decide, write change and evidence, in one transaction. Each is safe to
repeat with the same `source_id` (a Stripe event id, a request id): the second time it changes nothing and answers None.
Each raises IllegalTransition, with nothing changed, where the present status does not allow it.

A family moves together: what happens to a MAIN happens to its live ADDONs in the same transaction, and an ADDON's dates
are its MAIN's, unless it was cancelled at term end: then it ends where its own term ends.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import datetime
from enum import Enum

from django.db import IntegrityError, transaction
from django.db.models import Exists, F, OuterRef, Q, Value
from django.db.models.functions import Coalesce

from subscriptions import terms
from subscriptions.audit import CLOCK, Actor, Change, write, write_first
from subscriptions.errors import (
    AddonFollowsMain,
    IllegalTransition,
    InvalidFamily,
    InvalidPlan,
    InvalidTerm,
    LiveMainExists,
    SubscriptionNotFound,
)
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
    """Begin a subscription; its type is the plan's. Its status is TRIAL for a plan of that type, else ACTIVE, unless said.

    Raises InvalidTerm, LiveMainExists, InvalidFamily (an ADDON's parent is a live MAIN of the same tenant).
    """
    terms.check_term(purchase.term_start, purchase.term_end)
    with transaction.atomic(savepoint=False):
        number = _free_number(now, source_id)
        if number is None:
            return None
        if (purchase.plan.type == Type.ADDON) != (parent_id is not None):
            raise InvalidFamily
        if parent_id is not None:
            parent = Subscription.objects.select_for_update(no_key=True).filter(pk=parent_id).first()
            if not parent or (parent.tenant_id, parent.type) != (tenant_id, Type.MAIN) or parent.status == Status.EXPIRED:
                raise InvalidFamily
            if purchase.term_end != parent.term_end:
                raise InvalidTerm("An add-on ends when its main subscription ends.")
        subscription = Subscription(
            number=number, tenant_id=tenant_id, parent_id=parent_id, type=purchase.plan.type, **_bought(purchase)
        )
        status = status or (Status.TRIAL if purchase.plan.type == Type.TRIAL else Status.ACTIVE)
        for column, value in _whole(subscription, _into(status, subscription, now)).items():
            setattr(subscription, column, value)
        try:
            effective_at = min(purchase.term_start, now)
            return write_first(subscription, effective_at=effective_at, actor=actor, source_id=source_id, reason=reason)
        except IntegrityError as error:
            if "one_live_main_per_tenant" in str(error):
                raise LiveMainExists from error
            raise


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
    without one, for what is left of its term. Raises InvalidTerm when nothing is left of it.
    """
    with _family(subscription_id, source_id, Action.ACTIVATED) as family:
        if family.repeated:
            return None
        _only_main(family)
        _allow(family.subject, Status.ACTIVE)
        values: dict[str, object] = {"status": Status.ACTIVE}
        if purchase:
            terms.check_term(purchase.term_start, purchase.term_end)
            values |= {"type": purchase.plan.type, **_bought(purchase)}
        elif family.subject.term_end <= now:
            raise InvalidTerm("The term is over: renew it instead.")
        try:
            return _write_family(family, Action.ACTIVATED, now, values, actor=actor, source_id=source_id, reason=reason)
        except IntegrityError as error:
            if "one_live_main_per_tenant" in str(error):
                raise LiveMainExists from error
            raise


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
    """Extend the term to `term_end` and make the family ACTIVE, except that a hold stays. It ends a cancellation, unless
    the new term is said to be the last one.

    A term that is over is followed by a new one that starts where it ended; one that still runs grows. A `term_end` not
    later than the present one changes nothing and answers None.
    """
    with _family(subscription_id, source_id, Action.RENEWED) as family:
        if family.repeated:
            return None
        subject = family.subject
        _only_main(family)
        if subject.status == Status.EXPIRED:
            raise _illegal(subject, Status.ACTIVE)
        if terms.aware(term_end, "term_end") <= subject.term_end:
            return None
        term_start = subject.term_end if subject.term_end <= now else subject.term_start
        values: dict[str, object] = {"term_start": term_start, "term_end": term_end}
        values |= {"cancel_at_term_end": cancel_at_term_end} | ({} if subject.on_hold else {"status": Status.ACTIVE})
        return _write_family(family, Action.RENEWED, now, values, actor=actor, source_id=source_id, reason=reason)


def amend_term(
    subscription_id: int, *, term_end: datetime, actor: Actor, now: datetime, source_id: str = "", reason: str = ""
) -> AuditEntry | None:
    """Move `term_end` and nothing else: a trial that was extended, a date that was wrong. Raises InvalidTerm."""
    with _family(subscription_id, source_id, Action.AMENDED) as family:
        if family.repeated:
            return None
        _only_main(family)
        if family.subject.status == Status.EXPIRED:
            raise IllegalTransition(f"{family.subject.number} is EXPIRED: its term is history.")
        terms.check_term(family.subject.term_start, term_end)
        values: dict[str, object] = {"term_end": term_end}
        return _write_family(family, Action.AMENDED, now, values, actor=actor, source_id=source_id, reason=reason)


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
    with _family(subscription_id, source_id, Action.PLAN_CHANGED) as family:
        if family.repeated:
            return None
        if family.subject.status == Status.EXPIRED:
            raise IllegalTransition(f"{family.subject.number} is EXPIRED: its plan is history.")
        if plan.type != family.subject.type or (price and price.plan_id != plan.pk):
            raise InvalidPlan
        values: dict[str, object] = {"plan": plan, "price": price}
        return _write_family(family, Action.PLAN_CHANGED, now, values, actor=actor, source_id=source_id, reason=reason)


def enter_grace(
    subscription_id: int, *, actor: Actor, now: datetime, source_id: str = "", reason: str = ""
) -> AuditEntry | None:
    """Full service goes on while payment is awaited, until the end of the grace window."""
    with _family(subscription_id, source_id, Action.GRACE_STARTED) as family:
        if family.repeated:
            return None
        _only_main(family)
        _allow(family.subject, Status.GRACE)
        values = _into(Status.GRACE, family.subject, now)
        return _write_family(family, Action.GRACE_STARTED, now, values, actor=actor, source_id=source_id, reason=reason)


def suspend(
    subscription_id: int, *, actor: Actor, now: datetime, hold: bool = False, source_id: str = "", reason: str = ""
) -> AuditEntry | None:
    """Withhold service and remember everything. With a hold neither the clock nor a payment lifts it, only `lift_hold`.

    A hold may be put on what is suspended already.
    """
    with _family(subscription_id, source_id, Action.SUSPENDED) as family:
        if family.repeated:
            return None
        subject = family.subject
        if not (hold and subject.status == Status.SUSPENDED and not subject.on_hold):
            _allow(subject, Status.SUSPENDED)
        values = _into(Status.SUSPENDED, subject, now)
        if hold:
            values |= {"on_hold": True, "suspension_end": None}
        return _write_family(family, Action.SUSPENDED, now, values, actor=actor, source_id=source_id, reason=reason)


def lift_hold(
    subscription_id: int, *, actor: Actor, now: datetime, source_id: str = "", reason: str = ""
) -> AuditEntry | None:
    """Return a subscription on hold to what its dates say now: ACTIVE while its term runs, else SUSPENDED with an end."""
    with _family(subscription_id, source_id, Action.HOLD_LIFTED) as family:
        if family.repeated:
            return None
        subject = family.subject
        if not subject.on_hold:
            raise IllegalTransition(f"{subject.number} is not on hold.")
        if now < subject.term_end:
            values: dict[str, object] = {"status": Status.ACTIVE, "on_hold": False}
        else:
            values = _into(Status.SUSPENDED, subject, now)
        return _write_family(family, Action.HOLD_LIFTED, now, values, actor=actor, source_id=source_id, reason=reason)


def cancel(
    subscription_id: int, *, at: CancelAt, actor: Actor, now: datetime, source_id: str = "", reason: str = ""
) -> AuditEntry | None:
    """End it at once, or when its paid term ends (at once where that is over). None if it is cancelled that way already."""
    with _family(subscription_id, source_id, Action.CANCEL_SCHEDULED, Action.EXPIRED) as family:
        if family.repeated:
            return None
        subject = family.subject
        _allow(subject, Status.EXPIRED)
        if at is CancelAt.TERM_END and subject.status in (Status.TRIAL, Status.ACTIVE) and now < subject.term_end:
            values: dict[str, object] = {"cancel_at_term_end": True}
            return _write_family(family, Action.CANCEL_SCHEDULED, now, values, actor=actor, source_id=source_id, reason=reason)
        return _expire(family, EndReason.CANCELLED, now, actor=actor, source_id=source_id, reason=reason)


def resume(
    subscription_id: int, *, actor: Actor, now: datetime, source_id: str = "", reason: str = ""
) -> AuditEntry | None:
    """Undo a cancellation at term end. None if there is none."""
    with _family(subscription_id, source_id, Action.CANCEL_UNDONE) as family:
        if family.repeated:
            return None
        _allow(family.subject, Status.EXPIRED)
        if family.subject.parent_id and family.subject.term_end != family.root.term_end:
            raise AddonFollowsMain("Its main subscription has been renewed without it.")
        values: dict[str, object] = {"cancel_at_term_end": False}
        return _write_family(family, Action.CANCEL_UNDONE, now, values, actor=actor, source_id=source_id, reason=reason)


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
    """End it for good, as of `ended_at` (default: now). A new subscription is the only way back."""
    with _family(subscription_id, source_id, Action.EXPIRED) as family:
        if family.repeated:
            return None
        _allow(family.subject, Status.EXPIRED)
        return _expire(family, why, terms.aware(ended_at or now, "ended_at"), actor=actor, source_id=source_id, reason=reason)


# --- the clock -------------------------------------------------------------------------------------------------------


def advance(*, now: datetime, batch_size: int = 1000) -> Iterator[AuditEntry]:
    """Take every step whose deadline has passed, each at its own `effective_at`, so that a clock that slept a month
    writes the history that should have happened. One commit a batch; several callers may sweep at once.
    """
    terms.aware(now, "now")
    while True:
        with transaction.atomic():
            families = _claim_due(now, batch_size)
            entries: list[AuditEntry] = []
            while steps := [change for family in families for change in _due_changes(family, now)]:
                entries += write(steps, actor=CLOCK)
        if not families:
            return
        yield from entries


@dataclass(frozen=True)
class Step:
    """One thing that the clock will do by itself."""

    at: datetime
    status: Status
    end_reason: EndReason | None = None


def next_step(subscription: Subscription) -> Step | None:
    """What the clock does next with this subscription, and when; None if nothing. Pure: reads DEADLINES and the row."""
    rule = DEADLINES.get(Status(subscription.status))
    at = rule and getattr(subscription, rule.column)
    if rule is None or at is None:
        return None
    if subscription.cancel_at_term_end:
        return Step(at, rule.if_cancelled, EndReason.CANCELLED_AT_TERM_END)
    return Step(at, rule.then, EndReason.SUSPENSION_OVER if rule.then == Status.EXPIRED else None)


def _due_changes(family: "Family", now: datetime) -> list[Change]:
    """The earliest step of this family that is due, with what follows from it; cancelled add-ons before their root."""
    alone = [addon for addon in family.addons if addon.cancel_at_term_end]
    due = [(step, member) for member in (*alone, family.root) if (step := next_step(member)) and step.at <= now]
    if not due:
        return []
    step, member = min(due, key=lambda pair: pair[0].at)
    moving = family if member is family.root else Family(family.root, [], subject=member)
    values = _into(step.status, member, step.at, step.end_reason)
    return _family_changes(moving, ACTION_OF_STATUS[step.status], step.at, values)


def _claim_due(now: datetime, limit: int) -> "list[Family]":
    """Families with a passed deadline, their roots locked; those that another worker holds are left to it."""
    due = Subscription.objects.filter(STEPS_BY_ITSELF, next_deadline__lte=now).order_by("next_deadline")[:limit]
    roots = Subscription.objects.filter(pk__in=due.values_list(Coalesce("parent_id", "id")))
    locked = list(
        roots.select_for_update(skip_locked=True, no_key=True, of=("self",)).select_related("plan").order_by("pk")
    )
    addons: dict[int, list[Subscription]] = {}
    live = Subscription.objects.filter(parent__in=locked).exclude(status=Status.EXPIRED)
    for addon in live.select_related("plan").order_by("pk") if locked else ():
        addons.setdefault(addon.root_id, []).append(addon)
    return [Family(root=root, addons=addons.get(root.pk, []), subject=root) for root in locked]


# --- families --------------------------------------------------------------------------------------------------------


@dataclass
class Family:
    """A root and its live add-ons, read under the root's lock. `subject` is the member that the verb names."""

    root: Subscription
    addons: list[Subscription]
    subject: Subscription
    repeated: bool = False


@contextmanager
def _family(subscription_id: int, source_id: str = "", *actions: Action) -> Iterator[Family]:
    """Lock the family's root, then read the family: two statements, because what is read must be younger than the lock."""
    with transaction.atomic(savepoint=False):
        parent = Subscription.objects.filter(pk=subscription_id).values("parent_id")
        lock = Subscription.objects.filter(pk=Coalesce(parent, Value(subscription_id))).values_list("pk", flat=True)
        root_id = lock.select_for_update(no_key=True).first()
        applied = AuditEntry.objects.filter(subscription=OuterRef("pk"), source_id=source_id, action__in=actions)
        members = (
            Subscription.objects.filter(Q(pk=root_id) | Q(parent_id=root_id))
            .filter(~Q(status=Status.EXPIRED) | Q(pk=root_id) | Q(pk=subscription_id))
            .annotate(applied=Exists(applied) if source_id else Value(False))
            .select_related("plan")
            .order_by(F("parent").asc(nulls_first=True), "pk")
        )
        family = {member.pk: member for member in members} if root_id else {}
        if subscription_id not in family or root_id is None:
            raise SubscriptionNotFound
        subject = family[subscription_id]
        addons = [member for member in family.values() if member.parent_id and member.status != Status.EXPIRED]
        yield Family(family[root_id], addons, subject, repeated=subject.applied)  # type: ignore[attr-defined]


def _write_family(
    family: Family, action: Action, at: datetime, values: dict[str, object], *, actor: Actor, source_id: str, reason: str
) -> AuditEntry | None:
    """Write the subject's change and what follows from it for its add-ons; answer the subject's entry, None if nothing changed."""
    terms.aware(at, "now")
    entries = write(_family_changes(family, action, at, values), actor=actor, source_id=source_id, reason=reason)
    return next((entry for entry in entries if entry.subscription_id == family.subject.pk), None)


def _family_changes(family: Family, action: Action, at: datetime, values: dict[str, object]) -> list[Change]:
    subject = family.subject
    whole = _whole(subject, values)
    changes = [Change(subject, action, at, whole)]
    for addon in family.addons if subject is family.root else ():
        if addon.status != Status.EXPIRED:
            changes.append(Change(addon, action, at, _following(addon, subject, whole, at)))
    return changes


def _following(addon: Subscription, main: Subscription, after: dict[str, object], at: datetime) -> dict[str, object]:
    """What an add-on's columns become when those of its MAIN become `after`: the same dates, and the same status where
    allowed. A hold of its own stays, and so does a cancellation of its own: it ends where its own term ends.
    """
    if after["status"] == Status.EXPIRED:
        return _whole(addon, _into(Status.EXPIRED, addon, at, EndReason.MAIN_ENDED))
    cancelled = after["cancel_at_term_end"]
    follows: dict[str, object] = {}
    if cancelled != main.cancel_at_term_end:
        follows["cancel_at_term_end"] = cancelled
    if cancelled or not follows.get("cancel_at_term_end", addon.cancel_at_term_end):
        follows["term_end"] = after["term_end"]
        if after["term_start"] != main.term_start:
            follows["term_start"] = after["term_start"]
    held_alone = addon.on_hold and not main.on_hold
    legal = after["status"] == addon.status or after["status"] in TRANSITIONS[Status(addon.status)]
    if legal and not held_alone:
        follows |= {name: after[name] for name in ("status", "grace_end", "suspension_end", "on_hold")}
    return _whole(addon, follows)


def _whole(subscription: Subscription, values: dict[str, object]) -> dict[str, object]:
    """All columns that hang together, made consistent: each status keeps its own instants and no others."""
    whole = {name: getattr(subscription, name) for name in _HANGING_TOGETHER} | values
    if whole["status"] != Status.GRACE:
        whole["grace_end"] = None
    if whole["status"] != Status.SUSPENDED:
        whole["suspension_end"], whole["on_hold"] = None, False
    whole["term_deadline"] = terms.term_deadline(
        whole["term_end"], auto_renews=whole["auto_renews"], cancel_at_term_end=whole["cancel_at_term_end"]
    )
    return whole


_HANGING_TOGETHER = (
    "status", "term_start", "term_end", "grace_end", "suspension_end", "on_hold", "auto_renews", "cancel_at_term_end",
)  # fmt: skip


def _into(status: Status, subscription: Subscription, at: datetime, why: EndReason | None = None) -> dict[str, object]:
    """The columns of a subscription that enters `status` at the instant `at`."""
    if status == Status.GRACE:
        return {"status": status, "grace_end": terms.grace_end(subscription.term_end, subscription.plan, since=at)}
    if status == Status.SUSPENDED:
        return {"status": status, "on_hold": False, "suspension_end": at + terms.suspension_window(subscription.plan)}
    if status == Status.EXPIRED:
        return {"status": status, "ended_at": at, "end_reason": why}
    return {"status": status}


def _expire(
    family: Family, why: EndReason, at: datetime, *, actor: Actor, source_id: str, reason: str
) -> AuditEntry | None:
    values = _into(Status.EXPIRED, family.subject, at, why)
    return _write_family(family, Action.EXPIRED, at, values, actor=actor, source_id=source_id, reason=reason)


def _allow(subscription: Subscription, to: Status) -> None:
    if to not in TRANSITIONS[Status(subscription.status)]:
        raise _illegal(subscription, to)
    if subscription.on_hold and to == Status.ACTIVE:
        raise IllegalTransition(f"{subscription.number} is on hold: only lifting the hold brings it back.")


def _illegal(subscription: Subscription, to: Status) -> IllegalTransition:
    return IllegalTransition(
        f"{subscription.number} is {subscription.status}: it cannot become {to}.",
        status=subscription.status,
        allowed=sorted(TRANSITIONS[Status(subscription.status)]),
    )


def _only_main(family: Family) -> None:
    if family.subject.parent_id:
        raise AddonFollowsMain


def _bought(purchase: Purchase) -> dict[str, object]:
    return {field.name: getattr(purchase, field.name) for field in fields(purchase)}


def _free_number(now: datetime, source_id: str) -> str | None:
    """A number that nobody has; None if this source has started a subscription already. The constraints decide a race."""
    started = AuditEntry.objects.filter(source_id=source_id, action=Action.STARTED).exclude(source_id="")
    while True:
        number = new_number(now)
        same_number = Subscription.objects.filter(number=number).values_list("number")
        found = set(same_number.union(started.values_list("subscription__number")))
        if not found:
            return number
        if found != {(number,)}:
            return None
