"""A long queue: one answer of Stripe's is enough for all that waited when it was asked, and nobody waits for ever."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.utils import timezone

from billing_site.local.process import wait_until
from subscriptions.states import Status
from tests.stripe_cast import bought_at_stripe, rings
from tests.stripe_sandbox.client import Sandbox
from tests.test_inbox_races import meanwhile, pool
from webhooks import inbox
from webhooks.models import StripeEvent, StripeLink

__all__ = ["pool"]  # a fixture

pytestmark = pytest.mark.django_db(transaction=True)


def asked(stripe: Sandbox) -> int:
    """How often Stripe was asked about a subscription."""
    return sum(
        request["method"] == "GET" and request["path"].startswith("/v1/subscriptions/") for request in stripe.requests()
    )


def pending() -> list[str]:
    return [*StripeEvent.objects.filter(state=StripeEvent.State.PENDING).values_list("pk", flat=True)]


def somebody_waits_for_a_lock() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_clear_snapshot()")  # a transaction sees the same one for ever
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                       " AND wait_event_type = 'Lock'")  # fmt: skip
        return bool(cursor.fetchone()[0])


def test_all_that_waited_when_stripe_was_asked_is_answered_with_one_question(stripe: Sandbox) -> None:
    bought = bought_at_stripe(stripe)
    events = [rings(bought["id"]) for _ in range(5)]
    other = rings(bought_at_stripe(stripe)["id"])
    before = asked(stripe)
    assert inbox.apply(events[2].pk, now=timezone.now()) == "started"
    assert (asked(stripe) - before, pending()) == (1, [other.pk])
    outcomes = StripeEvent.objects.exclude(pk=other.pk).values_list("outcome", flat=True)
    assert sorted(outcomes) == sorted(["started", *[f"answered with {events[2].pk}"] * 4])


def test_an_event_that_came_after_stripe_was_asked_is_not_answered_with_it(stripe: Sandbox) -> None:
    bought = bought_at_stripe(stripe)
    event = rings(bought["id"])
    claimed = inbox._claim(timezone.now(), event.pk)
    assert claimed is not None
    late = rings(bought["id"])
    assert inbox._try(claimed, timezone.now) == "started"
    assert pending() == [late.pk]


def test_one_that_failed_before_keeps_its_own_next_try(stripe: Sandbox) -> None:
    bought = bought_at_stripe(stripe)
    failed, event = rings(bought["id"]), rings(bought["id"])
    StripeEvent.objects.filter(pk=failed.pk).update(attempts=1, error_code="stripe_unavailable")
    assert inbox.apply(event.pk, now=timezone.now()) == "started"
    assert pending() == [failed.pk]


def test_finishing_does_not_wait_for_one_beside_it_that_is_being_claimed(
    stripe: Sandbox, pool: ThreadPoolExecutor
) -> None:
    """Who claims holds the event and waits for the link; who finishes holds the link: waiting for the event, too, would
    be a deadlock.
    """
    bought = bought_at_stripe(stripe)
    event, beside = rings(bought["id"]), rings(bought["id"])
    with transaction.atomic():
        StripeEvent.objects.select_for_update().get(pk=beside.pk)  # as CLAIM does
        assert meanwhile(pool, lambda: inbox.apply(event.pk, now=timezone.now())).result(timeout=20) == "started"
    assert pending() == [beside.pk]


def test_finishing_holds_no_link_while_it_waits_for_its_own_event(stripe: Sandbox, pool: ThreadPoolExecutor) -> None:
    bought = bought_at_stripe(stripe)
    event = rings(bought["id"])
    claimed = inbox._claim(timezone.now(), event.pk)
    assert claimed is not None
    with transaction.atomic():
        StripeEvent.objects.select_for_update().get(pk=event.pk)  # a replay, or who takes it over after its lease
        trying = meanwhile(pool, lambda: inbox._try(claimed, timezone.now))
        assert wait_until(somebody_waits_for_a_lock, seconds=20)
        StripeLink.objects.select_for_update(no_key=True, nowait=True).get(pk=bought["id"])
    assert trying.result(timeout=20) == "started"


def test_what_comes_in_now_does_not_wait_behind_a_queue_and_the_queue_is_not_kept_waiting(stripe: Sandbox) -> None:
    now = timezone.now()
    queue = [rings(f"sub_{n}") for n in range(6)]
    for place, event in enumerate(queue):
        StripeEvent.objects.filter(pk=event.pk).update(next_attempt_at=now - timedelta(hours=1, seconds=-place))
    fresh = rings(bought_at_stripe(stripe)["id"])
    tried = [event_id for event_id, _ in inbox.drain(now=timezone.now, limit=4)]
    assert (tried[0], tried[1], tried[2]) == (queue[0].pk, fresh.pk, queue[1].pk)
    assert StripeEvent.objects.get(pk=fresh.pk).outcome == "started"
    assert StripeLink.objects.get(subscription__status=Status.ACTIVE).pk == fresh.stripe_subscription_id
