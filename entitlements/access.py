"""Placeholder: the reasons only."""

from django.db.models import TextChoices


class Reason(TextChoices):
    OK = "ok", "ok"
    SUSPENDED = "suspended", "suspended"
    EXPIRED = "expired", "expired"
    NOT_STARTED = "not_started", "not started"
    NO_SLOT = "no_slot", "no slot"
    PARKED = "parked", "parked"
    UNKNOWN_DEVICE = "unknown_device", "unknown device"
    WRONG_TENANT = "wrong_tenant", "wrong tenant"
    UNKNOWN_TENANT = "unknown_tenant", "unknown tenant"
