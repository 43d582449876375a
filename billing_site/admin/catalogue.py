"""What plans sell beside a term: slots of device tiers, and features; and a tenant's exceptions."""

from typing import Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from unfold.admin import ModelAdmin, TabularInline
from unfold.decorators import display

from billing_site.admin.views import Found, link, when
from billing_site.provenance import actor_of
from entitlements.features import MOST, end_override, override
from entitlements.models import DeviceTier, Feature, FeatureOverride, PlanFeature, PlanSlots, SlotPack, TierFeature
from subscriptions.terms import LATEST


class NeverDeleted:
    """What was sold under its name may be asked for later."""

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class CodeStays(ModelAdmin):
    """Its code names it elsewhere: in URLs, in the audit."""

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return (*super().get_readonly_fields(request, obj), *(("code",) if obj else ()))


# --- plans -----------------------------------------------------------------------------------------------------------


class PlanSlotsRows(TabularInline):
    model = PlanSlots
    extra = 0
    verbose_name_plural = "Slots that it sells (what was sold stays until it is synced)"
    tab = False


class PlanFeatureRows(TabularInline):
    model = PlanFeature
    extra = 0
    verbose_name_plural = "Features (what was sold stays until it is synced)"
    tab = False


@admin.register(SlotPack)
class SlotPackAdmin(NeverDeleted, Found):
    """What was sold stays as it was: another price or size is another pack."""

    list_display = ("name", "code", "tier", "slots", "costs", "is_sold")
    list_filter = ("is_sold", "tier")
    list_select_related = ("tier",)
    search_fields = ("name", "code")
    fields = ("name", "code", "tier", "slots", "currency", "amount_minor", "interval", "interval_count", "is_sold")

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return tuple(name for name in self.fields if name not in ("name", "is_sold")) if obj else ()

    @display(description="Per unit and interval", ordering="amount_minor")
    def costs(self, pack: SlotPack) -> str:
        count = f"{pack.interval_count} {pack.interval}s" if pack.interval_count > 1 else pack.interval
        return f"{pack.money} per {count}"


# --- tiers and features ----------------------------------------------------------------------------------------------


class TierFeatureRows(TabularInline):
    model = TierFeature
    extra = 0
    verbose_name_plural = "What a device of this tier may do"


class TierForm(forms.ModelForm):  # type: ignore[type-arg]
    class Meta:
        model = DeviceTier
        fields = ("name", "code", "position", "is_default")

    def clean_is_default(self) -> bool:
        wanted: bool = self.cleaned_data["is_default"]
        other = DeviceTier.objects.filter(is_default=True).exclude(pk=self.instance.pk).first()
        if wanted and other:
            raise ValidationError(f"{other} is the default tier: take that from it first.")
        return wanted


@admin.register(DeviceTier)
class DeviceTierAdmin(NeverDeleted, CodeStays, Found):
    form = TierForm
    list_display = ("name", "code", "position", "is_default")
    search_fields = ("name", "code")
    prepopulated_fields: ClassVar = {"code": ("name",)}
    inlines = (TierFeatureRows,)

    def get_prepopulated_fields(self, request: HttpRequest, obj: Any = None) -> dict[str, Any]:
        return {} if obj else self.prepopulated_fields


@admin.register(Feature)
class FeatureAdmin(NeverDeleted, CodeStays, Found):
    list_display = ("name", "code", "kind")
    list_filter = ("kind",)
    search_fields = ("name", "code")

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return (*super().get_readonly_fields(request, obj), *(("kind",) if obj else ()))  # amounts depend on it


# --- a tenant's exceptions -------------------------------------------------------------------------------------------


class OverrideForm(forms.ModelForm):  # type: ignore[type-arg]
    class Meta:
        model = FeatureOverride
        fields = ("tenant", "feature", "amount", "reason", "expires_at")

    def clean(self) -> dict[str, Any]:
        said: dict[str, Any] = super().clean() or {}
        feature, amount, until = said.get("feature"), said.get("amount"), said.get("expires_at")
        if feature and feature.kind == Feature.Kind.SWITCH and amount not in (None, 0, 1):
            self.add_error("amount", "It is a switch: 1 is on, 0 is off.")
        elif amount and amount > MOST:
            self.add_error("amount", f"At most {MOST:,}.")
        if until and until <= timezone.now():
            self.add_error("expires_at", "This has passed.")
        elif until and until > LATEST:
            self.add_error("expires_at", f"Not later than {LATEST:%Y}. Empty: never.")
        return said

    def _post_clean(self) -> None:
        """One that there is already is replaced: Django would refuse it, and has no other place to say so."""
        self.instance.validate_constraints = lambda exclude=None: None
        super()._post_clean()  # type: ignore[misc]


@admin.register(FeatureOverride)
class FeatureOverrideAdmin(NeverDeleted, Found):
    """Added and ended, never edited: another amount is another exception, with its own reason."""

    form = OverrideForm
    list_display = ("of_tenant", "feature", "amount", "reason", "until")
    list_filter = ("feature",)
    search_fields = ("tenant__name", "tenant__slug", "feature__code")
    search_help_text = "Tenant, or feature"
    list_select_related = ("tenant", "feature")
    autocomplete_fields = ("tenant", "feature")
    ordering = ("-id",)
    actions = ("end",)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_end_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("entitlements.change_featureoverride")

    def save_model(self, request: HttpRequest, obj: FeatureOverride, form: Any, change: bool) -> None:
        actor, now = actor_of(request), timezone.now()
        override(
            obj.tenant_id, obj.feature.code, obj.amount,
            reason=obj.reason, expires_at=obj.expires_at, actor=actor, now=now,
        )  # fmt: skip
        obj.pk = FeatureOverride.objects.values_list("pk", flat=True).get(tenant=obj.tenant_id, feature=obj.feature_id)

    @admin.action(description="End now: its plans count again", permissions=["end"])
    def end(self, request: HttpRequest, chosen: QuerySet[FeatureOverride]) -> None:
        actor, now = actor_of(request), timezone.now()
        ended = sum(
            end_override(one.tenant_id, one.feature.code, reason=f"Ended in the back office: {one.reason}",
                         actor=actor, now=now)
            for one in chosen.select_related("feature")
        )  # fmt: skip
        told = f"{ended} {'override' if ended == 1 else 'overrides'} ended; others had ended before."
        self.message_user(request, told, messages.SUCCESS)

    @display(description="Tenant")
    def of_tenant(self, one: FeatureOverride) -> str:
        return link(one.tenant)

    @display(description="Expires (UTC)", ordering="expires_at")
    def until(self, one: FeatureOverride) -> str:
        if one.expires_at is None:
            return "never"
        return when(one.expires_at) + (" (over)" if one.expires_at <= timezone.now() else "")
