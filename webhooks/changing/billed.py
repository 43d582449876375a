"""What Stripe bills of ours: how it is there, telling Stripe, and bringing here what is true there then."""

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from django.contrib.postgres.expressions import ArraySubquery
from django.db.models import OuterRef

from subscriptions.errors import IllegalTransition
from subscriptions.models import Subscription
from subscriptions.states import Status
from webhooks import stripe_api, truth
from webhooks.changing.asked import AskedBy
from webhooks.converge import Overtaken
from webhooks.errors import BeingTold
from webhooks.models import StripeLink, Telling
from webhooks.stripe_state import OVER, Unmappable, stripe_id, wanted

Aspect = Telling.Aspect
Call = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Billed:
    """A subscription of ours by its link."""

    link_id: str
    number: str
    ticket: int

    def state(self) -> dict[str, Any]:
        """As it is at Stripe, which is told nothing of what is not understood here. Raises Unmappable."""
        found = stripe_api.fetch_subscription(self.link_id)
        if not wanted(found).items:
            raise Unmappable("nothing_bought", "At Stripe it has no items.")
        return found

    def tell(self, verb: str, by: AskedBy, call: Call, *, of: str = "", **said: Any) -> dict[str, Any]:
        """One call to Stripe that two clicks make once. A refusal is not the answer to the next try as well: the card
        may be another one then.
        """
        asked = json.dumps(said, sort_keys=True)
        key = stripe_api.key_for(verb, of or self.link_id, by.key or self.ticket, asked)
        try:
            return call(of or self.link_id, idempotency_key=key, **said)
        except stripe_api.StripeRefused:
            truth.take_ticket(self.link_id)
            raise

    def release(self, state: dict[str, Any], by: AskedBy) -> None:
        """Drop what is scheduled, if anything is."""
        if schedule := stripe_id(state.get("schedule")):
            self.tell("release", by, stripe_api.release_schedule, of=schedule)


def billed_by_stripe(subscription: Subscription, *aspects: Telling.Aspect) -> Billed | None:
    """None if Stripe does not bill it. Raises IllegalTransition for what is over, BeingTold. One query."""
    if subscription.status == Status.EXPIRED:
        detail = f"{subscription.number} is EXPIRED: nothing of it changes."
        raise IllegalTransition(detail, status=Status.EXPIRED, allowed=[])
    untold = Telling.objects.filter(link=OuterRef("pk")).exclude(state=Telling.State.DONE)
    links = StripeLink.objects.filter(subscription=subscription)
    link = links.annotate(untold=ArraySubquery(untold.values("aspect"))).first()
    if link is None:
        return None
    if {*aspects, Aspect.END} & {*link.untold}:
        raise BeingTold
    return Billed(link.pk, subscription.number, link.ticket)


def addons_of(subscription: Subscription) -> list[Billed]:
    """Of a main subscription, those that Stripe bills. What is still to be told of them does not matter here."""
    links = StripeLink.objects.filter(subscription__parent=subscription).exclude(subscription__status=Status.EXPIRED)
    return [Billed(link.pk, link.subscription.number, link.ticket) for link in links.select_related("subscription")]  # type: ignore[union-attr]


def going_on(billed: Billed, by: AskedBy) -> dict[str, Any]:
    """How it is at Stripe. Where it is over there, it is over here at once: raises IllegalTransition then."""
    state = billed.state()
    if state["status"] in OVER:
        bring([billed], by)
        raise IllegalTransition(f"{billed.number} has ended at Stripe.", status=Status.EXPIRED, allowed=[])
    return state


def is_last_period(state: dict[str, Any]) -> bool:
    end = min(item["current_period_end"] for item in state["items"]["data"])
    return bool(state.get("cancel_at_period_end") or (state.get("cancel_at") and state["cancel_at"] <= end))


def bring(billed: Iterable[Billed], by: AskedBy) -> None:
    """What is true at Stripe is true here. Whoever keeps overtaking us brings it as well."""
    for one in billed:
        with suppress(Overtaken):
            truth.refresh(one.link_id, now=by.now, actor=by.actor, source_id=by.source_id)
