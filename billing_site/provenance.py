"""Where a change that a person made came from: each request has an id, and a verb's actor carries it."""

import re
import uuid
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse

from billing_site.models import ApiKey
from subscriptions.audit import Actor

HEADER = "X-Request-ID"
WELL_FORMED = re.compile(r"[A-Za-z0-9._-]{1,64}")  # it stands in the audit, in logs and in our answer's header


def provenance(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """The middleware: `request.request_id` is the caller's or the proxy's well-formed one, else new; we answer it."""

    def answer(request: HttpRequest) -> HttpResponse:
        given = request.headers.get(HEADER, "")
        request_id = given if WELL_FORMED.fullmatch(given) else uuid.uuid4().hex
        request.request_id = request_id  # type: ignore[attr-defined]
        response = get_response(request)
        response.headers[HEADER] = request_id
        return response

    return answer


def actor_of(request: HttpRequest) -> Actor:
    """The member of staff who asks, with the request's id and address. Raises PermissionDenied for anybody else."""
    if not (request.user.is_authenticated and request.user.is_active and request.user.is_staff):
        raise PermissionDenied
    request_id: str = getattr(request, "request_id", "")
    return Actor.staff(request.user.pk, request_id=request_id, address=_address(request))


def caller_of(request: HttpRequest) -> Actor:
    """The member of a tenant, or the service, that asks through an API: `request` is DRF's, and its permission has been
    checked.
    """
    request_id: str = getattr(request, "request_id", "")
    key = getattr(request, "auth", None)
    if isinstance(key, ApiKey):
        return Actor.api_key(key.pk, request_id=request_id, address=_address(request))
    user: Any = request.user
    return Actor.member(user.member.pk, request_id=request_id, address=_address(request))


def _address(request: HttpRequest) -> str | None:
    """Of whoever connected to us; None where that is no address, as on a Unix socket."""
    try:
        return str(ip_address(request.META.get("REMOTE_ADDR", "").partition("%")[0]))  # without an IPv6 zone
    except ValueError:
        return None
