"""What changed here is told Stripe: the rows of `telling`, each delivered until Stripe has it.

A row says which aspect of a Stripe subscription is ours to say, not what: that is read when it is told, and compared
with what Stripe has; only a difference is said. So a row may come late, twice, or after a crash, and Stripe's state is
the same. Until a row is done, what Stripe says of its aspect changes nothing here (`converge`); being done and what
Stripe says then are one commit, under a ticket that was taken after Stripe had answered: news that were fetched before
cannot undo it.
"""

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.db.models import Exists, OuterRef
from djstripe.models import Customer

from subscriptions.audit import CLOCK, Actor
from subscriptions.errors import DomainError
from subscriptions.models import Subscription, Tenant
from subscriptions.states import Status
from webhooks import catalogue, stripe_api, truth
from webhooks.converge import ASIDE, Overtaken
from webhooks.inbox import JITTER, MOST_ATTEMPTS, RETRY_SECONDS
from webhooks.models import Checkout, StripePrice, Telling
from webhooks.stripe_state import OVER, Unmappable, outlasts_what_was_paid, stripe_id, unpausing, wanted

log = logging.getLogger(__name__)

Aspect = Telling.Aspect
WAS_SO = "was so already"


# Of one Stripe subscription one at a time, the oldest first: what waits for its retry keeps those behind it waiting.
CLAIM = """
    UPDATE stripe_tellings SET attempts = attempts + 1, next_attempt_at = %(lease)s
     WHERE id = (SELECT id FROM stripe_tellings AS t
                  WHERE state = 'PENDING' AND next_attempt_at <= %(now)s
                    AND NOT EXISTS (SELECT FROM stripe_tellings AS other
                                     WHERE other.link_id = t.link_id AND other.state = 'PENDING' AND other.id <> t.id
                                       AND (other.id < t.id
                                            OR (other.attempts > 0 AND other.next_attempt_at > %(now)s)))
                  ORDER BY next_attempt_at LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING id, aspect, tenant_id, link_id, attempts, actor"""

DONE = """
    UPDATE stripe_tellings SET state = 'DONE', done_at = %(now)s, outcome = %(outcome)s, error_code = '', error = ''
     WHERE id = %(id)s AND state = 'PENDING' AND attempts = %(attempts)s"""


class CannotBeTold(Exception):
    """What we have cannot be said in Stripe's words, until somebody changes something."""

    def __init__(self, code: str, detail: str) -> None:
        self.code, self.detail = code, detail
        super().__init__(f"{code}: {detail}")


@dataclass(frozen=True)
class Claimed:
    """A row that is ours to deliver until its lease ends."""

    pk: int
    aspect: Telling.Aspect
    tenant_id: int
    link_id: str
    attempts: int
    actor: str

    def __str__(self) -> str:
        return f"{self.pk} {self.aspect} {self.link_id or f'tenant {self.tenant_id}'}"


@dataclass(frozen=True)
class Say:
    """What makes Stripe's state ours: parameters of an update, or the end."""

    params: dict[str, Any] = field(default_factory=dict)
    is_the_end: bool = False


def deliver(*, now: Callable[[], datetime], limit: int = 1000) -> Iterator[tuple[str, str]]:
    """Tell Stripe what is due, the oldest first. Yield (which, outcome). `now` is called before and after Stripe is
    asked. Several workers may deliver at once: they share the rows.
    """
    for _ in range(limit):
        claimed = _claim(now())
        if claimed is None:
            return
        yield str(claimed), _try(claimed, now)


def again(telling_ids: Sequence[int], *, now: datetime) -> int:
    """Make these due once more, those that are stuck or wait for a retry; the number found."""
    waiting = Telling.objects.filter(pk__in=telling_ids).exclude(state=Telling.State.DONE)
    tenants = Telling.objects.filter(state=Telling.State.PENDING, link=None).values("tenant")
    waiting = waiting.exclude(link=None, state=Telling.State.STUCK, tenant__in=tenants)
    closed = Telling.objects.filter(link=None, state=Telling.State.STUCK, tenant=OuterRef("tenant"))
    waiting = waiting.exclude(Exists(closed.filter(pk__gt=OuterRef("pk"))), link=None)  # twice closed is told once
    return waiting.update(state=Telling.State.PENDING, attempts=0, next_attempt_at=now)


def give_up(telling_ids: Sequence[int], *, by: Actor, now: datetime) -> int:
    """Tell Stripe no more of these: what Stripe says counts again; the number found."""
    waiting = Telling.objects.filter(pk__in=telling_ids).exclude(state=Telling.State.DONE)
    return waiting.update(state=Telling.State.DONE, done_at=now, outcome=f"given up by {by}")


def stuck() -> list[int]:
    return list(Telling.objects.filter(state=Telling.State.STUCK).order_by("pk").values_list("pk", flat=True))


def due(*, now: datetime) -> int:
    """How many rows wait for a worker, counted up to a hundred."""
    return Telling.objects.filter(state=Telling.State.PENDING, next_attempt_at__lte=now)[:100].count()


def _claim(now: datetime) -> Claimed | None:
    lease = now + timedelta(seconds=settings.INBOX_LEASE_SECONDS)
    with connection.cursor() as cursor:
        cursor.execute(CLAIM, {"now": now, "lease": lease})
        row = cursor.fetchone()
    if row is None:
        return None
    pk, aspect, tenant_id, link_id, attempts, actor = row
    return Claimed(pk, Aspect(aspect), tenant_id, link_id or "", attempts, actor)


def _try(claimed: Claimed, now: Callable[[], datetime]) -> str:
    """Compare, tell, learn; whatever happens is kept on the row. The outcome in words."""
    try:
        if claimed.attempts > MOST_ATTEMPTS:
            raise CannotBeTold("worker_lost", "Its tries ended with the loss of their workers.")
        if claimed.aspect == Aspect.CLOSED:
            return _done(claimed, _end_everything(claimed.tenant_id), now())
        return _told(claimed, now)
    except stripe_api.StripeUnavailable as error:
        return _failed(claimed, error.code, error.detail, now())
    except (stripe_api.StripeRefused, CannotBeTold, Unmappable) as error:
        return _failed(claimed, error.code, error.detail, now(), for_good=True)
    except Exception as error:  # a bug of ours, or a database that went away: kept, logged, tried again
        log.exception("Telling %s failed", claimed)
        return _failed(claimed, "unexpected", type(error).__name__, now())


def _told(claimed: Claimed, now: Callable[[], datetime]) -> str:
    """Bring Stripe's subscription to ours in one aspect, and ours to the rest of what Stripe says then."""
    ours = Subscription.objects.select_related("parent", "plan", "price__plan").get(stripe_link=claimed.link_id)
    if ours.status == Status.EXPIRED and claimed.aspect != Aspect.END:
        return _done(claimed, "it is over here", now())
    ticket = truth.take_ticket(claimed.link_id)
    try:
        theirs = stripe_api.fetch_subscription(claimed.link_id)
    except stripe_api.StripeRefused as error:
        if error.code == "resource_missing" and claimed.aspect == Aspect.END:
            return _done(claimed, "Stripe has no such subscription", now())
        raise
    if claimed.aspect == Aspect.END and claimed.actor == CLOCK and _is_paid_on(ours, theirs):
        raise CannotBeTold("paid_on", "The clock ended it here, and at Stripe it was paid for a later term: see which.")
    outcome = WAS_SO
    if say := difference(claimed.aspect, ours, theirs, now()):
        outcome = "told" if _say(claimed, say, theirs) else "is over at Stripe"
        # A ticket from before the answer would be that of an older truth.
        ticket = truth.take_ticket(claimed.link_id)
        theirs = stripe_api.fetch_subscription(claimed.link_id)
    return _learn(claimed, theirs, ticket, outcome, now())


def _is_paid_on(ours: Subscription, theirs: dict[str, Any]) -> bool:
    """Whether somebody has paid for more than what the clock saw the end of, and goes on paying: a cancellation was
    undone at Stripe, or a payment came, and we did not hear of it. An add-on ends with its MAIN all the same.
    """
    if ours.parent_id or _is_over(theirs):
        return False
    state = wanted(theirs)
    item = state.items[0]
    goes_on = state.status in (Status.ACTIVE, Status.TRIAL) and not state.is_last(item)
    return goes_on and state.period_is_paid and state.term(item)[1] > ours.term_end + ASIDE


def _say(claimed: Claimed, say: Say, theirs: dict[str, Any]) -> bool:
    """Whether Stripe took it; False if there the subscription has ended meanwhile."""
    if say.is_the_end:
        return stripe_api.end_subscription(claimed.link_id)
    # The same words again are another request where Stripe's state was another one: else its first answer came back.
    key = stripe_api.key_for("telling", claimed.pk, sorted(say.params.items()), _seen(theirs))
    if (schedule := stripe_id(theirs.get("schedule"))) and _takes_the_place_of_what_is_scheduled(claimed):
        release = stripe_api.key_for("telling", claimed.pk, "release", schedule)
        stripe_api.release_schedule(schedule, idempotency_key=release)
    try:
        stripe_api.update_subscription(claimed.link_id, idempotency_key=key, **say.params)
    except stripe_api.StripeRefused:
        if not _is_over(stripe_api.fetch_subscription(claimed.link_id)):
            raise
        return False
    return True


def _takes_the_place_of_what_is_scheduled(claimed: Claimed) -> bool:
    """Stripe lets nobody say when a subscription ends that has a schedule; and what staff sell now is sold later, too.
    A quantity that was lowered because devices were deleted leaves a change alone that the customer has planned.
    """
    return claimed.aspect == Aspect.TERM_END or (claimed.aspect == Aspect.ITEMS and claimed.actor != CLOCK)


@transaction.atomic
def _learn(claimed: Claimed, theirs: dict[str, Any], ticket: int, outcome: str, now: datetime) -> str:
    """Done, and from now on what Stripe says of this aspect counts here again: what it says now is applied in the same
    commit. Where that is refused, Stripe was told all the same.
    """
    said = _done(claimed, outcome, now)
    if said != outcome:
        return said

    def finish(outcome: str, applied_ticket: int, subscription_id: int | None) -> bool:
        return truth.mark_applied(claimed.link_id, ticket, applied_ticket, subscription_id)

    try:
        truth.apply(wanted(theirs), ticket, finish, now=now, source_id=f"telling:{claimed.pk}~{claimed.attempts}")
    except (Unmappable, DomainError, stripe_api.StripeError) as error:
        return _noted(claimed, f"{outcome}; what Stripe has was not applied: {error.code}")
    except Overtaken:
        return _noted(claimed, f"{outcome}; others apply what Stripe has")
    return outcome


def _done(claimed: Claimed, outcome: str, now: datetime) -> str:
    """The outcome; another one where the row is no longer ours: its lease ended, or a person gave it up."""
    parameters: dict[str, Any] = {"id": claimed.pk, "attempts": claimed.attempts, "outcome": outcome[:255], "now": now}
    with connection.cursor() as cursor:
        cursor.execute(DONE, parameters)
        return outcome if cursor.rowcount else "somebody else has it"


def _noted(claimed: Claimed, outcome: str) -> str:
    Telling.objects.filter(pk=claimed.pk).update(outcome=outcome[:255])
    return outcome


def _failed(claimed: Claimed, code: str, detail: str, now: datetime, *, for_good: bool = False) -> str:
    """Keep why, and when to try again: stuck where that is hopeless or has been tried for three days."""
    row = Telling.objects.filter(pk=claimed.pk, state=Telling.State.PENDING, attempts=claimed.attempts)
    if for_good or claimed.attempts >= MOST_ATTEMPTS:
        row.update(state=Telling.State.STUCK, error_code=code, error=detail)
        log.warning("Stripe could not be told: %s: %s", claimed, code)
        return f"stuck: {code}"
    delay = RETRY_SECONDS[claimed.attempts - 1] * random.uniform(1 - JITTER, 1 + JITTER)
    row.update(error_code=code, error=detail, next_attempt_at=now + timedelta(seconds=delay))
    return f"failed: {code}, again in {delay:.0f} s"


def _end_everything(tenant_id: int) -> str:
    """Nobody can pay for this tenant any more, and nothing bills it. Safe to repeat. Raises StripeUnavailable."""
    tenant = Tenant.objects.get(pk=tenant_id)
    if tenant.closed_at is None:
        return "it is a customer again"
    open_ones = Checkout.objects.filter(tenant=tenant, state=Checkout.State.OPEN)
    open_ones.filter(session_id="").update(state=Checkout.State.EXPIRED)  # who is making its session shows it nobody
    for checkout in open_ones:
        if stripe_api.expire_checkout_session(checkout.session_id):
            open_ones.filter(pk=checkout.pk).update(state=Checkout.State.EXPIRED)
    customers = Customer.objects.filter(subscriber=tenant, livemode=settings.STRIPE_LIVE_MODE).order_by("id")
    ended = 0
    for customer_id in customers.values_list("id", flat=True):
        for theirs in stripe_api.subscriptions_of(str(customer_id)):
            ended += not _is_over(theirs) and stripe_api.end_subscription(str(theirs["id"]))
    return f"{ended} ended"


# --- what is said ----------------------------------------------------------------------------------------------------


def difference(aspect: Telling.Aspect, ours: Subscription, theirs: dict[str, Any], now: datetime) -> Say | None:
    """What makes Stripe's subscription say the same as ours in this aspect; None if it does, or is over.

    Raises CannotBeTold, Unmappable; StripeUnavailable and StripeRefused where a price is to be made at Stripe first.
    """
    return None if _is_over(theirs) else _SAYS[aspect](ours, theirs, now)


def _end(ours: Subscription, theirs: dict[str, Any], now: datetime) -> Say | None:
    return Say(is_the_end=True) if ours.status == Status.EXPIRED else None


def _term_end(ours: Subscription, theirs: dict[str, Any], now: datetime) -> Say | None:
    if ours.parent:
        return _with_its_main(ours, ours.parent, theirs, now)
    state = wanted(theirs)
    if state.is_last(state.items[0]) == ours.cancel_at_term_end:
        return None
    return Say({"cancel_at_period_end": True}) if ours.cancel_at_term_end else _goes_on(theirs)


def _with_its_main(ours: Subscription, main: Subscription, theirs: dict[str, Any], now: datetime) -> Say | None:
    """An add-on ends with its own term where it was cancelled, else where its MAIN does."""
    if not (ours.cancel_at_term_end or ends_with_its_term(main)):
        is_to_end = theirs.get("cancel_at_period_end") or theirs.get("cancel_at")
        return _goes_on(theirs) if is_to_end else None
    ends = ours.term_end if ours.cancel_at_term_end else main.term_end
    if ends <= now:
        return Say(is_the_end=True)
    at = int(ends.timestamp())  # Stripe counts whole seconds
    if theirs.get("cancel_at") == at:
        return None
    return Say({"cancel_at": at, "proration_behavior": "none"})


def ends_with_its_term(main: Subscription) -> bool:
    return main.cancel_at_term_end or not main.auto_renews


def _goes_on(theirs: dict[str, Any]) -> Say:
    return Say({"cancel_at_period_end": False} if theirs.get("cancel_at_period_end") else {"cancel_at": ""})


def _items(ours: Subscription, theirs: dict[str, Any], now: datetime) -> Say | None:
    """One item sells the plan; the packs beside it stay as they are."""
    sold = {item["id"]: item for item in theirs["items"]["data"]}
    price_ids = {pk: item["price"]["id"] for pk, item in sold.items()}
    plans = StripePrice.objects.filter(pk__in=price_ids.values(), plan_price__isnull=False)
    sells = dict(plans.values_list("pk", "plan_price_id"))
    found = [pk for pk, price_id in price_ids.items() if price_id in sells]
    if len(found) != 1:
        raise CannotBeTold("ambiguous_plan", f"{len(found)} items at Stripe sell a plan, where exactly one does.")
    (item,) = found
    if ours.price is None:
        raise CannotBeTold("no_price", f"{ours.number} is sold at no price: Stripe has nothing to bill.")
    if (sells[price_ids[item]], sold[item].get("quantity") or 1) == (ours.price_id, ours.quantity):
        return None
    told = {"id": item, "price": catalogue.price_at_stripe(ours.price), "quantity": ours.quantity}
    return Say({"items": [told], "proration_behavior": "create_prorations"})


def _pause(ours: Subscription, theirs: dict[str, Any], now: datetime) -> Say | None:
    """Paused otherwise than by us, Stripe stays as it is: a pause that was there before the hold outlasts it. What the
    hold outlasted is paid anew: service is back.
    """
    is_paused = (theirs.get("pause_collection") or {}).get("behavior") == "void"
    if is_paused == ours.on_hold or (is_paused and _was_paused_before(ours)):
        return None
    if ours.on_hold:
        return Say({"pause_collection": {"behavior": "void"}})
    return Say(unpausing(anew=outlasts_what_was_paid(theirs)))


def _was_paused_before(ours: Subscription) -> bool:
    """Whether Stripe was found paused when it was to be told of the hold. A second try may have found its first one."""
    told = Telling.objects.filter(link__subscription=ours, aspect=Aspect.PAUSE, state=Telling.State.DONE)
    last = told.order_by("-pk").first()
    return last is not None and last.attempts == 1 and last.outcome.startswith(WAS_SO)


_SAYS: dict[Telling.Aspect, Callable[[Subscription, dict[str, Any], datetime], Say | None]] = {
    Aspect.END: _end,
    Aspect.TERM_END: _term_end,
    Aspect.ITEMS: _items,
    Aspect.PAUSE: _pause,
}


def _is_over(theirs: dict[str, Any]) -> bool:
    return theirs.get("status") in OVER


def _seen(theirs: dict[str, Any]) -> str:
    """What Stripe had of all that is told."""
    items = [(item["id"], item["price"]["id"], item.get("quantity")) for item in theirs["items"]["data"]]
    return repr([*(theirs.get(name) for name in ("cancel_at", "cancel_at_period_end", "pause_collection")), items])
