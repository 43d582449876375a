"""One open checkout per intent: whatever is clicked, and whoever is killed half way, one page can be paid."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from billing_site.verbs import close_tenant
from subscriptions.errors import TenantClosed
from subscriptions.models import Subscription, Tenant
from subscriptions.states import Status, Type
from tests.builders import ALICE, TenantFactory, subscription
from tests.buying import ADDON, RENEW, asks, buys, customers, made, open_sessions, returns, session_of, signs_in, sold
from tests.stripe_sandbox.client import Sandbox
from tests.test_api import problem
from webhooks.buying.checkout import Ways, buy
from webhooks.buying.offers import Order
from webhooks.models import Checkout
from webhooks.outgoing import outbound

pytestmark = pytest.mark.django_db


@pytest.fixture
def acme() -> Tenant:
    tenant: Tenant = TenantFactory.create(slug="acme")
    return tenant


@pytest.fixture
def owner(acme: Tenant) -> Client:
    sold("fleet")
    sold("depot")
    return signs_in(acme)


def states() -> list[str]:
    return list(Checkout.objects.order_by("pk").values_list("state", flat=True))


def test_a_second_click_leads_to_the_same_page(owner: Client, stripe: Sandbox) -> None:
    first, second = buys(owner), buys(owner)
    assert session_of(first) == session_of(second)
    assert (states(), customers(stripe)) == (["OPEN"], 1)


@pytest.mark.parametrize(
    "otherwise",
    [{"plan": "depot"}, {"quantity": 2}, {"success_url": "http://localhost/b"}, {"cancel_url": "http://localhost/b"}],
)
def test_another_wish_ends_the_page_before(otherwise: dict[str, Any], owner: Client, stripe: Sandbox) -> None:
    first = session_of(buys(owner))
    second = session_of(buys(owner, **otherwise))
    assert open_sessions(stripe) == [second] != [first]
    assert states() == ["EXPIRED", "OPEN"]


def test_a_page_that_has_expired_is_followed_by_a_new_one(owner: Client, stripe: Sandbox) -> None:
    first = session_of(buys(owner))
    stripe.clock(24 * 3600)
    stripe.clock(0)
    second = session_of(buys(owner))
    assert open_sessions(stripe) == [second] != [first]
    assert states() == ["EXPIRED", "OPEN"]


def test_what_was_paid_a_moment_ago_is_here_and_is_not_sold_again(owner: Client, stripe: Sandbox) -> None:
    """The customer paid, went back, and clicked again before any event came."""
    stripe.complete(session_of(buys(owner)))
    assert problem(buys(owner)) == (409, "already_bought")
    assert Subscription.objects.get().status == Status.ACTIVE
    assert problem(buys(owner)) == (409, "live_main_exists")
    assert (states(), open_sessions(stripe)) == (["COMPLETE"], [])


@pytest.mark.parametrize("plan", ["fleet", "depot"])
def test_while_the_money_is_on_its_way_nothing_more_is_sold(plan: str, owner: Client, stripe: Sandbox) -> None:
    session_id = session_of(buys(owner))
    stripe.complete(session_id, settled=False)
    for _ in range(2):
        assert problem(buys(owner, plan)) == (409, "purchase_settling")
    assert not Subscription.objects.exists()
    stripe.arrive(session_id)
    assert problem(buys(owner, plan)) == (409, "already_bought")
    assert Subscription.objects.get().status == Status.ACTIVE
    assert (states(), open_sessions(stripe)) == (["COMPLETE"], [])


def test_after_money_that_never_came_one_can_buy_again(owner: Client, stripe: Sandbox) -> None:
    session_id = session_of(buys(owner))
    stripe.complete(session_id, settled=False)
    stripe.arrive(session_id, succeeded=False)
    assert problem(buys(owner)) == (409, "purchase_settling")  # for 23 hours it can still be paid otherwise
    stripe.clock(24 * 3600)
    stripe.clock(0)
    session_of(buys(owner))
    assert states() == ["COMPLETE", "OPEN"]


def test_what_was_bought_and_is_not_understood_here_is_not_sold_again(owner: Client, stripe: Sandbox) -> None:
    session_id = session_of(buys(owner))
    stripe_id = stripe.complete(session_id)["subscription"]
    stripe.override(stripe_id, {"status": "hibernating"})
    assert problem(buys(owner)) == (409, "purchase_settling")
    assert "being set up" in returns(session_id).content.decode()
    assert not Subscription.objects.exists()
    stripe.override(stripe_id, {})
    assert returns(session_id).status_code == 200
    assert Subscription.objects.get().status == Status.ACTIVE


def test_after_what_was_bought_has_ended_one_can_buy_again(owner: Client, stripe: Sandbox) -> None:
    session_id = session_of(buys(owner))
    stripe_id = stripe.complete(session_id)["subscription"]
    returns(session_id)
    stripe.cancel(stripe_id)
    returns(session_id)
    assert Subscription.objects.get().status == Status.EXPIRED
    assert session_of(buys(owner)) != session_id


# --- killed half way -------------------------------------------------------------------------------------------------


def killed_before_the_answer(stripe: Sandbox) -> Checkout:
    """The row as it is when its maker died after Stripe had made the session, before anybody noted it."""
    row = Checkout.objects.get()
    row.session_id = row.url = ""
    row.save()
    assert len(open_sessions(stripe)) == 1
    return row


def test_who_clicks_again_finishes_what_somebody_was_killed_at(owner: Client, stripe: Sandbox) -> None:
    first = session_of(buys(owner))
    killed_before_the_answer(stripe)
    assert session_of(buys(owner)) == first
    assert (open_sessions(stripe), states()) == ([first], ["OPEN"])


def test_who_wants_something_else_ends_the_page_that_nobody_noted(owner: Client, stripe: Sandbox) -> None:
    first = session_of(buys(owner))
    killed_before_the_answer(stripe)
    second = session_of(buys(owner, "depot"))
    assert open_sessions(stripe) == [second] != [first]
    assert states() == ["EXPIRED", "OPEN"]


def test_a_page_that_was_never_made_is_made_by_the_next_click(owner: Client, stripe: Sandbox) -> None:
    stripe.knobs(errors=[{"status": 500, "method": "POST", "path_prefix": "/v1/checkout/sessions"}])
    assert problem(buys(owner)) == (502, "stripe_unavailable")
    assert states() == ["OPEN"]
    session_of(buys(owner))
    assert (states(), len(open_sessions(stripe)), customers(stripe)) == (["OPEN"], 1, 1)


def test_a_row_that_stripe_refuses_to_finish_is_followed_by_a_new_one(owner: Client, stripe: Sandbox) -> None:
    """Its date has passed, say."""
    fault = {"method": "POST", "path_prefix": "/v1/checkout/sessions"}
    stripe.knobs(errors=[fault | {"status": 500}, fault | {"status": 400}])
    assert problem(buys(owner)) == (502, "stripe_unavailable")
    page = session_of(buys(owner))
    assert open_sessions(stripe) == [page]
    assert states() == ["EXPIRED", "OPEN"]


@pytest.mark.parametrize("state", ["OPEN", "COMPLETE"])
def test_a_page_that_stripe_no_longer_knows_is_in_nobodys_way(state: str, owner: Client, stripe: Sandbox) -> None:
    """It was another account's, say."""
    session_of(buys(owner))
    Checkout.objects.update(session_id="cs_test_of_another_account", state=state)
    session_of(buys(owner))
    assert states() == ["EXPIRED" if state == "OPEN" else state, "OPEN"]


def test_a_page_that_is_being_made_while_the_tenant_is_closed_is_told_to_nobody(
    acme: Tenant, owner: Client, stripe: Sandbox
) -> None:
    session_of(buys(owner))
    killed_before_the_answer(stripe)
    close_tenant(acme.pk, actor=ALICE, now=timezone.now(), reason="left")
    assert [*outbound.deliver(now=timezone.now)]
    assert states() == ["EXPIRED"]


def test_a_tenant_that_is_closed_while_it_clicks_is_sent_nowhere(acme: Tenant, owner: Client, stripe: Sandbox) -> None:
    def now() -> datetime:
        """Asked for when the checkout is written."""
        close_tenant(acme.pk, actor=ALICE, now=timezone.now(), reason="left")
        return timezone.now()

    ways = Ways("https://a.example/", "", "https://a.example/")
    with pytest.raises(TenantClosed):
        buy(acme, Order("fleet"), ways, actor=ALICE, now=now)
    assert (states(), open_sessions(stripe)) == (["EXPIRED"], [])


# --- add-ons and renewals --------------------------------------------------------------------------------------------


def test_each_addon_has_a_checkout_of_its_own_beside_the_tenants(acme: Tenant, owner: Client, stripe: Sandbox) -> None:
    now = timezone.now()
    main = subscription(tenant=acme, term=(now, now + timedelta(days=10)))
    for plan in ("gps", "sms"):
        sold(plan, type=Type.ADDON)
    sold("event", type=Type.TEMPORARY)
    order = {"parent_subscription": main.number, "interval": "month"}
    pages = [session_of(asks(owner, ADDON, plan=plan, **order)) for plan in ("gps", "sms", "gps")]
    pages.append(session_of(buys(owner, "event")))
    assert pages[0] == pages[2]
    assert sorted(open_sessions(stripe)) == sorted(set(pages))
    assert states() == ["OPEN"] * 3


def test_a_renewal_is_one_checkout_however_often_it_is_asked_for(acme: Tenant, stripe: Sandbox) -> None:
    now, price = timezone.now(), sold("fleet")
    main = subscription(tenant=acme, plan=price.plan, price=price, term=(now, now + timedelta(days=10)))
    owner = signs_in(acme)
    first, second = (session_of(asks(owner, RENEW.format(number=main.number))) for _ in range(2))
    assert first == second
    assert len(made(stripe, "/v1/checkout/sessions")) == 1
