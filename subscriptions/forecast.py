"""What will happen by itself, when and why; and what would, if. The clock's tables played forward in memory: nothing is
written and nothing locked.

`next_step` reads DEADLINES and a row; `forecast` goes on from there with the same functions of `families` that the
verbs write with. A test holds it to the sweep: what it says is what `sweep.advance` then does.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile

from django.db.models import F, Q, QuerySet

from subscriptions import terms
from subscriptions.errors import AddonFollowsMain, IllegalTransition, InvalidTerm
from subscriptions.families import Family, cancelled, continued, into, renewed
from subscriptions.models import Subscription
from subscriptions.states import ACTION_OF_STATUS, DEADLINES, GRANTS_ACCESS, Action, EndReason, Status, end_reason


@dataclass(frozen=True)
class Step:
    """One thing that the clock will do by itself."""

    at: datetime
    status: Status
    end_reason: EndReason | None = None


@dataclass(frozen=True)
class Moment:
    """One thing that will become true of one subscription."""

    at: datetime
    subscription: Subscription  # as it is then
    action: Action
    why: str


def next_step(subscription: Subscription) -> Step | None:
    """What the clock does next with this subscription, and when; None if nothing. An add-on's parent, and its plan, are
    read: what it does next is often what its MAIN does.
    """
    if subscription.parent is None:
        return _own_step(subscription)
    family = Family(subscription.parent, [subscription], subject=subscription)
    moments = _play(_copied(family), [], terms.LATEST)
    return next((_step(moment) for moment in moments if moment.subscription.pk == subscription.pk), None)


def _step(moment: Moment) -> Step:
    end_reason = moment.subscription.end_reason
    return Step(moment.at, Status(moment.subscription.status), EndReason(end_reason) if end_reason else None)


def _own_step(subscription: Subscription) -> Step | None:
    """What the clock does with the row as it is. Pure: reads DEADLINES."""
    rule = DEADLINES.get(Status(subscription.status))
    at: datetime | None = getattr(subscription, rule.column) if rule else None
    if rule is None or at is None:
        return None
    is_cancelled = subscription.cancel_at_term_end
    status = rule.if_cancelled if is_cancelled else rule.then
    why = end_reason(status, is_cancelled=is_cancelled)
    return Step(at, status, EndReason(why) if why else None)


@dataclass(frozen=True)
class Paid:
    """What if one more term, as long as its price says, were paid at this instant?"""

    on: datetime


@dataclass(frozen=True)
class Renewed:
    """What if it were renewed until `term_end` at this instant?"""

    on: datetime
    term_end: datetime


@dataclass(frozen=True)
class Cancelled:
    """What if it were cancelled at this instant, and ended at once? With its term, where `at_term_end` says so."""

    on: datetime
    at_term_end: bool = False


WhatIf = Paid | Renewed | Cancelled


def of_subscription(subscription: Subscription) -> Family:
    """Its family, with nothing locked. One query."""
    of_family = Q(pk=subscription.root_id) | Q(parent_id=subscription.root_id)
    asked_for = Q(pk__in=[subscription.root_id, subscription.pk])
    (family,) = _families(Subscription.objects.filter(of_family & (asked_for | ~Q(status=Status.EXPIRED))))
    family.subject = next(member for member in _members(family) if member.pk == subscription.pk)
    return family


def of_tenant(tenant_id: int) -> list[Family]:
    """Every family of a tenant that is not over, with nothing locked. One query."""
    return _families(Subscription.objects.filter(tenant=tenant_id).exclude(status=Status.EXPIRED))


def forecast(
    family: Family, *, now: datetime, until: datetime | None = None, what_if: Sequence[WhatIf] = ()
) -> list[Moment]:
    """Everything that will happen to the members of a family before `until`, in order, if nobody does anything but
    `what_if` to its subject. What is overdue at `now` comes first, at its own instant. The family is left as it is.

    Raises InvalidTerm for a `what_if` in the past, and what the verb would raise at its instant.
    """
    terms.aware(now, "now")
    until = terms.aware(until or terms.LATEST, "until")
    for change in what_if:
        if terms.aware(change.on, "on") < now:
            raise InvalidTerm(f"What if, on {change.on.isoformat()}? That has passed.")
    moments = _play(_copied(family), sorted(what_if, key=lambda change: change.on), now)
    return [*takewhile(lambda moment: moment.at < until, moments)]


def _play(family: Family, what_if: list[WhatIf], now: datetime) -> Iterator[Moment]:
    """One thing after the other; of two at the same instant the beginning of a term first, then the clock."""
    ahead = [member for member in _members(family) if member.term_start > now]
    while True:
        begins = min((member.term_start for member in ahead), default=terms.LATEST)
        passes = min((step.at for step, _ in _clock(family)), default=terms.LATEST)
        would = what_if[0].on if what_if else terms.LATEST
        first = min(begins, passes, would)
        if first == terms.LATEST:
            return
        if begins == first:
            begun = [member for member in ahead if member.term_start == begins]
            ahead = [member for member in ahead if member.term_start != begins]
            yield from (
                Moment(begins, copy(member), Action.STARTED, BEGINS)
                for member in begun
                if member.status in GRANTS_ACCESS
            )
        elif passes == first:
            step, member = min(_clock(family), key=lambda pair: pair[0].at)
            moving = Family(family.root, family.addons if member is family.root else [], subject=member)
            why = WHY_ENDED[step.end_reason] if step.end_reason else WHY[step.status]
            if member.auto_renews and step.status == Status.GRACE:
                why = NOT_RENEWED
            values = into(step.status, member, step.at, step.end_reason)
            yield from _apply(moving, ACTION_OF_STATUS[step.status], step.at, values, why)
        else:
            yield from _would(family, what_if.pop(0))


def _clock(family: Family) -> list[tuple[Step, Subscription]]:
    """What the clock will do next with each member that it moves by itself; cancelled add-ons before their root."""
    alone = [addon for addon in family.addons if addon.cancel_at_term_end]
    return [(step, member) for member in (*alone, family.root) if (step := _own_step(member))]


def _would(family: Family, change: WhatIf) -> Iterator[Moment]:
    subject = family.subject
    if subject is not family.root and not isinstance(change, Cancelled):
        raise AddonFollowsMain
    if subject.status == Status.EXPIRED:
        raise IllegalTransition(f"{subject.number} would be EXPIRED on {change.on.isoformat()}.")
    if isinstance(change, Cancelled):
        action, values = cancelled(subject, change.on, at_term_end=change.at_term_end)
        yield from _apply(family, action, change.on, values, "If it is cancelled then")
    elif isinstance(change, Paid):
        yield from _apply(family, Action.RENEWED, change.on, continued(subject, change.on), "If it is paid then")
    elif terms.aware(change.term_end, "term_end") > subject.term_end:
        values = renewed(subject, change.term_end, change.on)
        yield from _apply(family, Action.RENEWED, change.on, values, "If it is renewed then")


def _apply(family: Family, action: Action, at: datetime, values: Mapping[str, object], why: str) -> Iterator[Moment]:
    for change in family.changes(action, at, values):
        if not change.differences:
            continue
        member = change.subscription
        for column, (_, value) in change.differences.items():
            setattr(member, column, value)
        member.version += 1
        member.next_deadline = step.at if (step := _own_step(member)) else None
        yield Moment(at, copy(member), change.action, why if member is family.subject else FOLLOWS)


def _families(subscriptions: QuerySet[Subscription]) -> list[Family]:
    """What belongs together. An add-on whose root is not among them stands alone: it is over."""
    families: dict[int, Family] = {}
    for member in subscriptions.select_related("tenant", "plan", "price").order_by(
        F("parent").asc(nulls_first=True), "pk"
    ):
        if member.root_id in families:
            member.parent = families[member.root_id].root
            families[member.root_id].addons.append(member)
        else:
            families[member.pk] = Family(member, [], subject=member)
    return [*families.values()]


def _members(family: Family) -> list[Subscription]:
    return [family.root, *family.addons]


def _copied(family: Family) -> Family:
    copies = {id(member): copy(member) for member in _members(family)}
    addons = [copies[id(addon)] for addon in family.addons if addon.status != Status.EXPIRED]
    return Family(copies[id(family.root)], addons, subject=copies[id(family.subject)])


BEGINS = "Its term begins"
NOT_RENEWED = "If the payment provider does not renew it: the term and the time to settle are over"
FOLLOWS = "Its main subscription does"
WHY = {
    Status.GRACE: "The term is over and not renewed",
    Status.SUSPENDED: "The grace period is over and nothing was paid",
}
WHY_ENDED = {
    EndReason.SUSPENSION_OVER: "It was suspended for too long",
    EndReason.CANCELLED_AT_TERM_END: "It was cancelled at its term's end",
}
