"""What Stripe and the broker can do to us: everything is retried as the table says, then kept for a person to see.

No test waits: the time is an argument.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from celery.signals import before_task_publish
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils import timezone

from billing_site.local.process import wait_until
from billing_site.local.valkey import Valkey
from subscriptions.models import Subscription
from subscriptions.states import Status
from tests.builders import PlanPriceFactory, TenantFactory
from tests.stripe_cast import bought_at_stripe, rings
from tests.stripe_sandbox.client import Sandbox
from webhooks import inbox, poke, stripe_api
from webhooks.catalogue import customer_of, price_at_stripe
from webhooks.models import StripeEvent
from webhooks.tasks import drain_inbox

pytestmark = pytest.mark.django_db(transaction=True)

# What Stripe does, what we call it, and words of its answer that are kept nowhere.
FAULTS: dict[str, tuple[Any, ...]] = {
    "too many requests": ({"status": 429, "retry_after": 30}, "stripe_unavailable", "too quickly"),
    "an error of theirs": ({"status": 500}, "stripe_unavailable", "unknown error occurred"),
    "a key that is being changed": ({"status": 401}, "stripe_unavailable", "unknown error occurred"),
    "an empty answer": ({"status": 200, "body": "empty"}, "stripe_unavailable"),
    "garbage": ({"status": 200, "body": "garbage"}, "unreadable_answer", "upstream", "went away", "codec"),
    "garbage from a proxy": ({"status": 502, "body": "garbage"}, "unreadable_answer", "upstream", "went away", "codec"),
    "no answer in time": ({"hang_seconds": 3}, "stripe_unavailable"),
    "a closed connection": ({"close": True}, "stripe_unavailable"),
}


@pytest.fixture
def hasty(settings: Any) -> Iterator[None]:
    """Stripe has a twentieth of a second to answer."""
    settings.STRIPE_TIMEOUT_SECONDS = 0.05
    stripe_api._client.cache_clear()
    yield
    stripe_api._client.cache_clear()


@pytest.fixture
def back_office() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("alice"))
    return client


def process_stripe_events(*arguments: str) -> str:
    """What the command prints. Raises CommandError."""
    printed = StringIO()
    call_command("process_stripe_events", *arguments, stdout=printed)
    return printed.getvalue()


def parked_in(back_office: Client) -> str:
    return back_office.get("/admin/webhooks/stripeevent/?state__exact=PARKED").content.decode()


def tried_until_parked(event: StripeEvent, *, now: datetime) -> list[timedelta]:
    """Try it at the instant each retry is due; the delays between. Nothing is tried a moment too early."""
    delays: list[timedelta] = []
    while True:
        assert inbox.apply(event.pk, now=now) is not None
        event.refresh_from_db()
        if event.state != StripeEvent.State.PENDING:
            return delays
        delays.append(event.next_attempt_at - now)
        assert inbox.apply(event.pk, now=event.next_attempt_at - timedelta(microseconds=1)) is None
        now = event.next_attempt_at


# --- Stripe ----------------------------------------------------------------------------------------------------------


def test_the_delays_begin_within_five_seconds_grow_to_hours_and_end_after_about_three_days() -> None:
    delays = inbox.RETRY_SECONDS
    assert delays[0] * (1 + inbox.JITTER) <= 5
    assert list(delays) == sorted(delays)
    assert delays[-1] == 6 * 3600
    assert timedelta(days=2.5) < timedelta(seconds=sum(delays)) < timedelta(days=3.5)


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_stripe_answers_is_retried_then_parked_seen_and_replayed(
    fault: str, stripe: Sandbox, hasty: None, back_office: Client, caplog: pytest.LogCaptureFixture
) -> None:
    sub = bought_at_stripe(stripe)
    knob, code, *stripes_words = FAULTS[fault]
    stripe.knobs(errors=[knob | {"path_prefix": "/v1/subscriptions", "times": 0}])
    event, began = rings(sub["id"]), timezone.now()
    with caplog.at_level(logging.DEBUG):
        delays = tried_until_parked(event, now=began)

    assert len(delays) == len(inbox.RETRY_SECONDS) == event.attempts - 1
    for delay, seconds in zip(delays, inbox.RETRY_SECONDS, strict=True):
        assert abs(delay.total_seconds() / seconds - 1) <= inbox.JITTER
    assert delays[0] <= timedelta(seconds=5)
    assert not Subscription.objects.exists()

    assert (event.state, event.error_code) == ("PARKED", code)
    for words in stripes_words:
        assert words not in event.error
        assert words not in caplog.text
    assert event.pk in parked_in(back_office)
    with pytest.raises(CommandError, match="Not every event"):
        process_stripe_events("--failed")

    stripe.knobs()
    assert process_stripe_events("--replay", event.pk).endswith("1 event tried, 0 without success.\n")
    event.refresh_from_db()
    assert (event.state, event.error_code, event.error, event.replays) == ("DONE", "", "", 2)
    assert Subscription.objects.get().status == Status.ACTIVE
    assert event.pk not in parked_in(back_office)


def test_the_delays_differ_so_that_a_recovering_stripe_is_not_asked_by_all_at_once(stripe: Sandbox) -> None:
    sub = bought_at_stripe(stripe)
    stripe.knobs(errors=[{"status": 500, "times": 0}])
    now = timezone.now() + timedelta(seconds=1)
    events = [rings(sub["id"]) for _ in range(10)]
    assert len(list(inbox.drain(now=lambda: now))) == 10
    assert len(set(StripeEvent.objects.values_list("next_attempt_at", flat=True))) == len(events)


def test_an_answer_about_something_else_is_retried(stripe: Sandbox) -> None:
    sub = bought_at_stripe(stripe)
    stripe.override(sub["id"], {"object": "customer", "description": "canary"})
    event = rings(sub["id"])
    inbox.apply(event.pk, now=timezone.now())
    event.refresh_from_db()
    assert (event.state, event.error_code) == ("PENDING", "unreadable_answer")
    assert "canary" not in event.error
    stripe.override(sub["id"], {})
    assert inbox.apply(event.pk, now=event.next_attempt_at) == "started"


def at_a_price_of_somebody_else(stripe: Sandbox) -> str:
    price = stripe.api(
        "POST", "/v1/prices", currency="eur", unit_amount=1, recurring={"interval": "month"}, product_data={"name": "x"}
    )
    items = [{"price": price["id"]}]
    customer = customer_of(TenantFactory.create())
    return str(stripe.api("POST", "/v1/subscriptions", customer=customer, items=items)["id"])


def by_a_customer_of_somebody_else(stripe: Sandbox) -> str:
    items = [{"price": price_at_stripe(PlanPriceFactory.create())}]
    customer = stripe.api("POST", "/v1/customers", email="somebody@else.example")["id"]
    return str(stripe.api("POST", "/v1/subscriptions", customer=customer, items=items)["id"])


def in_a_status_to_come(stripe: Sandbox) -> str:
    stripe_id = str(bought_at_stripe(stripe)["id"])
    stripe.status(stripe_id, "hibernating")
    return stripe_id


def never_made(stripe: Sandbox) -> str:
    return "sub_never_made"


@pytest.mark.parametrize(
    ("bought", "code"),
    [
        (at_a_price_of_somebody_else, "unknown_price"),
        (by_a_customer_of_somebody_else, "unknown_customer"),
        (in_a_status_to_come, "unknown_status"),
        (never_made, "resource_missing"),
    ],
)
def test_what_can_never_succeed_is_parked_at_once_and_sells_nothing(
    bought: Callable[[Sandbox], str], code: str, stripe: Sandbox, back_office: Client
) -> None:
    event = rings(bought(stripe))
    assert inbox.apply(event.pk, now=timezone.now()) == f"parked: {code}"
    event.refresh_from_db()
    assert (event.state, event.error_code, event.attempts) == ("PARKED", code, 1)
    assert "No such subscription" not in event.error  # Stripe's words
    assert code in parked_in(back_office)
    assert not Subscription.objects.exists()


def test_an_event_whose_workers_keep_dying_is_parked_in_the_end(stripe: Sandbox) -> None:
    event = rings(bought_at_stripe(stripe)["id"])
    StripeEvent.objects.update(attempts=inbox.MOST_ATTEMPTS)
    assert inbox.apply(event.pk, now=timezone.now()) == "parked: worker_lost"
    assert not Subscription.objects.exists()


def test_a_replay_after_the_truth_moved_on_applies_the_newer_truth(stripe: Sandbox) -> None:
    sub = bought_at_stripe(stripe)
    event = rings(sub["id"])
    assert inbox.apply(event.pk, now=timezone.now()) == "started"
    stripe.fail(sub["id"])
    assert event.pk in process_stripe_events("--replay", event.pk)
    subscription = Subscription.objects.get()
    assert subscription.status == Status.GRACE
    assert [entry.source_id for entry in subscription.audit.order_by("version")] == [event.pk, f"{event.pk}~1"]


def test_a_retry_is_scheduled_once_however_many_workers_find_nothing_to_do(stripe: Sandbox) -> None:
    rings(bought_at_stripe(stripe)["id"])
    stripe.knobs(errors=[{"status": 500, "times": 0}])
    published: list[str] = []

    def note(sender: str, **_: object) -> None:
        published.append(sender)

    before_task_publish.connect(note)
    try:
        for _ in range(5):
            drain_inbox()
    finally:
        before_task_publish.disconnect(note)
    assert published == ["webhooks.tasks.drain_inbox"]


# --- The broker ------------------------------------------------------------------------------------------------------


@pytest.fixture
def broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Valkey]:
    """A broker of its own for the pokes, down at first."""
    valkey = Valkey(tmp_path / "valkey")
    valkey.start()
    valkey.stop()
    app = Celery(set_as_current=False, broker=valkey.url, broker_transport_options={"socket_connect_timeout": 2})
    monkeypatch.setattr(poke, "current_app", app)
    yield valkey
    valkey.stop()


def test_pokes_while_the_broker_is_down_take_no_time_and_no_second_thread(
    broker: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    began = time.monotonic()
    for _ in range(10_000):
        poke.inbox()
    assert time.monotonic() - began < 2
    assert wait_until(lambda: "could not be told" in caplog.text, seconds=20)
    assert [thread.name for thread in threading.enumerate()].count("inbox-poke") == 1


def test_ten_thousand_pokes_become_a_handful_of_tasks_when_the_broker_is_back(broker: Valkey) -> None:
    broker.start()
    for _ in range(10_000):
        poke.inbox()
    with redis.Redis.from_url(broker.url) as queue:
        assert wait_until(lambda: bool(queue.llen("celery")), seconds=20)
        assert wait_until(lambda: not poke._waiting, seconds=20)
        assert 1 <= int(queue.llen("celery")) <= 100
