"""Families: a root and its add-ons, locked together and moved together.

Whoever changes anything of a family locks its root first, then reads, decides and writes. What happens to a MAIN
happens to its live add-ons in the same statement: their status and dates are its status and dates. Two things are an
add-on's own and outlast what its MAIN does: a hold, and a cancellation at term end, which ends it where its own term
ends. A hold put on a MAIN is the whole family's, and so is its lifting.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q, Value
from django.db.models.functions import Coalesce

from subscriptions import terms
from subscriptions.audit import Actor, Change, write
from subscriptions.errors import SubscriptionNotFound
from subscriptions.models import AuditEntry, Subscription
from subscriptions.states import TRANSITIONS, Action, EndReason, Status

STATE = ("status", "grace_end", "suspension_end", "on_hold")
_HANGING_TOGETHER = (*STATE, "term_start", "term_end", "auto_renews", "cancel_at_term_end")


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

        Raises InvalidTerm if somebody's term would be none.
        """
        changes = self.changes(action, at, values)
        for change in changes:
            terms.check_term(change.values["term_start"], change.values["term_end"])  # type: ignore[arg-type]
        entries = write(changes, actor=actor, source_id=source_id, reason=reason)
        return next((entry for entry in entries if entry.subscription_id == self.subject.pk), None)

    def changes(self, action: Action, at: datetime, values: Mapping[str, object]) -> list[Change]:
        """The subject's change and, where it is the root, those of its add-ons."""
        after = consistent(self.subject, values)
        followers = [a for a in self.addons if a.status != Status.EXPIRED] if self.subject is self.root else []
        return [
            Change(self.subject, action, at, after),
            *(Change(addon, action, at, _following(addon, self.root, after, at)) for addon in followers),
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


def lock_idle(root_ids: Sequence[int]) -> list[Family]:
    """These families, except those that another transaction holds: they are left to it. The caller's transaction."""
    roots = Subscription.objects.filter(pk__in=root_ids).select_related("plan").order_by("pk")
    idle = list(roots.select_for_update(skip_locked=True, no_key=True, of=("self",)))
    families = {root.pk: Family(root, [], subject=root) for root in idle}
    live = Subscription.objects.filter(parent__in=families).exclude(status=Status.EXPIRED)
    for addon in live.select_related("plan").order_by("pk"):
        families[addon.root_id].addons.append(addon)
    return [*families.values()]


def _following(addon: Subscription, main: Subscription, after: Mapping[str, object], at: datetime) -> dict[str, object]:
    """What an add-on's columns become when those of its MAIN become `after`."""
    if after["status"] == Status.EXPIRED:
        return consistent(addon, into(Status.EXPIRED, addon, at, EndReason.MAIN_ENDED))
    follows: dict[str, object] = {}
    if not addon.cancel_at_term_end:
        follows["term_end"] = after["term_end"]
        if after["term_start"] != main.term_start:
            follows["term_start"] = after["term_start"]
    held_alone = addon.on_hold and not main.on_hold
    legal = after["status"] == addon.status or after["status"] in TRANSITIONS[Status(addon.status)]
    if legal and not held_alone:
        follows |= {name: after[name] for name in STATE}
    return consistent(addon, follows)


def consistent(subscription: Subscription, values: Mapping[str, object]) -> dict[str, object]:
    """All columns that hang together once `values` are among them: a status keeps its own instants and no others."""
    whole = {name: getattr(subscription, name) for name in _HANGING_TOGETHER} | dict(values)
    if whole["status"] != Status.GRACE:
        whole["grace_end"] = None
    if whole["status"] != Status.SUSPENDED:
        whole["suspension_end"], whole["on_hold"] = None, False
    whole["term_deadline"] = terms.term_deadline(
        whole["term_end"], auto_renews=whole["auto_renews"], cancel_at_term_end=whole["cancel_at_term_end"]
    )
    return whole


def into(status: Status, subscription: Subscription, at: datetime, why: EndReason | None = None) -> dict[str, object]:
    """The columns of a subscription that enters `status` at the instant `at`."""
    if status == Status.GRACE:
        return {"status": status, "grace_end": terms.grace_end(subscription.term_end, subscription.plan, since=at)}
    if status == Status.SUSPENDED:
        until = terms.suspension_end(subscription.plan, since=at)
        return {"status": status, "on_hold": False, "suspension_end": until}
    if status == Status.EXPIRED:
        return {"status": status, "ended_at": at, "end_reason": why}
    return {"status": status}
