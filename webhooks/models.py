"""What Stripe told us about, and which Stripe subscription is which of ours."""

from typing import ClassVar

from django.db import models
from django.db.models import F, Q

from subscriptions.models import PlanPrice, Subscription


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
            models.Index(name="stripe_events_of_subscription", fields=["stripe_subscription_id"]),
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
    """Which Stripe price sells which of our prices. An unknown price parks its event; it never becomes service."""

    stripe_price_id = models.CharField(max_length=255, primary_key=True)
    plan_price = models.ForeignKey(PlanPrice, on_delete=models.PROTECT, related_name="stripe_prices")

    class Meta:
        db_table = "stripe_prices"

    def __str__(self) -> str:
        return self.stripe_price_id
