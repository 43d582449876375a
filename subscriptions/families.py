"""Families: a root and its add-ons, locked together and moved together.

Whoever changes anything of a family locks its root first, then reads, decides and writes. What happens to a MAIN
happens to its live add-ons in the same statement: their status and dates are its status and dates. Two things are an
add-on's own and outlast what its MAIN does: a hold, and a cancellation at term end, which ends it where its own term
ends. A hold put on a MAIN is the whole family's, and its lifting leaves alone the add-ons that have one of their own.

The functions that answer columns are pure: the verbs write what they say, the forecast plays it forward, and the
statement of the sweep says the same in SQL.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import Exists, F, OuterRef, Q, Value
from django.db.models.functions import Coalesce

from subscriptions import terms
from subscriptions.audit import Actor, Change, write
from subscriptions.errors import NoPrice, SourceReused, SubscriptionNotFound
from subscriptions.models import AuditEntry, PlanPrice, Subscription
from subscriptions.states import GRANTS_ACCESS, INSTANTS, TRANSITIONS, Action, EndReason, Status, Type

STATE = ("status", "grace_end", "suspension_end", "on_hold")
CALENDAR = ("anniversary", "time_zone")
_HANGING_TOGETHER = (*STATE, *CALENDAR, "own_hold", "term_start", "term_end", "auto_renews", "cancel_at_term_end")


@dataclass
class Family:
    """A root and its live add-ons, read under the root's lock. `subject` is the member that the verb names."""

    root: Subscription
    addons: list[Subscription]
    subject: Subscription
    repeated: bool = False  # the verb's source has done this to the subject before

    def write(
        self,
        action: Action,
        at: datetime,
        values: Mapping[str, object],
        *,
        actor: Actor,
        source_id: str = "",
        reason: str = "",
    ) -> AuditEntry | None:
        """Write the subject's change and what follows from it; answer the subject's entry, None if nothing changed.

        Raises InvalidTerm if somebody's term would be none, SourceReused.
        """
        changes = self.changes(action, at, values)
        for change in changes:
            terms.check_term(change.values["term_start"], change.values["term_end"])  # type: ignore[arg-type]
        try:
            entries = write(changes, actor=actor, source_id=source_id, reason=reason)
        except IntegrityError as error:
            if "a_source_applies_once_per_subscription_and_action" in str(error):
                raise SourceReused from error
            raise
        return next((entry for entry in entries if entry.subscription_id == self.subject.pk), None)

    def changes(self, action: Action, at: datetime, values: Mapping[str, object]) -> list[Change]:
        """The subject's change and, where it is the root, those of its add-ons."""
        after = consistent(self.subject, values)
        followers = [a for a in self.addons if a.status != Status.EXPIRED] if self.subject is self.root else []
        return [
            Change(self.subject, action, at, after),
            *(_follower(addon, action, at, self.root, after) for addon in followers),
        ]


@contextmanager
def locked(subscription_id: int, now: datetime, source_id: str, *actions: Action) -> Iterator[Family]:
    """One family, in a transaction. Two statements: what is read must be younger than the lock.

    Raises SubscriptionNotFound, and InvalidTerm for a `now` that is no instant.
    """
    terms.aware(now, "now")
    with transaction.atomic(savepoint=False):
        parent = Subscription.objects.filter(pk=subscription_id).values("parent_id")
        lock = Subscription.objects.filter(pk=Coalesce(parent, Value(subscription_id))).values_list("pk", flat=True)
        root_id = lock.select_for_update(no_key=True).first()
        if root_id is None:
            raise SubscriptionNotFound
        applied = AuditEntry.objects.filter(subscription=OuterRef("pk"), source_id=source_id, action__in=actions)
        members = (
            Subscription.objects.filter(Q(pk=root_id) | Q(parent_id=root_id))
            .filter(~Q(status=Status.EXPIRED) | Q(pk=root_id) | Q(pk=subscription_id))
            .annotate(is_applied=Exists(applied) if source_id else Value(False))
            .select_related("plan")
            .order_by(F("parent").asc(nulls_first=True), "pk")
        )
        root, *addons = members
        subject = next(member for member in members if member.pk == subscription_id)
        yield Family(root, [*addons], subject, repeated=subject.is_applied)


def _follower(
    addon: Subscription, action: Action, at: datetime, main: Subscription, after: Mapping[str, object]
) -> Change:
    values = _following(addon, main, after, at)
    ends_alone = values["status"] == Status.EXPIRED != after["status"]
    return Change(addon, Action.EXPIRED if ends_alone else action, at, values)


def _following(addon: Subscription, main: Subscription, after: Mapping[str, object], at: datetime) -> dict[str, object]:
    """What an add-on's columns become when those of its MAIN become `after`."""
    if after["status"] == Status.EXPIRED:
        return consistent(addon, into(Status.EXPIRED, addon, at, EndReason.MAIN_ENDED))
    follows: dict[str, object] = {name: after[name] for name in CALENDAR}
    if not addon.cancel_at_term_end:
        follows["term_end"] = after["term_end"]
        if after["term_start"] != main.term_start:
            follows["term_start"] = after["term_start"]
    is_lifted = main.on_hold and not after["on_hold"]  # which may lead back where no other way leads
    legal = after["status"] == addon.status or after["status"] in TRANSITIONS[Status(addon.status)]
    if (legal or is_lifted) and not addon.own_hold:
        follows |= as_its_main(addon, after, at)
    return consistent(addon, follows)


def as_its_main(addon: Subscription, main: Mapping[str, object], at: datetime) -> dict[str, object]:
    """The columns of an add-on that goes where its MAIN is. One that was cancelled does not come back from a suspension
    that its own term did not outlast: it ends.
    """
    is_over = addon.cancel_at_term_end and addon.term_end <= at
    if is_over and addon.status == Status.SUSPENDED and main["status"] in GRANTS_ACCESS:
        return into(Status.EXPIRED, addon, at, EndReason.CANCELLED_AT_TERM_END)
    return {name: main[name] for name in STATE}


def consistent(subscription: Subscription, values: Mapping[str, object]) -> dict[str, object]:
    """All columns that hang together once `values` are among them: a status keeps its own instant and no other, and an
    anniversary is kept where the term's end allows it.
    """
    whole: dict[str, Any] = {name: getattr(subscription, name) for name in _HANGING_TOGETHER} | dict(values)
    if whole["status"] != Status.GRACE:
        whole["grace_end"] = None
    if whole["status"] != Status.SUSPENDED:
        whole["suspension_end"], whole["on_hold"], whole["own_hold"] = None, False, False
    if whole["term_end"] != subscription.term_end:
        whole["anniversary"] = terms.kept_anniversary(whole["anniversary"], whole["term_end"], whole["time_zone"])
    whole["term_deadline"] = terms.term_deadline(
        whole["term_end"], auto_renews=whole["auto_renews"], cancel_at_term_end=whole["cancel_at_term_end"]
    )
    return whole


def into(status: Status, subscription: Subscription, at: datetime, why: EndReason | None = None) -> dict[str, object]:
    """The columns of a subscription that enters `status` at the instant `at`; not on hold."""
    values: dict[str, object] = {"status": status, "on_hold": False}
    if rule := INSTANTS.get(status):
        values[rule.column] = terms.until(
            rule,
            subscription.plan,
            counted_from=getattr(subscription, rule.counted_from) if rule.counted_from else at,
            since=at,
            time_zone=subscription.time_zone,
        )
    return values | ({"end_reason": why} if status == Status.EXPIRED else {})


def renewed(subscription: Subscription, term_end: datetime, now: datetime) -> dict[str, object]:
    """The columns of a subscription that is renewed until `term_end`, later than the present one: ACTIVE, but for a
    hold. A term that is over is followed by a new one that starts where it ended; one that still runs grows.

    Raises InvalidTerm for a term that is over itself, where it would end a suspension.
    """
    if subscription.status == Status.SUSPENDED and not subscription.on_hold:
        terms.check_not_over(term_end, now)
    is_over = subscription.term_end <= now
    term_start = subscription.term_end if is_over else subscription.term_start
    is_last = subscription.type == Type.TEMPORARY  # it ends by itself, later now
    values: dict[str, object] = {"term_start": term_start, "term_end": term_end, "cancel_at_term_end": is_last}
    return values if subscription.on_hold else values | {"status": Status.ACTIVE}


def continued(subscription: Subscription, now: datetime) -> dict[str, object]:
    """The columns of a subscription that is renewed by one interval of its price. What was withheld is not charged:
    after a suspension the new term is the one that covers `now`. Raises NoPrice.
    """
    term_start, term_end = terms.next_term(
        subscription.term_end,
        _price(subscription),
        anniversary=subscription.anniversary,
        time_zone=subscription.time_zone,
        covering=now if subscription.status == Status.SUSPENDED else None,
    )
    values = renewed(subscription, term_end, now)
    return values if term_start == subscription.term_end else values | {"term_start": term_start}


def _price(subscription: Subscription) -> PlanPrice:
    """What it was sold at; where that is not known, whatever its plan costs, if all its prices are for one interval."""
    if subscription.price:
        return subscription.price
    by_interval = {(price.interval, price.interval_count): price for price in subscription.plan.prices.all()}
    if len(by_interval) != 1:
        raise NoPrice
    (price,) = by_interval.values()
    return price


def cancelled(subscription: Subscription, now: datetime, *, at_term_end: bool) -> tuple[Action, dict[str, object]]:
    """What is done to a subscription that is cancelled, and its columns then. A term that is over ends at once."""
    if at_term_end and now < subscription.term_end:
        return Action.CANCEL_SCHEDULED, {"cancel_at_term_end": True}
    return Action.EXPIRED, into(Status.EXPIRED, subscription, now, EndReason.CANCELLED)


def amended(subscription: Subscription, term_end: datetime, now: datetime) -> dict[str, object]:
    """The columns of a subscription whose term was to end at `term_end` all along."""
    moved = copy(subscription)
    moved.term_end = term_end
    values: dict[str, object] = {"term_end": term_end}
    if subscription.on_hold or subscription.status not in (Status.GRACE, Status.SUSPENDED):
        return values
    if now < term_end:
        return values | into(Status.ACTIVE, moved, now)
    return values | into(Status.GRACE, moved, now) if subscription.status == Status.GRACE else values


def by_its_dates(subscription: Subscription, now: datetime, *, was_on_trial: bool) -> dict[str, object]:
    """The columns of a subscription that is suspended, once only its dates speak: what the clock would have made of it.

    Nothing ends by this but what was cancelled: where even the suspension would be over, it begins anew.
    """
    if now < subscription.term_deadline:
        return into(Status.TRIAL if was_on_trial else Status.ACTIVE, subscription, now)
    if subscription.cancel_at_term_end:
        return into(Status.EXPIRED, subscription, now, EndReason.CANCELLED_AT_TERM_END)
    grace = into(Status.GRACE, subscription, subscription.term_deadline)
    grace_end: Any = grace["grace_end"]
    if now < grace_end:
        return grace
    suspended = into(Status.SUSPENDED, subscription, grace_end)
    suspension_end: Any = suspended["suspension_end"]
    return suspended if now < suspension_end else into(Status.SUSPENDED, subscription, now)
