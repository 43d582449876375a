"""What one must be to use the APIs, and for which tenant one asks."""

from typing import TYPE_CHECKING

from rest_framework.exceptions import PermissionDenied
from rest_framework.permissions import SAFE_METHODS, BasePermission
from rest_framework.request import Request

from billing_site.api import keys
from billing_site.models import ApiKey
from subscriptions.errors import TenantClosed
from subscriptions.models import Member, Tenant

if TYPE_CHECKING:  # settings name this module, and rest_framework.views reads settings while it is imported
    from rest_framework.views import APIView


CLOSED = TenantClosed.code


class IsTenant(BasePermission):
    """Signed in as a member of a tenant, or with a tenant's key. Staff who are not members see nothing here. Where the
    tenant is closed, everything can be read and nothing changed.
    """

    message = "Only members of a tenant can use this."

    def has_permission(self, request: Request, view: "APIView") -> bool:
        if isinstance(request.auth, ApiKey):
            is_one = request.auth.tenant is not None and "customer" in request.auth.scopes
        else:
            is_one = bool(request.user and request.user.is_authenticated) and member_of(request) is not None
        if is_one and request.method not in SAFE_METHODS and tenant_of(request).closed_at is not None:
            raise PermissionDenied("This tenant is closed: what it had can be read, and nothing changed.", CLOSED)
        return is_one


class IsOwner(IsTenant):
    """Who may spend the tenant's money: a billing owner, or a service with the tenant's key."""

    def has_permission(self, request: Request, view: "APIView") -> bool:
        if not super().has_permission(request, view):
            return False
        member = None if isinstance(request.auth, ApiKey) else member_of(request)
        if member is None or member.role == Member.Role.OWNER:
            return True
        self.message, self.code = "Only the billing owners of a tenant can do this.", "billing_owner_only"
        return False


class HasScope(BasePermission):
    """With an API key that has the view's `scope`."""

    def has_permission(self, request: Request, view: "APIView") -> bool:
        self.message = keys.missing(view.scope)  # type: ignore[attr-defined]
        return isinstance(request.auth, ApiKey) and view.scope in request.auth.scopes  # type: ignore[attr-defined]


def member_of(request: Request) -> Member | None:
    return getattr(request.user, "member", None)


def tenant_of(request: Request) -> Tenant:
    """The one tenant that everything in this request is scoped to; read once a request."""
    if isinstance(request.auth, ApiKey):
        assert request.auth.tenant is not None, "IsTenant comes first"
        return request.auth.tenant
    member = member_of(request)
    assert member is not None, "IsTenant comes first"
    return member.tenant
