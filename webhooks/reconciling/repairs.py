"""One difference mended because somebody said so: by a verb, audited, with who and why."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from django.db import transaction

from entitlements.follow import follow
from subscriptions import lifecycle
from subscriptions.audit import check_reason
from subscriptions.errors import DomainError
from subscriptions.models import AuditEntry, Subscription
from subscriptions.states import EndReason
from webhooks import stripe_api
from webhooks.models import Drift, StripeLink, Telling
from webhooks.reconciling.comparing import DISMISSED, GONE_MEANWHILE, By, ask_and_apply, look_closely, record
from webhooks.reconciling.differences import RULES, Difference
from webhooks.reconciling.here import known_here

Kind = Drift.Kind


class NothingToDo(DomainError):
    """Nothing can be done about this from here."""

    code, http_status = "nothing_to_do", 409


class StillDiffers(DomainError):
    """It was tried, and the difference is still there."""

    code, http_status = "still_differs", 409


def repair(drift: Drift, by: By) -> str:
    """Mend it and resolve it; what that came to, in words. One that is gone meanwhile is resolved and nothing is done.

    Raises NothingToDo, StillDiffers, ReasonMissing, what the verb raises, StripeUnavailable, StripeRefused.
    """
    check_reason(by.actor, by.reason)
    if drift.resolved_at:
        return drift.resolution
    if not RULES[Kind(drift.kind)].repair:
        raise NothingToDo
    look = partial(look_closely, drift.object_id, [])
    ours = known_here({drift.object_id: None})[drift.object_id]
    only_looks = By(by.ask, by.now, by.source, by.actor, by.reason, repairs=False, writes=False)
    left = {found.difference.kind: found for found in look(before=ours, by=only_looks)}
    record([found for found in left.values() if not found.resolution], [], now=by.now())
    there = left.get(Kind(drift.kind))
    if there is None:
        return _resolve(drift, GONE_MEANWHILE, by.now())
    done = _REPAIRS.get(Kind(drift.kind), _ask_again)(drift, there.difference, by)
    if done.is_delivered_later:
        return _resolve(drift, f"repaired by {by.actor}: {done.outcome}", by.now())
    for found in look(before=known_here({drift.object_id: None})[drift.object_id], by=only_looks):
        if found.difference.kind == drift.kind:
            raise StillDiffers(done.why or StillDiffers.title())
    return _resolve(drift, f"repaired by {by.actor}: {done.outcome}", by.now())


def dismiss(drift: Drift, *, actor: str, reason: str, now: datetime) -> str:
    """Let it be, as long as it stays the same."""
    return drift.resolution if drift.resolved_at else _resolve(drift, f"{DISMISSED} by {actor}: {reason}", now)


def _resolve(drift: Drift, resolution: str, now: datetime) -> str:
    open_still = Drift.objects.filter(pk=drift.pk, resolved_at=None)
    open_still.update(resolved_at=now, resolution=resolution[:255])
    return resolution


# --- what is done, by kind -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Done:
    outcome: str
    why: str = ""  # it may not have been enough
    is_delivered_later: bool = False


def _ask_again(drift: Drift, difference: Difference, by: By) -> _Done:
    outcome, why, _ = ask_and_apply(drift.object_id, by)
    return _Done(outcome, why)


def _end_where_stripe_ends(drift: Drift, difference: Difference, by: By) -> _Done:
    """A term that ends sooner at Stripe, where asking again leaves it as it is."""
    done = _ask_again(drift, difference, by)
    subscription = _subscription(drift)
    term_end = datetime.fromisoformat(difference.theirs["paid until"])
    if term_end >= subscription.term_end:
        return done
    amend = partial(lifecycle.amend_term, subscription.pk, term_end=term_end)
    return _Done(_by_a_verb(amend, drift, by))


def _tell_the_end(drift: Drift, difference: Difference, by: By) -> _Done:
    """Stripe is told by a row that is delivered, and tried again until it is."""
    subscription, now = _subscription(drift), by.now()
    due = {"state": Telling.State.PENDING, "attempts": 0, "next_attempt_at": now, "done_at": None}
    said = {"tenant_id": subscription.tenant_id, "actor": by.actor, "reason": by.reason}
    Telling.objects.update_or_create(
        link_id=drift.object_id, aspect=Telling.Aspect.END, version=subscription.version, of_main=False,
        defaults=due | said, create_defaults=due | said | {"created_at": now},
    )  # fmt: skip
    return _Done("Stripe is told that it is over", is_delivered_later=True)


def _cancel_there(drift: Drift, difference: Difference, by: By) -> _Done:
    by.ask(stripe_api.end_subscription, drift.object_id)
    outcome, why, _ = ask_and_apply(drift.object_id, by)
    return _Done(f"cancelled at Stripe; {outcome}", why)


def _expire_here(drift: Drift, difference: Difference, by: By) -> _Done:
    return _Done(_by_a_verb(partial(lifecycle.expire, _subscription(drift).pk, why=EndReason.CANCELLED), drift, by))


_REPAIRS: dict[Drift.Kind, Callable[[Drift, Difference, By], _Done]] = {
    Kind.PERIOD: _end_where_stripe_ends,
    Kind.BILLED_AFTER_END: _tell_the_end,
    Kind.DUPLICATE: _cancel_there,
    Kind.UNKNOWN_AT_STRIPE: _expire_here,
}


def _by_a_verb(verb: Callable[..., AuditEntry | None], drift: Drift, by: By) -> str:
    """With what follows for slots, in one transaction."""
    said: dict[str, Any] = {
        "actor": by.actor, "now": by.now(), "reason": by.reason, "source_id": f"{by.source}:drift-{drift.pk}",
    }  # fmt: skip
    with transaction.atomic():
        entry = verb(**said)
        follow([entry] if entry else [], **said)
    return entry.get_action_display().lower() if entry else "nothing new"


def _subscription(drift: Drift) -> Subscription:
    return Subscription.objects.get(stripe_link=StripeLink(pk=drift.object_id))
