"""The doorbell: verify a delivery, keep its ids in one statement, answer 200.

What an event says is never believed beyond "something about this object changed"; `inbox` fetches what is true. No
payload, header or card detail is kept or logged.
"""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import InterfaceError, InternalError, OperationalError, connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt

from webhooks import endpoints, poke
from webhooks.signature import BadSignature, verify
from webhooks.stripe_state import stripe_id

LARGEST_BODY = 512 * 1024  # bytes; Stripe's events are a few KB

HANDLED_TYPES = frozenset(
    {
        "checkout.session.completed",
        "checkout.session.async_payment_succeeded",
        "checkout.session.async_payment_failed",
        "customer.subscription.created",
        "customer.subscription.updated",
        "customer.subscription.deleted",
        "customer.subscription.paused",
        "customer.subscription.resumed",
        "customer.subscription.trial_will_end",
        "invoice.paid",
        "invoice.payment_succeeded",
        "invoice.payment_failed",
        "invoice.payment_action_required",
    }
)

# Written once: encoding them anew was a twentieth of the whole intake.
NEW = b'{"received": true, "handled": true, "duplicate": false}'
DUPLICATE = b'{"received": true, "handled": true, "duplicate": true}'
UNHANDLED = b'{"received": true, "handled": false}'

DATABASE_AWAY = (OperationalError, InterfaceError, InternalError)  # the last: it is read-only, after a fail-over

CLAIM = """
    INSERT INTO stripe_events (event_id, type, object_id, stripe_subscription_id, livemode, created_at, received_at,
                               state, attempts, replays, next_attempt_at, outcome, error_code, error)
    VALUES (%s, %s, %s, %s, %s, %s, %s, 'PENDING', 0, 0, %s, '', '', '')
    ON CONFLICT (event_id) DO NOTHING RETURNING event_id"""


class Refused(Exception):
    """The delivery is answered with this status and leaves nothing behind."""

    def __init__(self, status: int, code: str) -> None:
        self.status, self.code = status, code


@csrf_exempt  # Stripe signs; it has no cookie
def stripe_webhook(request: HttpRequest, uuid: UUID | None = None) -> HttpResponse:
    """`POST /webhook/stripe`, and `/webhook/stripe/{uuid}` for endpoints registered through dj-stripe.

    200 new, duplicate, or of a type that is not handled; 400 not signed, not now, not an event; 404 unknown endpoint;
    405 other methods; 413 over 512 KB; 503 when the database cannot be reached (Stripe delivers again).
    """
    if request.method != "POST":
        return JsonResponse({"code": "method_not_allowed"}, status=405, headers={"Allow": "POST"})
    try:
        body = _read(request)
        now = timezone.now()
        unix_now = now.timestamp()
        secrets = settings.STRIPE_WEBHOOK_SECRETS if uuid is None else endpoints.secrets(uuid, now=unix_now)
        try:
            verify(body, request.META.get("HTTP_STRIPE_SIGNATURE", ""), secrets, now=unix_now)
        except BadSignature:
            raise Refused(400, "bad_signature") from None
        event = _parse(body)
        if event["type"] not in HANDLED_TYPES:
            return HttpResponse(UNHANDLED, content_type="application/json")
        if event.get("livemode") is not settings.STRIPE_LIVE_MODE:
            raise Refused(400, "wrong_livemode")
        new = _claim(_row(event, now))
    except Refused as refused:
        return JsonResponse({"code": refused.code}, status=refused.status)
    except endpoints.UnknownEndpoint:
        return JsonResponse({"code": "unknown_endpoint"}, status=404)
    except DATABASE_AWAY:
        return JsonResponse({"code": "database_unavailable"}, status=503, headers={"Retry-After": "10"})
    if new:
        poke.inbox()
    return HttpResponse(NEW if new else DUPLICATE, content_type="application/json")


def _read(request: HttpRequest) -> bytes:
    """The raw body, never more than one byte over the cap. Raises Refused."""
    length = request.META.get("CONTENT_LENGTH") or "0"
    if not (length.isascii() and length.isdigit()):
        raise Refused(400, "bad_length")
    if len(length) > 9 or int(length) > LARGEST_BODY:
        raise Refused(413, "too_large")
    # A server that ends the stream itself knows where a chunked body ends; Django would stop at Content-Length.
    stream = request.META["wsgi.input"] if request.META.get("wsgi.input_terminated") else request
    try:
        body: bytes = stream.read(LARGEST_BODY + 1)
    except Exception:  # the client went away, or a chunk is malformed: servers have errors of their own for that
        raise Refused(400, "unreadable") from None
    if len(body) > LARGEST_BODY:
        raise Refused(413, "too_large")
    return body


def _parse(body: bytes) -> dict[str, Any]:
    """The event, as far as its form goes. Signed is not the same as well-formed: thin (v2) events are signed too."""
    try:
        event = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        raise Refused(400, "not_json") from None
    if not isinstance(event, dict) or event.get("object") not in ("event", "v2.core.event"):
        raise Refused(400, "not_an_event")
    if not isinstance(event.get("type"), str):
        raise Refused(400, "not_an_event")
    return event


def _row(event: dict[str, Any], now: datetime) -> tuple[Any, ...]:
    """The ids of an event, in the order of CLAIM. Both generations of Stripe's shapes are read (STRIPE.md)."""
    data = event.get("data")
    subject = data.get("object") if isinstance(data, dict) else None
    created = event.get("created")
    if not isinstance(subject, dict) or type(created) is not int or not 0 <= created < 253_402_300_800:
        raise Refused(400, "not_an_event")
    event_id, object_id = stripe_id(event.get("id")), stripe_id(subject.get("id"))
    if not event_id or not object_id:
        raise Refused(400, "not_an_event")
    at = datetime.fromtimestamp(created, UTC)
    subscription_id = subscription_of(subject, event["type"])
    return event_id, event["type"], object_id, subscription_id, event["livemode"], at, now, now


def subscription_of(subject: dict[str, Any], event_type: str) -> str:
    """The id of the Stripe subscription that an event's object belongs to; empty if it belongs to none."""
    if event_type.startswith("customer.subscription."):
        return stripe_id(subject.get("id"))
    parent = subject.get("parent")
    details = parent.get("subscription_details") if isinstance(parent, dict) else None
    found = details.get("subscription") if isinstance(details, dict) else None
    return stripe_id(found or subject.get("subscription"))  # the latter: invoices before 2025, and checkout sessions


def _claim(row: tuple[Any, ...]) -> bool:
    """Insert the event's row; False if it was there. One statement, in autocommit: it is on disk when this returns."""
    # Asking first whether the connection lives would be a second statement; the retry below does the same for free.
    connection.health_check_done = True  # type: ignore[attr-defined]
    try:
        return _insert(row)
    except DATABASE_AWAY:  # the server restarted since this connection was last used
        connection.close()
        return _insert(row)


def _insert(row: tuple[Any, ...]) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(CLAIM, row)
        return cursor.fetchone() is not None
