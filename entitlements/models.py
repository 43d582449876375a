"""Who may use what: the tables, with the rules that the database holds. The verbs are in `slots` and `quotas`."""

from typing import ClassVar

from django.core.validators import RegexValidator
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now

from subscriptions.models import THIS_TRANSACTION, Plan, PlanPrice, Subscription, Tenant
from subscriptions.money import money


class DeviceTier(models.Model):
    """A class of device service: basic, standard, premium."""

    code = models.SlugField(max_length=63, unique=True, help_text="Names the tier in URLs and in the audit.")
    name = models.CharField(max_length=200)
    position = models.PositiveSmallIntegerField(
        default=0, db_default=0, help_text="Its place in lists, the smallest first."
    )
    is_default = models.BooleanField(
        default=False, db_default=False, help_text="What a device gets where nobody says which tier."
    )

    class Meta:
        db_table = "device_tiers"
        ordering: ClassVar = ["position", "code"]
        constraints: ClassVar = [
            models.UniqueConstraint(name="one_default_tier", fields=["is_default"], condition=Q(is_default=True))
        ]

    def __str__(self) -> str:
        return self.name


class Device(models.Model):
    """A device of a tenant, under the platform's own id for it. One that was deleted is remembered; registered again,
    it goes on with its history.
    """

    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="devices", db_index=False)
    device_id = models.CharField(max_length=128, help_text="The platform's own id, unique per tenant.")
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    deleted_at = models.DateTimeField(null=True, blank=True)
    parked_at = models.DateTimeField(null=True, blank=True, help_text="Since when it waits for a slot that it lost.")
    parked_tier = models.ForeignKey(
        DeviceTier, null=True, blank=True, on_delete=models.PROTECT, related_name="+", db_index=False,
        help_text="The tier of the slot that it waits for.",
    )  # fmt: skip
    transaction_id = models.BigIntegerField(
        db_default=THIS_TRANSACTION,
        editable=False,
        help_text="The database transaction that changed it, or its slot, last: readers of `changes` go by it.",
    )

    class Meta:
        db_table = "devices"
        indexes: ClassVar = [
            models.Index(name="devices_by_change", fields=["transaction_id", "id"]),  # used by: changes
            # used by: slots, to let the longest parked return
            models.Index(name="devices_parked", fields=["tenant", "parked_tier", "parked_at"],
                         condition=Q(parked_at__isnull=False)),
            # used by: access and provisioning, for another tenant's
            models.Index(name="devices_by_device_id", fields=["device_id"]),
        ]  # fmt: skip
        constraints: ClassVar = [
            # By the bytes of the id, so that the API's search finds how one begins, in whatever collation.
            models.UniqueConstraint(
                name="one_device_per_tenant_and_device_id",
                fields=["tenant", "device_id"],
                opclasses=["int8_ops", "varchar_pattern_ops"],
            ),
            models.UniqueConstraint(name="device_key", fields=["tenant", "id"]),  # used by: the API's list, too
            models.CheckConstraint(
                name="a_parked_device_waits_for_a_tier",
                condition=Q(parked_at__isnull=True, parked_tier__isnull=True)
                | Q(parked_at__isnull=False, parked_tier__isnull=False, deleted_at__isnull=True),
            ),
        ]

    def __str__(self) -> str:
        return self.device_id


class PlanSlots(models.Model):
    """How many slots of a tier a plan sells. What was sold already stays as it is until it is synced."""

    plan = models.ForeignKey(Plan, on_delete=models.CASCADE, related_name="slots")
    tier = models.ForeignKey(DeviceTier, on_delete=models.PROTECT, related_name="+")
    slots = models.PositiveIntegerField(help_text="Per unit of the plan.")
    by_device = models.BooleanField(
        default=False, db_default=False,
        help_text="The plan is sold by the device: one that is deleted lowers the quantity that is paid for.",
    )  # fmt: skip

    class Meta:
        db_table = "plan_slots"
        verbose_name_plural = "plan slots"
        constraints: ClassVar = [models.UniqueConstraint(name="one_row_per_plan_and_tier", fields=["plan", "tier"])]

    def __str__(self) -> str:
        return f"{self.plan}: {self.slots} × {self.tier}"


class SlotPack(models.Model):
    """More slots of a tier, bought beside a plan and paid with it."""

    code = models.SlugField(max_length=63, unique=True)
    name = models.CharField(max_length=200)
    tier = models.ForeignKey(DeviceTier, on_delete=models.PROTECT, related_name="+", db_index=False)
    slots = models.PositiveIntegerField(help_text="Per unit of the pack.")
    currency = models.CharField(max_length=3, validators=[RegexValidator("^[A-Z]{3}$", "Three capital letters: EUR.")])
    amount_minor = models.PositiveBigIntegerField(help_text="Per unit and interval, in minor units: 4900 is 49.00.")
    interval = models.CharField(max_length=8, choices=PlanPrice.Interval.choices, help_text="As of the plan beside it.")
    interval_count = models.PositiveSmallIntegerField(default=1)
    is_sold = models.BooleanField(default=True, help_text="Offered to customers.")

    class Meta:
        db_table = "slot_packs"
        ordering: ClassVar = ["name"]
        constraints: ClassVar = [
            models.CheckConstraint(
                name="a_pack_has_slots_and_an_interval", condition=Q(slots__gt=0, interval_count__gt=0)
            ),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def money(self) -> str:
        return money(self.amount_minor, self.currency)


class SubscriptionPack(models.Model):
    """How many units of a pack a subscription holds, beside its plan."""

    subscription = models.ForeignKey(Subscription, on_delete=models.PROTECT, related_name="packs", db_index=False)
    pack = models.ForeignKey(SlotPack, on_delete=models.PROTECT, related_name="+", db_index=False)
    quantity = models.PositiveIntegerField()

    class Meta:
        db_table = "subscription_packs"
        constraints: ClassVar = [
            models.UniqueConstraint(name="one_row_per_subscription_and_pack", fields=["subscription", "pack"]),
            models.CheckConstraint(name="a_pack_that_is_held_counts", condition=Q(quantity__gt=0)),
        ]

    def __str__(self) -> str:
        return f"{self.quantity} × {self.pack}"


class TierAllocation(models.Model):
    """How many slots of a tier a subscription holds, and how many are in use. Oversell cannot be written, and a limit
    does not change without its audit entry (the trigger is in migration 0003).
    """

    # No foreign key: the trigger that finds its tenant needs it, it never changes, and no subscription is ever deleted.
    # A key would be checked again at the commit of whoever moves the counter twice, and wait for who changes the type.
    subscription = models.ForeignKey(
        Subscription, on_delete=models.PROTECT, related_name="allocations", db_index=False, db_constraint=False
    )
    tenant = models.ForeignKey(  # written by a trigger: its subscription's
        Tenant, on_delete=models.PROTECT, related_name="+", db_index=False, db_constraint=False, editable=False
    )
    tier = models.ForeignKey(DeviceTier, on_delete=models.PROTECT, related_name="+", db_index=False)
    slot_limit = models.IntegerField()
    slots_used = models.IntegerField(default=0)
    is_open = models.BooleanField(
        default=True, db_default=True, help_text="Until its subscription is over. Then nothing is assigned."
    )

    class Meta:
        db_table = "tier_allocations"
        indexes: ClassVar = [
            # used by: slots, to find room. Without slots_used, which changes all the time.
            models.Index(name="allocations_of_tenant", fields=["tenant", "tier"], condition=Q(is_open=True)),
        ]
        constraints: ClassVar = [
            models.UniqueConstraint(name="one_allocation_per_subscription_and_tier", fields=["subscription", "tier"]),
            models.UniqueConstraint(name="allocation_key", fields=["id", "tier", "tenant"]),
            models.CheckConstraint(
                name="slots_are_never_oversold", condition=Q(slots_used__gte=0, slots_used__lte=F("slot_limit"))
            ),
            models.CheckConstraint(
                name="nothing_is_in_use_of_what_is_over", condition=Q(is_open=True) | Q(slots_used=0)
            ),
        ]

    def __str__(self) -> str:
        return f"{self.slots_used} of {self.slot_limit} × {self.tier}"


class SlotAssignment(models.Model):
    """A device in a slot, from when until when. Its own history: released rows stay.

    Its tenant and tier are its allocation's and its device's: two foreign keys over several columns, in migration 0003.
    """

    class Ended(models.TextChoices):
        """Why a device left its slot."""

        RELEASED = "released", "Released"
        DELETED = "deleted", "Device deleted"
        MOVED = "moved", "Moved to another slot"
        PARKED = "parked", "Parked"  # fewer slots, or none: it waits for one

    allocation = models.ForeignKey(
        TierAllocation, on_delete=models.PROTECT, related_name="assignments", db_index=False, db_constraint=False
    )
    tier = models.ForeignKey(
        DeviceTier, on_delete=models.PROTECT, related_name="+", db_index=False, db_constraint=False
    )
    device = models.ForeignKey(
        Device, on_delete=models.PROTECT, related_name="assignments", db_index=False, db_constraint=False
    )
    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="+", db_index=False, db_constraint=False)
    assigned_at = models.DateTimeField()
    assigned_by = models.CharField(max_length=64, help_text="The actor: member:7, apikey:3, stripe, clock.")
    source_id = models.CharField(
        max_length=255, blank=True, default="", db_default="", help_text="What caused it: a request id, a file's line."
    )
    reason = models.TextField(blank=True)
    released_at = models.DateTimeField(null=True, blank=True)
    released_by = models.CharField(max_length=64, blank=True)
    ended = models.CharField(max_length=16, choices=Ended.choices, blank=True, default="", db_default="")
    end_reason = models.TextField(blank=True, default="", db_default="", help_text="Why it left its slot, in words.")

    class Meta:
        db_table = "slot_assignments"
        indexes: ClassVar = [
            models.Index(name="assignments_of_device", fields=["device", "-id"]),  # used by: explain
            # used by: slots, to park the newest; the list of a subscription's devices
            models.Index(name="open_assignments", fields=["allocation", "-id"], condition=Q(released_at__isnull=True)),
        ]
        constraints: ClassVar = [
            models.UniqueConstraint(
                name="one_open_assignment_per_device", fields=["device"], condition=Q(released_at__isnull=True)
            ),
            models.CheckConstraint(
                name="an_assignment_ends_after_it_began",
                condition=Q(released_at__isnull=True) | Q(released_at__gte=F("assigned_at")),
            ),
            models.CheckConstraint(
                name="a_released_slot_says_who_and_why",
                condition=Q(released_at__isnull=True, released_by="", ended="")
                | (Q(released_at__isnull=False) & ~Q(released_by="") & ~Q(ended="")),
            ),
            models.CheckConstraint(name="an_assignment_names_its_actor", condition=~Q(assigned_by="")),
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


class TierFeature(models.Model):
    """What a device of a tier may do: 1 or 0 for a switch, an amount per device for a quota."""

    tier = models.ForeignKey(DeviceTier, on_delete=models.CASCADE, related_name="features", db_index=False)
    feature = models.ForeignKey(Feature, on_delete=models.PROTECT, related_name="+", db_index=False)
    amount = models.PositiveBigIntegerField(default=1, help_text="1: on, 0: off; or how much.")

    class Meta:
        db_table = "tier_features"
        constraints: ClassVar = [
            models.UniqueConstraint(name="one_row_per_tier_and_feature", fields=["tier", "feature"])
        ]

    def __str__(self) -> str:
        return f"{self.tier}: {self.feature}"


class PlanFeature(models.Model):
    """What a plan gives a tenant of a feature: 1 or 0 for a switch, an amount for a quota. What was sold already stays
    as it is until it is synced.
    """

    plan = models.ForeignKey(Plan, on_delete=models.CASCADE, related_name="features")
    feature = models.ForeignKey(Feature, on_delete=models.PROTECT, related_name="+")
    amount = models.PositiveBigIntegerField(default=1, help_text="1: on, 0: off; or how much.")

    class Meta:
        db_table = "plan_features"
        constraints: ClassVar = [
            models.UniqueConstraint(name="one_row_per_plan_and_feature", fields=["plan", "feature"])
        ]

    def __str__(self) -> str:
        return f"{self.plan}: {self.feature}"


class SubscriptionFeature(models.Model):
    """What a subscription gives of a feature: what its plan gave when it was sold, or synced."""

    subscription = models.ForeignKey(Subscription, on_delete=models.PROTECT, related_name="features", db_index=False)
    feature = models.ForeignKey(Feature, on_delete=models.PROTECT, related_name="+", db_index=False)
    amount = models.PositiveBigIntegerField(help_text="1: on, 0: off; or how much.")

    class Meta:
        db_table = "subscription_features"
        constraints: ClassVar = [
            models.UniqueConstraint(name="one_row_per_subscription_and_feature", fields=["subscription", "feature"])
        ]

    def __str__(self) -> str:
        return f"{self.subscription}: {self.amount} × {self.feature}"


class FeatureOverride(models.Model):
    """A tenant's exception: this amount in place of what its plans give, with a reason, until it expires by itself."""

    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="feature_overrides")
    feature = models.ForeignKey(Feature, on_delete=models.PROTECT, related_name="+")
    amount = models.PositiveBigIntegerField()
    reason = models.TextField()
    expires_at = models.DateTimeField(null=True, blank=True, help_text="Then the plans count again. Empty: never.")
    transaction_id = models.BigIntegerField(db_default=THIS_TRANSACTION, editable=False)  # used by: changes

    class Meta:
        db_table = "feature_overrides"
        indexes: ClassVar = [
            models.Index(name="overrides_by_change", fields=["transaction_id", "id"])  # used by: changes
        ]
        constraints: ClassVar = [
            models.UniqueConstraint(name="one_override_per_tenant_and_feature", fields=["tenant", "feature"]),
            models.CheckConstraint(name="an_override_has_a_reason", condition=~Q(reason="")),
        ]

    def __str__(self) -> str:
        return f"{self.tenant}: {self.feature} = {self.amount}"


class FeatureOverrideEntry(models.Model):
    """The history of a tenant's exceptions: who made or ended one, why, and what it said from then on. It only
    grows (the trigger is in migration 0007).
    """

    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="+", db_index=False)
    feature = models.ForeignKey(Feature, on_delete=models.PROTECT, related_name="+", db_index=False)
    amount = models.PositiveBigIntegerField()
    expires_at = models.DateTimeField(null=True, blank=True, help_text="Its own instant: it was ended.")
    at = models.DateTimeField()
    actor = models.CharField(max_length=64, help_text="staff:12, operator:1000.")
    request_id = models.CharField(max_length=64, blank=True)
    reason = models.TextField()

    class Meta:
        db_table = "feature_override_entries"
        verbose_name_plural = "feature override entries"
        indexes: ClassVar = [models.Index(name="override_entries_of_tenant", fields=["tenant", "-id"])]
        constraints: ClassVar = [
            models.CheckConstraint(name="an_override_entry_says_who_and_why", condition=~Q(actor="") & ~Q(reason=""))
        ]

    def __str__(self) -> str:
        return f"{self.tenant}: {self.feature} = {self.amount}, by {self.actor}"


class CatalogueChange(models.Model):
    """That a transaction changed what everybody's entitlements stand on: tiers, features, what plans and tiers give.
    Written by triggers (migration 0006), so that no way to write the catalogue forgets it.
    """

    transaction_id = models.BigIntegerField(db_default=THIS_TRANSACTION, editable=False)
    table = models.CharField(max_length=32, help_text="Which of the catalogue's tables.")

    class Meta:
        db_table = "catalogue_changes"
        constraints: ClassVar = [  # used by: changes, too
            models.UniqueConstraint(name="one_change_per_transaction_and_table", fields=["transaction_id", "table"])
        ]

    def __str__(self) -> str:
        return f"{self.table} in {self.transaction_id}"


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


class QuotaOperation(models.Model):
    """A use of a quota that was done under a key, so that a repeat is told the same and does nothing."""

    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="+", db_index=False)
    feature = models.ForeignKey(Feature, on_delete=models.PROTECT, related_name="+", db_index=False)
    key = models.CharField(max_length=255)
    operation = models.CharField(max_length=16)
    amount = models.BigIntegerField()
    used = models.BigIntegerField(help_text="What was in use afterwards: the answer to a repeat.")
    quota_limit = models.BigIntegerField(help_text="What was allowed then: of the answer, too.")
    at = models.DateTimeField()

    class Meta:
        db_table = "quota_operations"
        indexes: ClassVar = [models.Index(name="quota_operations_by_time", fields=["at"])]  # used by: forgetting them
        constraints: ClassVar = [
            models.UniqueConstraint(name="a_key_is_used_once", fields=["tenant", "feature", "key"])
        ]

    def __str__(self) -> str:
        return f"{self.operation} {self.amount} ({self.key})"
