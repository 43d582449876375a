"""What was bought, until when, and all that happened to it."""

from typing import ClassVar
from zoneinfo import available_timezones

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Cast, Now

from subscriptions.money import money
from subscriptions.states import DEADLINES, LIVE, Action, EndReason, Status, Type

# A family moves together with its root; only an add-on that was cancelled ends by itself.
STEPS_BY_ITSELF = Q(parent__isnull=True) | Q(cancel_at_term_end=True)

MOST_UNITS = 100_000  # of a plan or a pack; more is a slip of somebody's hand

THIS_TRANSACTION = Cast(Cast(models.Func(function="pg_current_xact_id"), models.TextField()), models.BigIntegerField())


def known_time_zone(name: str) -> None:
    if name != "UTC" and ("/" not in name or name not in available_timezones()):  # PostgreSQL reads CET as one offset
        raise ValidationError("%(name)s is no time zone: Europe/Berlin, UTC.", params={"name": name})


class Tenant(models.Model):
    """An organisation that buys subscriptions."""

    slug = models.SlugField(max_length=63, unique=True, help_text="Names the tenant in URLs; never changes.")
    name = models.CharField(max_length=200)
    billing_email = models.EmailField(blank=True, help_text="Where notices and invoices go.")
    contact_email = models.EmailField(blank=True, help_text="Where notices go when there is no billing address.")
    time_zone = models.CharField(
        max_length=63, default="UTC", validators=[known_time_zone],
        help_text="Whose midnights and months count where a plan's terms follow the tenant's calendar: Europe/Berlin.",
    )  # fmt: skip
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    closed_at = models.DateTimeField(
        null=True,
        blank=True,
        editable=False,
        help_text="Since when it is no customer any more: nothing can be started.",
    )

    class Meta:
        db_table = "tenants"
        ordering: ClassVar = ["name"]
        permissions: ClassVar = [("close_tenant", "Can close a tenant, and reopen it")]

    def __str__(self) -> str:
        return self.name

    @property
    def email(self) -> str:
        """Where mail to this tenant goes; the name is the one that dj-stripe asks of a subscriber."""
        return self.billing_email or self.contact_email


class Member(models.Model):
    """A person who signs in for a tenant."""

    class Role(models.TextChoices):
        OWNER = "OWNER", "Billing owner"
        ENGINEER = "ENGINEER", "Engineer"

    user = models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="member")
    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="members")
    role = models.CharField(max_length=16, choices=Role.choices, default=Role.ENGINEER)

    class Meta:
        db_table = "members"

    def __str__(self) -> str:
        return f"{self.user} of {self.tenant}"


class Plan(models.Model):
    """What can be bought. Its prices are `PlanPrice` rows."""

    class Calendar(models.TextChoices):
        UTC = "utc", "UTC"  # a day has 24 hours
        TENANT = "calendar", "The tenant's calendar"  # a day ends at the tenant's midnight, daylight saving or not

    code = models.SlugField(max_length=63, unique=True)
    name = models.CharField(max_length=200)
    type = models.CharField(max_length=16, choices=Type.choices, help_text="The type of the subscriptions it makes.")
    grace_days = models.PositiveSmallIntegerField(
        null=True,
        blank=True,
        help_text="Days of full service after the term while renewal is awaited. Empty: GRACE_DAYS.",
    )
    suspension_days = models.PositiveSmallIntegerField(
        null=True, blank=True, help_text="Days that a suspended subscription is remembered. Empty: SUSPENSION_DAYS."
    )
    terms_in = models.CharField(
        max_length=16,
        choices=Calendar.choices,
        default=Calendar.UTC,
        help_text="Whose days and months count.",
    )
    is_sold = models.BooleanField(default=True, help_text="Offered to new customers.")
    trial_days = models.PositiveSmallIntegerField(
        null=True, blank=True, validators=[MinValueValidator(1), MaxValueValidator(730)],
        help_text="A tenant that had no trial yet begins a purchase with so many days of it. Empty: none.",
    )  # fmt: skip
    trial_needs_card = models.BooleanField(
        default=True, db_default=True, help_text="Whether that trial asks for a payment method first."
    )

    class Meta:
        db_table = "plans"
        ordering: ClassVar = ["name"]

    def __str__(self) -> str:
        return self.name


class PlanPrice(models.Model):
    """What a plan costs, per interval. Money is whole minor units (cents) and a currency."""

    class Interval(models.TextChoices):
        MONTH = "month", "month"
        YEAR = "year", "year"

    plan = models.ForeignKey(Plan, on_delete=models.PROTECT, related_name="prices")
    currency = models.CharField(max_length=3, validators=[RegexValidator("^[A-Z]{3}$", "Three capital letters: EUR.")])
    amount_minor = models.PositiveBigIntegerField(help_text="In minor units: 4900 is 49.00.")
    interval = models.CharField(max_length=8, choices=Interval.choices)
    interval_count = models.PositiveSmallIntegerField(default=1)

    class Meta:
        db_table = "plan_prices"
        constraints: ClassVar = [
            models.UniqueConstraint(
                name="one_price_per_plan_currency_and_interval",
                fields=["plan", "currency", "interval", "interval_count"],
            ),
            models.CheckConstraint(name="price_interval_is_positive", condition=Q(interval_count__gt=0)),
        ]

    def __str__(self) -> str:
        count = f"{self.interval_count} {self.interval}s" if self.interval_count > 1 else self.interval
        return f"{self.plan}, {self.money} per {count}"

    @property
    def money(self) -> str:
        return money(self.amount_minor, self.currency)


class Subscription(models.Model):
    """One thing that a tenant bought, for a term.

    State is changed by the verbs of `lifecycle` and nothing else: a change of a column in `audit.TRACKED` cannot commit
    without its audit entry (the trigger is in `migrations/_evidence.py`).
    """

    # Every status change writes to every index of its row: none here that another one covers or nobody reads.
    number = models.CharField(max_length=20, help_text="The public identifier: SUB-YYYYMMDD-XXXXX.")
    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="subscriptions", db_index=False)
    parent = models.ForeignKey(
        "self", null=True, blank=True, on_delete=models.PROTECT, related_name="addons", db_index=False,
        help_text="The main subscription of an add-on: the root of its family.",
    )  # fmt: skip
    plan = models.ForeignKey(Plan, on_delete=models.PROTECT, related_name="subscriptions", db_index=False)
    price = models.ForeignKey(
        PlanPrice, null=True, blank=True, on_delete=models.PROTECT, related_name="+", db_index=False,
        help_text="What a renewal costs.",
    )  # fmt: skip
    quantity = models.PositiveIntegerField(
        default=1, db_default=1, help_text="How many units of the plan: each sells the plan's slots once."
    )
    type = models.CharField(max_length=16, choices=Type.choices)
    status = models.CharField(max_length=16, choices=Status.choices)
    term_start = models.DateTimeField(help_text="The first instant that is paid for.")
    term_end = models.DateTimeField(help_text="The first instant that is no longer paid for.")
    anniversary = models.DateTimeField(
        help_text="Every term ends on its day of the month and time of day: the first term_start, or where a term was "
        "moved to."
    )
    time_zone = models.CharField(
        max_length=63, default="UTC", help_text="Where its days and months are counted; fixed when it was sold."
    )
    term_deadline = models.DateTimeField(
        help_text="When the clock acts on the end of the term: later than term_end while a renewal may be settling."
    )
    grace_end = models.DateTimeField(null=True, blank=True, help_text="Until then full service, renewal awaited.")
    suspension_end = models.DateTimeField(
        null=True, blank=True, help_text="Until then everything is remembered; then it expires. Empty while on hold."
    )
    on_hold = models.BooleanField(default=False, help_text="Suspended by staff; only staff lift it.")
    own_hold = models.BooleanField(
        default=False,
        help_text="An add-on's own hold: it stays when that of its main subscription is lifted.",
    )
    auto_renews = models.BooleanField(default=False, help_text="A payment provider renews it and tells us.")
    cancel_at_term_end = models.BooleanField(default=False, help_text="Ends at term_end, without a grace period.")
    ended_at = models.DateTimeField(null=True, blank=True)
    end_reason = models.CharField(max_length=32, choices=EndReason.choices, blank=True)
    trial_ordinal = models.PositiveSmallIntegerField(
        null=True,
        editable=False,
        help_text="1 for the first trial of the tenant; more where staff granted another.",
    )
    version = models.PositiveIntegerField(
        default=1, help_text="Moves by one with every change; audit entries carry it."
    )
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    # Derived by the database, so that nothing can write them wrongly.
    next_deadline = models.GeneratedField(
        expression=models.Case(
            *[models.When(status=status, then=F(rule.column)) for status, rule in DEADLINES.items()]
        ),
        output_field=models.DateTimeField(null=True),
        db_persist=True,
    )
    parent_type = models.GeneratedField(  # half of the foreign key "a parent is a MAIN of the same tenant"
        expression=models.Case(models.When(parent__isnull=False, then=models.Value(Type.MAIN.value))),
        output_field=models.CharField(max_length=16, null=True),
        db_persist=True,
    )

    class Meta:
        db_table = "subscriptions"
        ordering: ClassVar = ["-id"]
        permissions: ClassVar = [("grant_another_trial", "Can grant a tenant another trial")]
        indexes: ClassVar = [
            # used by: sweep.advance
            models.Index(name="subscriptions_due", fields=["next_deadline", "id"], condition=STEPS_BY_ITSELF),
            # used by: notifications.schedule, one each for the milestones of kinds.LADDERS
            models.Index(name="subscriptions_ending", fields=["term_end"], condition=Q(status=Status.ACTIVE)),
            models.Index(name="subscriptions_grace_ending", fields=["grace_end"], condition=Q(status=Status.GRACE)),
            models.Index(name="subscriptions_trial_ending", fields=["term_end"], condition=Q(status=Status.TRIAL)),
            models.Index(name="subscriptions_of_tenant", fields=["tenant", "-id"]),
            # used by: families, sweep
            models.Index(name="addons_of_main", fields=["parent"], condition=Q(parent__isnull=False)),
        ]
        constraints: ClassVar = [
            models.UniqueConstraint(name="one_subscription_per_number", fields=["number"]),
            models.CheckConstraint(
                name="an_addon_has_a_parent_and_nothing_else_has",
                condition=Q(type=Type.ADDON, parent__isnull=False) | (~Q(type=Type.ADDON) & Q(parent__isnull=True)),
            ),
            models.UniqueConstraint(
                name="one_live_main_per_tenant",
                fields=["tenant"],
                condition=Q(type=Type.MAIN, status__in=sorted(LIVE)),
            ),
            models.UniqueConstraint(
                name="one_trial_per_tenant_unless_granted",
                fields=["tenant", "trial_ordinal"],
                condition=Q(trial_ordinal__isnull=False),
            ),
            models.CheckConstraint(
                name="a_trial_is_counted", condition=~Q(type=Type.TRIAL) | Q(trial_ordinal__isnull=False)
            ),
            models.UniqueConstraint(name="family_key", fields=["id", "tenant", "type"]),
            models.CheckConstraint(name="a_term_is_not_empty", condition=Q(term_start__lt=F("term_end"))),
            models.CheckConstraint(
                name="the_clock_never_acts_before_term_end", condition=Q(term_deadline__gte=F("term_end"))
            ),
            models.CheckConstraint(
                name="grace_has_an_end", condition=~Q(status=Status.GRACE) | Q(grace_end__isnull=False)
            ),
            models.CheckConstraint(
                name="suspension_has_an_end_or_a_hold",
                condition=Q(status=Status.SUSPENDED, on_hold=True, suspension_end__isnull=True)
                | Q(status=Status.SUSPENDED, on_hold=False, suspension_end__isnull=False)
                | (~Q(status=Status.SUSPENDED) & Q(on_hold=False)),
            ),
            models.CheckConstraint(
                name="only_an_addon_has_a_hold_of_its_own",
                condition=Q(own_hold=False) | Q(on_hold=True, parent__isnull=False),
            ),
            models.CheckConstraint(
                name="expired_says_when_and_why",
                condition=(Q(status=Status.EXPIRED, ended_at__isnull=False) & ~Q(end_reason=""))
                | (~Q(status=Status.EXPIRED) & Q(ended_at__isnull=True, end_reason="")),
            ),
            models.CheckConstraint(name="at_least_one_unit_was_bought", condition=Q(quantity__gt=0)),
            models.CheckConstraint(name="status_is_known", condition=Q(status__in=Status.values)),
            models.CheckConstraint(name="type_is_known", condition=Q(type__in=Type.values)),
        ]

    def __str__(self) -> str:
        return self.number

    @property
    def root_id(self) -> int:
        """The row that whoever changes anything of this family locks first."""
        return self.parent_id or self.pk


class SetAside(models.Model):
    """A family that the clock could not move. The others go on without it; it is tried again every hour."""

    root = models.OneToOneField(Subscription, on_delete=models.CASCADE, primary_key=True, related_name="set_aside")
    error = models.TextField(help_text="Why its last step failed, as the database said it.")
    since = models.DateTimeField()
    retry_at = models.DateTimeField()

    class Meta:
        db_table = "families_set_aside"
        ordering: ClassVar = ["since"]
        verbose_name = "family set aside"
        verbose_name_plural = "families set aside"

    def __str__(self) -> str:
        return f"{self.root}: {self.error}"


class AuditEntry(models.Model):
    """One thing that happened to one subscription. Append-only: the database refuses UPDATE, DELETE and TRUNCATE."""

    subscription = models.ForeignKey(Subscription, on_delete=models.PROTECT, related_name="audit", db_index=False)
    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="+", db_index=False)
    version = models.PositiveIntegerField(help_text="The subscription's version that this entry is the evidence of.")
    action = models.CharField(max_length=32, choices=Action.choices)
    effective_at = models.DateTimeField(help_text="When it became true.")
    recorded_at = models.DateTimeField(db_default=Now(), help_text="When we wrote it down.")
    actor = models.CharField(max_length=64, help_text="Who: staff:12, member:7, stripe, clock, apikey:3.")
    source_id = models.CharField(max_length=255, blank=True, help_text="What caused it: an event id, a request id.")
    reason = models.TextField(blank=True)
    request_id = models.CharField(
        max_length=64, blank=True, default="", db_default="", help_text="The web request that caused it, if one did."
    )
    address = models.GenericIPAddressField(null=True, blank=True, help_text="Where that request came from.")
    changes = models.JSONField(help_text="Column → [before, after].")
    transaction_id = models.BigIntegerField(
        db_default=THIS_TRANSACTION,
        editable=False,
        help_text="The database transaction that wrote it: readers that must miss nothing wait until it is over.",
    )

    class Meta:
        db_table = "subscription_audit"
        ordering: ClassVar = ["-id"]
        verbose_name_plural = "audit entries"
        indexes: ClassVar = [
            models.Index(name="audit_of_tenant", fields=["tenant", "-id"]),
            models.Index(name="audit_by_transaction", fields=["transaction_id", "id"]),
            # used by: the admin's page of a Stripe event. The unique ones below begin with the subscription, or hold
            # beginnings only.
            models.Index(name="audit_by_source", fields=["source_id"], condition=~Q(source_id="")),
        ]
        constraints: ClassVar = [
            models.UniqueConstraint(name="one_audit_entry_per_version", fields=["subscription", "version"]),
            models.UniqueConstraint(
                name="a_source_applies_once_per_subscription_and_action",
                fields=["subscription", "source_id", "action"],
                condition=~Q(source_id=""),
            ),
            models.UniqueConstraint(
                name="a_source_starts_one_subscription",
                fields=["source_id"],
                condition=Q(action=Action.STARTED) & ~Q(source_id=""),
            ),
            models.CheckConstraint(name="an_audit_entry_names_its_actor", condition=~Q(actor="")),
        ]

    def __str__(self) -> str:
        return f"{self.subscription_id} v{self.version}: {self.get_action_display()}"


class AuditCursor(models.Model):
    """How far a reader of the audit has come: every transaction before this one has been read. See `unread`."""

    reader = models.CharField(max_length=32, primary_key=True)
    transaction_id = models.BigIntegerField(default=0)
    last_run_at = models.DateTimeField(null=True, help_text="Milestones that had passed by then have been looked for.")
    milestones = ArrayField(models.CharField(max_length=32), default=list, help_text="Those that were looked for then.")

    class Meta:
        db_table = "audit_cursors"

    def __str__(self) -> str:
        return self.reader


class AuditSeal(models.Model):
    """A closed range of the audit, sealed: it chains to the seal before. Append-only. What it holds: `seals`."""

    number = models.BigIntegerField(primary_key=True, help_text="1, 2, 3, … without a gap.")
    era = models.BigIntegerField(
        help_text="The number of the first seal since transactions were last counted anew: a restore begins an era."
    )
    cluster = models.BigIntegerField(
        null=True, help_text="The database cluster that counted the transactions; empty for what was found restored."
    )
    after_transaction_id = models.BigIntegerField(help_text="The range begins after this place…")
    after_id = models.BigIntegerField()
    until_transaction_id = models.BigIntegerField(help_text="…and ends with this one: both are of their era.")
    until_id = models.BigIntegerField()
    greatest_id = models.BigIntegerField(help_text="The greatest id of an entry sealed in this era so far.")
    count = models.PositiveIntegerField(help_text="How many entries.")
    entries = models.BinaryField(help_text="For each entry, in order: its id (8 bytes) and its digest (32).")
    salt = models.BinaryField(help_text="Makes the nonces, so that nobody can guess an entry from its digest.")
    sealed_at = models.DateTimeField()
    previous = models.CharField(max_length=64, help_text="The digest of the seal before; zeros in the first.")
    digest = models.CharField(max_length=64, help_text="SHA-256 over all of this but the salt.")

    class Meta:
        db_table = "audit_seals"
        ordering: ClassVar = ["number"]
        constraints: ClassVar = [
            models.UniqueConstraint(name="a_seal_is_followed_by_one", fields=["previous"]),
            models.CheckConstraint(name="a_seal_has_entries", condition=Q(count__gt=0)),
        ]

    def __str__(self) -> str:
        return f"Seal {self.number}"
