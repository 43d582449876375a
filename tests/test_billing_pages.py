"""The billing pages without a browser: who may do what, what is refused in words, and what is kept of a form."""

from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from subscriptions.models import Member, Subscription, Tenant
from subscriptions.money import money
from subscriptions.states import Type
from tests.builders import PlanPriceFactory, TenantFactory, subscription
from tests.buying import made, open_sessions, signs_in, sold
from tests.changing_cast import Shop, fill, link_of, plan_of
from tests.history import nothing_changes
from tests.stripe_sandbox.client import Sandbox
from webhooks.models import Checkout

pytestmark = pytest.mark.django_db

BOX = 'name="confirm_parking"'
FLEET = {"plan": "fleet", "price": "month:1:EUR", "quantity": "2"}


def says(answer: Any, *words: str, status: int = 200) -> str:
    page: str = answer.content.decode()
    assert answer.status_code == status, page
    for word in words:
        assert word in page, page
    return page


def change_of(s: Subscription) -> str:
    return f"/billing/subscriptions/{s.number}/change"


def press(client: Client, s: Subscription, verb: str) -> Any:
    return client.post(f"/billing/subscriptions/{s.number}/{verb}")


@pytest.fixture
def shop(stripe: Sandbox) -> Shop:
    return Shop.open(stripe)


# --- who --------------------------------------------------------------------------------------------------------------


def test_who_is_no_member_signs_in_first(admin_client: Client) -> None:
    assert Client().get("/billing").headers["Location"] == "/login?next=/billing"
    assert Client().post("/billing/buy", FLEET).headers["Location"] == "/login?next=/billing"
    nobody_here = admin_client.get("/billing")
    assert (nobody_here.status_code, "no member of a tenant" in nobody_here.content.decode()) == (403, True)


def test_an_engineer_sees_everything_and_changes_nothing(shop: Shop) -> None:
    s = shop.buys()
    engineer = signs_in(s.tenant, Member.Role.ENGINEER)
    page = says(engineer.get("/billing"), s.number, "Only a billing owner can buy or change.")
    assert "<button>Buy" not in page
    assert "formaction" not in page
    asked = len(shop.stripe.requests())
    with nothing_changes():
        for url in ("/billing/buy", "/billing/portal", change_of(s), f"/billing/subscriptions/{s.number}/cancel"):
            says(engineer.post(url, FLEET), "Only a billing owner can do this.", status=403)
    assert len(shop.stripe.requests()) == asked


def test_of_a_closed_tenant_nothing_changes(shop: Shop) -> None:
    s = shop.buys()
    Tenant.objects.update(closed_at=timezone.now())
    with nothing_changes():
        says(press(signs_in(s.tenant), s, "cancel"), "Your account is closed", status=409)


@pytest.mark.parametrize("verb", ["change", "cancel", "resume", "pause", "renew", "unschedule"])
def test_another_tenants_subscription_does_not_exist(shop: Shop, verb: str) -> None:
    s = shop.buys()
    stranger = signs_in(TenantFactory.create())
    with nothing_changes():
        page = says(press(stranger, s, verb), 'role="alert"', status=404)
    assert s.number not in page


def test_a_form_without_its_token_is_refused(stripe: Sandbox) -> None:
    owner = signs_in(TenantFactory.create())
    owner.handler.enforce_csrf_checks = True
    sold("fleet")
    assert owner.post("/billing/buy", FLEET).status_code == 403
    assert not Checkout.objects.exists()


def test_members_find_it_on_the_first_page(stripe: Sandbox) -> None:
    says(signs_in(TenantFactory.create()).get("/"), 'href="/billing"')


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_the_page_says_how_each_subscription_goes_on(shop: Shop) -> None:
    s = shop.buys()
    answer = signs_in(s.tenant).get("/billing")
    says(
        answer,
        f"Renews on {s.term_end:%-d %B %Y} for 30.00 EUR.", ">ACTIVE<", "0 of 3", "Change plan…", "Cancel at term end",
    )  # fmt: skip
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'self';")


def test_what_cannot_be_bought_now_is_not_offered(stripe: Sandbox) -> None:
    sold("fleet")
    sold("more", type=Type.ADDON)
    sold("event", type=Type.TEMPORARY)
    tenant = TenantFactory.create()
    owner = signs_in(tenant)

    def offered() -> list[str]:
        page = owner.get("/billing").content.decode()
        return [code for code in ("fleet", "more", "event") if f'id="buy-{code}"' in page]

    assert offered() == ["fleet", "event"]
    subscription(tenant=tenant, now=timezone.now(), term=(timezone.now(), timezone.now().replace(year=2100)))
    assert offered() == ["more", "event"]


def test_the_page_takes_as_many_queries_for_many_subscriptions(shop: Shop, django_assert_num_queries: Any) -> None:
    s = shop.buys()
    owner = signs_in(s.tenant)
    for _ in range(5):
        subscription(Type.TEMPORARY, slots={"basic": 1}, tenant=s.tenant, price=None)
    with django_assert_num_queries(13):
        owner.get("/billing")


# --- buying -----------------------------------------------------------------------------------------------------------


def test_two_clicks_on_buy_lead_to_one_page_of_stripes(stripe: Sandbox) -> None:
    sold("fleet")
    owner = signs_in(TenantFactory.create())
    first, second = owner.post("/billing/buy", FLEET), owner.post("/billing/buy", FLEET)
    assert first.status_code == second.status_code == 303
    assert first.headers["Location"] == second.headers["Location"]
    (asked,) = made(stripe, "/v1/checkout/sessions")
    assert asked["params"]["cancel_url"] == "http://testserver/billing"
    assert len(open_sessions(stripe)) == 1


def test_an_addon_is_bought_beside_its_main(shop: Shop) -> None:
    s = shop.buys()
    sold("extra", type=Type.ADDON)
    owner = signs_in(s.tenant)
    says(owner.get("/billing"), 'id="buy-extra"', f"Beside {s.number}")
    answer = owner.post("/billing/addon", FLEET | {"plan": "extra", "parent_subscription": s.number})
    assert answer.status_code == 303
    assert Checkout.objects.get().parent == s


@pytest.mark.parametrize(
    ("fault", "words"),
    [({"error": "unavailable"}, "Stripe did not answer."), ({"error": "rate_limit"}, "Stripe is asked too much")],
)
def test_where_stripe_is_away_the_page_says_so_and_keeps_what_was_typed(
    stripe: Sandbox, fault: dict[str, Any], words: str
) -> None:
    sold("fleet")
    stripe.knobs(errors=[fault | {"path_prefix": "/v1/", "times": 10}])
    page = signs_in(TenantFactory.create()).post("/billing/buy", FLEET)
    text = page.content.decode()
    assert page.status_code in (502, 503)
    assert words in text
    assert 'name="quantity" inputmode="numeric" value="2"' in text


@pytest.mark.parametrize("quantity", ["", "0", "many", "-1", "99999999999", "1.5", "٣"])
def test_a_quantity_that_is_none_is_refused_in_words(stripe: Sandbox, quantity: str) -> None:
    sold("fleet")
    answer = signs_in(TenantFactory.create()).post("/billing/buy", FLEET | {"quantity": quantity})
    says(answer, "Quantity: ", f'value="{quantity}"', status=400)
    assert not Checkout.objects.exists()


# --- changing ---------------------------------------------------------------------------------------------------------


def test_devices_are_parked_only_where_that_is_confirmed(shop: Shop) -> None:
    s = shop.buys()
    fill(s, "a", "b", "c")
    owner = signs_in(s.tenant)
    wish = {"price": "small:month:1", "quantity": "1", "when": "now"}
    with nothing_changes():
        says(owner.post(change_of(s), wish | {"do": "preview"}), "2 devices, the newest, may lose their slots", BOX)
        says(owner.post(change_of(s), wish | {"do": "confirm"}), "2 devices would lose their slots.", BOX, status=409)
    answer = owner.post(change_of(s), wish | {"do": "confirm", "confirm_parking": "on"})
    assert answer.status_code == 303
    assert plan_of(s) == ("small", "month", 1)


def test_a_change_that_is_confirmed_twice_is_made_once(shop: Shop) -> None:
    s = shop.buys(price=shop.small)
    owner = signs_in(s.tenant)
    wish = {"price": "big:month:1", "quantity": "1", "when": "now", "do": "confirm"}
    assert [owner.post(change_of(s), wish).status_code for _ in range(2)] == [303, 303]
    assert len(made(shop.stripe, f"/v1/subscriptions/{link_of(s)}")) == 1
    assert plan_of(s) == ("big", "month", 1)


def test_of_two_lengths_of_an_interval_the_one_that_was_chosen_is_bought(shop: Shop) -> None:
    s = shop.buys()
    quarterly = PlanPriceFactory.create(plan=shop.big.plan, amount_minor=8000, interval_count=3)
    owner = signs_in(s.tenant)
    says(owner.get(change_of(s)), '"big:month:1" selected', 'value="big:month:3"')
    wish = {"price": "big:month:3", "quantity": "1", "when": "now", "do": "confirm"}
    assert owner.post(change_of(s), wish).status_code == 303
    s.refresh_from_db()
    assert s.price == quarterly


def test_a_declined_card_changes_nothing_and_the_form_is_kept(shop: Shop) -> None:
    s = shop.buys(price=shop.small)
    shop.stripe.knobs(errors=[{"error": "insufficient_funds", "path_prefix": "/v1/subscriptions/", "method": "POST"}])
    wish = {"price": "big:month:1", "quantity": "3", "when": "now", "do": "confirm"}
    with nothing_changes():
        answer = signs_in(s.tenant).post(change_of(s), wish)
        says(answer, "insufficient funds", 'value="3"', '"big:month:1" selected', status=402)


def test_what_is_typed_is_never_markup(shop: Shop) -> None:
    s = shop.buys()
    answer = signs_in(s.tenant).post(change_of(s), {"price": "<b>:x", "quantity": '"><script>', "do": "preview"})
    assert "<script" not in says(answer, "&lt;script&gt;", status=400)


def test_what_stripe_does_not_bill_is_cancelled_and_taken_back_here(stripe: Sandbox) -> None:
    s = subscription(price=None, term=(timezone.now(), timezone.now().replace(year=2100)), now=timezone.now())
    owner = signs_in(s.tenant)
    assert press(owner, s, "cancel").headers["Location"] == "/billing"
    says(owner.get("/billing"), f"{s.number} ends on", "Ends on", "Undo cancellation")
    press(owner, s, "resume")
    says(owner.get("/billing"), "Cancel at term end")
    says(press(owner, s, "pause"), "Stripe does not bill this subscription", status=409)


def test_amounts_that_are_paid_back_have_their_sign() -> None:
    assert [money(n, "EUR") for n in (-450, -5, 5, 123450)] == ["-4.50 EUR", "-0.05 EUR", "0.05 EUR", "1,234.50 EUR"]
