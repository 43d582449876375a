"""Devices and their slots: looked at here; what a subscription holds is resized and synced in `slots`."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.db.models import Exists, OuterRef, Prefetch, Q, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from unfold.decorators import display

from billing_site.admin.verbs import ACT
from billing_site.admin.views import BADGES, Found, ReadOnly, ReadOnlyRows, link, when
from entitlements.models import Device, SlotAssignment, TierAllocation
from subscriptions.models import Subscription, Tenant
from subscriptions.states import Status

OPEN = SlotAssignment.objects.filter(device=OuterRef("pk"), released_at=None)
STATES: dict[str, tuple[str, Q]] = {
    "assigned": ("Has a slot", Q(Exists(OPEN))),
    "parked": ("Parked", Q(parked_at__isnull=False)),
    "without": ("Without a slot", Q(parked_at=None, deleted_at=None) & ~Q(Exists(OPEN))),
    "deleted": ("Deleted", Q(deleted_at__isnull=False)),
}
LABELS = {**BADGES, "ASSIGNED": "success", "PARKED": "warning"}
MOST_TENANTS = 100  # that a search finds by their names


class StateFilter(admin.SimpleListFilter):
    title, parameter_name = "state", "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterator[tuple[str, str]]:
        return ((name, words) for name, (words, _) in STATES.items())

    def queryset(self, request: HttpRequest, devices: QuerySet[Device]) -> QuerySet[Device]:
        _, those = STATES.get(self.value() or "", ("", Q()))
        return devices.filter(those)


class SubscriptionFilter(admin.SimpleListFilter):
    """In slots of one subscription: its page leads here."""

    title, parameter_name = "subscription", "subscription"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        number = request.GET.get(self.parameter_name)
        return [(number, number)] if number else []

    def queryset(self, request: HttpRequest, devices: QuerySet[Device]) -> QuerySet[Device]:
        if not self.value() or "\0" in str(self.value()):
            return devices
        of_it = SlotAssignment.objects.filter(released_at=None, allocation__subscription__number=self.value())
        return devices.filter(pk__in=of_it.values("device"))


class AssignmentRows(ReadOnlyRows):
    model = SlotAssignment
    verbose_name_plural = "Slots that it has and had"
    fields = readonly_fields = ("tier", "of_subscription", "since", "by", "why", "until", "how", "end_reason")
    ordering = ("-id",)
    tab = False

    def get_queryset(self, request: HttpRequest) -> QuerySet[SlotAssignment]:
        rows: QuerySet[SlotAssignment] = super().get_queryset(request)
        return rows.select_related("tier", "allocation__subscription")

    @display(description="Subscription")
    def of_subscription(self, slot: SlotAssignment) -> str:
        return link(slot.allocation.subscription)

    @display(description="Since (UTC)")
    def since(self, slot: SlotAssignment) -> str:
        return when(slot.assigned_at)

    @display(description="By")
    def by(self, slot: SlotAssignment) -> str:
        return ", ".join(filter(None, (slot.assigned_by, slot.source_id)))

    @display(description="Why")
    def why(self, slot: SlotAssignment) -> str:
        return slot.reason or "–"

    @display(description="Until (UTC)")
    def until(self, slot: SlotAssignment) -> str:
        return when(slot.released_at)

    @display(description="How it ended")
    def how(self, slot: SlotAssignment) -> str:
        return f"{slot.get_ended_display()} by {slot.released_by}" if slot.ended else "–"


@admin.register(Device)
class DeviceAdmin(ReadOnly, Found):
    list_display = ("device_id", "of_tenant", "state", "tier", "of_subscription", "since")
    list_filter = (StateFilter, SubscriptionFilter)
    search_fields = ("device_id",)  # what is found: `get_search_results`
    search_help_text = "The beginning of a device id, or a tenant"
    list_select_related = ("tenant", "parked_tier")
    ordering = ("-id",)
    inlines = (AssignmentRows,)
    fields = readonly_fields = ("device_id", "of_tenant", "state", "tier", "of_subscription", "since", "created_at")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Device]:
        present = SlotAssignment.objects.filter(released_at=None).select_related("tier", "allocation__subscription")
        rows: QuerySet[Device] = super().get_queryset(request)
        return rows.prefetch_related(Prefetch("assignments", present, to_attr="present"))

    def get_search_results(
        self, request: HttpRequest, devices: QuerySet[Device], term: str
    ) -> tuple[QuerySet[Device], bool]:
        if not term.strip():
            return devices, False
        named = Tenant.objects.filter(Q(name__icontains=term.strip()) | Q(slug__startswith=term.strip()))
        tenants = [*named.values_list("pk", flat=True)[:MOST_TENANTS]]
        return devices.filter(Q(device_id__startswith=term.strip()) | Q(tenant__in=tenants)), False

    @display(description="Tenant")
    def of_tenant(self, device: Device) -> str:
        return link(device.tenant)

    @display(description="State", label=LABELS)
    def state(self, device: Device) -> str:
        if device.deleted_at:
            return "DELETED"
        return "PARKED" if device.parked_at else "ASSIGNED" if _slot(device) else "WITHOUT A SLOT"

    @display(description="Tier")
    def tier(self, device: Device) -> str:
        slot = _slot(device)
        return str(slot.tier if slot else device.parked_tier or "–")

    @display(description="Subscription")
    def of_subscription(self, device: Device) -> str:
        slot = _slot(device)
        return link(slot.allocation.subscription if slot else None)

    @display(description="Since (UTC)")
    def since(self, device: Device) -> str:
        slot = _slot(device)
        return when(slot.assigned_at if slot else device.parked_at or device.deleted_at)


def _slot(device: Device) -> SlotAssignment | None:
    present: list[SlotAssignment] = device.present  # type: ignore[attr-defined]
    return present[0] if present else None


class AllocationRows(ReadOnlyRows):
    """On a subscription's page: what it holds of each tier."""

    model = TierAllocation
    verbose_name_plural = "Slots"
    fields = readonly_fields = ("tier", "in_use", "devices", "more")
    tab = False

    def get_queryset(self, request: HttpRequest) -> QuerySet[TierAllocation]:
        rows: QuerySet[TierAllocation] = super().get_queryset(request)
        self.may_act = request.user.has_perm(ACT)  # Django makes an inline anew for each request
        return rows.select_related("tier", "subscription").order_by("tier__position", "tier__code")

    @display(description="In use")
    def in_use(self, slots: TierAllocation) -> str:
        return f"{slots.slots_used} of {slots.slot_limit}" + ("" if slots.is_open else ", closed")

    @display(description="Devices")
    def devices(self, slots: TierAllocation) -> str:
        return _anchor(devices_of(slots.subscription), "Show")

    @display(description="Change")
    def more(self, slots: TierAllocation) -> str:
        is_alive = slots.subscription.status != Status.EXPIRED
        return _anchor(resize_of(slots.subscription, slots.tier.code), "Resize") if self.may_act and is_alive else "–"


def devices_of(subscription: Subscription) -> str:
    query = urlencode({"subscription": subscription.number})
    return f"{reverse('admin:entitlements_device_changelist')}?{query}"


def resize_of(subscription: Subscription, tier: str = "") -> str:
    address = reverse("admin:subscriptions_resize", args=[subscription.pk])
    return f"{address}?{urlencode({'tier': tier})}" if tier else address


def _anchor(address: str, text: str) -> str:
    return format_html('<a class="text-primary-600 underline" href="{}">{}</a>', address, text)
