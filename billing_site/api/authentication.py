"""Who asks: a member of a tenant, signed in, or a service with an API key."""

from dataclasses import dataclass

from django.http import HttpRequest
from django.utils import timezone
from rest_framework.authentication import BaseAuthentication, SessionAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from billing_site.api import keys
from billing_site.models import ApiKey

INVALID_KEY = "This API key is unknown, expired or revoked."
NO_KEY = "This takes an API key: Authorization: Bearer tk_…"


class MemberSession(SessionAuthentication):
    """Django's session, with CSRF protection. Somebody who is not signed in gets 401, not DRF's 403."""

    def authenticate_header(self, request: Request | HttpRequest) -> str:
        return "Session"


@dataclass(frozen=True)
class KeyHolder:
    """`request.user` of a service: who holds the key."""

    key: ApiKey
    is_authenticated = True
    is_active = True
    is_staff = False

    @property
    def pk(self) -> str:
        return f"apikey:{self.key.pk}"


class ApiKeyHeader(BaseAuthentication):
    """`Authorization: Bearer tk_…`, or `X-API-Key: tk_…`."""

    def authenticate(self, request: Request) -> tuple[KeyHolder, ApiKey] | None:
        secret = presented(request)
        if secret is None:
            return None
        now = timezone.now()
        key = keys.find(secret, now=now)
        if key is None:
            raise AuthenticationFailed(INVALID_KEY, code="invalid_api_key")
        if not keys.is_noted(key, now=now):
            keys.note_use(key.pk, now=now)
        return KeyHolder(key), key

    def authenticate_header(self, request: Request | HttpRequest) -> str:
        return "Bearer"


def presented(request: Request | HttpRequest) -> str | None:
    """The secret that a request shows, if it shows one."""
    scheme, _, credentials = request.META.get("HTTP_AUTHORIZATION", "").partition(" ")
    if scheme.lower() == "bearer":
        return str(credentials.strip())
    secret: str | None = request.META.get("HTTP_X_API_KEY")
    return secret
