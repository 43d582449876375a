"""What one must be to use the customer API."""

from typing import TYPE_CHECKING

from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from subscriptions.models import Member, Tenant

if TYPE_CHECKING:  # settings name this module, and rest_framework.views reads settings while it is imported
    from rest_framework.views import APIView


class IsMember(BasePermission):
    """Signed in as a member of a tenant. Staff who are not members see nothing here."""

    message = "Only members of a tenant can use this."

    def has_permission(self, request: Request, view: "APIView") -> bool:
        return bool(request.user and request.user.is_authenticated) and member_of(request) is not None


def member_of(request: Request) -> Member | None:
    return getattr(request.user, "member", None)


def tenant_of(request: Request) -> Tenant:
    """The one tenant that everything in this request is scoped to; read once a request."""
    member = member_of(request)
    assert member is not None, "IsMember comes first"
    return member.tenant
