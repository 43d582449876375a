"""Ending it, letting it go on, pausing it."""

from datetime import datetime
from typing import Any, Final

from django.db import transaction

from entitlements.follow import follow
from subscriptions import lifecycle
from subscriptions.errors import AddonFollowsMain, IllegalTransition
from subscriptions.families import into
from subscriptions.lifecycle import CancelAt
from subscriptions.models import AuditEntry, Subscription
from subscriptions.states import Status
from webhooks import stripe_api
from webhooks.changing.asked import AskedBy
from webhooks.changing.billed import Aspect, addons_of, billed_by_stripe, bring, going_on, is_last_period
from webhooks.errors import HeldByStaff, InvalidPause, NotBilledByStripe
from webhooks.outgoing import telling
from webhooks.stripe_state import OVER, outlasts_what_was_paid, unpausing

SERVED: Final = ("active", "trialing")  # statuses of Stripe's


def cancel(subscription: Subscription, *, at: CancelAt, by: AskedBy) -> None:
    """End it at once, or when its paid term ends (at once where that is over and the next was not paid)."""
    billed = billed_by_stripe(subscription, Aspect.TERM_END)
    if billed is None:
        with transaction.atomic():
            here = {"actor": by.actor, "now": by.now(), "source_id": by.source_id}
            _follow(lifecycle.cancel(subscription.pk, at=at, **here), here)  # type: ignore[arg-type]
        return
    state = billed.state()
    is_owed = state["status"] not in SERVED and subscription.term_end <= by.now()
    if state["status"] in OVER:
        pass
    elif at is CancelAt.NOW or is_owed:
        stripe_api.end_subscription(billed.link_id)
    elif not (state.get("cancel_at_period_end") or (is_last_period(state) and not subscription.parent_id)):
        billed.release(state, by)
        billed.tell("end", by, stripe_api.update_subscription, cancel_at_period_end=True)
    bring([billed], by)


def resume(subscription: Subscription, *, by: AskedBy) -> None:
    """Undo a cancellation that is to come, and end a pause, of its add-ons too; None of both: nothing changes. A pause
    that outlasted what was paid ends with a new period, which is paid at once.

    Raises AddonFollowsMain for an add-on that ends with its main subscription, HeldByStaff where there is only a hold
    to end.
    """
    billed = billed_by_stripe(subscription, Aspect.TERM_END, Aspect.PAUSE)
    if billed is None:
        with transaction.atomic():
            here = {"actor": by.actor, "now": by.now(), "source_id": by.source_id}
            _follow(lifecycle.resume(subscription.pk, **here), here)  # type: ignore[arg-type]
        return
    if subscription.parent and subscription.parent.cancel_at_term_end:
        raise AddonFollowsMain("It ends with its main subscription: resume that instead.")
    state = going_on(billed, by)
    undone = _undone(state)
    is_paused = bool(state.get("pause_collection")) or state["status"] == "paused"
    if is_paused and subscription.on_hold and not undone:
        raise HeldByStaff
    # Stripe ends a pause by itself where it was told until when, and what was voided meanwhile is still not paid.
    anew = outlasts_what_was_paid(state)
    was_paused = subscription.status == Status.SUSPENDED and anew
    lifts = (is_paused or was_paused) and not (subscription.on_hold or subscription.parent_id)
    if lifts and (was_paused or state.get("pause_collection")):
        undone |= unpausing(anew=anew)
    if undone:
        billed.tell("go on", by, stripe_api.update_subscription, **undone)
    if lifts and state["status"] == "paused":
        billed.tell("resume", by, stripe_api.resume_subscription)
    addons = addons_of(subscription) if lifts else []
    for addon in addons:
        # Paid anew together, else not at all: their periods are the same.
        said = unpausing(anew=anew and outlasts_what_was_paid(addon.state()))
        addon.tell("unpause", by, stripe_api.update_subscription, **said)
    bring([billed, *addons], by)


def _undone(state: dict[str, Any]) -> dict[str, Any]:
    """What to tell Stripe so that nothing ends it by itself. It takes one of the two."""
    if state.get("cancel_at_period_end"):
        return {"cancel_at_period_end": False}
    return {"cancel_at": ""} if state.get("cancel_at") else {}


def pause(subscription: Subscription, *, resumes_at: datetime | None = None, by: AskedBy) -> None:
    """Nobody pays and nothing is served, of its add-ons neither, until `resumes_at` or until it is resumed. A pause
    that lasts as long as a suspension may last ends the subscription.

    Raises InvalidPause, NotBilledByStripe, AddonFollowsMain, IllegalTransition for a trial.
    """
    if subscription.parent_id:
        raise AddonFollowsMain
    billed = billed_by_stripe(subscription, Aspect.PAUSE)
    if billed is None:
        raise NotBilledByStripe
    if subscription.status == Status.TRIAL:
        detail = f"{subscription.number} is TRIAL: nothing is paid that could be paused."
        raise IllegalTransition(detail, status=subscription.status, allowed=[Status.ACTIVE, Status.GRACE])
    now = by.now()
    until = subscription.suspension_end or into(Status.SUSPENDED, subscription, now)["suspension_end"]
    if resumes_at is not None and not now < resumes_at < until:  # type: ignore[operator]
        raise InvalidPause(suspension_end=until)
    going_on(billed, by)
    paused: dict[str, Any] = {"behavior": "void"}
    if resumes_at is not None:
        paused["resumes_at"] = int(resumes_at.timestamp())
    family = [billed, *addons_of(subscription)]
    for member in family:
        member.tell("pause", by, stripe_api.update_subscription, pause_collection=paused)
    bring(family, by)


def _follow(entry: AuditEntry | None, by: dict[str, Any]) -> None:
    if entry:
        telling.tell([entry], now=by["now"])
        follow([entry], **by)
