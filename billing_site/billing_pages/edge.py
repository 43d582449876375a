"""What the billing pages have in common: who may look, who may press a button, and how a refusal reads there."""

from collections.abc import Iterator, Mapping
from typing import Any

from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone
from django.views import View
from rest_framework.exceptions import ValidationError
from rest_framework.permissions import SAFE_METHODS

from billing_site.api.changing import NotUnderstood
from billing_site.api.customer import subscriptions_of
from billing_site.billing_pages import shown
from subscriptions.errors import DomainError, SubscriptionNotFound, TenantClosed
from subscriptions.models import Member, Subscription, Tenant
from webhooks import errors
from webhooks.stripe_api import StripeError
from webhooks.stripe_state import Unmappable

# No form-action: browsers hold redirects to it, and a form here leads to pages of Stripe's, also at an own domain.
POLICY = "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; frame-ancestors 'none'"
CLOSED = "Your account is closed: what it had can be read, and nothing changed."
REFUSALS = (DomainError, StripeError, Unmappable, ValidationError)


class OwnersOnly(DomainError):
    """Only a billing owner can do this."""

    code, http_status = "billing_owner_only", 403


class MembersPage(View):
    """A page of the tenant of whoever is signed in; everybody else signs in first. Only billing owners change
    something, and nobody does of a tenant that is closed. What is refused is said on the page.
    """

    tenant: Tenant
    may_buy: bool

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        member: Member | None = getattr(request.user, "member", None)
        if member is None:
            if request.user.is_authenticated:
                return render(request, "billing/no_member.html", status=403)
            here = request.get_full_path() if request.method in SAFE_METHODS else reverse("billing")
            return redirect_to_login(here, reverse("login"))
        self.tenant = member.tenant
        self.may_buy = member.role == Member.Role.OWNER and self.tenant.closed_at is None
        try:
            if request.method not in SAFE_METHODS:
                self._check_may_change(member)
            answer = super().dispatch(request, *args, **kwargs)
        except REFUSALS as error:
            answer = self.refused(*readable(error))
        answer.headers["Content-Security-Policy"] = POLICY
        answer.headers["Cache-Control"] = "private, no-store"
        return answer

    def refused(self, says: str, status: int) -> HttpResponse:
        """The page again with what was typed, and why not."""
        return self.billing(says, status)

    def billing(self, says: str = "", status: int = 200) -> HttpResponse:
        page = shown.page(self.tenant, may_buy=self.may_buy, typed=self.request.POST, now=timezone.now())
        page |= {"refused": says, "is_closed": self.tenant.closed_at is not None}
        return render(self.request, "billing/billing.html", page, status=status)

    def subscription(self, number: str) -> Subscription:
        """Raises SubscriptionNotFound, of another tenant's too."""
        found = subscriptions_of(self.tenant).filter(number=number).first()
        if found is None:
            raise SubscriptionNotFound
        return found

    def _check_may_change(self, member: Member) -> None:
        if member.role != Member.Role.OWNER:
            raise OwnersOnly
        if self.tenant.closed_at is not None:
            raise TenantClosed(CLOSED)


def readable(error: Exception) -> tuple[str, int]:
    """What a person reads of a refusal, and the HTTP status of the page that says it."""
    match error:
        case StripeError():
            return readable(errors.told(error))
        case Unmappable():
            return readable(NotUnderstood(code=error.code))
        case DomainError():
            why = error.facts.get("decline_code")
            because = f" The bank says: {str(why).replace('_', ' ')}." if why else ""
            return error.detail + because, error.http_status
        case ValidationError():
            return " ".join(_complaints(error.detail)), 400
        case _:
            raise error


def _complaints(detail: Any, name: str = "") -> Iterator[str]:
    if isinstance(detail, Mapping):
        for key, inner in detail.items():
            yield from _complaints(inner, str(key).replace("_", " ").capitalize() if not name else f"{name} {key}")
    elif isinstance(detail, list):
        for inner in detail:
            yield from _complaints(inner, name)
    else:
        yield f"{name}: {detail}"


def whole(typed: str) -> int | str:
    """A number as JSON has it. What is none stays as it was typed: the parser that the API has refuses it."""
    return int(typed) if typed.isascii() and typed.isdecimal() and len(typed) < 16 else typed


def packs(form: Mapping[str, str]) -> dict[str, int | str]:
    """The units that were typed, by the codes of packs; an empty field is none."""
    prefix = shown.PACK
    return {name.removeprefix(prefix): whole(form[name] or "0") for name in form if name.startswith(prefix)}
