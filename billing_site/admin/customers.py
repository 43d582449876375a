"""Tenants, their people, plans, and subscriptions with their history."""

from typing import Any, ClassVar

from django.contrib import admin, messages
from django.contrib.auth.admin import GroupAdmin, UserAdmin
from django.contrib.auth.models import Group, User
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.functional import cached_property
from django.utils.html import format_html_join
from unfold.admin import ModelAdmin, TabularInline
from unfold.decorators import display
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from billing_site import timeline
from billing_site.admin.catalogue import PlanFeatureRows, PlanSlotsRows
from billing_site.admin.closing import CLOSE_PAGES, OffersClosing
from billing_site.admin.devices import AllocationRows
from billing_site.admin.drift import DriftRows
from billing_site.admin.slots import RESIZE_PAGE, SYNC_PAGE, OffersSync
from billing_site.admin.verbs import LIST_ACTIONS, VERB_PAGES, OffersVerbs
from billing_site.admin.views import (
    BADGES,
    Found,
    Names,
    ReadOnly,
    ReadOnlyRows,
    changes,
    link,
    names,
    when,
    yes_or_no,
)
from notifications.models import Notice
from subscriptions.forecast import next_step
from subscriptions.models import AuditEntry, Member, Plan, PlanPrice, SetAside, Subscription, Tenant
from webhooks.models import StripeEvent, StripeLink

admin.site.unregister([User, Group])


@admin.register(User)
class StaffAdmin(UserAdmin, ModelAdmin):  # type: ignore[type-arg]
    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm


@admin.register(Group)
class StaffGroupAdmin(GroupAdmin, ModelAdmin):
    pass


class MemberRows(TabularInline):
    model = Member
    extra = 0
    autocomplete_fields = ("user",)
    tab = True


class SubscriptionRows(ReadOnlyRows):
    model = Subscription
    fields = readonly_fields = ("found", "type", "state", "plan", "term_end", "next_change")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Subscription]:
        rows: QuerySet[Subscription] = super().get_queryset(request)
        return rows.select_related("plan", "parent__plan")

    @display(description="Subscription")
    def found(self, subscription: Subscription) -> str:
        return link(subscription)

    @display(description="Status", label=BADGES)
    def state(self, subscription: Subscription) -> str:
        return subscription.status

    @display(description="Next, by itself")
    def next_change(self, subscription: Subscription) -> str:
        return what_comes(subscription)


@admin.register(Tenant)
class TenantAdmin(OffersVerbs, OffersClosing, Found):
    list_display = ("name", "slug", "billing_email", "created_at", "closed_at")
    custom_urls = CLOSE_PAGES
    search_fields = ("name", "slug", "billing_email", "contact_email")
    readonly_fields = ("created_at", "closed_at")
    inlines = (SubscriptionRows, MemberRows)
    prepopulated_fields: ClassVar = {"slug": ("name",)}

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return ("created_at", "closed_at", "slug") if obj else ("created_at",)

    def get_prepopulated_fields(self, request: HttpRequest, obj: Any = None) -> dict[str, Any]:
        return {} if obj else self.prepopulated_fields


class PriceRows(TabularInline):
    """Prices are added, never rewritten: subscriptions were sold at them."""

    model = PlanPrice
    extra = 0
    can_delete = False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Plan)
class PlanAdmin(OffersSync, Found):
    list_display = ("name", "code", "type", "grace_days", "suspension_days", "is_sold")
    list_filter = ("type", "is_sold")
    search_fields = ("name", "code")
    inlines = (PriceRows, PlanSlotsRows, PlanFeatureRows)
    custom_urls = SYNC_PAGE

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return ("code", "type") if obj else ()


class AuditRows(ReadOnlyRows):
    model = AuditEntry
    verbose_name_plural = "Audit trail"
    fields = readonly_fields = ("effective", "recorded", "what", "who", "source", "why", "changed")
    ordering = ("-id",)
    tab = False

    @display(description="Effective (UTC)")
    def effective(self, entry: AuditEntry) -> str:
        return when(entry.effective_at)

    @display(description="Recorded (UTC)")
    def recorded(self, entry: AuditEntry) -> str:
        return when(entry.recorded_at)

    @display(description="What")
    def what(self, entry: AuditEntry) -> str:
        return entry.get_action_display()

    @display(description="Who")
    def who(self, entry: AuditEntry) -> str:
        return entry.actor

    @display(description="Source")
    def source(self, entry: AuditEntry) -> str:
        return source_link(entry)

    @display(description="Why")
    def why(self, entry: AuditEntry) -> str:
        return entry.reason or "–"

    @display(description="Changes")
    def changed(self, entry: AuditEntry) -> str:
        return changes(entry, self.names)

    @cached_property
    def names(self) -> Names:
        """Once a page: Django makes an inline anew for each request."""
        return names()


class NoticeRows(ReadOnlyRows):
    model = Notice
    fields = readonly_fields = ("kind", "anchor", "state", "sent_at", "recipients", "error")
    ordering = ("-id",)


@admin.register(Subscription)
class SubscriptionAdmin(OffersVerbs, ReadOnly, Found):
    list_display = ("number", "of_tenant", "type", "state", "plan", "ends", "next_change")
    list_filter = ("status", "type", "plan", "on_hold", "cancel_at_term_end")
    search_fields = ("number", "tenant__name", "tenant__slug", "stripe_link__stripe_subscription_id")
    search_help_text = "Number, tenant, or Stripe subscription id"
    list_select_related = ("tenant", "plan", "parent__plan")
    actions = LIST_ACTIONS
    custom_urls = VERB_PAGES + RESIZE_PAGE
    inlines = (AllocationRows, DriftRows, AuditRows, NoticeRows)
    fieldsets = (
        (None, {"fields": ("number", "of_tenant", "parent", "type", "state", "plan", "price")}),
        ("Term (UTC)", {"fields": ("term_start", "term_end", "grace_end", "suspension_end", "next_change")}),
        ("What comes (UTC)", {"fields": ("future",)}),
        ("More", {"fields": ("renews", "ends_with_term", "held", "ended_at", "end_reason", "at_stripe")}),
    )
    readonly_fields = ("of_tenant", "state", "next_change", "future", "at_stripe", "renews", "ends_with_term", "held")
    renews = yes_or_no("auto_renews", "Renews by itself")
    ends_with_term = yes_or_no("cancel_at_term_end", "Cancelled at term end")
    held = yes_or_no("on_hold", "On hold: only staff lift it")

    @display(description="Tenant", ordering="tenant__name")
    def of_tenant(self, subscription: Subscription) -> str:
        return link(subscription.tenant)

    @display(description="Status", ordering="status", label=BADGES)
    def state(self, subscription: Subscription) -> str:
        return subscription.status

    @display(description="Term ends (UTC)", ordering="term_end")
    def ends(self, subscription: Subscription) -> str:
        return when(subscription.term_end)

    @display(description="Next, by itself", ordering="next_deadline")
    def next_change(self, subscription: Subscription) -> str:
        return what_comes(subscription)

    @display(description="If nobody does anything")
    def future(self, subscription: Subscription) -> str:
        lines = timeline.of_subscription(subscription, now=timezone.now())
        rows = [(when(line.at), line.subscription, line.source, line.what, line.why) for line in lines]
        return format_html_join("", "<div>{} {}: {} <b>{}</b>. {}</div>", rows) or "–"

    def render_change_form(self, request: HttpRequest, *args: Any, **more: Any) -> HttpResponse:
        """With a warning where the clock has left its family behind."""
        subscription: Subscription = more["obj"]
        if stuck := SetAside.objects.filter(root=subscription.root_id).first():
            warning = f"The clock cannot move this family since {when(stuck.since)} UTC: {stuck.error}"
            self.message_user(request, warning, messages.WARNING)
        page: HttpResponse = super().render_change_form(request, *args, **more)
        return page

    @display(description="At Stripe")
    def at_stripe(self, subscription: Subscription) -> str:
        return link(StripeLink.objects.filter(subscription=subscription).first())


@admin.register(SetAside)
class SetAsideAdmin(ReadOnly, Found):
    """Shown, not mended here: the clock tries again, and forgets them when it could move them."""

    list_display = ("of_root", "of_tenant", "since_when", "tried_again", "error")
    search_fields = ("root__number", "root__tenant__name", "root__tenant__slug")
    search_help_text = "Subscription number, or tenant"
    list_select_related = ("root__tenant",)
    ordering = ("since",)
    fields = readonly_fields = ("of_root", "of_tenant", "since", "retry_at", "error")

    @display(description="Family of")
    def of_root(self, stuck: SetAside) -> str:
        return link(stuck.root)

    @display(description="Tenant")
    def of_tenant(self, stuck: SetAside) -> str:
        return link(stuck.root.tenant)

    @display(description="Since (UTC)", ordering="since")
    def since_when(self, stuck: SetAside) -> str:
        return when(stuck.since)

    @display(description="Tried again (UTC)", ordering="retry_at")
    def tried_again(self, stuck: SetAside) -> str:
        return when(stuck.retry_at)


@admin.register(AuditEntry)
class AuditEntryAdmin(ReadOnly, Found):
    list_display = ("effective", "of_subscription", "of_tenant", "action", "actor", "source", "reason")
    list_filter = ("action",)
    search_fields = ("subscription__number", "source_id", "actor", "request_id")
    search_help_text = "Subscription number, source (event id), actor, or request id"
    list_select_related = ("subscription", "tenant")
    ordering = ("-id",)
    fields = readonly_fields = (
        "of_subscription", "of_tenant", "version", "action", "effective_at", "recorded_at", "actor", "source",
        "reason", "web_request", "from_where", "changed",
    )  # fmt: skip

    @display(description="Effective (UTC)")
    def effective(self, entry: AuditEntry) -> str:
        return when(entry.effective_at)

    @display(description="Subscription")
    def of_subscription(self, entry: AuditEntry) -> str:
        return link(entry.subscription)

    @display(description="Tenant")
    def of_tenant(self, entry: AuditEntry) -> str:
        return link(entry.tenant)

    @display(description="Source")
    def source(self, entry: AuditEntry) -> str:
        return source_link(entry)

    @display(description="Request")
    def web_request(self, entry: AuditEntry) -> str:
        return entry.request_id or "–"

    @display(description="Address")
    def from_where(self, entry: AuditEntry) -> str:
        return entry.address or "–"

    @display(description="Changes")
    def changed(self, entry: AuditEntry) -> str:
        return changes(entry, names())


def what_comes(subscription: Subscription) -> str:
    step = next_step(subscription)
    return f"{step.status} on {when(step.at)}" if step else "–"


def source_link(entry: AuditEntry) -> str:
    """A Stripe event's own page, where the source is one; a replay belongs to the event it repeats."""
    event_id = entry.source_id.partition("~")[0]
    return link(StripeEvent(pk=event_id), entry.source_id) if event_id.startswith("evt_") else entry.source_id or "–"
