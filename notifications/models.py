"""What tenants are told."""

from typing import ClassVar

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from subscriptions.models import Subscription, Tenant


class Notice(models.Model):
    """One message to a tenant about one thing that happened to a subscription, or that comes near.

    Unique on (subscription, kind, anchor): whoever schedules may run twice, late or in parallel. The anchor is the
    instant that the message is about, so a term that moves opens a new round by itself.
    """

    class State(models.TextChoices):
        PENDING = "PENDING", "Pending"  # waits for delivery, or for next_attempt_at after a failed one
        SENT = "SENT", "Sent"  # the mail server accepted it
        FAILED = "FAILED", "Failed"  # given up after the last try; can be resent
        SUPERSEDED = "SUPERSEDED", "Superseded"  # something more urgent, or newer, went out instead
        CANCELLED = (
            "CANCELLED",
            "Cancelled",
        )  # not true when its turn came; a milestone returns when it is true again

    subscription = models.ForeignKey(Subscription, on_delete=models.PROTECT, related_name="notices")
    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="notices")
    kind = models.CharField(max_length=32)
    anchor = models.DateTimeField(help_text="The instant that the message is about.")
    state = models.CharField(max_length=16, choices=State.choices, default=State.PENDING)
    attempts = models.PositiveSmallIntegerField(default=0)
    next_attempt_at = models.DateTimeField(
        help_text="When it may be tried (again); also the lease of who tries it now."
    )
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    sent_at = models.DateTimeField(null=True, blank=True)
    recipients = models.JSONField(
        default=list, blank=True, help_text="The addresses that the mail server accepted it for."
    )
    error = models.TextField(blank=True, help_text="Why the last try failed.")

    class Meta:
        db_table = "notices"
        ordering: ClassVar = ["-id"]
        indexes: ClassVar = [
            # used by: delivery.CLAIM
            models.Index(name="notices_pending", fields=["next_attempt_at"], condition=Q(state="PENDING")),
        ]
        constraints: ClassVar = [
            models.UniqueConstraint(
                name="one_notice_per_subscription_kind_and_anchor", fields=["subscription", "kind", "anchor"]
            ),
            models.CheckConstraint(
                name="a_sent_notice_says_when",
                condition=Q(state="SENT", sent_at__isnull=False) | (~Q(state="SENT") & Q(sent_at__isnull=True)),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} for {self.subscription_id}"
