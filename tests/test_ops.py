"""Is the process alive, and can it do its work?"""

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from billing_site.local import ports
from notifications.models import Notice
from subscriptions.models import SetAside, Subscription
from tests.builders import FEB_1, JAN_1, subscription
from webhooks.models import StripeEvent, StripeLink, Telling

ALL_WELL = {"database": "ok", "broker": "ok", "inbox": "ok", "clock": "ok", "notices": "ok", "tellings": "ok"}
LONG_AGO = timedelta(minutes=16)


def ready() -> tuple[int, dict[str, str]]:
    answer = Client().get("/readyz")
    body = answer.json()
    assert body["status"] == ("ok" if answer.status_code == 200 else "unavailable")
    return answer.status_code, body["checks"]


def event(due: datetime, **more: Any) -> StripeEvent:
    about = {"type": "invoice.paid", "object_id": "in_1", "livemode": False, "created_at": due, "received_at": due}
    return StripeEvent.objects.create(pk="evt_1", next_attempt_at=due, **about | more)


def test_the_process_is_alive_whatever_else_is_not(settings: Any) -> None:
    """Without any database: pytest would not let this test near one."""
    settings.REDIS_URL = f"redis://127.0.0.1:{ports.free()}/0"
    answer = Client().get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


@pytest.mark.django_db
def test_a_service_whose_parts_answer_is_ready() -> None:
    event(timezone.now() - timedelta(minutes=14))
    assert ready() == (200, ALL_WELL)


@pytest.mark.django_db
def test_a_broker_that_is_down_is_named(settings: Any) -> None:
    settings.REDIS_URL = f"redis://127.0.0.1:{ports.free()}/0"
    assert ready() == (503, ALL_WELL | {"broker": "unreachable"})


@pytest.mark.django_db
@pytest.mark.parametrize("attempts", [0, 3])
def test_an_event_that_is_due_and_waits_too_long_is_named(attempts: int) -> None:
    due = timezone.now() - LONG_AGO
    event(due, attempts=attempts)
    said = f"the oldest event waits since {due:%Y-%m-%dT%H:%M:%SZ}"
    assert ready() == (503, ALL_WELL | {"inbox": said})


@pytest.mark.django_db
def test_an_event_that_waits_for_its_retry_or_for_a_person_is_no_reason() -> None:
    event(timezone.now() + timedelta(hours=6), attempts=9, received_at=JAN_1)
    assert ready() == (200, ALL_WELL)
    StripeEvent.objects.update(state="PARKED", next_attempt_at=JAN_1)
    assert ready() == (200, ALL_WELL)


@pytest.mark.django_db
def test_a_deadline_that_nobody_acts_upon_is_named() -> None:
    now = timezone.now()
    subscription(term=(now - timedelta(days=30), now - timedelta(minutes=15)))
    assert ready() == (200, ALL_WELL)
    subscription(term=(now - timedelta(days=30), now - LONG_AGO - timedelta(minutes=1)))
    (late,) = Subscription.objects.filter(term_end__lt=now - LONG_AGO)
    said = f"the oldest passed deadline waits since {late.term_end:%Y-%m-%dT%H:%M:%SZ}"
    assert ready() == (503, ALL_WELL | {"clock": said})


@pytest.mark.django_db
def test_a_notice_that_nobody_sends_is_named() -> None:
    s, due = subscription(term=(JAN_1, timezone.now() + timedelta(days=9))), timezone.now() - LONG_AGO
    Notice.objects.create(subscription=s, tenant=s.tenant, kind="renewal_30", anchor=s.term_end, next_attempt_at=due)
    assert ready() == (503, ALL_WELL | {"notices": f"the oldest notice waits since {due:%Y-%m-%dT%H:%M:%SZ}"})


@pytest.mark.django_db
def test_readiness_asks_seven_things_of_the_database(django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(7):
        ready()


@pytest.mark.django_db
def test_a_family_that_is_set_aside_does_not_take_the_service_down() -> None:
    s = subscription(term=(JAN_1, FEB_1))
    SetAside.objects.create(root=s, error="refused", since=FEB_1, retry_at=FEB_1)
    assert ready() == (200, ALL_WELL)


@pytest.mark.django_db
def test_what_stripe_has_not_been_told_for_too_long_is_named_and_what_is_stuck_is_counted() -> None:
    s, due = subscription(term=(JAN_1, timezone.now() + timedelta(days=9))), timezone.now() - LONG_AGO
    link = StripeLink.objects.create(pk="sub_1", subscription=s)
    about: dict[str, Any] = {"link": link, "tenant": s.tenant, "aspect": "END", "created_at": due}
    Telling.objects.create(version=1, next_attempt_at=due, **about)
    said = f"the oldest that Stripe has to be told waits since {due:%Y-%m-%dT%H:%M:%SZ}"
    assert ready() == (503, ALL_WELL | {"tellings": said})
    Telling.objects.update(state="STUCK")
    assert (ready(), Client().get("/readyz").json()["stuck"]) == ((200, ALL_WELL), {"tellings": 1})
