"""For whoever runs the service: is the process alive, and can it do its work?"""

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import redis
from django.conf import settings
from django.db import DatabaseError, connection
from django.db.models import Exists, OuterRef, QuerySet
from django.db.models.functions import Coalesce
from django.http import HttpRequest, JsonResponse
from django.utils import timezone

from notifications.models import Notice
from subscriptions.models import STEPS_BY_ITSELF, SetAside, Subscription
from webhooks.models import Drift, StripeEvent, Telling

log = logging.getLogger(__name__)

LATE = timedelta(minutes=15)  # how long what is due may wait until we say that nobody does it


def healthz(request: HttpRequest) -> JsonResponse:
    """The process answers. Nothing else is asked: a restart would not mend a database."""
    return JsonResponse({"status": "ok"})


def readyz(request: HttpRequest) -> JsonResponse:
    """200 if the database and the broker answer and nothing that is due has waited too long; else 503 and what has.
    `stuck` counts what waits for a person, `open_high_drift` what differs from Stripe, and badly.
    """
    checks: dict[str, Callable[[], str]] = {
        "database": _database,
        "broker": _broker,
        "inbox": _inbox,
        "clock": _clock,
        "notices": _notices,
        "tellings": _tellings,
    }
    found = {}
    for name, check in checks.items():
        try:
            found[name] = check()
        except (DatabaseError, redis.RedisError, OSError) as error:
            log.warning("Not ready: %s: %s", name, type(error).__name__)
            found[name] = "unreachable"
    ready = all(answer == "ok" for answer in found.values())
    told = {
        "status": "ok" if ready else "unavailable",
        "checks": found,
        "stuck": _stuck(),
        "open_high_drift": _drift(),
    }
    return JsonResponse(told, status=200 if ready else 503)


def _database() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return "ok"


def _broker() -> str:
    with redis.Redis.from_url(settings.REDIS_URL, socket_timeout=2, socket_connect_timeout=2) as client:
        client.ping()
    return "ok"


def _drift() -> int | None:
    """How many open differences are of high severity, counted up to a thousand; None where nobody can say."""
    try:
        return Drift.objects.filter(resolved_at=None, severity=Drift.Severity.HIGH)[:1000].count()
    except DatabaseError:
        return None


def _inbox() -> str:
    """By when it may be tried: an event that failed has its own, long schedule."""
    waiting = StripeEvent.objects.filter(state=StripeEvent.State.PENDING)
    return _late("the oldest event waits", waiting, "next_attempt_at", LATE)


def _clock() -> str:
    """A deadline that has passed and was not acted upon: nobody advances subscriptions."""
    aside = SetAside.objects.filter(root=Coalesce(OuterRef("parent_id"), OuterRef("pk")))  # shown in the back office
    due = Subscription.objects.filter(STEPS_BY_ITSELF, ~Exists(aside))
    interval = timedelta(seconds=settings.LIFECYCLE_INTERVAL_SECONDS)
    return _late("the oldest passed deadline waits", due, "next_deadline", LATE + interval)


def _notices() -> str:
    waiting = Notice.objects.filter(state=Notice.State.PENDING)
    return _late("the oldest notice waits", waiting, "next_attempt_at", LATE)


def _tellings() -> str:
    """What Stripe has not been told: somebody may pay for what is over."""
    waiting = Telling.objects.filter(state=Telling.State.PENDING)
    return _late("the oldest that Stripe has to be told waits", waiting, "next_attempt_at", LATE)


def _stuck() -> dict[str, int]:
    """What waits for a person is no reason to take a process out of service; but somebody has to see it."""
    try:
        return {"tellings": Telling.objects.filter(state=Telling.State.STUCK).count()}
    except DatabaseError:  # said above
        return {}


def _late(what: str, waiting: "QuerySet[Any]", since: str, most: timedelta) -> str:
    due = waiting.filter(**{f"{since}__lt": timezone.now() - most})
    oldest = due.order_by(since).values_list(since, flat=True).first()
    return f"{what} since {oldest:%Y-%m-%dT%H:%M:%SZ}" if oldest else "ok"
