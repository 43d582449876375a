"""Where we and Stripe differ: what was found, by which run, and mending it."""

import time
import uuid
from typing import Any, ClassVar

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from unfold.decorators import display
from unfold.widgets import UnfoldAdminTextareaWidget

from billing_site.admin.views import Found, ReadOnly, ReadOnlyRows, link, shown, when
from billing_site.provenance import actor_of
from subscriptions.errors import DomainError
from webhooks.models import Drift, Reconciliation, StripeLink
from webhooks.reconciling import money, repairs
from webhooks.reconciling.comparing import Asker, By
from webhooks.reconciling.differences import RULES
from webhooks.reconciling.pace import Pacer
from webhooks.stripe_api import StripeError

ACT = "webhooks.change_drift"
SEVERITIES = {"HIGH": "danger", "MEDIUM": "warning", "LOW": "info"}


def both_sides(drift: Drift) -> str:
    """A table: by name, what we have and what Stripe has."""
    rows = [
        (name, shown(drift.ours.get(name)), shown(drift.theirs.get(name)))
        for name in dict.fromkeys((*drift.ours, *drift.theirs))
    ]
    cell = "<tr><th class='text-left pr-6'>{}</th><td class='pr-6'>{}</td><td>{}</td></tr>"
    head = format_html(cell, "", "Here", "At Stripe")
    return format_html("<table>{}{}</table>", head, format_html_join("", cell, rows))


class StillOpen(admin.SimpleListFilter):
    title = "open"
    parameter_name = "open"

    def lookups(self, request: HttpRequest, page: Any) -> list[tuple[str, str]]:
        return [("no", "Resolved"), ("all", "All")]

    def choices(self, changelist: Any) -> Any:
        first, *others = super().choices(changelist)
        yield {**first, "display": "Open"}
        yield from others

    def queryset(self, request: HttpRequest, drifts: QuerySet[Drift]) -> QuerySet[Drift]:
        match self.value():
            case "no":
                return drifts.filter(resolved_at__isnull=False)
            case "all":
                return drifts
        return drifts.filter(resolved_at=None)


class Why(forms.Form):
    reason = forms.CharField(
        widget=UnfoldAdminTextareaWidget({"rows": 2}), max_length=200,
        help_text="For whoever reads the audit trail: what was looked at, who was asked.",
    )  # fmt: skip


OFFERS = {
    "repair": ("Repair", "Repair it"),
    "dismiss": ("Dismiss", "Dismiss it"),
}
DISMISSED_MEANS = "Nothing is changed. It is not shown again while both sides stay as they are."


def page(request: HttpRequest, pk: int, name: str, **_: Any) -> HttpResponse:
    """GET: both sides, and what would be done. POST: it is done, once a reason is given."""
    if not request.user.has_perm(ACT):
        raise PermissionDenied
    drift = Drift.objects.filter(pk=pk).select_related("tenant", "subscription").first()
    if drift is None or name not in OFFERS or (name == "repair" and not RULES[Drift.Kind(drift.kind)].repair):
        raise Http404
    back = reverse("admin:webhooks_drift_change", args=[drift.pk])
    form = Why(request.POST or None, label_suffix="")
    if form.is_bound and form.is_valid():
        try:
            messages.success(request, f"{drift}: {_done(request, drift, name, form.cleaned_data['reason'])}.")
            return redirect(back)
        except (DomainError, StripeError) as error:
            form.add_error(None, error.detail)
    label, button = OFFERS[name]
    context = {
        **admin.site.each_context(request),
        "title": f"{label}: {drift}",
        "drift": drift,
        "both_sides": both_sides(drift),
        "what": RULES[Drift.Kind(drift.kind)].repair if name == "repair" else DISMISSED_MEANS,
        "form": form,
        "button": button,
        "back": back,
    }
    return TemplateResponse(request, "admin/drift.html", context)


def _done(request: HttpRequest, drift: Drift, name: str, reason: str) -> str:
    actor = actor_of(request)
    if name == "dismiss":
        return repairs.dismiss(drift, actor=actor, reason=reason, now=timezone.now())
    ask = Asker(Pacer(settings.RECONCILE_READS_PER_SECOND, time.monotonic, time.sleep))
    return repairs.repair(drift, By(ask, timezone.now, f"repair:{uuid.uuid4()}", actor, reason))


class DriftColumns:
    """What a list of drift and a subscription's page show alike."""

    @display(description="Severity", ordering="severity", label=SEVERITIES)
    def how_bad(self, drift: Drift) -> str:
        return drift.severity

    @display(description="Here and at Stripe")
    def sides(self, drift: Drift) -> str:
        return both_sides(drift)

    @display(description="Found (UTC)", ordering="found_at")
    def found(self, drift: Drift) -> str:
        return when(drift.found_at)

    @display(description="Last seen (UTC)", ordering="seen_at")
    def seen(self, drift: Drift) -> str:
        return when(drift.seen_at)

    @display(description="Difference")
    def what(self, drift: Drift) -> str:
        return link(drift, drift.get_kind_display())


@admin.register(Drift)
class DriftAdmin(DriftColumns, ReadOnly, Found):
    list_display = ("kind", "how_bad", "of_tenant", "of_subscription", "sides", "found", "seen", "resolution")
    list_filter = (StillOpen, "severity", "kind")
    search_fields = ("object_id", "tenant__slug", "tenant__name", "subscription__number")
    search_help_text = "Stripe id, tenant, or subscription number"
    list_select_related = ("tenant", "subscription")
    custom_urls: ClassVar = (("<int:pk>/mend/<slug:name>/", "webhooks_drift_verb", page),)
    fields = readonly_fields = (
        "kind", "how_bad", "of_tenant", "of_subscription", "at_stripe", "sides", "a_repair", "found", "seen",
        "resolved", "resolution",
    )  # fmt: skip

    @display(description="Tenant")
    def of_tenant(self, drift: Drift) -> str:
        return link(drift.tenant)

    @display(description="Subscription")
    def of_subscription(self, drift: Drift) -> str:
        return link(drift.subscription)

    @display(description="At Stripe")
    def at_stripe(self, drift: Drift) -> str:
        return link(StripeLink(pk=drift.object_id), drift.object_id) if drift.subscription_id else drift.object_id

    @display(description="What a repair does")
    def a_repair(self, drift: Drift) -> str:
        return RULES[Drift.Kind(drift.kind)].repair or "Nothing can be done about this from here."

    @display(description="Resolved (UTC)")
    def resolved(self, drift: Drift) -> str:
        return when(drift.resolved_at)

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], **more: Any) -> HttpResponse:
        drift: Drift | None = more.get("obj")
        if drift and not drift.resolved_at and request.user.has_perm(ACT):
            context["actions_detail"] = [
                {"title": label, "path": reverse("admin:webhooks_drift_verb", args=[drift.pk, name])}
                for name, (label, _) in OFFERS.items()
                if name != "repair" or RULES[Drift.Kind(drift.kind)].repair
            ]
        shown_page: HttpResponse = super().render_change_form(request, context, **more)
        return shown_page


class DriftRows(DriftColumns, ReadOnlyRows):
    """On a subscription's page: where it differs from Stripe, and its refunds and disputes."""

    model = Drift
    verbose_name_plural = "Drift"
    fields = readonly_fields = ("what", "how_bad", "sides", "found", "seen", "resolution")
    ordering = ("-id",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Drift]:
        rows: QuerySet[Drift] = super().get_queryset(request)
        return rows.filter(Q(resolved_at=None) | Q(kind__in=money.KINDS))


@admin.register(Reconciliation)
class ReconciliationAdmin(ReadOnly, Found):
    list_display = ("started", "took", "phase", "compared", "found", "repaired", "reads", "error_code")
    list_filter = ("phase",)
    fields = readonly_fields = (
        "started", "took", "phase", "cursor", "compared", "found", "repaired", "reads", "lease_until", "error_code",
    )  # fmt: skip

    @display(description="Started (UTC)", ordering="started_at")
    def started(self, run: Reconciliation) -> str:
        return when(run.started_at)

    @display(description="Took")
    def took(self, run: Reconciliation) -> str:
        if run.finished_at is None:
            return "goes on"
        return str(run.finished_at - run.started_at).partition(".")[0]
