"""The pages of the Stripe sandbox: what a person buys, changes and breaks there by clicking."""

import http.client
import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.stripe_sandbox.client import Sandbox, SandboxError
from tests.test_browser import CHROMIUM, chromium, visitor

DAY = 86_400


def clicked(test: Any) -> Any:
    """A test for which there has to be a Chromium."""
    absent = not CHROMIUM and os.environ.get("CI") != "true"
    skip = pytest.mark.skipif(absent, reason="There is no Chromium on this machine.")
    return pytest.mark.browser(pytest.mark.xdist_group("browser")(skip(test)))


class Shop:
    """What is on sale at the sandbox, and somebody to buy it."""

    def __init__(self, stripe: Sandbox) -> None:
        self.stripe, self.api = stripe, stripe.api
        self.customer = self.api("POST", "/v1/customers", name="Acme GmbH", email="anna@acme.test")["id"]
        self.monthly, self.yearly = self.price("Standard", 1000, "month"), self.price("Fleet", 10000, "year")

    def price(self, name: str, amount: int, interval: str, **more: Any) -> str:
        product = self.api("POST", "/v1/products", name=name)["id"]
        given = {"product": product, "currency": "eur", "unit_amount": amount, "recurring": {"interval": interval}}
        return str(self.api("POST", "/v1/prices", **given, **more)["id"])

    def checkout(self, quantity: int = 2, **more: Any) -> Any:
        return self.api(
            "POST",
            "/v1/checkout/sessions",
            mode="subscription",
            line_items=[{"price": self.monthly, "quantity": quantity}],
            success_url=f"{self.stripe.url}/?bought={{CHECKOUT_SESSION_ID}}&from=us",
            cancel_url=f"{self.stripe.url}/?left=1",
            **more,
        )

    def subscription(self, quantity: int = 2, **more: Any) -> Any:
        items = [{"price": self.monthly, "quantity": quantity}]
        return self.api("POST", "/v1/subscriptions", customer=self.customer, items=items, **more)

    def portal(self, **more: Any) -> Any:
        return self.api("POST", "/v1/billing_portal/sessions", customer=self.customer, return_url=self.back, **more)

    @property
    def back(self) -> str:
        return f"{self.stripe.url}/?returned=1"

    def session(self, session: Any) -> Any:
        return self.api("GET", f"/v1/checkout/sessions/{session['id']}")

    def now(self, subscription: Any) -> Any:
        return self.api("GET", f"/v1/subscriptions/{subscription['id']}")

    def events(self) -> list[str]:
        """Oldest first."""
        return [event["type"] for event in reversed(self.api("GET", "/v1/events", limit=100)["data"])]


@pytest.fixture
def shop(stripe: Sandbox) -> Shop:
    return Shop(stripe)


@pytest.fixture(scope="module")
def opened() -> Iterator[Browser]:
    """One browser for all: most of a short visit would be its start."""
    with chromium() as opened:
        yield opened


def visit(url: str, form: dict[str, str] | None = None, **headers: str) -> tuple[int, str, str]:
    """Status, body and where it leads. With a form it is posted."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=10)
    path, body = f"{parts.path or '/'}?{parts.query}", urlencode(form) if form is not None else None
    if form is not None:
        headers["Content-Type"] = "application/x-www-form-urlencoded"
    connection.request("POST" if body is not None else "GET", path, body, headers)
    answer = connection.getresponse()
    shown = answer.status, answer.read().decode(), answer.getheader("Location") or ""
    connection.close()
    return shown


def press(page: Page, button: str) -> None:
    page.get_by_role("button", name=button, exact=True).click()


# clicked through


@clicked
def test_a_declined_card_leaves_the_checkout_open_and_the_next_one_buys(shop: Shop, opened: Browser) -> None:
    session = shop.checkout()
    with visitor(opened, shop.stripe.url) as page:
        page.goto(session["url"])
        expect(page.get_by_role("main")).to_contain_text("2 × Standard")
        expect(page.get_by_role("main")).to_contain_text("Then 20.00 EUR every month")
        page.get_by_label("E-mail").fill("berta@beta.test")
        page.get_by_label("Name").fill("Berta <b>")
        page.get_by_label("Card that is declined").check()
        press(page, "Pay 20.00 EUR")
        expect(page.get_by_role("alert")).to_contain_text("Your card was declined.")
        assert shop.session(session)["status"] == "open"
        assert shop.api("GET", "/v1/subscriptions")["data"] == []
        expect(page.get_by_label("E-mail")).to_have_value("berta@beta.test")  # nobody types it twice
        page.get_by_label("Card that works").first.check()
        press(page, "Pay 20.00 EUR")
        expect(page).to_have_url(f"{shop.stripe.url}/?bought={session['id']}&from=us")
        page.goto(session["url"])
        expect(page.get_by_role("heading")).to_have_text("This checkout is complete")
        expect(page.get_by_role("button")).to_have_count(0)
    bought = shop.session(session)
    assert (bought["status"], bought["payment_status"]) == ("complete", "paid")
    assert (bought["customer_details"]["email"], bought["customer_details"]["name"]) == ("berta@beta.test", "Berta <b>")
    assert shop.now({"id": bought["subscription"]})["status"] == "active"


@clicked
def test_who_goes_back_leaves_the_checkout_open_and_a_bank_debit_arrives_later(shop: Shop, opened: Browser) -> None:
    session = shop.checkout(customer=shop.customer)
    with visitor(opened, shop.stripe.url) as page:
        page.goto(session["url"])
        expect(page.get_by_label("E-mail")).to_have_count(0)
        page.get_by_role("link", name="Go back without paying").click()
        expect(page).to_have_url(f"{shop.stripe.url}/?left=1")
        assert shop.session(session)["status"] == "open"
        page.get_by_role("link", name="Pay 20.00 EUR").click()
        page.get_by_label("Bank debit that settles later").check()
        press(page, "Pay 20.00 EUR")
        waiting = shop.session(session)
        assert (waiting["status"], waiting["payment_status"]) == ("complete", "unpaid")
        page.get_by_role("button", name="It arrives").click()
        expect(page.get_by_role("button", name="It arrives")).to_have_count(0)
    assert shop.session(session)["payment_status"] == "paid"
    assert shop.events()[-1] == "checkout.session.async_payment_succeeded"


@clicked
def test_a_customer_cancels_thinks_again_and_changes_the_plan_in_the_portal(shop: Shop, opened: Browser) -> None:
    subscription = shop.subscription()
    end = subscription["items"]["data"][0]["current_period_end"]
    with visitor(opened, shop.stripe.url) as page:
        page.goto(shop.portal()["url"])
        page.get_by_text("Cancel", exact=True).click()
        page.get_by_role("button", name="Cancel at the end of the period").click()
        expect(page.get_by_role("status")).to_have_text("Your subscription ends with its period.")
        assert shop.now(subscription)["cancel_at"] == end
        press(page, "Keep the subscription")
        expect(page.get_by_role("status")).to_have_text("Your subscription goes on.")
        assert shop.now(subscription)["cancel_at"] is None
        page.get_by_text("Change plan or quantity").click()
        page.get_by_label("Plan").select_option(shop.yearly)
        page.get_by_label("Quantity").fill("3")
        press(page, "Continue")
        expect(page.get_by_role("main")).to_contain_text("Due today 280.00 EUR")  # 20.00 EUR of the month are unused
        press(page, "Confirm")
        expect(page.get_by_role("heading", name="3 × Fleet")).to_be_visible()
        page.get_by_role("link", name="Return").click()
        expect(page).to_have_url(shop.back)
    item = shop.now(subscription)["items"]["data"][0]
    assert (item["price"]["id"], item["quantity"]) == (shop.yearly, 3)
    assert shop.events().count("customer.subscription.updated") == 4  # paid, ending, kept, changed
    assert shop.api("GET", "/v1/invoices", limit=1)["data"][0]["total"] == 28000


@clicked
def test_a_person_turns_knobs_moves_the_time_and_puts_all_at_rest(shop: Shop, opened: Browser) -> None:
    subscription = shop.subscription()
    with visitor(opened, shop.stripe.url) as page:
        page.goto("/")
        page.get_by_label("Answers").select_option("down")
        page.get_by_label("Duplicate").fill("3")
        page.get_by_label("Delay").fill("0.1, 0.5")
        page.get_by_label("Cards").select_option("declined")
        press(page, "Turn the knobs")
        expect(page.get_by_text("at rest: up")).to_be_visible()
        for _ in range(2):
            with pytest.raises(SandboxError) as caught:
                shop.now(subscription)
            assert caught.value.status == 503
        turned = shop.stripe.control("GET", "/knobs")
        assert (turned["duplicate"], turned["delay_seconds"], turned["card"]) == (3, [0.1, 0.5], "declined")
        page.get_by_role("button", name="On by 1 month").click()
        expect(page.get_by_role("region", name="Subscriptions")).to_contain_text("past due")
        press(page, "All at rest")
        expect(page.get_by_text("at rest:")).to_have_count(0)
    resting = shop.stripe.control("GET", "/knobs")
    assert (resting["duplicate"], resting["delay_seconds"], resting["card"], resting["errors"]) == (1, 0.0, "ok", [])
    assert shop.now(subscription)["status"] == "past_due"


# asked over HTTP


def test_pages_escape_what_strangers_wrote(shop: Shop) -> None:
    evil = "<script>alert(1)</script>\"'&"
    shop.monthly = shop.price(evil, 1000, "month", nickname=evil)
    shop.api("POST", f"/v1/customers/{shop.customer}", name=evil)
    subscription, session = shop.subscription(), shop.checkout(customer_email=f"{evil}@acme.test")
    other = shop.checkout(customer=shop.customer)
    pages = ["/", session["url"], other["url"], shop.portal()["url"], f"/invoice/{subscription['latest_invoice']}"]
    for url in pages:
        status, shown, _ = visit(url if url.startswith("http") else shop.stripe.url + url)
        assert (status, "<script" in shown, "&lt;script&gt;" in shown) == (200, False, True)


def test_an_address_cannot_put_words_or_scripts_into_a_page(shop: Shop) -> None:
    session = shop.api(
        "POST",
        "/v1/checkout/sessions",
        mode="subscription",
        line_items=[{"price": shop.monthly, "quantity": 1}],
        success_url="javascript:alert(1)",
        cancel_url="javascript:alert(2)",
    )
    assert "javascript:" not in visit(session["url"])[1]
    assert "send money" not in visit(session["url"] + "?said=send+money")[1]
    given = {"way": "works", "email": "a@b.test"}
    assert visit(session["url"], given)[2] == "/"


def test_a_checkout_that_is_over_offers_no_payment_and_takes_none(shop: Shop) -> None:
    done, gone = shop.checkout(customer=shop.customer), shop.checkout(customer=shop.customer)
    shop.stripe.complete(done["id"])
    shop.stripe.clock(2 * DAY)
    events = shop.events()
    for session, word in ((done, "complete"), (gone, "expired")):
        for form in (None, {"way": "works"}):
            status, shown, _ = visit(session["url"], form)
            assert (status, f"This checkout is {word}" in shown, "<form" in shown) == (200, True, False)
    assert shop.events() == events


def test_a_checkout_for_a_trial_needs_no_card_only_where_the_session_says_so(shop: Shop) -> None:
    trial = {"customer": shop.customer, "subscription_data": {"trial_period_days": 14}}
    always, if_required = shop.checkout(**trial), shop.checkout(**trial, payment_method_collection="if_required")
    assert "14 days free" in visit(always["url"])[1]
    assert visit(always["url"], {"way": "nothing"})[0] == 400
    assert visit(always["url"], {"way": "debit"})[0] == 400
    assert shop.session(always)["status"] == "open"
    status, _, location = visit(if_required["url"], {"way": "nothing"})
    assert (status, location) == (303, f"{shop.stripe.url}/?bought={if_required['id']}&from=us")
    bought = shop.session(if_required)
    assert bought["payment_status"] == "no_payment_required"
    shop.stripe.clock(15 * DAY)
    assert shop.now({"id": bought["subscription"]})["status"] == "past_due"  # there is no card


def test_an_anchored_checkout_shows_the_share_that_it_charges(shop: Shop) -> None:
    anchor = shop.stripe.control("GET", "/clock")["now"] + 10 * DAY
    session = shop.checkout(customer=shop.customer, subscription_data={"billing_cycle_anchor": anchor})
    shown = visit(session["url"])[1]
    visit(session["url"], {"way": "works"})
    total = shop.api("GET", f"/v1/invoices/{shop.session(session)['invoice']}")["total"]
    assert 0 < total < 2000
    assert f"Pay {total / 100:.2f} EUR" in shown


def test_a_card_that_works_today_only_fails_at_the_renewal(shop: Shop) -> None:
    session = shop.checkout()
    assert visit(session["url"], {"way": "fails_later", "email": "nobody"})[2].endswith("?said=email")
    visit(session["url"], {"way": "fails_later", "email": "b@beta.test"})
    bought = {"id": shop.session(session)["subscription"]}
    assert shop.now(bought)["status"] == "active"
    shop.stripe.clock(32 * DAY)
    assert shop.now(bought)["status"] == "past_due"


def test_a_change_at_the_period_end_happens_with_the_renewal(shop: Shop) -> None:
    subscription, portal = shop.subscription(), shop.portal()["url"]
    item = subscription["items"]["data"][0]
    about = {"do": "change", "subscription": subscription["id"], "item": item["id"], "when": "period_end"}
    assert "said=planned" in visit(portal, about | {"price": shop.yearly, "quantity": "5"})[2]
    assert shop.now(subscription)["items"] == subscription["items"]
    assert "5 × Fleet" in visit(portal)[1]
    shop.stripe.clock(32 * DAY)
    after = shop.now(subscription)["items"]["data"][0]
    assert (after["price"]["id"], after["quantity"]) == (shop.yearly, 5)
    assert after["current_period_start"] == item["current_period_end"]
    assert after["current_period_end"] - after["current_period_start"] == 365 * DAY
    assert shop.api("GET", "/v1/invoices", limit=1)["data"][0]["total"] == 50000
    visit(portal, about | {"price": shop.monthly, "quantity": "1"})
    visit(portal, about | {"do": "unplan"})
    assert "1 × Standard" not in visit(portal)[1]


def test_a_link_to_confirm_a_change_shows_its_price_and_leads_on_when_it_is_done(shop: Shop) -> None:
    subscription = shop.subscription()
    item = subscription["items"]["data"][0]["id"]
    wanted = {"subscription": subscription["id"], "items": [{"id": item, "price": shop.yearly, "quantity": 3}]}
    after = {"type": "redirect", "redirect": {"return_url": shop.back}}
    kind = "subscription_update_confirm"
    portal = shop.portal(flow_data={"type": kind, kind: wanted, "after_completion": after})["url"]
    shown = visit(portal)[1]
    assert ("To 3 × Fleet" in shown, "280.00 EUR" in shown) == (True, True)
    assert shop.now(subscription) == subscription
    form = {"do": "change", "subscription": subscription["id"], "item": item, "price": shop.yearly, "quantity": "3"}
    assert visit(portal, form)[2] == shop.back
    assert shop.now(subscription)["items"]["data"][0]["quantity"] == 3


def test_cancelling_drops_a_planned_change(shop: Shop) -> None:
    subscription, portal = shop.subscription(), shop.portal()["url"]
    item = subscription["items"]["data"][0]["id"]
    about = {"subscription": subscription["id"], "item": item, "price": shop.yearly, "quantity": "5"}
    visit(portal, about | {"do": "change", "when": "period_end"})
    assert "said=ending" in visit(portal, {"do": "end", "subscription": subscription["id"]})[2]
    assert (shop.now(subscription)["schedule"], shop.now(subscription)["cancel_at_period_end"]) == (None, True)
    assert "5 × Fleet" not in visit(portal)[1]


def test_with_a_declined_card_the_portal_neither_changes_nor_pays(shop: Shop) -> None:
    subscription, portal = shop.subscription(), shop.portal()["url"]
    visit(portal, {"do": "card", "card": "declined"})
    before = shop.now(subscription)
    item = before["items"]["data"][0]
    about = {"do": "change", "subscription": subscription["id"], "item": item["id"], "when": "now"}
    assert "said=not_paid" in visit(portal, about | {"price": shop.yearly, "quantity": "2"})[2]
    assert shop.now(subscription) == before
    shop.stripe.clock(32 * DAY)
    invoice = {"do": "pay", "invoice": shop.now(subscription)["latest_invoice"]}
    assert "said=declined" in visit(portal, invoice)[2]
    visit(portal, {"do": "card", "card": "none"})
    assert "said=no_card" in visit(portal, invoice)[2]
    assert shop.now(subscription)["status"] == "past_due"
    visit(portal, {"do": "card", "card": "ok"})
    assert "said=paid" in visit(portal, invoice)[2]
    assert shop.now(subscription)["status"] == "active"


def test_a_portal_shows_and_changes_only_what_is_its_customers_own(shop: Shop) -> None:
    theirs = shop.subscription()
    shop.customer = shop.api("POST", "/v1/customers", name="Beta AG")["id"]
    own, portal = shop.subscription(), shop.portal()["url"]
    shown = visit(portal)[1]
    assert own["items"]["data"][0]["id"] in shown
    assert theirs["items"]["data"][0]["id"] not in shown
    for form in (
        {"do": "end_now", "subscription": theirs["id"]},
        {"do": "change", "subscription": own["id"], "item": theirs["items"]["data"][0]["id"]},
        {"do": "pay", "invoice": theirs["latest_invoice"]},
        {"do": "end_now", "subscription": "sub_none"},
    ):
        assert visit(portal, form)[0] == 404
    change = {"do": "change", "subscription": own["id"], "item": own["items"]["data"][0]["id"]}
    for price, quantity in (("price_none", "1"), (shop.yearly, "0"), (shop.yearly, "-1"), (shop.yearly, "²")):
        assert visit(portal, change | {"price": price, "quantity": quantity})[0] == 400
    assert visit(portal, {"do": "explode"})[0] == 400
    assert (shop.now(theirs)["status"], shop.now(own)) == ("active", own)


@pytest.mark.parametrize(
    ("kind", "heading"),
    [
        ("subscription_cancel", "Cancel your subscription"),
        ("subscription_update", "Change your subscription"),
        ("payment_method_update", "Payment method"),
    ],
)
def test_a_portal_link_opens_where_it_was_made_for(shop: Shop, kind: str, heading: str) -> None:
    subscription = shop.subscription()
    about = {kind: {"subscription": subscription["id"]}} if kind.startswith("sub") else {}
    portal = shop.portal(flow_data={"type": kind, **about})["url"]
    shown = visit(portal)[1]
    assert shown.count("<h2>") == 1
    assert f"<h2>{heading}</h2>" in shown
    assert "<h2>Invoices</h2>" in visit(f"{portal}?all=1")[1]
    shop.stripe.cancel(subscription["id"])
    assert ("Cancel now" in visit(portal)[1], "Continue</button>" in visit(portal)[1]) == (False, False)


@pytest.mark.parametrize("path", ["/checkout/cs_none", "/portal/bps_none", "/invoice/in_none", "/none", "/checkout"])
def test_what_is_not_there_is_a_404_page(shop: Shop, path: str) -> None:
    assert visit(shop.stripe.url + path)[0] == 404
    assert visit(shop.stripe.url + path, {"way": "works"})[0] == 404


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.test"}, {"Origin": "null"}, {"Host": "evil.test"}])
def test_a_page_elsewhere_can_neither_buy_nor_turn_knobs(shop: Shop, headers: dict[str, str]) -> None:
    session = shop.checkout(customer=shop.customer)
    assert visit(session["url"], {"way": "works"}, **headers)[0] == 403
    assert visit(shop.stripe.url, {"do": "knobs", "api": "down"}, **headers)[0] == 403
    assert visit(shop.stripe.url, {"do": "knobs", "api": "down"}, Origin=shop.stripe.url)[0] == 303
    shop.stripe.knobs()
    assert shop.session(session)["status"] == "open"


def test_a_button_that_cannot_be_carried_out_says_why_on_a_page(shop: Shop) -> None:
    subscription = shop.subscription()
    shop.stripe.cancel(subscription["id"])
    verb = f"{shop.stripe.url}/_sandbox/subscriptions/{subscription['id']}/pay"
    status, shown, _ = visit(verb, {"back": "/#subscriptions"})
    assert (status, "nothing more can be paid" in shown, 'href="/#subscriptions"' in shown) == (409, True, True)
    assert visit(shop.stripe.url, {"do": "knobs", "drop": "much"})[0] == 400
    assert visit(shop.stripe.url, {"do": "set_time", "at": "tomorrow"})[0] == 400
    assert visit(shop.stripe.url, {"do": "knobs", "dunning_days": "nan"})[0] == 400


def test_turning_one_knob_on_the_page_leaves_the_others_and_a_programs_faults(shop: Shop) -> None:
    fault = {"path_prefix": "/v1/prices", "status": 500, "times": 2}
    shop.stripe.knobs(drop=0.5, errors=[fault])
    visit(shop.stripe.url, {"do": "knobs", "api": "down", "dunning_days": "3"})
    turned = shop.stripe.control("GET", "/knobs")
    assert (turned["drop"], turned["dunning_seconds"], len(turned["errors"])) == (0.5, 3 * DAY, 2)
    for retries, kept in (("stripe", "stripe"), ("1, 2.5", [1.0, 2.5])):
        visit(shop.stripe.url, {"do": "knobs", "retry": retries})
        assert shop.stripe.control("GET", "/knobs")["retry"] == kept
    visit(shop.stripe.url, {"do": "knobs", "api": "up"})
    left = shop.stripe.control("GET", "/knobs")["errors"]
    assert [(kept["path_prefix"], kept["status"]) for kept in left] == [("/v1/prices", 500)]


def test_the_time_is_set_and_set_back(shop: Shop) -> None:
    assert visit(shop.stripe.url, {"do": "set_time", "at": "2040-01-31T12:00"})[0] == 303
    assert "2040-01-31 12:00" in visit(shop.stripe.url)[1]
    visit(shop.stripe.url, {"do": "advance", "interval": "month"})
    assert "2040-02-29 12:00" in visit(shop.stripe.url)[1]
    visit(shop.stripe.url, {"do": "real_time"})
    assert shop.stripe.control("GET", "/clock")["offset_seconds"] == 0


def test_money_goes_back_and_a_dispute_ends_by_buttons(shop: Shop) -> None:
    given_back, quarrelled = shop.subscription()["latest_invoice"], shop.subscription()["latest_invoice"]
    charges = [charge["id"] for charge in shop.api("GET", "/v1/charges")["data"]]  # newest first
    home, back = shop.stripe.url, {"back": "/#invoices"}
    assert "said=refunded" in visit(home, {"do": "refund", "charge": charges[1]})[2]
    assert visit(home, {"do": "refund", "charge": charges[1]})[0] == 400
    assert "refunded 20.00 EUR" in visit(home)[1]
    assert visit(f"{home}/_sandbox/invoices/{quarrelled}/dispute", back)[2] == "/#invoices"
    dispute = shop.api("GET", "/v1/disputes")["data"][0]
    assert dispute["charge"] == charges[0]
    assert visit(f"{home}/_sandbox/disputes/{dispute['id']}/close", back | {"status": "won"})[2] == "/#invoices"
    assert "dispute: won" in visit(home)[1]
    assert shop.api("GET", f"/v1/invoices/{given_back}")["status"] == "paid"


def test_a_customer_on_a_test_clock_buys_and_renews_in_its_time(shop: Shop) -> None:
    clock = shop.api("POST", "/v1/test_helpers/test_clocks", frozen_time=1_900_000_000, name="Two years")["id"]
    shop.customer = shop.api("POST", "/v1/customers", name="Acme GmbH", test_clock=clock)["id"]
    session = shop.checkout(customer=shop.customer)
    visit(session["url"], {"way": "works"})
    bought = {"id": shop.session(session)["subscription"]}
    assert shop.now(bought)["items"]["data"][0]["current_period_start"] == 1_900_000_000
    form = {"do": "advance_clock", "clock": clock, "interval": "month"}
    assert visit(shop.stripe.url, form)[0] == 303
    visit(shop.stripe.url, form | {"interval": "day"})
    assert shop.now(bought)["items"]["data"][0]["current_period_start"] > 1_900_000_000
    assert visit(shop.stripe.url, form | {"clock": "clock_none"})[0] == 404
