"""What Stripe told us about, what it has to be told, what is bought there now, and where the two of us differ."""

from typing import ClassVar

from django.db import models
from django.db.models import F, Q

from entitlements.models import SlotPack
from subscriptions.models import Plan, PlanPrice, Subscription, Tenant


class StripeEvent(models.Model):
    """One event, by its ids alone: a doorbell. What is true is fetched from Stripe; no payload is ever kept."""

    class State(models.TextChoices):
        PENDING = "PENDING", "Pending"  # waits for its first try, or for next_attempt_at after a failed one
        DONE = "DONE", "Done"  # applied, in the same transaction as what it changed
        PARKED = "PARKED", "Parked"  # waits for a person: replay it when the cause is gone

    event_id = models.CharField(max_length=255, primary_key=True)
    type = models.CharField(max_length=100)
    object_id = models.CharField(max_length=255, help_text="The Stripe object that the event is about.")
    stripe_subscription_id = models.CharField(max_length=255, blank=True)
    livemode = models.BooleanField()
    created_at = models.DateTimeField(help_text="When it happened at Stripe.")
    received_at = models.DateTimeField(help_text="When its first delivery came in.")
    state = models.CharField(max_length=16, choices=State.choices, default=State.PENDING)
    attempts = models.PositiveSmallIntegerField(default=0)
    replays = models.PositiveSmallIntegerField(default=0, help_text="How often a person asked for it again.")
    next_attempt_at = models.DateTimeField(
        help_text="When it may be tried (again); also the lease of who tries it now."
    )
    done_at = models.DateTimeField(null=True, blank=True)
    outcome = models.CharField(max_length=255, blank=True, help_text="What applying it came to.")
    error_code = models.CharField(max_length=64, blank=True)
    error = models.TextField(blank=True, help_text="Why the last try failed.")

    class Meta:
        db_table = "stripe_events"
        ordering: ClassVar = ["-received_at", "-event_id"]
        indexes: ClassVar = [
            # used by: inbox.CLAIM, the sweep, readiness
            models.Index(name="stripe_events_pending", fields=["next_attempt_at"], condition=Q(state="PENDING")),
            models.Index(name="stripe_events_by_time", fields=["-received_at", "-event_id"]),
            models.Index(name="stripe_events_parked", fields=["received_at"], condition=Q(state="PARKED")),
            # used by: inbox.CLAIM, for those that are answered with another one
            models.Index(
                name="stripe_events_beside", fields=["stripe_subscription_id"], condition=Q(state="PENDING", attempts=0)
            ),
        ]
        constraints: ClassVar = [
            models.CheckConstraint(
                name="an_event_is_done_when_it_says_so",
                condition=Q(state="DONE", done_at__isnull=False) | (~Q(state="DONE") & Q(done_at__isnull=True)),
            ),
        ]

    def __str__(self) -> str:
        return self.event_id

    @property
    def source_id(self) -> str:
        """What the audit calls it. A replay is a source of its own: the truth may have moved on since."""
        return f"{self.event_id}~{self.replays}" if self.replays else self.event_id


class StripeLink(models.Model):
    """Which Stripe subscription is which of ours, and how far its news have been applied.

    Whoever fetches takes `ticket + 1` first; what was fetched is applied only if no later ticket was. So a slow answer
    can never overwrite a newer one, and no transaction is open while Stripe is asked.
    """

    stripe_subscription_id = models.CharField(max_length=255, primary_key=True)
    subscription = models.OneToOneField(
        Subscription, null=True, blank=True, on_delete=models.PROTECT, related_name="stripe_link"
    )
    ticket = models.BigIntegerField(default=0, help_text="The last ticket taken.")
    applied_ticket = models.BigIntegerField(default=0, help_text="The ticket of what was applied last.")
    compared_at = models.DateTimeField(
        null=True, blank=True, help_text="When a reconciliation last saw it at Stripe, and compared."
    )
    # A change that is to come, as Stripe says: what it will be made of, and when.
    schedule_id = models.CharField(max_length=255, blank=True, db_default="", help_text="Empty: nothing is scheduled.")
    scheduled_at = models.DateTimeField(null=True, blank=True)
    scheduled_price = models.ForeignKey(
        PlanPrice, null=True, blank=True, on_delete=models.SET_NULL, related_name="+", db_index=False,
        help_text="Empty: something that we do not know is scheduled.",
    )  # fmt: skip
    scheduled_quantity = models.PositiveIntegerField(null=True, blank=True)

    class Meta:
        db_table = "stripe_links"
        constraints: ClassVar = [
            models.CheckConstraint(
                name="only_a_ticket_that_was_taken_is_applied", condition=Q(applied_ticket__lte=F("ticket"))
            )
        ]

    def __str__(self) -> str:
        return self.stripe_subscription_id


class StripePrice(models.Model):
    """Which Stripe price sells which of our prices, or which slot pack. An unknown price parks its event; it never
    becomes service.
    """

    stripe_price_id = models.CharField(max_length=255, primary_key=True)
    plan_price = models.ForeignKey(
        PlanPrice, null=True, blank=True, on_delete=models.PROTECT, related_name="stripe_prices"
    )
    slot_pack = models.ForeignKey(
        SlotPack, null=True, blank=True, on_delete=models.PROTECT, related_name="stripe_prices"
    )

    class Meta:
        db_table = "stripe_prices"
        constraints: ClassVar = [
            models.CheckConstraint(
                name="a_stripe_price_sells_a_plan_or_a_slot_pack",
                condition=Q(plan_price__isnull=False, slot_pack__isnull=True)
                | Q(plan_price__isnull=True, slot_pack__isnull=False),
            )
        ]

    def __str__(self) -> str:
        return self.stripe_price_id


class Checkout(models.Model):
    """A purchase that a tenant was sent to Stripe for. One is open per intent: a double click, the back button and a
    second tab lead to the same one.
    """

    class State(models.TextChoices):
        OPEN = "OPEN", "Open"  # the customer may pay
        COMPLETE = "COMPLETE", "Complete"  # paid, or the money is on its way; its subscription is at Stripe
        EXPIRED = "EXPIRED", "Expired"  # nobody paid in time, or another purchase took its place

    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="checkouts", db_index=False)
    plan = models.ForeignKey(Plan, on_delete=models.PROTECT, related_name="+", db_index=False)
    price = models.ForeignKey(PlanPrice, on_delete=models.PROTECT, related_name="+", db_index=False)
    quantity = models.PositiveIntegerField(default=1)
    parent = models.ForeignKey(
        Subscription, null=True, blank=True, on_delete=models.PROTECT, related_name="+", db_index=False,
        help_text="Of an add-on: its main subscription.",
    )  # fmt: skip
    renews = models.ForeignKey(
        Subscription, null=True, blank=True, on_delete=models.PROTECT, related_name="+", db_index=False,
        help_text="The subscription that goes on with what is bought, instead of a new one.",
    )  # fmt: skip
    request = models.JSONField(
        default=dict, help_text="What Stripe is asked for, kept so that it can be asked again in the same words."
    )
    session_id = models.CharField(max_length=255, blank=True, help_text="Stripe's checkout session, once it is made.")
    url = models.TextField(blank=True, help_text="Where the customer pays.")
    success_url = models.TextField(
        blank=True, help_text="Where the customer goes on, once what was bought is here. Empty: a page of ours."
    )
    cancel_url = models.TextField()
    state = models.CharField(max_length=16, choices=State.choices, default=State.OPEN)
    actor = models.CharField(max_length=64, help_text="Who asked for it: member:7, apikey:3.")
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField(help_text="Until then Stripe takes the payment.")

    class Meta:
        db_table = "stripe_checkouts"
        indexes: ClassVar = [models.Index(name="checkouts_of_tenant", fields=["tenant", "-id"])]
        constraints: ClassVar = [
            models.UniqueConstraint(
                name="one_open_checkout_for_a_main_subscription",
                fields=["tenant"],
                condition=Q(state="OPEN", parent__isnull=True),
            ),
            models.UniqueConstraint(
                name="one_open_checkout_per_addon",
                fields=["parent", "plan"],
                condition=Q(state="OPEN", parent__isnull=False),
            ),
            models.UniqueConstraint(
                name="one_checkout_per_session", fields=["session_id"], condition=~Q(session_id="")
            ),
        ]

    def __str__(self) -> str:
        return self.session_id or f"checkout {self.pk}"


class Telling(models.Model):
    """Something that changed here and that Stripe has to be told. Delivered by `outbound`, tried again until it is.

    It says which aspect of a Stripe subscription is ours to say, not what: that is read when it is told. Until then
    what Stripe says of this aspect changes nothing here.
    """

    class Aspect(models.TextChoices):
        END = "END", "It is over"  # cancelled at Stripe at once: nobody is billed for nothing
        TERM_END = "TERM_END", "Whether it ends with its term"  # of an add-on: whether and when its main one does
        ITEMS = "ITEMS", "What was bought"  # plan, quantity, packs
        PAUSE = "PAUSE", "Whether it is paid for"  # payments are paused while staff hold it
        CLOSED = "CLOSED", "Its tenant is no customer any more"  # whatever the Stripe customer has there ends

    class State(models.TextChoices):
        PENDING = "PENDING", "Pending"
        DONE = "DONE", "Done"
        STUCK = "STUCK", "Stuck"  # refused, or tried for three days: waits for a person

    aspect = models.CharField(max_length=16, choices=Aspect.choices)
    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="+", db_index=False)
    link = models.ForeignKey(StripeLink, null=True, blank=True, on_delete=models.PROTECT, related_name="tellings")
    version = models.PositiveIntegerField(
        default=0, help_text="The version of our subscription that has it; Stripe is told of each once."
    )
    of_main = models.BooleanField(
        default=False, db_default=False, help_text="It is the version of its main subscription, whose end it follows."
    )
    actor = models.CharField(max_length=64, help_text="Who changed it here.")
    reason = models.TextField(blank=True)
    state = models.CharField(max_length=16, choices=State.choices, default=State.PENDING)
    attempts = models.PositiveSmallIntegerField(default=0)
    created_at = models.DateTimeField()
    next_attempt_at = models.DateTimeField(
        help_text="When it may be tried (again); also the lease of who tries it now."
    )
    done_at = models.DateTimeField(null=True, blank=True)
    outcome = models.CharField(max_length=255, blank=True)
    error_code = models.CharField(max_length=64, blank=True)
    error = models.TextField(blank=True, help_text="Why the last try failed.")

    class Meta:
        db_table = "stripe_tellings"
        ordering: ClassVar = ["-id"]
        indexes: ClassVar = [
            # used by: outbound, readiness
            models.Index(name="tellings_pending", fields=["next_attempt_at"], condition=Q(state="PENDING")),
            models.Index(name="tellings_stuck", fields=["created_at"], condition=Q(state="STUCK")),
        ]
        constraints: ClassVar = [
            models.UniqueConstraint(
                name="stripe_is_told_of_a_version_once",
                fields=["link", "aspect", "version", "of_main"],
                condition=Q(link__isnull=False),
            ),
            models.UniqueConstraint(
                name="a_tenant_is_closed_once_at_a_time",
                fields=["tenant"],
                condition=Q(link__isnull=True, state="PENDING"),
            ),
            models.CheckConstraint(
                name="a_telling_is_about_a_subscription_or_a_tenant",
                condition=Q(aspect="CLOSED", link__isnull=True) | (~Q(aspect="CLOSED") & Q(link__isnull=False)),
            ),
            models.CheckConstraint(
                name="a_telling_is_done_when_it_says_so",
                condition=Q(state="DONE", done_at__isnull=False) | (~Q(state="DONE") & Q(done_at__isnull=True)),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.get_aspect_display()}: {self.link_id or self.tenant}"


class Reconciliation(models.Model):
    """One comparison of everything at Stripe with everything here, page by page; where it is, so that it goes on there
    after a stop.
    """

    class Phase(models.TextChoices):
        STRIPE = "STRIPE", "What Stripe has"  # its list of subscriptions, page by page
        OURS = "OURS", "What only we have"  # links that were not in that list, one by one
        MONEY = "MONEY", "Refunds and disputes"
        DONE = "DONE", "Done"

    started_at = models.DateTimeField()
    finished_at = models.DateTimeField(null=True, blank=True)
    phase = models.CharField(max_length=16, choices=Phase.choices, default=Phase.STRIPE)
    cursor = models.CharField(max_length=255, blank=True, help_text="The last one of the page that was compared.")
    compared = models.PositiveIntegerField(default=0, help_text="How many subscriptions so far.")
    found = models.PositiveIntegerField(default=0, help_text="How many differences so far.")
    repaired = models.PositiveIntegerField(default=0)
    reads = models.PositiveIntegerField(default=0, help_text="Requests to Stripe.")
    lease_until = models.DateTimeField(null=True, blank=True, help_text="Whoever compares now has it until then.")
    error_code = models.CharField(max_length=64, blank=True, help_text="Why it stopped, if it did; it goes on later.")

    class Meta:
        db_table = "stripe_reconciliations"
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                name="one_reconciliation_at_a_time",
                fields=["finished_at"],
                nulls_distinct=False,
                condition=Q(finished_at__isnull=True),
            ),
        ]

    def __str__(self) -> str:
        return f"Reconciliation of {self.started_at:%Y-%m-%d %H:%M}"


class Drift(models.Model):
    """A difference between us and Stripe that was found, until it is gone."""

    class Kind(models.TextChoices):
        STATUS = "STATUS", "Status"
        PERIOD = "PERIOD", "Period"
        PLAN = "PLAN", "Plan"
        QUANTITY = "QUANTITY", "Quantity or packs"
        CANCELLATION = "CANCELLATION", "Cancellation"
        CUSTOMER = "CUSTOMER", "Customer"
        BILLED_AFTER_END = "BILLED_AFTER_END", "Billed at Stripe after its end here"
        SERVED_AFTER_END = "SERVED_AFTER_END", "Served here after its end at Stripe"
        DUPLICATE = "DUPLICATE", "Bought twice"
        UNKNOWN_HERE = "UNKNOWN_HERE", "Not known here"
        UNKNOWN_AT_STRIPE = "UNKNOWN_AT_STRIPE", "Not known at Stripe"
        UNREADABLE = "UNREADABLE", "Not understood"
        REFUND = "REFUND", "Refund"
        DISPUTE = "DISPUTE", "Dispute"

    class Severity(models.TextChoices):
        HIGH = "HIGH", "High"  # somebody pays and gets nothing, or gets and does not pay
        MEDIUM = "MEDIUM", "Medium"
        LOW = "LOW", "Low"  # to know

    kind = models.CharField(max_length=32, choices=Kind.choices)
    severity = models.CharField(max_length=16, choices=Severity.choices)
    object_id = models.CharField(max_length=255, help_text="The Stripe object: a subscription, a refund, a dispute.")
    subscription = models.ForeignKey(
        Subscription, null=True, blank=True, on_delete=models.PROTECT, related_name="drifts", db_index=False
    )
    tenant = models.ForeignKey(
        Tenant, null=True, blank=True, on_delete=models.PROTECT, related_name="+", db_index=False
    )
    ours = models.JSONField(default=dict, help_text="What we have, by name.")
    theirs = models.JSONField(default=dict, help_text="What Stripe has, by the same names.")
    found_at = models.DateTimeField()
    seen_at = models.DateTimeField(help_text="When it was last so.")
    resolved_at = models.DateTimeField(null=True, blank=True)
    resolution = models.CharField(
        max_length=255, blank=True, help_text="What ended it: a repair, and whose; or nobody."
    )

    class Meta:
        db_table = "stripe_drifts"
        ordering: ClassVar = ["-id"]
        verbose_name_plural = "drift"
        indexes: ClassVar = [
            models.Index(name="drifts_open", fields=["seen_at"], condition=Q(resolved_at__isnull=True)),
        ]
        constraints: ClassVar = [
            models.UniqueConstraint(
                name="one_open_drift_per_object_and_kind",
                fields=["object_id", "kind"],
                condition=Q(resolved_at__isnull=True),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.get_kind_display()}: {self.object_id}"
