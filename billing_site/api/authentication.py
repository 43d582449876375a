"""Who asks: a member of a tenant, signed in."""

from django.http import HttpRequest
from rest_framework.authentication import SessionAuthentication
from rest_framework.request import Request


class MemberSession(SessionAuthentication):
    """Django's session, with CSRF protection. Somebody who is not signed in gets 401, not DRF's 403."""

    def authenticate_header(self, request: Request | HttpRequest) -> str:
        return "Session"
