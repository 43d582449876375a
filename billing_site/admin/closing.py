"""A tenant that is no customer any more: closed with a reason, seen beforehand, and reopened where it was a mistake."""

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from unfold.widgets import UnfoldAdminTextareaWidget, UnfoldAdminTextInputWidget

from billing_site.admin.views import changes, link, when
from billing_site.provenance import actor_of
from billing_site.verbs import close_tenant, reopen_tenant
from subscriptions.models import AuditEntry, Tenant

MAY_CLOSE = "subscriptions.close_tenant"
CLOSE = "Every subscription ends at once, whatever it has at Stripe is cancelled, and nothing can be started any more."
REOPEN = "It can buy again. What ended when it was closed stays ended."


class Confirmed(forms.Form):
    reason = forms.CharField(
        widget=UnfoldAdminTextareaWidget({"rows": 2}),
        help_text="For whoever reads the audit trail: a letter, a ticket, who decided it.",
    )
    slug = forms.CharField(widget=UnfoldAdminTextInputWidget, help_text="Type the tenant's slug to confirm.")

    def __init__(self, data: Any, tenant: Tenant) -> None:
        super().__init__(data, label_suffix="")
        self.tenant = tenant

    def clean_slug(self) -> str:
        given: str = self.cleaned_data["slug"].strip()
        if given != self.tenant.slug:
            raise forms.ValidationError(f"That is not {self.tenant.slug}.")
        return given


class OffersClosing:
    """On a tenant's page, after what else is offered there; for staff who may close."""

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], **more: Any) -> HttpResponse:
        tenant = more.get("obj")
        if tenant and request.user.has_perm(MAY_CLOSE):
            what = "close" if tenant.closed_at is None else "reopen"
            path = reverse(f"admin:subscriptions_tenant_{what}", args=[tenant.pk])
            offered = [*context.get("actions_detail", []), {"title": f"{what.capitalize()} tenant", "path": path}]
            context["actions_detail"] = offered
        page: HttpResponse = super().render_change_form(request, context, **more)  # type: ignore[misc]
        return page


def close_page(request: HttpRequest, pk: int, **_: Any) -> HttpResponse:
    """GET: the form. POST: what would end, and, once that was seen, the closing."""
    tenant, form = _asked(request, pk)
    preview: list[tuple[str, str, str, str]] = []
    if form.is_bound and form.is_valid():
        by: dict[str, Any] = {"actor": actor_of(request), "now": timezone.now(), "reason": form.cleaned_data["reason"]}
        is_dry = "do" not in request.POST
        entries = close_tenant(tenant.pk, dry_run=is_dry, **by)
        if not is_dry:
            return _told(request, tenant, f"Closed: {form.cleaned_data['reason']}", "is closed")
        preview = [_row(entry) for entry in entries] or [
            (str(tenant), "Closed: it has nothing that would end", "–", "–")
        ]
    return _page(request, tenant, form, "Close tenant", CLOSE, preview)


def reopen_page(request: HttpRequest, pk: int, **_: Any) -> HttpResponse:
    tenant, form = _asked(request, pk)
    preview: list[tuple[str, str, str, str]] = []
    if form.is_bound and form.is_valid():
        if "do" in request.POST:
            reopen_tenant(tenant.pk, actor=actor_of(request), reason=form.cleaned_data["reason"])
            return _told(request, tenant, f"Reopened: {form.cleaned_data['reason']}", "is a customer again")
        preview = [(str(tenant), "Reopened", when(timezone.now()), "–")]
    return _page(request, tenant, form, "Reopen tenant", REOPEN, preview)


def _asked(request: HttpRequest, pk: int) -> tuple[Tenant, Confirmed]:
    if not request.user.has_perm(MAY_CLOSE):
        raise PermissionDenied
    tenant = get_object_or_404(Tenant, pk=pk)
    return tenant, Confirmed(request.POST if request.method == "POST" else None, tenant)


def _row(entry: AuditEntry) -> tuple[str, str, str, str]:
    return link(entry.subscription), entry.get_action_display(), when(entry.effective_at), changes(entry, {})


def _told(request: HttpRequest, tenant: Tenant, logged: str, said: str) -> HttpResponse:
    LogEntry.objects.create(
        user_id=str(request.user.pk),
        content_type=ContentType.objects.get_for_model(Tenant),
        object_id=str(tenant.pk),
        object_repr=str(tenant)[:200],
        action_flag=CHANGE,
        change_message=logged,
    )
    messages.success(request, f"{tenant} {said}.")
    return redirect(_back(tenant))


def _back(tenant: Tenant) -> str:
    return reverse("admin:subscriptions_tenant_change", args=[tenant.pk])


def _page(
    request: HttpRequest, tenant: Tenant, form: Confirmed, title: str, help_: str, preview: list[Any]
) -> HttpResponse:
    context = {
        **admin.site.each_context(request),
        "title": title,
        "help": help_,
        "subjects": [tenant],
        "form": form,
        "heads": ("What", "Becomes", "Effective (UTC)", "Changes"),
        "preview": preview,
        "would_change": bool(preview),
        "back": _back(tenant),
    }
    return TemplateResponse(request, "admin/verb.html", context)


CLOSE_PAGES = (
    ("<int:pk>/close/", "subscriptions_tenant_close", close_page),
    ("<int:pk>/reopen/", "subscriptions_tenant_reopen", reopen_page),
)
