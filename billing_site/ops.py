"""For whoever runs the service: is the process alive, and can it do its work?"""

import logging
from collections.abc import Callable
from datetime import timedelta

import redis
from django.conf import settings
from django.db import DatabaseError, connection
from django.http import HttpRequest, JsonResponse
from django.utils import timezone

from webhooks.models import StripeEvent

log = logging.getLogger(__name__)

OLDEST_UNPROCESSED = timedelta(minutes=15)


def healthz(request: HttpRequest) -> JsonResponse:
    """The process answers. Nothing else is asked: a restart would not mend a database."""
    return JsonResponse({"status": "ok"})


def readyz(request: HttpRequest) -> JsonResponse:
    """200 if the database and the broker answer and no Stripe event has waited too long; else 503 and which one failed."""
    checks: dict[str, Callable[[], str]] = {"database": _database, "broker": _broker, "inbox": _inbox}
    found = {}
    for name, check in checks.items():
        try:
            found[name] = check()
        except (DatabaseError, redis.RedisError, OSError) as error:
            log.warning("Not ready: %s: %s", name, type(error).__name__)
            found[name] = "unreachable"
    ready = all(answer == "ok" for answer in found.values())
    return JsonResponse({"status": "ok" if ready else "unavailable", "checks": found}, status=200 if ready else 503)


def _database() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return "ok"


def _broker() -> str:
    with redis.Redis.from_url(settings.REDIS_URL, socket_timeout=2, socket_connect_timeout=2) as client:
        client.ping()
    return "ok"


def _inbox() -> str:
    """New events only: one that failed has its own, long schedule."""
    waiting = StripeEvent.objects.filter(state=StripeEvent.State.PENDING, attempts=0)
    oldest = waiting.order_by("next_attempt_at").values_list("next_attempt_at", flat=True).first()
    late = oldest is not None and timezone.now() - oldest > OLDEST_UNPROCESSED
    return f"the oldest event waits since {oldest.isoformat()}" if late and oldest else "ok"
