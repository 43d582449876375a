"""Trials at Stripe and here: one per tenant, with and without a card, and the two agree at every step."""

from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from subscriptions.models import Subscription, Tenant
from subscriptions.states import Status
from tests import stripe_spec
from tests.builders import TenantFactory
from tests.buying import buys, made, returns, session_of, signs_in, sold
from tests.stripe_cast import period
from tests.stripe_sandbox.client import Sandbox
from webhooks import truth
from webhooks.models import StripeLink

pytestmark = pytest.mark.django_db

DAY = 24 * 3600
PAUSE = {"end_behavior": {"missing_payment_method": "pause"}}


@pytest.fixture
def owner() -> Client:
    tenant: Tenant = TenantFactory.create(slug="acme")
    return signs_in(tenant)


def asked(stripe: Sandbox) -> dict[str, Any]:
    """What Stripe was asked for last."""
    params: dict[str, Any] = made(stripe, "/v1/checkout/sessions")[-1]["params"]
    stripe_spec.validate_request("POST", "/v1/checkout/sessions", params)
    return params


def tried(owner: Client, stripe: Sandbox, **plan: Any) -> Subscription:
    """A subscription whose trial of 14 days was begun through a checkout."""
    sold("fleet", slots=5, trial_days=14, **plan)
    session_id = session_of(buys(owner))
    stripe.complete(session_id)
    returns(session_id)
    return Subscription.objects.get()


def at_stripe() -> str:
    return StripeLink.objects.get().pk


def news(day: float) -> Subscription:
    """What is here after asking Stripe so many days later."""
    truth.refresh(at_stripe(), now=lambda: timezone.now() + timedelta(days=day))
    return Subscription.objects.get()


def test_a_trial_begins_with_a_card_by_default_and_is_the_tenants_one(owner: Client, stripe: Sandbox) -> None:
    s = tried(owner, stripe)
    data = asked(stripe)["subscription_data"]
    assert (data["trial_period_days"], data["trial_settings"]) == ("14", PAUSE)
    assert "payment_method_collection" not in asked(stripe)
    assert (s.status, s.trial_ordinal, s.type) == (Status.TRIAL, 1, "MAIN")
    assert (s.term_start, s.term_end) == period(stripe.api("GET", f"/v1/subscriptions/{at_stripe()}"))


def test_the_free_invoice_of_a_trial_ends_nothing(owner: Client, stripe: Sandbox) -> None:
    tried(owner, stripe)
    invoice = stripe.api("GET", f"/v1/subscriptions/{at_stripe()}", expand=["latest_invoice"])["latest_invoice"]
    assert (invoice["status"], invoice["amount_due"]) == ("paid", 0)
    assert news(1).status == Status.TRIAL


def test_with_a_card_the_trial_becomes_a_paid_term(owner: Client, stripe: Sandbox) -> None:
    tried(owner, stripe)
    stripe.clock(15 * DAY)
    s = news(15)
    assert (s.status, s.type) == (Status.ACTIVE, "MAIN")
    assert (s.term_start, s.term_end) == period(stripe.api("GET", f"/v1/subscriptions/{at_stripe()}"))


def test_without_a_card_the_trial_ends_suspended_until_there_is_one(owner: Client, stripe: Sandbox) -> None:
    stripe.knobs(card="none")
    tried(owner, stripe, trial_needs_card=False)
    assert asked(stripe)["payment_method_collection"] == "if_required"
    stripe.clock(15 * DAY)
    assert stripe.api("GET", f"/v1/subscriptions/{at_stripe()}")["status"] == "paused"
    assert news(15).status == Status.SUSPENDED
    stripe.pay(at_stripe())
    assert news(15).status == Status.ACTIVE


def test_a_card_that_is_refused_at_the_trials_end_is_grace(owner: Client, stripe: Sandbox) -> None:
    tried(owner, stripe)
    stripe.fail(at_stripe())
    assert news(0.1).status == Status.GRACE


def test_a_trial_that_is_extended_at_stripe_is_longer_here(owner: Client, stripe: Sandbox) -> None:
    s = tried(owner, stripe)
    later = int((s.term_end + timedelta(days=7)).timestamp())
    stripe.api("POST", f"/v1/subscriptions/{at_stripe()}", trial_end=later)
    assert news(1).term_end.timestamp() == later


def test_a_second_purchase_has_no_second_trial(owner: Client, stripe: Sandbox) -> None:
    tried(owner, stripe)
    stripe.cancel(at_stripe())
    assert news(1).status == Status.EXPIRED
    session_id = session_of(buys(owner))
    assert "trial_period_days" not in asked(stripe).get("subscription_data", {})
    stripe.complete(session_id)
    returns(session_id)
    assert sorted(Subscription.objects.values_list("status", "trial_ordinal")) == [("ACTIVE", None), ("EXPIRED", 1)]
