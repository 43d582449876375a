"""May this device be served? What gateways ask all day: no framework, one prepared statement, the key checked in it.

The answers are never to be stored on the way: they are of one key, and a suspension may end what they say at once.
`valid_until` says how long the asker may at most rely on one; `changes` says when it does not hold any more.
"""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any, Final

import psycopg
from django.db import InterfaceError, InternalError, OperationalError, connection
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt
from rest_framework.views import APIView

from billing_site.api import keys
from billing_site.api.access_described import AccessOfDevice, AccessOfDevices
from billing_site.api.authentication import INVALID_KEY, NO_KEY, presented
from billing_site.api.problems import CONTENT_TYPE, problem
from entitlements import access
from entitlements.errors import TooMany
from subscriptions import serving

SCOPE: Final = "access:read"
LARGEST_BODY: Final = 1024 * 1024  # bytes; 1,000 devices of the longest names are a quarter of it
DATABASE_AWAY = (OperationalError, InterfaceError, InternalError)
PSYCOPG_AWAY = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError)

# A key that is not good has no row: then there is no answer. One without the scope, or of another tenant, has one in
# which there is no tenant.
_KEY = f"""
    (SELECT id, tenant_id, scopes @> '"{SCOPE}"' AS may, {keys.NOTED.format(key="api_keys")} AS is_noted
       FROM api_keys WHERE sha256 = %(sha256)s AND {keys.GOOD.format(key="api_keys")} LIMIT 1) AS key CROSS JOIN"""
_THEIRS = {
    "more": "key.id, key.tenant_id IS NOT NULL, key.may, key.is_noted, ",
    "whose": "key.may AND (key.tenant_id IS NULL OR key.tenant_id = t.id)",
}
_ONE = access.answers(f"{_KEY} {access.ONE}", **_THEIRS)
_MANY = access.answers(f"{_KEY} {access.MANY}", **_THEIRS)


class Refused(Exception):
    """The question is answered with this problem."""

    def __init__(self, status: int, code: str, detail: str = "", **facts: Any) -> None:
        self.problem = problem(status, code, detail, **facts)


View = Callable[..., HttpResponse]


def hot(method: str, described: type[APIView]) -> Callable[[View], View]:
    """A view of one method that answers every refusal as a problem, and reads in the schema like `described`."""

    def decorate(view: View) -> View:
        def answer(request: HttpRequest, **kwargs: str) -> HttpResponse:
            try:
                if request.method != method:
                    raise Refused(405, "method_not_allowed")
                return view(request, **kwargs)
            except Refused as refused:
                body = refused.problem
            except TooMany as error:
                body = problem(error.http_status, error.code, error.detail, **error.facts)
            except (*DATABASE_AWAY, *PSYCOPG_AWAY):
                body = problem(503, "database_unavailable", "Nobody knows now: ask again.")
            headers = {405: {"Allow": method}, 401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "2"}}
            return _json(body, body["status"], CONTENT_TYPE, headers.get(body["status"], {}))

        exempt = csrf_exempt(answer)  # who asks has a key, not a cookie
        exempt.cls, exempt.initkwargs = described, {}  # type: ignore[attr-defined]
        return exempt

    return decorate


@hot("GET", AccessOfDevice)
def access_of_device(request: HttpRequest, tenant: str, device_id: str) -> HttpResponse:
    """200 with the answer, also for a device that nobody knows: that it is not served is one. 404 only where a tenant's
    own key asks for another tenant.
    """
    now = timezone.now()
    asked_tenant, asked_device = access.question(tenant, device_id)
    asked = {"tenant": asked_tenant, "device": asked_device, "now": now, **serving.windows()}
    rows, is_tenants = _ask(request, _ONE, asked, now)
    found = rows[0][4:]
    if is_tenants and found[0] == access.Reason.UNKNOWN_TENANT:
        raise Refused(404, "not_found")
    return _answered(_told(tenant, device_id, _answer(found, is_tenants)))


@hot("POST", AccessOfDevices)
def access_of_devices(request: HttpRequest) -> HttpResponse:
    """200 with an answer for each question, in their order."""
    now = timezone.now()
    try:
        pairs = _questions(_body(request))
    except (Refused, TooMany):
        _insist_on_a_key(request, now)  # strangers are not told what is wrong with their questions
        raise
    rows, is_tenants = _ask(request, _MANY, access.parameters(pairs, now), now)
    answers = [_told(*pair, _answer(row[4:], is_tenants)) for pair, row in zip(pairs, rows, strict=True)]
    return _answered(f'{{"results": [{", ".join(answers)}]}}')


def _told(tenant: str, device_id: str, answer: str) -> str:
    return f'{{"tenant": {_quoted(tenant)}, "device_id": {_quoted(device_id)}, {answer}'


@lru_cache(maxsize=8192)
def _answer(row: Sequence[Any], is_tenants: bool) -> str:
    """What a row says, as the rest of an object of JSON. Nothing is remembered of who asked, nor when: devices in slots
    of one subscription, of which the database says the same, are spelled out once.
    """
    found = access.read(row)
    told = found.as_told_to_a_tenant() if is_tenants else found
    until = told.valid_until
    return json.dumps({
        "allowed": told.allowed,
        "reason": told.reason.value,
        "tier": told.tier,
        "features": dict(told.features),
        "subscription": told.subscription,
        "valid_until": until and until.astimezone(UTC).isoformat().replace("+00:00", "Z"),
    })[1:]  # fmt: skip


def _json(body: dict[str, Any], status: int, content_type: str, headers: dict[str, str]) -> HttpResponse:
    return _answered(json.dumps(body), status=status, content_type=content_type, headers=headers)


def _answered(body: str, *, headers: Any = None, content_type: str = "application/json", **how: Any) -> HttpResponse:
    headers = {"Cache-Control": "no-store", **(headers or {})}
    return HttpResponse(body.encode(), content_type=content_type, headers=headers, **how)


# --- the key ---------------------------------------------------------------------------------------------------------


def _secret(request: HttpRequest) -> str:
    secret = presented(request)
    if secret is None:
        raise Refused(401, "not_authenticated", NO_KEY)
    return secret


def _ask(
    request: HttpRequest, statement: str, asked: dict[str, Any], now: datetime
) -> tuple[Sequence[Sequence[Any]], bool]:
    """The rows that answer, and whether the key is a tenant's own. Raises Refused."""
    rows = _rows(statement, asked | {"sha256": keys.digest(_secret(request))})
    if not rows:
        raise Refused(401, "invalid_api_key", INVALID_KEY)
    key_id, is_tenants, may, is_noted, *_ = rows[0]
    if not is_noted:
        keys.note_use(key_id, now=now)
    if not may:
        raise Refused(403, "permission_denied", keys.missing(SCOPE))
    return rows, is_tenants


def _insist_on_a_key(request: HttpRequest, now: datetime) -> None:
    key = keys.find(_secret(request), now=now)
    if key is None:
        raise Refused(401, "invalid_api_key", INVALID_KEY)
    if SCOPE not in key.scopes:
        raise Refused(403, "permission_denied", keys.missing(SCOPE))


def _rows(statement: str, asked: dict[str, Any]) -> Sequence[Sequence[Any]]:
    """What the database answers, asked once more where the server restarted since this connection was last used: to ask
    first whether it lives would be a second statement.
    """
    connection.health_check_done = True  # type: ignore[attr-defined]
    try:
        return _prepared(statement, asked)
    except PSYCOPG_AWAY:
        connection.close()
        return _prepared(statement, asked)


def _prepared(statement: str, asked: dict[str, Any]) -> Sequence[Sequence[Any]]:
    """Not Django's cursor, which binds on the client: the server would parse and plan each question anew. Whether it is
    prepared is the connection's `prepare_threshold` to say (`DATABASE_PREPARES`).
    """
    connection.ensure_connection()
    with psycopg.Cursor(connection.connection) as cursor:
        return cursor.execute(statement, asked, prepare=True).fetchall()


# --- the body --------------------------------------------------------------------------------------------------------


def _body(request: HttpRequest) -> Any:
    # A server that ends the stream itself knows where a chunked body ends; Django would stop at Content-Length.
    stream = request.META["wsgi.input"] if request.META.get("wsgi.input_terminated") else request
    try:
        body: bytes = stream.read(LARGEST_BODY + 1)
    except Exception:  # the client went away, or a chunk is malformed: servers have errors of their own for that
        raise Refused(400, "unreadable") from None
    if len(body) > LARGEST_BODY:
        raise TooMany("The body is too large.", limit_bytes=LARGEST_BODY)
    try:
        return json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        raise Refused(400, "not_json", "The body is not JSON in UTF-8.") from None


def _questions(body: Any) -> list[tuple[str, str]]:
    """The pairs of a tenant and a device id that a body asks for: `{"devices": […]}`, or the bare list."""
    asked = body.get("devices") if isinstance(body, dict) else body
    if not isinstance(asked, list) or not asked:
        raise Refused(400, "invalid", 'Ask for some: {"devices": [{"tenant": "acme", "device_id": "d-1"}]}.')
    if len(asked) > access.MOST_QUESTIONS:
        raise TooMany(f"{len(asked)} devices, where up to {access.MOST_QUESTIONS} are asked for.",
                      limit=access.MOST_QUESTIONS)  # fmt: skip
    pairs = []
    for place, one in enumerate(asked):
        tenant, device_id = (one.get("tenant"), one.get("device_id")) if isinstance(one, dict) else (None, None)
        if not (isinstance(tenant, str) and isinstance(device_id, str)):
            raise Refused(400, "invalid", f"devices[{place}] names no tenant and device_id, two strings.")
        pairs.append((tenant, device_id))
    return pairs
