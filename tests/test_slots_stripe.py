"""What is bought, changed and ended at Stripe, down to the devices."""

from typing import Any

import pytest
from django.utils import timezone

from entitlements import slots
from entitlements.access import access
from notifications.models import Notice
from notifications.schedule import make_notices
from subscriptions.audit import Actor
from subscriptions.models import Subscription
from tests.builders import PlanPriceFactory, TenantFactory, selling
from tests.history import settle
from tests.stripe_cast import bought_at_stripe, rings
from tests.stripe_sandbox.client import Sandbox
from tests.test_limits import held_by, parked
from tests.test_slots import used
from webhooks import inbox
from webhooks.catalogue import price_at_stripe

pytestmark = pytest.mark.django_db(transaction=True)


def ring(at_stripe: dict[str, Any]) -> str:
    outcome = inbox.apply(rings(at_stripe["id"]).pk, now=timezone.now())
    assert outcome is not None
    return outcome


def fill(s: Subscription, *devices: str) -> None:
    for device in devices:
        slots.assign(s.tenant_id, device, "basic", actor=Actor.api_key(3), now=timezone.now())


def test_a_paid_subscription_gives_slots_a_smaller_one_parks_the_newest_and_the_bigger_one_returns_them(
    stripe: Sandbox,
) -> None:
    big = PlanPriceFactory.create(plan=selling({"basic": 3}))
    small = PlanPriceFactory.create(plan=selling({"basic": 1}), amount_minor=1900)
    bought = bought_at_stripe(stripe, price=big)
    assert ring(bought) == "started"
    s = Subscription.objects.get(stripe_link=bought["id"])
    assert used(s) == {"basic": (0, 3)}
    fill(s, "a", "b", "c")
    item = bought["items"]["data"][0]["id"]
    for price, outcome in ((small, (["a"], ["b", "c"])), (big, (["a", "b", "c"], []))):
        items = [{"id": item, "price": price_at_stripe(price)}]
        stripe.api("POST", f"/v1/subscriptions/{bought['id']}", items=items, proration_behavior="none")
        assert ring(bought) == "plan changed"
        assert (held_by(s), parked()) == outcome
    settle()
    make_notices(now=timezone.now())
    told = Notice.objects.filter(subscription=s, kind="devices_parked").get()
    assert told.state == Notice.State.PENDING


def test_a_subscription_that_ends_at_stripe_parks_its_devices_and_they_are_served_no_more(stripe: Sandbox) -> None:
    tenant = TenantFactory.create()
    bought = bought_at_stripe(stripe, tenant=tenant, price=PlanPriceFactory.create(plan=selling({"basic": 1})))
    ring(bought)
    s = Subscription.objects.get(stripe_link=bought["id"])
    fill(s, "a")
    assert access(tenant.slug, "a", timezone.now()).reason == "ok"
    stripe.api("DELETE", f"/v1/subscriptions/{bought['id']}")
    assert ring(bought) == "expired"
    assert (access(tenant.slug, "a", timezone.now()).reason, parked()) == ("parked", ["a"])
