"""What a person sees and presses, in a real browser."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from django.contrib.auth.models import User
from playwright.sync_api import Browser, Page, expect, sync_playwright

from subscriptions import lifecycle
from subscriptions.audit import STRIPE
from subscriptions.lifecycle import Purchase
from subscriptions.models import Member
from tests.builders import FEB_1, JAN_1, PlanFactory, TenantFactory, subscription
from tests.history import advance
from webhooks.models import StripeEvent

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.django_db(transaction=True),
    pytest.mark.xdist_group("browser"),
    pytest.mark.skipif(not CHROMIUM and os.environ.get("CI") != "true", reason="There is no Chromium on this machine."),
]
PASSWORD = "correct horse battery staple"


@contextmanager
def browser(url: str) -> Iterator[Page]:
    """A browser of one's own, at `url`."""
    with chromium() as opened, visitor(opened, url) as page:
        yield page


@contextmanager
def chromium() -> Iterator[Browser]:
    assert CHROMIUM, "CI is set, and there is no Chromium"
    with sync_playwright() as playwright:
        as_root = ["--no-sandbox"] if os.geteuid() == 0 else []
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=as_root)
        yield opened
        opened.close()


@contextmanager
def visitor(opened: Browser, url: str, *others: str, **more: Any) -> Iterator[Page]:
    """A page that starts at `url`. What the browser complains of and what it asks of servers that are not among the
    `others` fails the test.
    """
    complaints: list[str] = []
    context = opened.new_context(**{"base_url": url, "viewport": {"width": 1280, "height": 900}} | more)
    page = context.new_page()
    page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("response", lambda answer: complaints.append(answer.url) if answer.status >= 400 else None)
    page.on("request", lambda asked: complaints.append(asked.url) if elsewhere(asked.url, url, *others) else None)
    yield page
    context.close()
    assert complaints == []


def elsewhere(address: str, *servers: str) -> bool:
    return not address.startswith((*servers, "data:", "blob:"))


def sign_in(page: Page, name: str) -> None:
    page.locator("input[name=username]").fill(name)
    page.locator("input[name=password]").fill(PASSWORD)
    page.locator("input[name=password]").press("Enter")


def event(pk: str, **more: Any) -> StripeEvent:
    about = {"type": "invoice.paid", "object_id": "in_1", "livemode": False, "created_at": JAN_1}
    return StripeEvent.objects.create(pk=pk, received_at=JAN_1, next_attempt_at=JAN_1, **about | more)


def test_staff_find_a_subscription_follow_its_history_to_stripe_and_replay_an_event(live_server: Any) -> None:
    User.objects.create_superuser("alice", password=PASSWORD)
    event("evt_paid", state="DONE", done_at=JAN_1, outcome="started")
    event("evt_parked", state="PARKED", error_code="unknown_price", attempts=1)
    subscription()
    entry = lifecycle.start(
        TenantFactory.create(name="Acme Robotics").pk, Purchase(PlanFactory.create(name="Fleet"), JAN_1, FEB_1),
        actor=STRIPE, now=JAN_1, source_id="evt_paid",
    )  # fmt: skip
    assert entry
    number = entry.subscription.number
    advance(FEB_1)

    with browser(live_server.url) as page:
        page.goto("/admin/subscriptions/subscription/")
        sign_in(page, "alice")
        page.locator("#searchbar").fill(number)
        page.locator("#searchbar").press("Enter")
        expect(page.locator("#result_list tbody tr")).to_have_count(1)
        expect(page.locator("#result_list")).to_contain_text("GRACE")
        page.get_by_role("link", name=number, exact=True).click()
        expect(page.locator("#content, main").first).to_contain_text("Acme Robotics")
        trail = page.locator("#audit-group")
        for said in ("Grace started", "clock", "2026-02-01 00:00:00", "Started", "stripe"):
            expect(trail).to_contain_text(said)
        trail.get_by_role("link", name="evt_paid").click()
        expect(page.locator("body")).to_contain_text(f"{number}: Started")

        page.goto("/admin/webhooks/stripeevent/?state__exact=PARKED")
        expect(page.locator("#result_list tbody tr")).to_have_count(1)
        page.locator("input.action-select").check()
        page.locator("select[name=action]").select_option("replay")
        page.locator("button[name=index]").click()
        expect(page.locator("body")).to_contain_text("1 event will be tried again in a moment.")

    assert StripeEvent.objects.values_list("state", "replays").get(pk="evt_parked") == ("PENDING", 1)


def test_a_member_signs_in_and_reads_the_billing_status(live_server: Any) -> None:
    s = subscription()
    Member.objects.create(user=User.objects.create_user("owner", password=PASSWORD), tenant=s.tenant)

    with browser(live_server.url) as page:
        page.goto("/login")
        sign_in(page, "wrong")
        expect(page.get_by_role("alert")).to_contain_text("correct username and password")
        sign_in(page, "owner")
        expect(page.locator("main")).to_contain_text(f"You are signed in for {s.tenant.name}.")
        page.get_by_role("link", name="Billing status").click()
        expect(page.locator("body")).to_contain_text(s.number)
        page.goto("/api/docs/")
        expect(page.locator("#swagger-ui")).to_contain_text("/api/v1/customer/billing/status")
        page.goto("/")
        page.get_by_role("button", name="Sign out").click()
        expect(page.locator("main")).to_contain_text("Sign in to see your subscriptions.")


def test_staff_put_a_subscription_on_hold_and_lift_it(live_server: Any) -> None:
    User.objects.create_superuser("alice", password=PASSWORD)
    s = subscription(tenant=TenantFactory.create(name="Acme Robotics"), term=(JAN_1, datetime(2100, 1, 1, tzinfo=UTC)))

    with browser(live_server.url) as page:

        def do(verb: str, reason: str, would: str) -> None:
            page.locator("a:not([href])", has_text="Change").click()
            page.get_by_role("link", name=verb, exact=True).click()
            page.get_by_role("button", name="Preview").click()
            expect(page.locator("#verb")).to_contain_text("This field is required.")
            page.locator("[name=reason]").fill(reason)
            page.get_by_role("button", name="Preview").click()
            expect(page.locator("#preview")).to_contain_text(would)
            page.get_by_role("button", name="Do it").click()

        page.goto(f"/admin/subscriptions/subscription/{s.pk}/change/")
        sign_in(page, "alice")
        do("Suspend with hold", "fraud case 12", "on_hold: no → yes")
        expect(page.locator("body")).to_contain_text(f"{s.number}: Suspended.")
        expect(page.locator("#audit-group")).to_contain_text("fraud case 12")
        do("Lift hold", "fraud case 12 closed", "status: SUSPENDED → ACTIVE")
        expect(page.locator("body")).to_contain_text(f"{s.number}: Hold lifted.")

    assert [*s.audit.order_by("id").values_list("action", "reason")][1:] == [
        ("suspended", "fraud case 12"),
        ("hold_lifted", "fraud case 12 closed"),
    ]
