"""Secrets and keys are changed while events are on their way: none is lost."""

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from subscriptions.models import Subscription
from subscriptions.states import Status
from tests.stripe_cast import bought_at_stripe
from tests.stripe_sandbox.client import Sandbox
from tests.test_stripe_years import badly_connected
from webhooks import inbox
from webhooks.intake import HANDLED_TYPES
from webhooks.models import StripeEvent

__all__ = ["badly_connected"]  # a fixture

pytestmark = pytest.mark.django_db(transaction=True)


def rung(stripe: Sandbox) -> set[str]:
    """The events that Stripe has told of, or tries to."""
    events = stripe.api("GET", "/v1/events", limit=100)["data"]
    return {event["id"] for event in events if event["type"] in HANDLED_TYPES}


def taken() -> set[str]:
    return {*StripeEvent.objects.values_list("pk", flat=True)}


def test_a_signing_secret_is_rotated_and_every_event_is_taken_once(badly_connected: Sandbox, settings: Any) -> None:
    stripe, (old,) = badly_connected, settings.STRIPE_WEBHOOK_SECRETS
    stripe.knobs(retry=[0.2] * 20)
    bought_at_stripe(stripe)
    stripe.flush()
    url = stripe.health()["webhook_url"]
    new = stripe.api("POST", "/v1/webhook_endpoints", url=url, enabled_events=["*"])["secret"]
    bought_at_stripe(stripe)  # it rings twice now; what the new secret signed is refused, and comes again
    settings.STRIPE_WEBHOOK_SECRETS = [old, new]
    stripe.flush()
    assert rung(stripe) == taken()
    settings.STRIPE_WEBHOOK_SECRETS = [new]
    bought_at_stripe(stripe)
    stripe.wait_quiet()
    assert rung(stripe) == taken()
    list(inbox.drain(now=timezone.now))
    assert Subscription.objects.filter(status=Status.ACTIVE).count() == 3


def test_an_api_key_is_changed_and_what_could_not_be_asked_is_asked_again(
    badly_connected: Sandbox, settings: Any
) -> None:
    stripe, key = badly_connected, settings.STRIPE_SECRET_KEY
    stripe.knobs()
    bought_at_stripe(stripe)
    stripe.flush()
    settings.STRIPE_SECRET_KEY = "sk_test_of_last_year"
    assert {outcome.partition(",")[0] for _, outcome in inbox.drain(now=timezone.now)} == {"failed: stripe_unavailable"}
    settings.STRIPE_SECRET_KEY = key
    in_a_minute = timezone.now() + timedelta(minutes=1)
    list(inbox.drain(now=lambda: in_a_minute))
    assert Subscription.objects.get().status == Status.ACTIVE
    assert not StripeEvent.objects.exclude(state=StripeEvent.State.DONE).exists()
