"""What a customer buys and changes by clicking, in a real browser, at our pages and at Stripe's."""

import re
from typing import Any

from django.contrib.auth.models import User
from playwright.sync_api import expect

from subscriptions.models import Member, Subscription
from tests.builders import TenantFactory
from tests.changing_cast import Shop, plan_of
from tests.stripe_sandbox.client import Sandbox
from tests.test_browser import PASSWORD, chromium, sign_in, visitor
from tests.test_browser import pytestmark as pytestmark


def test_a_customer_buys_changes_the_plan_cancels_and_takes_it_back(live_server: Any, stripe: Sandbox) -> None:
    Shop.open(stripe)
    tenant = TenantFactory.create()
    owner = User.objects.create_user("owner", password=PASSWORD)
    Member.objects.create(user=owner, tenant=tenant, role=Member.Role.OWNER)

    with (
        chromium() as opened,
        visitor(opened, live_server.url, stripe.url, viewport={"width": 400, "height": 900}) as page,
    ):

        def press(button: str) -> None:
            page.get_by_role("button", name=button, exact=True).click()

        page.goto("/")
        page.goto("/billing")
        sign_in(page, "owner")
        offer = page.locator("#buy-small")
        offer.get_by_label("Quantity").fill("2")
        offer.get_by_role("button").click()
        page.get_by_label("Card that is declined").check()
        press("Pay 20.00 EUR")
        expect(page.get_by_role("alert")).to_contain_text("Your card was declined.")
        page.get_by_label("Card that works").first.check()
        press("Pay 20.00 EUR")
        expect(page.get_by_role("heading")).to_have_text("Thank you")
        page.get_by_role("link", name="To your billing page").click()

        card = page.locator("section.card")
        expect(card.locator(".badge")).to_have_text("ACTIVE")
        expect(card).to_contain_text("0 of 2")
        card.get_by_role("link", name="Change plan…").click()
        page.get_by_label("Plan").select_option("big:month:1")
        press("Preview")
        expect(page.locator("#lines")).to_contain_text("Due now40.00 EUR")
        expect(page.locator("#lines")).to_contain_text(re.compile(r"Remaining time on 2 x Plan \d+ after"))
        expect(page.locator("#slots tbody")).to_contain_text("basic26")
        press("Confirm")
        expect(page.get_by_role("status")).to_contain_text("is changed.")
        expect(card).to_contain_text("0 of 6")

        press("Cancel at term end")
        expect(card).to_contain_text("Ends on ")
        press("Undo cancellation")
        expect(card).to_contain_text(" for 60.00 EUR.")
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
    s = Subscription.objects.get(tenant=tenant)
    assert (*plan_of(s), s.status, s.cancel_at_term_end) == ("big", "month", 2, "ACTIVE", False)
