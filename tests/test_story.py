"""The whole service at work, as real processes: an event comes in, mail goes out, and the audit can explain it all.

And what happens when a part of it dies in between. In-process, one rule at a time: test_inbox, test_failures.
"""

from collections.abc import Iterator
from itertools import count
from typing import Any

import psycopg
import pytest
from django.contrib.auth.models import User
from django.db import connection

from notifications.models import Notice
from subscriptions.models import AuditEntry, Member, PlanPrice, Subscription, Tenant
from subscriptions.states import Action, Status
from tests.builders import PlanFactory, PlanPriceFactory, TenantFactory
from tests.processes import Browser, Service, service
from tests.stripe_cast import bought_at_stripe, rings
from webhooks.models import StripeEvent

pytestmark = pytest.mark.xdist_group("service")
PASSWORD = "one of a member's own"
_number = count(1)


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture
def running(started: Service, settings: Any, django_db_blocker: Any) -> Iterator[Service]:
    """The service, and this process looking at its database and its Stripe."""
    settings.STRIPE_API_BASE, settings.STRIPE_SECRET_KEY = started.stripe.url, started.stripe.api_key
    with django_db_blocker.unblock(), started.database():
        yield started
        started.stripe.knobs()


def new_tenant() -> Tenant:
    slug = f"tenant-of-story-{next(_number)}"
    return TenantFactory.create(slug=slug, billing_email=f"billing@{slug}.example")


def new_price() -> PlanPrice:
    return PlanPriceFactory.create(plan=PlanFactory.create(code=f"plan-of-story-{next(_number)}"))


def paid_subscription(running: Service) -> tuple[str, Subscription]:
    """One that is paid at Stripe and ACTIVE here, with every event of its beginning done."""
    stripe_id = bought_at_stripe(running.stripe, tenant=new_tenant(), price=new_price())["id"]
    settled(running)
    return stripe_id, Subscription.objects.get(stripe_link=stripe_id)


def settled(running: Service) -> None:
    running.stripe.wait_quiet()
    unsettled = StripeEvent.objects.exclude(state=StripeEvent.State.DONE)
    running.wait(lambda: not unsettled.exists(), "every event is done")


def ours(subscription: Subscription) -> str:
    return str(Subscription.objects.values_list("status", flat=True).get(pk=subscription.pk))


def entries_of(event: StripeEvent) -> int:
    return AuditEntry.objects.filter(source_id=event.pk).count()


def test_a_purchase_lives_and_ends_with_each_step_told_and_explained(running: Service) -> None:
    tenant, stripe = new_tenant(), running.stripe
    user = User.objects.create_user(f"owner-{tenant.slug}", password=PASSWORD)
    Member.objects.create(user=user, tenant=tenant, role=Member.Role.OWNER)
    browser = Browser(running.url)
    browser.sign_in(user.username, PASSWORD)

    def status_is(status: Status) -> bool:
        return tenant.subscriptions.filter(status=status).exists()

    def arrives(status: Status) -> None:
        """Our status, and the same over HTTP for whoever is signed in."""
        running.wait(lambda: status_is(status), f"{tenant} is {status}")
        answer, found = browser.get("/api/v1/customer/subscriptions?include_expired=true")
        assert (answer, [s["status"] for s in found["results"]]) == (200, [status])
        answer, found = browser.get("/api/v1/customer/billing/status")
        live = [] if status == Status.EXPIRED else [status]
        assert (answer, [s["status"] for s in found["subscriptions"]]) == (200, live)

    def is_mailed(kind: str) -> None:
        """The mail arrives, once, under the notice's Message-ID, as text and as HTML."""
        sent = Notice.objects.filter(tenant=tenant, kind=kind, state=Notice.State.SENT)
        running.wait(sent.exists, f"the notice {kind} is sent")
        notice = sent.get()
        message_id = f"<notice-{notice.pk}-{notice.anchor:%Y%m%d%H%M%S}@termkeeper.example>"
        (mail,) = (m for m in running.mailbox.messages() if m["Message-ID"] == message_id)
        assert mail["X-Envelope-To"] == mail["To"] == tenant.billing_email
        kinds = {part.get_content_type(): part.get_content() for part in mail.walk() if not part.is_multipart()}
        assert kinds.keys() == {"text/plain", "text/html"}
        assert all(tenant.name in text for text in kinds.values())

    waiting = bought_at_stripe(stripe, tenant=tenant, price=new_price(), payment_behavior="default_incomplete")
    settled(running)
    assert not tenant.subscriptions.exists()
    for happens, status, mailed in (
        (stripe.pay, Status.ACTIVE, ""),
        (stripe.fail, Status.GRACE, "grace_started"),
        (stripe.unpaid, Status.SUSPENDED, "suspended"),
        (stripe.pay, Status.ACTIVE, "reactivated"),
        (stripe.cancel, Status.EXPIRED, "expired"),
    ):
        happens(waiting["id"])
        arrives(status)
        if mailed:
            is_mailed(mailed)
    settled(running)

    history = list(tenant.subscriptions.get().audit.order_by("version"))
    assert [(entry.version, entry.action) for entry in history] == list(
        enumerate([Action.STARTED, Action.GRACE_STARTED, Action.SUSPENDED, Action.RENEWED, Action.EXPIRED], start=1)
    )
    assert {entry.actor for entry in history} == {"stripe"}
    of_the_purchase = StripeEvent.objects.filter(stripe_subscription_id=waiting["id"])
    assert {entry.source_id for entry in history} <= set(of_the_purchase.values_list("pk", flat=True))


def test_one_event_delivered_sixteen_times_at_once_is_one_row_applied_once(running: Service) -> None:
    stripe = running.stripe
    subscriptions = [paid_subscription(running) for _ in range(3)]
    stripe.knobs(duplicate=16)
    for stripe_id, subscription in subscriptions:
        before = len(stripe.deliveries())
        stripe.cancel(stripe_id)
        settled(running)
        copies = stripe.deliveries()[before:]
        assert [copy["status"] for copy in copies] == [200] * 16
        event = StripeEvent.objects.get(stripe_subscription_id=stripe_id, type="customer.subscription.deleted")
        assert {copy["event"] for copy in copies} == {event.pk}
        assert (event.attempts, entries_of(event), ours(subscription)) == (1, 1, Status.EXPIRED)
    assert len(running.web_workers()) >= 2


def test_an_event_whose_worker_was_killed_while_applying_it_is_applied_once_later(running: Service) -> None:
    stripe_id, subscription = paid_subscription(running)
    waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with (
        psycopg.connect(running.postgres.url) as somebody,
        psycopg.connect(running.postgres.url, autocommit=True) as watch,
    ):
        somebody.execute("SELECT FROM subscriptions WHERE id = %s FOR UPDATE", [subscription.pk])
        running.stripe.cancel(stripe_id)
        tried = StripeEvent.objects.filter(stripe_subscription_id=stripe_id, state="PENDING", attempts=1)
        running.wait(lambda: tried.exists() and watch.execute(waits).fetchone() != (0,), "a worker waits for the lock")
        running.kill_worker()
        event = tried.get()
        assert entries_of(event) == 0
    running.start_worker()
    settled(running)
    event.refresh_from_db()
    assert (event.state, event.attempts, event.outcome, entries_of(event)) == ("DONE", 2, "expired", 1)
    assert ours(subscription) == Status.EXPIRED


def test_events_that_come_while_the_broker_is_away_are_taken_and_applied_when_it_is_back(running: Service) -> None:
    bought = [paid_subscription(running) for _ in range(5)]
    before = len(running.stripe.deliveries())
    running.broker.stop()
    try:
        for stripe_id, _ in bought:
            running.stripe.cancel(stripe_id)
        running.stripe.wait_quiet()
        taken = running.stripe.deliveries()[before:]
        assert [delivery["status"] for delivery in taken] == [200] * 5
        assert max(delivery["seconds"] for delivery in taken) < 2
        assert {ours(subscription) for _, subscription in bought} == {Status.ACTIVE}
    finally:
        running.broker.start()
    settled(running)
    assert {ours(subscription) for _, subscription in bought} == {Status.EXPIRED}
    assert running.worker.running


def test_an_event_that_nobody_announced_is_found_by_the_sweep(running: Service) -> None:
    stripe_id, subscription = paid_subscription(running)
    running.stripe.knobs(drop=1.0)
    running.stripe.cancel(stripe_id)
    rings(stripe_id, "customer.subscription.deleted")
    settled(running)
    assert ours(subscription) == Status.EXPIRED


def test_web_and_worker_outlive_a_restart_of_the_database(running: Service) -> None:
    stripe_id, subscription = paid_subscription(running)
    running.postgres.stop()
    running.postgres.start()
    connection.close()
    running.stripe.cancel(stripe_id)
    running.stripe.wait_quiet()
    running.wait(lambda: ours(subscription) == Status.EXPIRED, "the event is applied")
    settled(running)
