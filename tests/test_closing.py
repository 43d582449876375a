"""A tenant that is no customer any more: everything it has ends, here and at Stripe, and nothing can be started."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing_site.local.process import wait_until
from billing_site.verbs import close_tenant, reopen_tenant
from entitlements import slots
from subscriptions import closing, lifecycle
from subscriptions.audit import Actor
from subscriptions.errors import ReasonMissing, TenantClosed, TenantNotFound
from subscriptions.lifecycle import Purchase
from subscriptions.models import AuditEntry, Member, Subscription, Tenant
from subscriptions.states import Action, EndReason, Status, Type
from tests.builders import ALICE, PlanFactory, PlanPriceFactory, TenantFactory, subscription
from tests.history import nothing_changes, refused
from tests.stripe_cast import bought_at_stripe
from tests.stripe_sandbox.client import Sandbox
from tests.test_limits import held_by, parked
from tests.test_outbound import bought, deliver, rows, there
from webhooks.catalogue import customer_of
from webhooks.models import Checkout, Telling

pytestmark = pytest.mark.django_db

DAY = timedelta(days=1)
NOW = timezone.now()
TERM = (NOW - 10 * DAY, NOW + 20 * DAY)
WHY = "letter of 3 March"


def live(type: Type = Type.MAIN, **more: Any) -> Subscription:
    return subscription(type, term=TERM, now=TERM[0], **more)


def close(tenant: Tenant, **more: Any) -> list[AuditEntry]:
    entries = close_tenant(tenant.pk, actor=ALICE, now=NOW, reason=WHY, **more)
    tenant.refresh_from_db()
    return entries


def starts(tenant: Tenant) -> AuditEntry | None:
    return lifecycle.start(tenant.pk, Purchase(PlanFactory.create(), *TERM), actor=ALICE, now=NOW, reason="an order")


def test_every_subscription_ends_with_an_entry_that_says_who_when_and_why() -> None:
    main = live()
    addon, trial = live(Type.ADDON, parent=main), live(Type.TRIAL, tenant=main.tenant)
    entries = close(main.tenant)
    assert {entry.subscription_id for entry in entries} == {main.pk, addon.pk, trial.pk}
    assert {(entry.action, entry.actor, entry.effective_at, entry.reason) for entry in entries} == {
        (Action.EXPIRED, "staff:1", NOW, WHY)
    }
    assert {*Subscription.objects.values_list("status", "end_reason")} == {
        (Status.EXPIRED, EndReason.CANCELLED), (Status.EXPIRED, EndReason.MAIN_ENDED),
    }  # fmt: skip
    assert main.tenant.closed_at == NOW
    told = Telling.objects.get()
    assert (told.aspect, told.tenant, told.actor, told.reason) == ("CLOSED", main.tenant, "staff:1", WHY)


def test_its_devices_park_and_another_tenants_do_not() -> None:
    main, other = live(slots={"basic": 2}), live(slots={"basic": 1})
    for s, device in ((main, "a"), (other, "b")):
        slots.assign(s.tenant_id, device, "basic", actor=Actor.api_key(3), now=NOW)
    close(main.tenant)
    assert (held_by(other), parked()) == (["b"], ["a"])
    other.refresh_from_db()
    assert (other.status, other.tenant.closed_at) == (Status.ACTIVE, None)


def test_nothing_can_be_started_for_a_tenant_that_is_closed_until_it_is_reopened() -> None:
    tenant: Tenant = TenantFactory.create()
    close(tenant)
    with pytest.raises(TenantClosed), transaction.atomic():
        starts(tenant)
    assert Subscription.objects.count() == 0
    assert reopen_tenant(tenant.pk, actor=ALICE, reason="the wrong one")
    assert not reopen_tenant(tenant.pk, actor=ALICE, reason="the wrong one")
    assert starts(tenant) is not None


def test_to_close_it_again_changes_nothing() -> None:
    s = live()
    close(s.tenant)
    with nothing_changes():
        assert close(s.tenant) == []
    assert Telling.objects.count() == 1


def test_a_dry_run_says_what_would_end_and_ends_nothing() -> None:
    s = live()
    with nothing_changes():
        (entry,) = close(s.tenant, dry_run=True)
    assert (entry.subscription, s.tenant.closed_at, Telling.objects.count()) == (s, None, 0)


def test_staff_say_why_and_whom() -> None:
    s = live()
    with refused(ReasonMissing):
        closing.close(s.tenant_id, actor=ALICE, now=NOW, reason=" ")
    with refused(TenantNotFound):
        closing.close(0, actor=ALICE, now=NOW, reason=WHY)
    with refused(TenantNotFound):
        closing.reopen(0, actor=ALICE, reason=WHY)


# --- at Stripe -------------------------------------------------------------------------------------------------------


def test_whatever_its_customer_has_at_stripe_is_ended_incomplete_ones_too_and_nobody_can_pay_any_more(
    stripe: Sandbox,
) -> None:
    s = bought(stripe)
    also = [
        bought_at_stripe(stripe, tenant=s.tenant)["id"],  # nobody told us of it yet
        bought_at_stripe(stripe, tenant=s.tenant, payment_behavior="default_incomplete")["id"],
    ]
    session = checkout(stripe, s.tenant)
    close(s.tenant)
    deliver()
    assert rows() == [("END", "DONE"), ("CLOSED", "DONE")]
    assert there(stripe, s)["status"] == "canceled"
    statuses = {stripe.api("GET", f"/v1/subscriptions/{pk}")["status"] for pk in also}
    assert statuses <= {"canceled", "incomplete_expired"}
    assert stripe.api("GET", f"/v1/checkout/sessions/{session.session_id}")["status"] == "expired"
    session.refresh_from_db()
    assert session.state == Checkout.State.EXPIRED


def checkout(stripe: Sandbox, tenant: Tenant) -> Checkout:
    price = PlanPriceFactory.create()
    made = stripe.api(
        "POST", "/v1/checkout/sessions", mode="subscription", customer=customer_of(tenant),
        line_items=[{"price": stripe.api("POST", "/v1/prices", currency="eur", unit_amount=1,
                     recurring={"interval": "month"}, product_data={"name": "x"})["id"], "quantity": 1}],
        success_url="https://x.test", cancel_url="https://x.test",
    )  # fmt: skip
    row: Checkout = Checkout.objects.create(
        tenant=tenant, plan=price.plan, price=price, session_id=made["id"], url=made["url"], success_url="x",
        cancel_url="x", actor="member:7", created_at=NOW, expires_at=NOW + DAY,
    )  # fmt: skip
    return row


def test_what_was_not_told_before_it_was_reopened_is_not_told(stripe: Sandbox) -> None:
    s = bought(stripe)
    other = bought_at_stripe(stripe, tenant=s.tenant)["id"]
    close(s.tenant)
    reopen_tenant(s.tenant_id, actor=ALICE, reason="the wrong one")
    assert sorted(deliver()) == ["it is a customer again", "told"]
    assert stripe.api("GET", f"/v1/subscriptions/{other}")["status"] == "active"


def test_while_stripe_is_down_a_closing_waits(stripe: Sandbox) -> None:
    s = bought(stripe)
    close(s.tenant)
    stripe.knobs(errors=[{"path_prefix": "/v1/", "status": 500, "times": 0}])
    deliver()
    assert rows() == [("END", "PENDING"), ("CLOSED", "PENDING")]
    stripe.knobs()
    deliver(timezone.now() + timedelta(minutes=1))
    assert (rows(), there(stripe, s)["status"]) == ([("END", "DONE"), ("CLOSED", "DONE")], "canceled")


# --- races -----------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("first", ["start", "close"])
def test_who_starts_something_while_the_tenant_is_closed_comes_first_and_is_ended_or_is_refused(first: str) -> None:
    tenant = TenantFactory.create()
    plan = PlanFactory.create()

    def start() -> object:
        return lifecycle.start(tenant.pk, Purchase(plan, *TERM), actor=ALICE, now=NOW, reason="an order")

    def closes() -> object:
        return close_tenant(tenant.pk, actor=ALICE, now=NOW, reason=WHY)

    one, other = (start, closes) if first == "start" else (closes, start)
    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            one()
            later = pool.submit(in_its_own_connection, other)
            assert wait_until(somebody_waits, seconds=20)
        error = later.exception(timeout=20)
    assert isinstance(error, TenantClosed) if first == "close" else error is None
    tenant.refresh_from_db()
    live_ones = Subscription.objects.exclude(status=Status.EXPIRED)
    assert (tenant.closed_at, live_ones.count()) == (NOW, 0)
    assert Subscription.objects.count() == (1 if first == "start" else 0)


def in_its_own_connection(call: Callable[[], object]) -> object:
    try:
        return call()
    finally:
        connection.close()


def somebody_waits() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
        return bool(cursor.fetchone()[0])


# --- its people, the back office, the terminal -----------------------------------------------------------------------


def member(tenant: Tenant) -> Client:
    user = User.objects.create(username="anna")
    Member.objects.create(user=user, tenant=tenant)
    signed_in = Client()
    signed_in.force_login(user)
    return signed_in


def test_its_members_read_everything_and_change_nothing() -> None:
    s = live(slots={"basic": 1})
    anna = member(s.tenant)
    close(s.tenant)
    assert anna.get("/api/v1/customer/billing/status").status_code == 200
    assert anna.get(f"/api/v1/customer/subscriptions/{s.number}/audit").status_code == 200
    answer = anna.post("/api/v1/customer/devices", {"device_id": "a"}, content_type="application/json")
    assert (answer.status_code, answer.json()["code"]) == (403, "tenant_closed")


def staff(*permissions: str) -> Client:
    user = User.objects.create(username=f"staff-{User.objects.count()}", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    signed_in = Client()
    signed_in.force_login(user)
    return signed_in


def test_the_back_office_shows_what_would_end_asks_for_the_slug_and_remembers_who_closed_it() -> None:
    s = live()
    bob = staff("close_tenant", "view_tenant", "change_tenant")
    url = reverse("admin:subscriptions_tenant_close", args=[s.tenant_id])
    assert url in bob.get(reverse("admin:subscriptions_tenant_change", args=[s.tenant_id])).content.decode()
    with nothing_changes():
        assert "That is not" in bob.post(url, {"reason": WHY, "slug": "acme", "do": "1"}).content.decode()
        said = {"reason": WHY, "slug": s.tenant.slug}
        assert s.number in bob.post(url, said).content.decode()
    assert bob.post(url, {**said, "do": "1"}).status_code == 302
    s.tenant.refresh_from_db()
    assert s.tenant.closed_at is not None
    assert LogEntry.objects.get().change_message == f"Closed: {WHY}"
    again = reverse("admin:subscriptions_tenant_reopen", args=[s.tenant_id])
    assert again in bob.get(reverse("admin:subscriptions_tenant_change", args=[s.tenant_id])).content.decode()
    assert bob.post(again, {**said, "do": "1"}).status_code == 302
    s.tenant.refresh_from_db()
    assert s.tenant.closed_at is None


def test_who_may_not_close_is_refused_and_offered_nothing() -> None:
    s = live()
    bob = staff("view_tenant", "change_tenant", "change_subscription")
    assert "/close/" not in bob.get(reverse("admin:subscriptions_tenant_change", args=[s.tenant_id])).content.decode()
    with nothing_changes():
        for what in ("close", "reopen"):
            url = reverse(f"admin:subscriptions_tenant_{what}", args=[s.tenant_id])
            assert bob.post(url, {"reason": WHY, "slug": s.tenant.slug, "do": "1"}).status_code == 403


def test_the_command_closes_and_reopens() -> None:
    s = live()
    slug = s.tenant.slug
    assert command("close", slug, "--dry-run").endswith(f"{slug}: 1 subscription would end.\n")
    assert command("close", slug).splitlines()[-1] == f"{slug}: 1 subscription ended."
    assert command("reopen", slug, "--dry-run") == f"{slug} would be a customer again.\n"
    assert command("reopen", slug) == f"{slug} is a customer again.\n"
    assert command("reopen", slug) == f"{slug} is open.\n"
    with pytest.raises(CommandError, match="tenant_not_found"):
        command("close", "nobody")


def command(*arguments: str) -> str:
    output = StringIO()
    call_command("tenant", *arguments, "--reason", WHY, stdout=output)
    return output.getvalue()
