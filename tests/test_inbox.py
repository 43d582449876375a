"""From a doorbell to the truth: what an event does to our subscription, and what becomes of the event."""

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from subscriptions.models import Subscription
from subscriptions.states import Status
from tests.stripe_cast import bought_at_stripe, period, rings
from tests.stripe_sandbox.client import Sandbox
from webhooks import inbox

pytestmark = pytest.mark.django_db(transaction=True)


def ring(subscription_id: str, type: str = "customer.subscription.updated") -> str | None:
    return inbox.apply(rings(subscription_id, type).pk, now=timezone.now())


def ours(stripe_subscription_id: str) -> Subscription:
    return Subscription.objects.get(stripe_link=stripe_subscription_id)


def test_a_paid_subscription_at_stripe_becomes_an_active_one_here_for_the_paid_period(stripe: Sandbox) -> None:
    sub = bought_at_stripe(stripe)
    event = rings(sub["id"], "customer.subscription.created")
    with CaptureQueriesContext(
        connection,
    ) as queries:
        assert inbox.apply(event.pk, now=timezone.now()) == "started"
    print(len(queries), [q["sql"][:50] for q in queries])
    s = ours(sub["id"])
    assert (s.status, (s.term_start, s.term_end)) == (Status.ACTIVE, period(sub))
    assert s.audit.get().source_id == event.pk


def test_renew(stripe: Sandbox) -> None:
    sub = bought_at_stripe(stripe)
    ring(sub["id"])
    stripe.pay(sub["id"])
    event = rings(sub["id"], "customer.subscription.created")
    with CaptureQueriesContext(
        connection,
    ) as queries:
        assert inbox.apply(event.pk, now=timezone.now()) == "renewed"
    print(len(queries), [q["sql"][:50] for q in queries])
    stripe.fail(sub["id"])
    print(ring(sub["id"]))
    assert ours(sub["id"]).status == "GRACE"
    print(ours(sub["id"]).grace_end, ours(sub["id"]).term_end)
    stripe.pay(sub["id"])
    assert ring(sub["id"]) == "renewed"
    stripe.cancel(sub["id"], at_period_end=True)
    assert ring(sub["id"]) == "cancelled at term end"
    stripe.cancel(sub["id"])
    assert ring(sub["id"]) == "expired"
