"""Clicks at the same moment, in threads of their own: one customer, one page that can be paid, one subscription."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone
from djstripe.models import Customer

from subscriptions.models import Subscription, Tenant
from subscriptions.states import Status, Type
from tests.builders import TenantFactory
from tests.buying import buys, customers, open_sessions, returns, session_of, signs_in, sold
from tests.history import at_once
from tests.stripe_cast import rings
from tests.stripe_sandbox.client import Sandbox, SandboxError
from webhooks import inbox
from webhooks.buying import checkout_sessions, newcomers
from webhooks.catalogue import customer_of, price_at_stripe
from webhooks.models import Checkout, StripeEvent

pytestmark = pytest.mark.django_db(transaction=True)

CLICKS = 8


@pytest.fixture
def acme() -> Tenant:
    sold("fleet")
    sold("depot")
    tenant: Tenant = TenantFactory.create(slug="acme")
    return tenant


def clicking(owner: Client, plan: str) -> Callable[[], Any]:
    """Somebody's click, with a browser of its own and the same session."""

    def click() -> Any:
        browser = Client()
        browser.cookies = owner.cookies
        return buys(browser, plan)

    return click


def test_eight_clicks_are_one_customer_one_checkout_and_one_page(acme: Tenant, stripe: Sandbox) -> None:
    stripe.knobs(latency_seconds=[0, 0.02])
    answers = at_once(*[clicking(signs_in(acme), "fleet")] * CLICKS)
    assert len({session_of(answer) for answer in answers}) == 1
    assert (customers(stripe), Customer.objects.count(), Checkout.objects.count()) == (1, 1, 1)
    assert len(open_sessions(stripe)) == 1


def test_two_tabs_with_different_plans_leave_no_two_pages_that_can_be_paid(acme: Tenant, stripe: Sandbox) -> None:
    owner = signs_in(acme)
    stripe.knobs(latency_seconds=[0, 0.02])
    answers = at_once(*[clicking(owner, plan) for plan in ("fleet", "depot") * (CLICKS // 2)])
    said = {answer.json().get("code") for answer in answers if answer.status_code != 200}  # type: ignore[union-attr]
    assert said <= {"checkout_superseded", "stripe_conflict"}
    left = open_sessions(stripe)  # none, where each click took the other's place once too often
    assert Checkout.objects.filter(state=Checkout.State.OPEN).count() == len(left) <= 1
    session_of(buys(owner, "fleet"))
    assert paid_everywhere(stripe) == 1


def paid_everywhere(stripe: Sandbox) -> int:
    """In how many of all pages that were ever made somebody can pay."""
    paid = 0
    for session in stripe.api("GET", "/v1/checkout/sessions", limit=100)["data"]:
        with suppress(SandboxError):  # it is not open
            stripe.complete(session["id"])
            paid += 1
    return paid


def test_without_the_row_that_decides_two_pages_can_be_paid(
    acme: Tenant, stripe: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with a claim that looks for no open checkout, and writes one that no constraint sees."""

    def unclaimed(wish: checkout_sessions.Wish, actor: Any, now: Any) -> tuple[Checkout, bool]:
        row = Checkout.objects.create(
            tenant=wish.tenant, plan=wish.price.plan, price=wish.price, request=wish.request, actor=actor,
            created_at=now, expires_at=now + checkout_sessions.LIVES, state=Checkout.State.EXPIRED,
        )  # fmt: skip
        return row, True

    monkeypatch.setattr(checkout_sessions, "_claim", unclaimed)
    monkeypatch.setattr(checkout_sessions, "_session_of", lambda row, is_new: checkout_sessions._make(row))
    owner = signs_in(acme)
    at_once(clicking(owner, "fleet"), clicking(owner, "depot"))
    assert paid_everywhere(stripe) == 2


def test_four_returns_and_the_webhook_at_once_begin_one_subscription(acme: Tenant, stripe: Sandbox) -> None:
    session_id = session_of(buys(signs_in(acme)))
    stripe_id = stripe.complete(session_id)["subscription"]
    event = rings(stripe_id, "checkout.session.completed", object_id=session_id)
    stripe.knobs(latency_seconds=[0, 0.02])
    outcomes = at_once(*[lambda: returns(session_id)] * 4, lambda: inbox.apply(event.pk, now=timezone.now()))
    assert [answer.status_code for answer in outcomes[:4]] == [200] * 4  # type: ignore[union-attr]
    bought = Subscription.objects.get()
    assert (bought.status, bought.audit.count()) == (Status.ACTIVE, 1)
    event.refresh_from_db()
    assert event.state == StripeEvent.State.DONE


def test_a_customer_is_made_once_by_eight_at_once(acme: Tenant, stripe: Sandbox) -> None:
    made = at_once(*[lambda: customer_of(acme)] * CLICKS)
    assert len(set(made)) == 1
    (at_stripe,) = stripe.api("GET", "/v1/customers")["data"]
    assert (at_stripe["id"], at_stripe["name"], at_stripe["email"]) == (made[0], acme.name, acme.email)
    assert Customer.objects.get().subscriber == acme


def test_without_the_key_each_would_make_one(acme: Tenant, stripe: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = iter(range(100))
    monkeypatch.setattr("webhooks.stripe_api.key_for", lambda *parts: f"key-{next(keys)}")
    stripe.knobs(latency_seconds=0.05)
    at_once(*[lambda: customer_of(acme)] * 2)
    assert customers(stripe) == 2


def test_a_newcomer_becomes_one_tenant_by_many_events_at_once(stripe: Sandbox, settings: Any) -> None:
    settings.CHECKOUT_PROVISIONS_TENANTS = True
    other, prices = TenantFactory.create(), [sold("fleet"), sold("event", type=Type.TEMPORARY)]
    customer = stripe.api("POST", "/v1/customers", name="Zoë's Fleet", email="zoe@fleet.example")["id"]
    bought = [
        stripe.api("POST", "/v1/subscriptions", customer=customer, items=[{"price": price_at_stripe(price)}])["id"]
        for price in prices
    ]
    events = [rings(stripe_id) for stripe_id in bought for _ in range(3)]
    stripe.knobs(latency_seconds=[0, 0.02])
    at_once(*[lambda event=event: inbox.apply(event.pk, now=timezone.now()) for event in events])
    tenant = Tenant.objects.exclude(pk=other.pk).get()
    assert (tenant.name, tenant.billing_email) == ("Zoë's Fleet", "zoe@fleet.example")
    assert {s.tenant for s in Subscription.objects.all()} == {tenant}
    assert Subscription.objects.count() == 2
    assert newcomers.welcome(customer) == tenant
