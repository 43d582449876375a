"""``/v1``: who is asking, in which version, has it been asked before, and which route answers."""

import base64
import binascii
import hashlib
import json
import re
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from . import (
    catalogue_routes,
    checkout_routes,
    clock_routes,
    event_routes,
    invoice_routes,
    payment_routes,
    preview_routes,
    schedule_routes,
    subscription_routes,
)
from .calls import ROUTES as ROUTES
from .calls import Call, Route
from .errors import StripeError
from .forms import parse
from .ids import API_VERSION, new_id
from .params import read
from .store import Obj
from .world import World

FAMILIES = (
    catalogue_routes,
    checkout_routes,
    clock_routes,
    event_routes,
    invoice_routes,
    payment_routes,
    preview_routes,
    schedule_routes,
    subscription_routes,
)
_VERSION = re.compile(r"^\d{4}-\d{2}-\d{2}(\.[a-z]+)?$")
_KEY_LIVES_SECONDS = 86_400


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: str
    body: str
    headers: Mapping[str, str]  # any case: use ``header``

    def header(self, name: str) -> str:
        wanted = name.lower()
        return next((value for key, value in self.headers.items() if key.lower() == wanted), "")

    @property
    def idempotency_key(self) -> str:
        """Stripe keeps keys for POST only: the other methods may be repeated anyway."""
        return self.header("Idempotency-Key") if self.method == "POST" else ""


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


def answer(world: World, request: Request) -> Answer:
    """Never raises; a defect in here is a 500 in Stripe's shape, with the traceback on stderr."""
    request_id = new_id("request")
    headers = [("Request-Id", request_id), ("Stripe-Version", request.header("Stripe-Version") or API_VERSION)]
    if request.idempotency_key:
        headers.append(("Idempotency-Key", request.idempotency_key))
    try:
        with world.changing():
            world.request = {"id": request_id, "idempotency_key": request.idempotency_key or None}
            try:
                status, body, replayed = _answer(world, request)
            finally:
                world.request = {"id": None, "idempotency_key": None}
        if replayed:
            headers.append(("Idempotent-Replayed", "true"))
    except StripeError as error:
        status, body = error.status, _dump(error.body())
    except Exception:
        traceback.print_exc(file=sys.stderr)
        defect = StripeError("The sandbox itself failed; its traceback is on stderr.", status=500, kind="api_error")
        status, body = 500, _dump(defect.body())
    return Answer(status, body, tuple(headers))


def _answer(world: World, request: Request) -> tuple[int, bytes, bool]:
    _authenticate(world, request)
    version = request.header("Stripe-Version") or API_VERSION
    if not _VERSION.match(version):
        raise StripeError(f"Invalid Stripe API version: {version}")
    route, ids = _route(request)
    form = parse("&".join(filter(None, (request.query, request.body))))
    key, now = request.idempotency_key, world.now()
    if len(key) > 255:
        raise StripeError("Idempotency keys can be at most 255 characters.", kind="idempotency_error")
    fingerprint = hashlib.sha256(json.dumps([request.method, request.path, form], sort_keys=True).encode()).hexdigest()
    earlier = world.store.get("idempotency", key) if key else None
    if earlier and earlier["at"] + _KEY_LIVES_SECONDS > now:
        if earlier["fingerprint"] != fingerprint:
            raise StripeError(
                "Keys for idempotent requests can only be used with the same parameters they were first used with. "
                f"Try using a key other than '{key}' if you meant to execute a different request.",
                kind="idempotency_error",
            )
        return earlier["status"], earlier["body"].encode(), True
    params = read(route.accepts, form)  # a request that fails here is not remembered: it did not begin
    expand = params.pop("expand", [])
    call = Call(world, params, ids, now=now, version=version, path=request.path, expand=expand)
    try:
        status, body = 200, _dump(route.answer(call))
    except StripeError as error:
        status, body = error.status, _dump(error.body())
    if key:
        kept = {"id": key, "fingerprint": fingerprint, "at": now, "status": status, "body": body.decode()}
        world.store.remove("idempotency", key)
        world.store.put("idempotency", kept)
    return status, body, False


def _route(request: Request) -> tuple[Route, tuple[str, ...]]:
    for route in ROUTES:
        match = route.pattern.match(request.path)
        if match and route.method == request.method:
            return route, tuple(unquote(part) for part in match.groups())
    message = f"Unrecognized request URL ({request.method}: {request.path}). Please see https://stripe.com/docs"
    raise StripeError(message, status=404)


def _authenticate(world: World, request: Request) -> None:
    scheme, _, credentials = request.header("Authorization").partition(" ")
    key = credentials.strip()
    if scheme.lower() == "basic":
        try:
            key = base64.b64decode(key).decode().partition(":")[0]
        except (binascii.Error, UnicodeDecodeError):
            key = ""
    if not key:
        raise StripeError(
            "You did not provide an API key. You need to provide your API key in the Authorization header, "
            "using Bearer auth (e.g. 'Authorization: Bearer YOUR_SECRET_KEY').",
            status=401,
        )
    if key != world.config.api_key:
        shown = key[:8] + "*" * max(0, len(key) - 12) + key[-4:]
        raise StripeError(f"Invalid API Key provided: {shown}", status=401)


def _dump(body: Obj) -> bytes:
    return json.dumps(body, ensure_ascii=False).encode()
