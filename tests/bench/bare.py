"""What the intake is measured beside: the barest view that does its work, an empty one, and dj-stripe's as it comes.

And what the access check is measured beside: `bare_access`.
"""

import hmac
import json
import os
import time
from datetime import UTC, datetime
from hashlib import sha256

from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.urls import path

LENGTH = {"Content-Length": "0"}  # else gunicorn sends it in chunks, which takes longer


def floor(request: HttpRequest) -> HttpResponse:
    """Verify one signature, insert one row."""
    timestamp, _, signature = request.META["HTTP_STRIPE_SIGNATURE"].partition(",")
    body = request.body
    expected = hmac.digest(SECRET, timestamp[2:].encode() + b"." + body, sha256).hex()
    if not hmac.compare_digest(expected, signature[3:]) or abs(time.time() - int(timestamp[2:])) > 300:
        return HttpResponse(status=400, headers=LENGTH)
    event = json.loads(body)
    now = datetime.now(UTC)
    subject = event["data"]["object"]["id"]
    at = datetime.fromtimestamp(event["created"], UTC)
    with connection.cursor() as cursor:
        cursor.execute(INSERT, (event["id"], event["type"], subject, subject, event["livemode"], at, now, now))
        cursor.fetchone()
    return HttpResponse(headers=LENGTH)


def empty(request: HttpRequest) -> HttpResponse:
    return HttpResponse(headers=LENGTH)


INSERT = """
    INSERT INTO stripe_events (event_id, type, object_id, stripe_subscription_id, livemode, created_at, received_at,
                               state, attempts, replays, next_attempt_at, outcome, error_code, error)
    VALUES (%s, %s, %s, %s, %s, %s, %s, 'PENDING', 0, 0, %s, '', '', '')
    ON CONFLICT (event_id) DO NOTHING RETURNING event_id"""
SECRET = os.environ["STRIPE_WEBHOOK_SECRET"].encode()

os.environ["DJANGO_SETTINGS_MODULE"] = "tests.bench.bare_settings"
application = get_wsgi_application()

from djstripe.views import ProcessWebhookView  # noqa: E402, these need the applications to be ready

from tests.bench import bare_access  # noqa: E402

urlpatterns = [
    path("floor", floor),
    path("empty", empty),
    path("djstripe/<uuid:uuid>", ProcessWebhookView.as_view()),
    path("access/<str:tenant>/<str:device_id>", bare_access.floor),
    path("orm/<str:tenant>/<str:device_id>", bare_access.WithTheOrm.as_view()),
]
