"""What Stripe says of a subscription, brought here: ticket → fetch → apply.

No transaction is open while Stripe is asked. What was fetched is applied only if no later ticket of the same Stripe
subscription was, so order, duplicates and slow answers cannot matter. The inbox does this for every event; whoever
wants to know now, a customer who comes back from paying or a comparison, does it with `refresh`.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from django.db import connection, transaction

from subscriptions.audit import STRIPE, Actor
from subscriptions.errors import DomainError
from webhooks import stripe_api
from webhooks.buying import newcomers
from webhooks.converge import Overtaken as Overtaken  # as those know it who refresh
from webhooks.converge import UnknownCustomer, converge, scheduled
from webhooks.known import known_of
from webhooks.models import Checkout, StripeLink
from webhooks.stripe_state import Wanted, wanted

MOST_OF_A_SOURCE = 230  # of the 255 characters that the audit keeps; a ticket takes 20
MOST_READINGS = 5  # of what we know, while others apply news of the same Stripe subscription

TICKET = """
    INSERT INTO stripe_links AS link (stripe_subscription_id, ticket, applied_ticket) VALUES (%s, 1, 0)
    ON CONFLICT (stripe_subscription_id) DO UPDATE SET ticket = link.ticket + 1 RETURNING ticket"""

APPLIED = """
    UPDATE stripe_links SET applied_ticket = greatest(applied_ticket, %(ticket)s), subscription_id = %(subscription)s
     WHERE stripe_subscription_id = %(link)s AND applied_ticket = %(applied)s"""

# Told the outcome, the applied ticket as it was read, and our subscription's id; False if it is no longer so, and
# nothing may be kept. It is the last statement of the transaction that applies.
Finish = Callable[[str, int, int | None], bool]


def refresh(
    stripe_subscription_id: str,
    *,
    now: Callable[[], datetime],
    actor: Actor = STRIPE,
    source_id: str = "",
    reason: str = "",
) -> str:
    """Ask Stripe about one subscription and apply the answer; the outcome in words. Safe to repeat. `now` is called
    when Stripe has answered. What is written names `source_id` and the ticket: each asking is a source of its own, for
    who asks again with the same key may hear something else.

    Raises StripeUnavailable, StripeRefused, Unmappable, DomainError, Overtaken.
    """
    ticket = take_ticket(stripe_subscription_id)
    state = wanted(stripe_api.fetch_subscription(stripe_subscription_id))

    def finish(outcome: str, applied_ticket: int, subscription_id: int | None) -> bool:
        return mark_applied(stripe_subscription_id, ticket, applied_ticket, subscription_id)

    source_id = f"{source_id[:MOST_OF_A_SOURCE]}~{ticket}" if source_id else ""
    return apply(state, ticket, finish, now=now(), actor=actor, source_id=source_id, reason=reason)


def take_ticket(stripe_subscription_id: str) -> int:
    """The number of an asking that begins now: what is fetched after is younger than all that lower numbers fetched."""
    with connection.cursor() as cursor:
        cursor.execute(TICKET, [stripe_subscription_id])
        ticket: int = cursor.fetchone()[0]
    return ticket


def mark_applied(stripe_subscription_id: str, ticket: int, applied_ticket: int, subscription_id: int | None) -> bool:
    """Keep that this ticket's answer is applied; False if another one's was since `applied_ticket` was read."""
    parameters: dict[str, Any] = {
        "link": stripe_subscription_id, "ticket": ticket, "applied": applied_ticket, "subscription": subscription_id,
    }  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute(APPLIED, parameters)
        return bool(cursor.rowcount)


def apply(
    state: Wanted,
    ticket: int,
    finish: Finish,
    *,
    now: datetime,
    actor: Actor = STRIPE,
    source_id: str = "",
    reason: str = "",
) -> str:
    """Apply what was fetched under this ticket; the outcome in words. What we know is read before anything is locked,
    so whoever was overtaken meanwhile rolls back and reads again. A refusal may come of the same: it counts when it
    comes again.

    Raises Overtaken, Unmappable, DomainError, and what `newcomers.welcome` raises.
    """
    for reading in range(MOST_READINGS):
        try:
            return _apply_once(state, ticket, finish, now, actor, source_id, reason)
        except UnknownCustomer:
            if not newcomers.are_welcome():
                raise
            newcomers.welcome(state.customer_id)
        except (Overtaken, DomainError):
            if reading == MOST_READINGS - 1:
                raise
    raise Overtaken


@transaction.atomic
def _apply_once(
    state: Wanted, ticket: int, finish: Finish, now: datetime, actor: Actor, source_id: str, reason: str
) -> str:
    """Bring our subscription to what was fetched, and finish, in one commit. Raises Overtaken."""
    known = known_of(state)
    if ticket < known.applied_ticket:
        subscription_id, outcome = known.subscription_id, "older than what was applied"
    else:
        subscription_id, outcome = converge(known, state, now=now, actor=actor, source_id=source_id, reason=reason)
        if known.checkout_is_open:
            Checkout.objects.filter(pk=state.checkout_id or 0).update(state=Checkout.State.COMPLETE)
        if (to_come := scheduled(known, state)) != known.scheduled:
            StripeLink.objects.filter(pk=state.stripe_subscription_id).update(**vars(to_come))
    if not finish(outcome, known.applied_ticket, subscription_id):
        raise Overtaken
    return outcome
