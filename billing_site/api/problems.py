"""Every error of the API as `application/problem+json` (RFC 9457) with a stable `code`."""

from http import HTTPStatus
from typing import Any

from django.core.exceptions import PermissionDenied, RequestDataTooBig, SuspiciousOperation
from django.http import Http404, HttpRequest, JsonResponse
from rest_framework import exceptions, status
from rest_framework.response import Response
from rest_framework.views import set_rollback

from subscriptions.errors import DomainError
from webhooks import errors
from webhooks.stripe_api import StripeError

CONTENT_TYPE = "application/problem+json"


def problem(http_status: int, code: str, detail: str = "", **facts: Any) -> dict[str, Any]:
    title = HTTPStatus(http_status).phrase
    named = {"type": "about:blank", "title": title, "status": http_status, "code": code, "detail": detail or title}
    return named | {name: fact for name, fact in facts.items() if name not in named}


def problem_response(error: Exception, context: dict[str, Any]) -> Response | None:
    """DRF's exception handler. None (a 500, logged) for what nobody expected."""
    headers = {}
    if isinstance(error, StripeError):
        error = errors.told(error)
    match error:
        case DomainError():
            body = problem(error.http_status, error.code, error.detail, **error.facts)
            if wait := error.facts.get("retry_after_seconds"):
                headers["Retry-After"] = str(wait)
        case Http404():
            body = problem(status.HTTP_404_NOT_FOUND, "not_found")
        case PermissionDenied():
            body = problem(status.HTTP_403_FORBIDDEN, "permission_denied")
        case RequestDataTooBig():
            body = problem(status.HTTP_413_REQUEST_ENTITY_TOO_LARGE, "too_many", "The body is too large.")
        case SuspiciousOperation():
            body = problem(status.HTTP_400_BAD_REQUEST, "bad_request")
        case exceptions.ValidationError():
            body = problem(error.status_code, "invalid", "Some parameters are not valid.", errors=error.detail)
        case exceptions.APIException():
            code = error.detail.code if isinstance(error.detail, exceptions.ErrorDetail) else error.default_code
            body = problem(error.status_code, str(code), str(error.detail))
            if header := getattr(error, "auth_header", None):
                headers["WWW-Authenticate"] = header
        case _:
            return None
    set_rollback()
    return Response(body, status=body["status"], headers=headers, content_type=CONTENT_TYPE)


def bad_request(request: HttpRequest, exception: Exception) -> JsonResponse:
    """What Django refuses before any view is asked: a host that is not ours, say."""
    return JsonResponse(problem(400, "bad_request"), status=400, content_type=CONTENT_TYPE)


def not_found(request: HttpRequest, exception: Exception) -> JsonResponse:
    """What lies outside every URL."""
    return JsonResponse(problem(404, "not_found"), status=404, content_type=CONTENT_TYPE)


def server_error(request: HttpRequest) -> JsonResponse:
    return JsonResponse(problem(500, "server_error"), status=500, content_type=CONTENT_TYPE)
