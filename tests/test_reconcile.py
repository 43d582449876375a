"""A comparison of everything at Stripe with everything here: what was lost comes, what needs a person is shown."""

from datetime import timedelta
from typing import Any

import pytest

from subscriptions.models import AuditEntry, Subscription, Tenant
from tests.builders import PlanPriceFactory, TenantFactory, selling
from tests.history import advance
from tests.reconciling import here, instant, kinds, later, looked, reconciled
from tests.stripe_cast import bought_at_stripe
from tests.stripe_sandbox.client import Sandbox
from webhooks.catalogue import price_at_stripe

pytestmark = pytest.mark.django_db

DAY = timedelta(days=1)
FORTY = 40 * DAY


def ours(at_stripe: dict[str, Any]) -> Subscription:
    return Subscription.objects.get(stripe_link=at_stripe["id"])


def truth_of(stripe: Sandbox, at_stripe: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = stripe.api("GET", f"/v1/subscriptions/{at_stripe['id']}", expand=["latest_invoice"])
    return found


def assert_equal(stripe: Sandbox) -> None:
    """Every subscription at Stripe against its row here, by the words of Stripe's own object."""
    may_be = {
        "active": {"ACTIVE"}, "trialing": {"TRIAL"}, "past_due": {"GRACE", "SUSPENDED"}, "unpaid": {"SUSPENDED"},
        "canceled": {"EXPIRED"},
    }  # fmt: skip
    listed = stripe.api("GET", "/v1/subscriptions", status="all", limit=100, expand=["data.latest_invoice"])["data"]
    assert listed
    for each in listed:
        s = Subscription.objects.get(stripe_link=each["id"])
        item = each["items"]["data"][0]
        assert s.status in may_be[each["status"]], (each["id"], s.status, each["status"])
        if s.status == "EXPIRED":
            continue
        paid = each["latest_invoice"]["status"] == "paid"
        assert s.term_end == instant(item["current_period_end" if paid else "current_period_start"])
        assert (s.price and s.price.stripe_prices.get().pk, s.quantity) == (item["price"]["id"], item["quantity"])
        if each["status"] == "active":
            assert s.cancel_at_term_end == each["cancel_at_period_end"]


def test_an_account_whose_webhooks_were_off_for_forty_days_is_equal_to_stripe_after_one_run(stripe: Sandbox) -> None:
    small, large = PlanPriceFactory.create(), PlanPriceFactory.create(plan=selling({"basic": 9}))
    names = ("renews", "fails", "fails-later", "cancels", "cancels-at-end", "upgrades", "grows", "comes-back")
    had = {name: bought_at_stripe(stripe, tenant=TenantFactory.create(slug=name), price=small) for name in names}
    for sub in had.values():
        here(sub)
    stripe.fail(had["fails"]["id"])
    stripe.cancel(had["cancels"]["id"])
    stripe.cancel(had["comes-back"]["id"])
    bought_at_stripe(stripe, tenant=Tenant.objects.get(slug="comes-back"), price=large)
    stripe.api("POST", f"/v1/subscriptions/{had['cancels-at-end']['id']}", cancel_at_period_end=True)
    item = {name: had[name]["items"]["data"][0]["id"] for name in names}
    up = [{"id": item["upgrades"], "price": price_at_stripe(large)}]
    stripe.api("POST", f"/v1/subscriptions/{had['upgrades']['id']}", items=up)
    stripe.api("POST", f"/v1/subscriptions/{had['grows']['id']}", items=[{"id": item["grows"], "quantity": 3}])
    stripe.clock(int(FORTY.total_seconds()))
    bought_at_stripe(stripe, tenant=TenantFactory.create(slug="new"), price=large)
    stripe.fail(had["fails-later"]["id"])
    advance(later(FORTY)())
    run = reconciled(ahead=FORTY)
    assert (run.phase, run.error_code) == ("DONE", "")
    assert_equal(stripe)
    assert kinds() == []
    assert looked(ahead=FORTY) == []
    assert {e.actor for e in AuditEntry.objects.filter(source_id__startswith="reconciliation")} == {"stripe"}
