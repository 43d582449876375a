"""From a doorbell to the truth, once per event: ticket → fetch → apply → done.

No transaction is open while Stripe is asked. What was fetched is applied only if no later ticket of the same Stripe
subscription was, so order, duplicates and slow answers cannot matter; applying and being done are one commit. Whatever
fails keeps its reason on the event and is tried again; what can never succeed is parked at once, for a person.
"""

import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.conf import settings
from django.db import connection
from django.db.models import F

from subscriptions.errors import DomainError
from webhooks import stripe_api, truth
from webhooks.converge import Overtaken
from webhooks.models import StripeEvent
from webhooks.stripe_state import Unmappable, wanted

log = logging.getLogger(__name__)

# Seconds until the next try after the first, second, … failed one. About three days in all.
RETRY_SECONDS = (4, 15, 60, 180, 600, 1800, 3600, 7200, 14400, *[21600] * 11)
JITTER = 0.25  # of the delay, both ways: a recovering Stripe is not asked by all at once
MOST_ATTEMPTS = len(RETRY_SECONDS) + 1
# Refusals that may pass by themselves: a MAIN whose predecessor's end has not been applied yet, an add-on that came
# before its MAIN or before its MAIN's renewal. Whatever else is refused waits for a person.
MAY_PASS = frozenset({"live_main_exists", "no_main_for_addon", "addon_term_differs"})
ORDERS = OLDEST, NEWEST = ("ASC", "DESC")
MOST_BESIDE = 500  # events that are answered with another one

CLAIM = """
    WITH claimed AS (
        UPDATE stripe_events SET attempts = attempts + 1, next_attempt_at = %(lease)s
         WHERE event_id = (SELECT event_id FROM stripe_events
                            WHERE state = 'PENDING' AND next_attempt_at <= %(now)s {only}
                            ORDER BY next_attempt_at {order} LIMIT 1 FOR UPDATE SKIP LOCKED)
        RETURNING event_id, type, object_id, stripe_subscription_id, attempts, replays
    ), ticket AS (
        INSERT INTO stripe_links AS link (stripe_subscription_id, ticket, applied_ticket)
        SELECT stripe_subscription_id, 1, 0 FROM claimed WHERE stripe_subscription_id <> ''
        ON CONFLICT (stripe_subscription_id) DO UPDATE SET ticket = link.ticket + 1
        RETURNING ticket
    )
    SELECT claimed.*, ticket.ticket, (
               SELECT array_agg(event_id) FROM (
                   SELECT event_id FROM stripe_events
                    WHERE stripe_subscription_id = claimed.stripe_subscription_id AND stripe_subscription_id <> ''
                      AND state = 'PENDING' AND attempts = 0 AND event_id <> claimed.event_id
                    LIMIT {most_beside}) AS those)
      FROM claimed LEFT JOIN ticket ON true"""

TICKET = """
    WITH found AS (UPDATE stripe_events SET stripe_subscription_id = %(link)s WHERE event_id = %(event)s)
    INSERT INTO stripe_links AS link (stripe_subscription_id, ticket, applied_ticket) VALUES (%(link)s, 1, 0)
    ON CONFLICT (stripe_subscription_id) DO UPDATE SET ticket = link.ticket + 1 RETURNING ticket"""

# Events first, then the link, as CLAIM locks them: the two must not wait for each other. Who waits beside and is being
# claimed right now is passed by.
FINISH = """
    WITH mine AS MATERIALIZED (
        SELECT event_id FROM stripe_events
         WHERE event_id = %(event)s AND state = 'PENDING' AND attempts = %(attempts)s AND replays = %(replays)s
           FOR UPDATE
    ), beside AS MATERIALIZED (
        SELECT event_id FROM stripe_events
         WHERE event_id = ANY(%(beside)s::text[]) AND state = 'PENDING' AND attempts = 0 AND EXISTS (SELECT FROM mine)
           FOR UPDATE SKIP LOCKED
    ), applied AS (
        UPDATE stripe_links
           SET applied_ticket = greatest(applied_ticket, %(ticket)s), subscription_id = %(subscription)s
         WHERE stripe_subscription_id = %(link)s AND applied_ticket = %(applied)s
           AND EXISTS (SELECT FROM mine) AND (SELECT count(*) FROM beside) >= 0
        RETURNING stripe_subscription_id
    )
    UPDATE stripe_events
       SET state = 'DONE', done_at = %(now)s, error_code = '', error = '',
           outcome = CASE event_id WHEN %(event)s THEN %(outcome)s ELSE 'answered with ' || %(event)s END
     WHERE event_id IN (SELECT event_id FROM mine UNION ALL SELECT event_id FROM beside)
       AND (%(link)s = '' OR EXISTS (SELECT FROM applied))
    RETURNING event_id"""


@dataclass(frozen=True)
class Claimed:
    """An event that is ours to try until its lease ends."""

    event_id: str
    type: str
    object_id: str
    stripe_subscription_id: str
    attempts: int
    replays: int
    ticket: int | None
    beside: list[str] | None  # events about the same subscription that waited, too, before Stripe was asked

    @property
    def source_id(self) -> str:
        return StripeEvent(event_id=self.event_id, replays=self.replays).source_id


def drain(*, now: Callable[[], datetime], limit: int = 1000) -> Iterator[tuple[str, str]]:
    """Try every event that is due, the oldest and the newest in turn: a long queue neither waits for what comes in, nor
    keeps it waiting. Yield (event id, outcome). `now` is called once per event.

    Several workers may drain at once: they share the events.
    """
    for turn in range(limit):
        claimed = _claim(now(), order=ORDERS[turn % len(ORDERS)])
        if claimed is None:
            return
        yield claimed.event_id, _try(claimed, now)


def apply(event_id: str, *, now: datetime) -> str | None:
    """Try one event, if it is due. The outcome in words; None if there was nothing to try."""
    claimed = _claim(now, event_id)
    return _try(claimed, lambda: now) if claimed else None


def replay(event_ids: list[str], *, now: datetime) -> int:
    """Make these events due again, whatever became of them; the number found. Asking Stripe again is always safe."""
    found = StripeEvent.objects.filter(pk__in=event_ids)
    return found.update(
        state=StripeEvent.State.PENDING,
        attempts=0,
        replays=F("replays") + 1,
        next_attempt_at=now,
        done_at=None,
        outcome="",
    )


def parked() -> list[str]:
    return list(StripeEvent.objects.filter(state=StripeEvent.State.PARKED).values_list("pk", flat=True))


def due(*, now: datetime) -> int:
    """How many events wait for a worker, counted up to a hundred."""
    return StripeEvent.objects.filter(state=StripeEvent.State.PENDING, next_attempt_at__lte=now)[:100].count()


def seconds_to_next(*, now: datetime, within: float) -> float | None:
    """How long until the next retry, if that is sooner than `within` seconds: the sweep would be late for it."""
    retries = StripeEvent.objects.filter(state=StripeEvent.State.PENDING, attempts__gt=0, next_attempt_at__gt=now)
    at = retries.order_by("next_attempt_at").values_list("next_attempt_at", flat=True).first()
    seconds = (at - now).total_seconds() if at else within
    return seconds if seconds < within else None


def _claim(now: datetime, event_id: str = "", *, order: str = OLDEST) -> Claimed | None:
    lease = now + timedelta(seconds=settings.INBOX_LEASE_SECONDS)
    only = "AND event_id = %(event)s" if event_id else ""
    statement = CLAIM.format(only=only, order=order, most_beside=MOST_BESIDE)
    with connection.cursor() as cursor:
        cursor.execute(statement, {"now": now, "lease": lease, "event": event_id})
        row = cursor.fetchone()
    return Claimed(*row) if row else None


def _try(claimed: Claimed, now: Callable[[], datetime]) -> str:
    """Fetch and apply; whatever happens is kept on the event. The outcome in words. `now` is called when Stripe has
    answered, or has not: a time-out is part of the way.
    """
    try:
        if claimed.attempts > MOST_ATTEMPTS:
            raise Unmappable("worker_lost", "Its tries ended with the loss of their workers.")
        if claimed.ticket is None and claimed.type.startswith("checkout.session."):
            claimed = _with_subscription_of_checkout(claimed)
        if claimed.ticket is None:
            _finish(claimed, now(), "not about a subscription")
            return "not about a subscription"
        state = wanted(stripe_api.fetch_subscription(claimed.stripe_subscription_id))
        applied_at = now()
        finish = partial(_finish, claimed, applied_at)
        return truth.apply(state, claimed.ticket, finish, now=applied_at, source_id=claimed.source_id)
    except stripe_api.StripeUnavailable as error:
        return _failed(claimed, error.code, error.detail, now())
    except Overtaken:
        return _failed(claimed, "overtaken", "Others kept applying news of the same Stripe subscription.", now())
    except (stripe_api.StripeRefused, Unmappable, DomainError) as error:
        return _failed(claimed, error.code, error.detail, now(), for_good=error.code not in MAY_PASS)
    except Exception as error:  # a bug of ours, or a database that went away: kept, logged, tried again
        log.exception("Applying %s failed", claimed.event_id)
        return _failed(claimed, "unexpected", type(error).__name__, now())


def _finish(
    claimed: Claimed, now: datetime, outcome: str, applied_ticket: int = 0, subscription_id: int | None = None
) -> bool:
    """Mark the event done and its ticket applied, and with it those that waited beside it when Stripe was asked: they
    have been answered, too. False, and the caller keeps nothing, if the link is no longer as it was read, or the event
    no longer ours: its lease ended and somebody else took it, or a person asked for a replay.
    """
    parameters: dict[str, Any] = {
        "event": claimed.event_id,
        "attempts": claimed.attempts,
        "replays": claimed.replays,
        "link": claimed.stripe_subscription_id,
        "ticket": claimed.ticket or 0,
        "applied": applied_ticket,
        "subscription": subscription_id,
        "outcome": outcome[:255],
        "beside": claimed.beside or [],
        "now": now,
    }
    with connection.cursor() as cursor:
        cursor.execute(FINISH, parameters)
        return (claimed.event_id,) in cursor.fetchall()


def _with_subscription_of_checkout(claimed: Claimed) -> Claimed:
    """A session that was delivered before its subscription was made: Stripe is asked which one it became."""
    reference = stripe_api.fetch_checkout_session(claimed.object_id).get("subscription")
    subscription_id = reference.get("id") if isinstance(reference, dict) else reference
    if not isinstance(subscription_id, str) or not subscription_id:
        return claimed
    with connection.cursor() as cursor:
        cursor.execute(TICKET, {"event": claimed.event_id, "link": subscription_id})
        (ticket,) = cursor.fetchone()
    return replace(claimed, stripe_subscription_id=subscription_id, ticket=ticket)


def _failed(claimed: Claimed, code: str, detail: str, now: datetime, *, for_good: bool = False) -> str:
    """Keep why, and when to try again: parked where that is hopeless or has been tried for three days."""
    last = claimed.attempts >= MOST_ATTEMPTS
    ours = {"state": StripeEvent.State.PENDING, "attempts": claimed.attempts, "replays": claimed.replays}
    event = StripeEvent.objects.filter(pk=claimed.event_id, **ours)
    if for_good or last:
        event.update(state=StripeEvent.State.PARKED, error_code=code, error=detail)
        log.warning("Parked %s: %s", claimed.event_id, code)
        return f"parked: {code}"
    delay = RETRY_SECONDS[claimed.attempts - 1] * random.uniform(1 - JITTER, 1 + JITTER)
    event.update(error_code=code, error=detail, next_attempt_at=now + timedelta(seconds=delay))
    return f"failed: {code}, again in {delay:.0f} s"
