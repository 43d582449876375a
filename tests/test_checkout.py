"""Buying over the API: what is sold, to whom, and what Stripe is asked for. Paying happens on Stripe's pages."""

from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from billing_site.api import keys
from entitlements.models import SlotPack, SubscriptionPack, TierAllocation
from subscriptions import lifecycle
from subscriptions.errors import TenantClosed
from subscriptions.models import Member, Subscription, Tenant
from subscriptions.states import EndReason, Status, Type
from tests import openapi, stripe_spec
from tests.builders import FEB_1, JAN_1, PlanFactory, PlanPriceFactory, TenantFactory, giving, subscription, tier
from tests.buying import (
    ADDON,
    BUY,
    CONFIG,
    PLANS,
    PORTAL,
    RENEW,
    asks,
    buys,
    made,
    open_sessions,
    returns,
    session_of,
    signs_in,
    sold,
)
from tests.history import by, nothing_changes
from tests.stripe_sandbox.client import Sandbox
from tests.test_api import problem
from webhooks.buying import checkout
from webhooks.models import Checkout, StripeLink

pytestmark = pytest.mark.django_db


@pytest.fixture
def acme() -> Tenant:
    tenant: Tenant = TenantFactory.create(slug="acme", name="Acme", billing_email="billing@acme.example")
    return tenant


@pytest.fixture
def owner(acme: Tenant) -> Client:
    return signs_in(acme)


def refused(answer: Any, status: int, code: str) -> dict[str, Any]:
    """The problem, and no checkout was written for it."""
    assert problem(answer) == (status, code), answer.content
    assert not Checkout.objects.filter(state=Checkout.State.OPEN).exists()
    body: dict[str, Any] = answer.json()
    return body


# --- what there is ---------------------------------------------------------------------------------------------------


def test_the_config_says_whether_anything_can_be_bought_and_never_the_secret(owner: Client, settings: Any) -> None:
    settings.STRIPE_SECRET_KEY, settings.STRIPE_PUBLISHABLE_KEY = "sk_test_x", "pk_test_x"
    answer = owner.get(CONFIG)
    assert answer.json() == {"stripe_configured": True, "publishable_key": "pk_test_x"}
    openapi.validate(CONFIG, "get", 200, answer.json())
    settings.STRIPE_SECRET_KEY = settings.STRIPE_PUBLISHABLE_KEY = ""
    assert owner.get(CONFIG).json() == {"stripe_configured": False, "publishable_key": ""}


def test_the_plans_are_those_that_are_sold_and_have_a_price(owner: Client) -> None:
    plan = giving(slots={"basic": 10}, api=1000, sso=True)
    plan.code, plan.name, plan.trial_days = "fleet", "Fleet", 14
    plan.save()
    PlanPriceFactory.create(plan=plan, amount_minor=49000, interval="year")
    PlanPriceFactory.create(plan=plan)
    sold("old", is_sold=False)
    sold("trial", type=Type.TRIAL)
    PlanFactory.create(code="without-a-price")
    SlotPack.objects.create(
        code="ten", name="Ten", tier=tier("basic"), slots=10, currency="EUR", amount_minor=900, interval="month"
    )
    SlotPack.objects.create(
        code="gone", name="Gone", tier=tier("basic"), slots=1, currency="EUR", amount_minor=1, interval="month",
        is_sold=False,
    )  # fmt: skip
    answer = owner.get(PLANS).json()
    openapi.validate(PLANS, "get", 200, answer)
    price = {"amount_minor": 4900, "currency": "EUR", "interval": "month", "interval_count": 1}
    assert answer == {
        "plans": [
            {
                "code": "fleet", "name": "Fleet", "type": "MAIN", "trial_days": 14,
                "prices": [price, price | {"amount_minor": 49000, "interval": "year"}],
                "slots": [{"tier": "basic", "slots": 10}],
                "features": [
                    {"code": "api", "kind": "QUOTA", "amount": 1000}, {"code": "sso", "kind": "SWITCH", "amount": 1},
                ],
            }
        ],
        "slot_packs": [
            {"code": "ten", "name": "Ten", "tier": "basic", "slots": 10, "price": price | {"amount_minor": 900}}
        ],
    }  # fmt: skip


def test_the_number_of_queries_does_not_grow_with_the_plans(owner: Client, django_assert_num_queries: Any) -> None:
    for more in range(3):
        plan = giving(slots={"basic": 1}, api=more)
        PlanPriceFactory.create(plan=plan)
        with django_assert_num_queries(4 + 6):  # who asks; a trial, plans, prices, slots, features, packs
            assert owner.get(PLANS).status_code == 200


def test_a_tenant_that_had_its_trial_is_offered_none(acme: Tenant, owner: Client) -> None:
    sold("fleet", trial_days=14)
    subscription(Type.TRIAL, tenant=acme)
    assert owner.get(PLANS).json()["plans"][0]["trial_days"] is None


# --- who may ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", [BUY, ADDON, PORTAL, RENEW])
def test_only_a_billing_owner_or_a_key_of_the_tenant_buys(url: str, acme: Tenant) -> None:
    address = url.format(number="SUB-1")
    assert refused(asks(Client(), address), 401, "not_authenticated")
    assert refused(asks(signs_in(acme, Member.Role.ENGINEER), address), 403, "billing_owner_only")
    _, secret = keys.make("a service", ["customer"], tenant=acme)
    answer = asks(Client(headers={"Authorization": f"Bearer {secret}"}), address)
    assert answer.status_code not in (401, 403)


def test_an_engineer_sees_what_there_is(acme: Tenant) -> None:
    engineer = signs_in(acme, Member.Role.ENGINEER)
    assert [engineer.get(url).status_code for url in (CONFIG, PLANS)] == [200, 200]


# --- a plan ----------------------------------------------------------------------------------------------------------


def test_a_plan_is_bought_on_a_page_of_stripes(acme: Tenant, owner: Client, stripe: Sandbox) -> None:
    price = sold("fleet", slots=10)
    answer = buys(owner, quantity=3, success_url="http://localhost/thanks?s={CHECKOUT_SESSION_ID}")
    openapi.validate(BUY, "post", 200, answer.json())
    session_id, row = session_of(answer), Checkout.objects.get()
    (asked,) = made(stripe, "/v1/checkout/sessions")
    stripe_spec.validate_request("POST", "/v1/checkout/sessions", asked["params"])
    assert (row.session_id, row.state, row.price, row.quantity) == (session_id, "OPEN", price, 3)
    session = stripe.api("GET", f"/v1/checkout/sessions/{session_id}")
    assert session["client_reference_id"] == str(row.pk)
    assert session["success_url"] == "http://testserver/billing/return?session_id={CHECKOUT_SESSION_ID}"
    assert session["cancel_url"] == "http://testserver/"
    assert session["allow_promotion_codes"] is True
    assert asked["params"]["tax_id_collection"] == {"enabled": "true"}
    assert "automatic_tax" not in asked["params"]

    stripe.complete(session_id)
    back = returns(session_id)
    assert (back.status_code, back["Location"]) == (303, f"http://localhost/thanks?s={session_id}")
    bought = Subscription.objects.get()
    assert (bought.status, bought.plan, bought.quantity, bought.tenant) == (Status.ACTIVE, price.plan, 3, acme)
    assert TierAllocation.objects.get().slot_limit == 30
    assert Checkout.objects.get().state == Checkout.State.COMPLETE


def test_tax_is_stripes_where_the_account_has_it(owner: Client, stripe: Sandbox, settings: Any) -> None:
    settings.STRIPE_AUTOMATIC_TAX = True
    sold("fleet")
    session_of(buys(owner))
    (asked,) = made(stripe, "/v1/checkout/sessions")
    stripe_spec.validate_request("POST", "/v1/checkout/sessions", asked["params"])
    assert asked["params"]["automatic_tax"] == {"enabled": "true"}


def test_slot_packs_are_bought_beside_a_plan(owner: Client, stripe: Sandbox) -> None:
    sold("fleet", slots=10)
    pack = SlotPack.objects.create(
        code="five", name="Five", tier=tier("basic"), slots=5, currency="EUR", amount_minor=900, interval="month"
    )
    session_id = session_of(buys(owner, packs={"five": 2}))
    stripe.complete(session_id)
    returns(session_id)
    assert SubscriptionPack.objects.get().pack == pack
    assert TierAllocation.objects.get().slot_limit == 20


@pytest.mark.parametrize(
    ("wrong", "status", "code"),
    [
        ({"plan": "nothing"}, 400, "no_such_plan"),
        ({"plan": "old"}, 400, "no_such_plan"),
        ({"plan": "unpriced"}, 400, "no_such_plan"),
        ({"plan": "extra"}, 400, "plan_type_differs"),
        ({"plan": "trial"}, 400, "plan_type_differs"),
        ({"interval": "year"}, 400, "no_such_price"),
        ({"currency": "USD"}, 400, "no_such_price"),
        ({"plan": "two"}, 400, "ambiguous_price"),
        ({"packs": {"yearly": 1}}, 400, "no_such_pack"),
        ({"packs": {"nothing": 1}}, 400, "no_such_pack"),
        ({"packs": {"yearly": 0}}, 400, "invalid"),
        ({"packs": ["yearly"]}, 400, "invalid"),
        ({"packs": {"a\x00": 1}}, 400, "invalid"),
        ({"packs": {"a\ud800": 1}}, 400, "invalid"),
        ({"packs": {str(n): 1 for n in range(20)}}, 400, "invalid"),
        ({"interval": "day"}, 400, "invalid"),
        ({"plan": None}, 400, "invalid"),
        ({"plan": 5}, 400, "invalid"),
        ({"quantity": 0}, 400, "invalid"),
        ({"quantity": 10_001}, 400, "invalid"),
        ({"quantity": "3"}, 400, "invalid"),
        ({"quantity": True}, 400, "invalid"),
        ({"quantity": 1.0}, 400, "invalid"),
        ({"price": "price_of_somebody_else"}, 400, "invalid"),
    ],
)
def test_nothing_but_what_is_in_the_catalogue_is_sold(
    wrong: dict[str, Any], status: int, code: str, owner: Client, stripe: Sandbox
) -> None:
    sold("fleet")
    sold("old", is_sold=False)
    PlanFactory.create(code="unpriced")
    sold("extra", type=Type.ADDON)
    sold("trial", type=Type.TRIAL)
    PlanPriceFactory.create(plan=sold("two").plan, currency="USD")
    SlotPack.objects.create(
        code="yearly", name="Y", tier=tier("basic"), slots=5, currency="EUR", amount_minor=900, interval="year"
    )
    refused(buys(owner, **wrong), status, code)
    assert stripe.requests() == []


def test_more_slots_than_a_subscription_can_hold_are_not_sold(owner: Client, stripe: Sandbox) -> None:
    sold("fleet", slots=101)
    refused(buys(owner, quantity=10_000), 400, "invalid_slots")
    assert stripe.requests() == []


def test_the_currency_and_the_count_choose_among_several_prices(owner: Client, stripe: Sandbox) -> None:
    plan = sold("two").plan
    dollars = PlanPriceFactory.create(plan=plan, currency="USD")
    session_of(buys(owner, plan="two", currency="USD"))
    assert Checkout.objects.get().price == dollars


def test_a_tenant_with_a_live_main_changes_it_instead(acme: Tenant, owner: Client, stripe: Sandbox) -> None:
    sold("fleet")
    live = subscription(tenant=acme)
    assert refused(buys(owner), 409, "live_main_exists")["subscription"] == live.number
    assert stripe.requests() == []


def test_something_temporary_is_bought_beside_a_main(acme: Tenant, owner: Client, stripe: Sandbox) -> None:
    sold("event", type=Type.TEMPORARY)
    subscription(tenant=acme)
    session_id = session_of(buys(owner, plan="event"))
    stripe.complete(session_id)
    returns(session_id)
    assert Subscription.objects.filter(tenant=acme).count() == 2


def test_a_trial_by_staff_becomes_what_was_bought(acme: Tenant, owner: Client, stripe: Sandbox) -> None:
    sold("fleet", slots=10, trial_days=14)
    trial = subscription(Type.TRIAL, tenant=acme)
    session_id = session_of(buys(owner))
    stripe.complete(session_id)
    returns(session_id)
    bought = Subscription.objects.get()
    assert (bought.pk, bought.type, bought.status) == (trial.pk, Type.MAIN, Status.ACTIVE)


def test_a_closed_tenant_buys_nothing(acme: Tenant, owner: Client, stripe: Sandbox) -> None:
    sold("fleet")
    Tenant.objects.update(closed_at=JAN_1)
    refused(buys(owner), 403, "tenant_closed")
    refused(asks(owner, PORTAL), 403, "tenant_closed")
    acme.refresh_from_db()
    with pytest.raises(TenantClosed):  # whoever asks
        checkout.portal(acme, "http://localhost/")
    assert stripe.requests() == []


# --- an add-on -------------------------------------------------------------------------------------------------------


@pytest.fixture
def main(acme: Tenant) -> Subscription:
    """Ends twelve days from now, and is paid by the month."""
    now = timezone.now()
    plan = sold("fleet")
    return subscription(tenant=acme, plan=plan.plan, price=plan, term=(now - timedelta(days=19), now + timedelta(12)))


def test_an_addon_ends_with_its_main(main: Subscription, owner: Client, stripe: Sandbox) -> None:
    sold("extra", type=Type.ADDON)
    answer = asks(owner, ADDON, parent_subscription=main.number, plan="extra", quantity=2)
    openapi.validate(ADDON, "post", 200, answer.json())
    assert answer.json()["co_terminate_at"] == main.term_end.isoformat().replace("+00:00", "Z")
    (asked,) = made(stripe, "/v1/checkout/sessions")
    stripe_spec.validate_request("POST", "/v1/checkout/sessions", asked["params"])
    data = asked["params"]["subscription_data"]
    assert data["billing_cycle_anchor"] == str(int(main.term_end.timestamp()))
    assert data["proration_behavior"] == "create_prorations"
    session_id = session_of(answer)
    stripe.complete(session_id)
    returns(session_id)
    addon = Subscription.objects.get(parent=main)
    assert (addon.status, addon.term_end, addon.quantity) == (Status.ACTIVE, main.term_end, 2)


def test_an_addon_that_is_held_is_not_bought_twice(main: Subscription, owner: Client, stripe: Sandbox) -> None:
    extra = sold("extra", type=Type.ADDON)
    held = subscription(Type.ADDON, parent=main, plan=extra.plan, term=(main.term_start, main.term_end))
    answer = asks(owner, ADDON, parent_subscription=main.number, plan="extra")
    assert refused(answer, 409, "addon_held")["subscription"] == held.number


def test_an_addon_is_paid_at_its_mains_interval(main: Subscription, owner: Client, stripe: Sandbox) -> None:
    sold("extra", type=Type.ADDON, price={"interval": "year"})
    answer = asks(owner, ADDON, parent_subscription=main.number, plan="extra", interval="year")
    assert refused(answer, 409, "interval_differs")["interval"] == "month"


def test_an_addon_needs_a_main_of_the_tenant_whose_term_runs(
    main: Subscription, acme: Tenant, owner: Client, stripe: Sandbox
) -> None:
    sold("extra", type=Type.ADDON)
    theirs, temporary = subscription(), subscription(Type.TEMPORARY, tenant=acme)

    def answer(parent: Subscription, plan: str = "extra") -> Any:
        return asks(owner, ADDON, parent_subscription=parent.number, plan=plan, interval="month")

    refused(answer(theirs), 404, "subscription_not_found")
    refused(answer(temporary), 409, "no_running_term")
    refused(answer(main, plan="fleet"), 400, "plan_type_differs")
    for verb in (lifecycle.enter_grace, lifecycle.suspend):
        verb(main.pk, **by(timezone.now()))
        refused(answer(main), 409, "no_running_term")


@pytest.mark.parametrize(
    ("left", "code"),
    [(timedelta(minutes=20), "term_ends_soon"), (timedelta(days=40), "too_early"), (timedelta(-1), "no_running_term")],
)
def test_an_addon_fits_into_what_is_left_of_the_term(
    left: timedelta, code: str, acme: Tenant, owner: Client, stripe: Sandbox
) -> None:
    sold("extra", type=Type.ADDON)
    now = timezone.now()
    main = subscription(tenant=acme, term=(now - timedelta(days=60), now + left))
    refused(asks(owner, ADDON, parent_subscription=main.number, plan="extra", interval="month"), 409, code)


# --- the portal ------------------------------------------------------------------------------------------------------


def test_the_portal_is_the_tenants_own(owner: Client, stripe: Sandbox) -> None:
    answer = asks(owner, PORTAL, return_url="http://localhost/billing")
    openapi.validate(PORTAL, "post", 200, answer.json())
    (asked,) = made(stripe, "/v1/billing_portal/sessions")
    assert asked["params"]["return_url"] == "http://localhost/billing"
    assert asked["params"]["customer"] == stripe.api("GET", "/v1/customers")["data"][0]["id"]


# --- renewing --------------------------------------------------------------------------------------------------------


def renews(owner: Client, s: Subscription) -> Any:
    return asks(owner, RENEW.format(number=s.number))


def test_what_was_paid_otherwise_goes_on_with_stripe_where_its_term_ends(
    main: Subscription, owner: Client, stripe: Sandbox
) -> None:
    answer = renews(owner, main)
    openapi.validate(RENEW, "post", 200, answer.json())
    (asked,) = made(stripe, "/v1/checkout/sessions")
    assert asked["params"]["subscription_data"]["proration_behavior"] == "none"
    session_id = session_of(answer)
    stripe.complete(session_id)
    returns(session_id)
    same = Subscription.objects.get()
    assert (same.pk, same.term_end, same.auto_renews) == (main.pk, main.term_end, True)
    refused(renews(owner, same), 409, "renews_by_itself")


def test_what_is_over_is_renewed_at_once(acme: Tenant, owner: Client, stripe: Sandbox) -> None:
    price = sold("fleet")
    old = subscription(tenant=acme, plan=price.plan, price=price, term=(JAN_1, FEB_1))
    lifecycle.enter_grace(old.pk, **by(FEB_1))
    session_id = session_of(renews(owner, old))
    stripe.complete(session_id)
    returns(session_id)
    same = Subscription.objects.get()
    assert (same.pk, same.status, same.auto_renews) == (old.pk, Status.ACTIVE, True)
    assert same.term_end > timezone.now()


def test_a_renewal_that_is_never_paid_leaves_the_subscription_as_it_is(
    acme: Tenant, owner: Client, stripe: Sandbox
) -> None:
    price = sold("fleet")
    old = subscription(tenant=acme, plan=price.plan, price=price, term=(JAN_1, FEB_1))
    session_id = session_of(renews(owner, old))
    stripe.complete(session_id, settled=False)
    with nothing_changes():
        returns(session_id)
        refused(renews(owner, old), 409, "purchase_settling")
        stripe.arrive(session_id, succeeded=False)
        stripe.clock(24 * 3600)  # an incomplete subscription is given up after 23 hours
        page = returns(session_id)
    assert "did not arrive" in page.content.decode()
    assert session_of(renews(owner, old)) != session_id


def test_what_stripe_bills_and_was_not_paid_is_paid_on_its_invoice(
    acme: Tenant, owner: Client, stripe: Sandbox
) -> None:
    sold("fleet")
    session_id = session_of(buys(owner))
    stripe.complete(session_id)
    returns(session_id)
    bought = Subscription.objects.get()
    link = StripeLink.objects.get()
    invoice = stripe.fail(link.pk)["latest_invoice"]
    lifecycle.enter_grace(bought.pk, **by(timezone.now()))
    assert renews(owner, bought).json()["url"] == stripe.api("GET", f"/v1/invoices/{invoice}")["hosted_invoice_url"]
    stripe.pay(link.pk)
    assert "/portal/" in renews(owner, bought).json()["url"]  # there is nothing open: the news are on their way


def test_what_cannot_be_renewed_says_why(acme: Tenant, owner: Client, stripe: Sandbox) -> None:
    now = timezone.now()
    price = sold("fleet")
    bought: dict[str, Any] = {"tenant": acme, "plan": price.plan, "price": price}
    early = subscription(**bought, term=(now, now + timedelta(days=90)))
    refused(renews(owner, early), 409, "too_early")
    lifecycle.suspend(early.pk, hold=True, **by(now))
    refused(renews(owner, early), 409, "on_hold")
    lifecycle.expire(early.pk, why=EndReason.CANCELLED, **by(now))
    refused(renews(owner, early), 409, "illegal_transition")
    main = subscription(**bought, term=(now, now + timedelta(days=10)))
    addon = subscription(Type.ADDON, parent=main, term=(now, main.term_end))
    refused(renews(owner, addon), 409, "addon_follows_main")
    refused(renews(owner, subscription(Type.TRIAL, tenant=acme)), 409, "trial_is_not_renewed")
    refused(renews(owner, subscription(Type.TEMPORARY, tenant=acme)), 409, "no_price")
    refused(renews(owner, subscription()), 404, "subscription_not_found")
    assert open_sessions(stripe) == []
