"""Who bought without being sent by us, through a payment link or a pricing table: a tenant by setting, or by staff."""

from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from djstripe.models import Customer

from subscriptions.models import Subscription, Tenant
from tests.builders import TenantFactory
from tests.buying import sold
from tests.stripe_cast import rings
from tests.stripe_sandbox.client import Sandbox
from tests.test_admin import staff
from webhooks import inbox
from webhooks.buying import newcomers
from webhooks.catalogue import price_at_stripe
from webhooks.models import StripeEvent

pytestmark = pytest.mark.django_db

MAY = ("view_stripeevent", "change_stripeevent", "change_tenant")
GIVEN = {"tenant": "acme", "reason": "their order 4711"}


@pytest.fixture
def event(stripe: Sandbox) -> StripeEvent:
    """Of a checkout that names nobody whom we know."""
    session = stripe.api(
        "POST", "/v1/checkout/sessions", mode="subscription", success_url="https://shop.example/",
        customer_email="zoe@fleet.example", line_items=[{"price": price_at_stripe(sold("fleet")), "quantity": 1}],
    )  # fmt: skip
    done = stripe.complete(session["id"])
    return rings(done["subscription"], "checkout.session.completed", object_id=session["id"])


def apply(event: StripeEvent) -> str | None:
    return inbox.apply(event.pk, now=timezone.now())


def page(event: StripeEvent) -> str:
    return reverse("admin:webhooks_stripeevent_give_customer", args=[event.pk])


def test_by_setting_a_stranger_becomes_a_tenant(event: StripeEvent, settings: Any) -> None:
    settings.CHECKOUT_PROVISIONS_TENANTS = True
    assert apply(event) == "started"
    bought = Subscription.objects.get()
    assert bought.tenant.billing_email == "zoe@fleet.example"
    assert Customer.objects.get().subscriber == bought.tenant


def test_a_stranger_never_becomes_a_tenant_that_is_there(event: StripeEvent, settings: Any) -> None:
    """Whoever knows an address could else buy in its name."""
    settings.CHECKOUT_PROVISIONS_TENANTS = True
    known = TenantFactory.create(name="Someone", billing_email="zoe@fleet.example")
    assert apply(event) == "started"
    assert Subscription.objects.get().tenant != known


def test_else_what_was_bought_waits_for_staff(event: StripeEvent, stripe: Sandbox) -> None:
    acme = TenantFactory.create(slug="acme")
    assert apply(event) == "parked: unknown_customer"
    assert not Subscription.objects.exists()
    alice = staff(*MAY)
    asked = alice.get(page(event)).content.decode()
    assert "zoe@fleet.example" in asked
    assert (
        "Give its customer to a tenant" in alice.get(f"/admin/webhooks/stripeevent/{event.pk}/change/").content.decode()
    )
    assert alice.post(page(event), GIVEN).status_code == 302
    assert apply(event) == "started"
    assert Subscription.objects.get().tenant == acme
    entry = LogEntry.objects.get()
    assert (entry.object_id, "their order 4711" in entry.change_message) == (str(acme.pk), True)
    assert alice.get(page(event)).status_code == 403  # it waits no more


@pytest.mark.parametrize("wrong", [{"reason": ""}, {"tenant": ""}, {"tenant": "nobody"}])
def test_staff_name_a_tenant_and_say_why(wrong: dict[str, str], event: StripeEvent) -> None:
    TenantFactory.create(slug="acme")
    apply(event)
    assert staff(*MAY).post(page(event), GIVEN | wrong).status_code == 200
    assert not Customer.objects.exists()
    assert not LogEntry.objects.exists()


@pytest.mark.parametrize("left_out", MAY[1:])
def test_only_who_may_gives_a_customer_away(left_out: str, event: StripeEvent) -> None:
    TenantFactory.create(slug="acme")
    apply(event)
    client = staff(*(may for may in MAY if may != left_out))
    assert client.post(page(event), GIVEN).status_code == 403
    assert Client().post(page(event), GIVEN).status_code == 302  # to sign in
    assert not Customer.objects.exists()


def test_a_customer_that_somebody_has_by_now_stays_theirs(event: StripeEvent, stripe: Sandbox) -> None:
    TenantFactory.create(slug="acme")
    apply(event)
    customer = stripe.api("GET", f"/v1/subscriptions/{event.stripe_subscription_id}")["customer"]
    first: Tenant = TenantFactory.create()
    newcomers.assign(customer, first)
    answer = staff(*MAY).post(page(event), GIVEN)
    assert "Another tenant has this customer by now." in answer.content.decode()
    assert Customer.objects.get().subscriber == first


def test_events_that_wait_for_something_else_have_no_such_door(event: StripeEvent) -> None:
    assert staff(*MAY).get(page(event)).status_code == 403
