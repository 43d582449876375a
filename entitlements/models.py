"""Who may use what: the tables, with the rules that the database holds. The verbs over them come with the slots."""

from typing import ClassVar

from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now

from subscriptions.models import Plan, Subscription, Tenant


class DeviceTier(models.Model):
    """A class of device service: basic, standard, premium."""

    code = models.SlugField(max_length=63, unique=True)
    name = models.CharField(max_length=200)

    class Meta:
        db_table = "device_tiers"

    def __str__(self) -> str:
        return self.name


class Device(models.Model):
    """A device of a tenant, under the platform's own id for it."""

    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="devices")
    device_id = models.CharField(max_length=128, help_text="The platform's own id, unique per tenant.")
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        db_table = "devices"
        constraints: ClassVar = [
            models.UniqueConstraint(name="one_device_per_tenant_and_device_id", fields=["tenant", "device_id"])
        ]

    def __str__(self) -> str:
        return self.device_id


class PlanSlots(models.Model):
    """How many slots of a tier a plan sells."""

    plan = models.ForeignKey(Plan, on_delete=models.CASCADE, related_name="slots")
    tier = models.ForeignKey(DeviceTier, on_delete=models.PROTECT, related_name="+")
    slots = models.PositiveIntegerField()

    class Meta:
        db_table = "plan_slots"
        verbose_name_plural = "plan slots"
        constraints: ClassVar = [models.UniqueConstraint(name="one_row_per_plan_and_tier", fields=["plan", "tier"])]

    def __str__(self) -> str:
        return f"{self.plan}: {self.slots} × {self.tier}"


class TierAllocation(models.Model):
    """How many slots of a tier a subscription holds, and how many are in use. Oversell cannot be written."""

    subscription = models.ForeignKey(Subscription, on_delete=models.PROTECT, related_name="allocations")
    tier = models.ForeignKey(DeviceTier, on_delete=models.PROTECT, related_name="+")
    slot_limit = models.IntegerField()
    slots_used = models.IntegerField(default=0)

    class Meta:
        db_table = "tier_allocations"
        constraints: ClassVar = [
            models.UniqueConstraint(name="one_allocation_per_subscription_and_tier", fields=["subscription", "tier"]),
            models.UniqueConstraint(name="allocation_key", fields=["id", "tier"]),
            models.CheckConstraint(
                name="slots_are_never_oversold", condition=Q(slots_used__gte=0, slots_used__lte=F("slot_limit"))
            ),
        ]

    def __str__(self) -> str:
        return f"{self.slots_used} of {self.slot_limit} × {self.tier}"


class SlotAssignment(models.Model):
    """A device in a slot, from when until when. Its own history: released rows stay."""

    allocation = models.ForeignKey(TierAllocation, on_delete=models.PROTECT, related_name="assignments")
    tier = models.ForeignKey(DeviceTier, on_delete=models.PROTECT, related_name="+")
    device = models.ForeignKey(Device, on_delete=models.PROTECT, related_name="assignments")
    assigned_at = models.DateTimeField()
    assigned_by = models.CharField(max_length=64)
    released_at = models.DateTimeField(null=True, blank=True)
    released_by = models.CharField(max_length=64, blank=True)
    reason = models.TextField(blank=True)

    class Meta:
        db_table = "slot_assignments"
        constraints: ClassVar = [
            models.UniqueConstraint(
                name="one_open_assignment_per_device", fields=["device"], condition=Q(released_at__isnull=True)
            ),
            models.CheckConstraint(
                name="an_assignment_ends_after_it_began",
                condition=Q(released_at__isnull=True) | Q(released_at__gte=F("assigned_at")),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.device} in {self.allocation_id}"


class Feature(models.Model):
    """A switch, or a quota: a number."""

    class Kind(models.TextChoices):
        SWITCH = "SWITCH", "Switch"
        QUOTA = "QUOTA", "Quota"

    code = models.SlugField(max_length=63, unique=True)
    name = models.CharField(max_length=200)
    kind = models.CharField(max_length=16, choices=Kind.choices)

    class Meta:
        db_table = "features"

    def __str__(self) -> str:
        return self.name


class PlanFeature(models.Model):
    """What a plan gives of a feature: 1 or 0 for a switch, an amount for a quota."""

    plan = models.ForeignKey(Plan, on_delete=models.CASCADE, related_name="features")
    feature = models.ForeignKey(Feature, on_delete=models.PROTECT, related_name="+")
    amount = models.PositiveBigIntegerField(default=1)

    class Meta:
        db_table = "plan_features"
        constraints: ClassVar = [
            models.UniqueConstraint(name="one_row_per_plan_and_feature", fields=["plan", "feature"])
        ]

    def __str__(self) -> str:
        return f"{self.plan}: {self.feature}"


class FeatureOverride(models.Model):
    """A tenant's exception, with a reason, until it expires."""

    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="feature_overrides")
    feature = models.ForeignKey(Feature, on_delete=models.PROTECT, related_name="+")
    amount = models.PositiveBigIntegerField()
    reason = models.TextField()
    expires_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        db_table = "feature_overrides"
        constraints: ClassVar = [
            models.UniqueConstraint(name="one_override_per_tenant_and_feature", fields=["tenant", "feature"]),
            models.CheckConstraint(name="an_override_has_a_reason", condition=~Q(reason="")),
        ]

    def __str__(self) -> str:
        return f"{self.tenant}: {self.feature} = {self.amount}"


class QuotaUsage(models.Model):
    """How much of a quota a tenant has used."""

    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="quota_usage")
    feature = models.ForeignKey(Feature, on_delete=models.PROTECT, related_name="+")
    used = models.BigIntegerField(default=0)

    class Meta:
        db_table = "quota_usage"
        verbose_name_plural = "quota usage"
        constraints: ClassVar = [
            models.UniqueConstraint(name="one_usage_row_per_tenant_and_feature", fields=["tenant", "feature"]),
            models.CheckConstraint(name="quota_use_is_never_negative", condition=Q(used__gte=0)),
        ]

    def __str__(self) -> str:
        return f"{self.tenant}: {self.used} × {self.feature}"
