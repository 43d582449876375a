"""The statuses of a subscription and the only ways between them.

    status          until            then, by the clock alone
    TRIAL, ACTIVE   term_deadline    GRACE       (EXPIRED where it was cancelled at term end)
    GRACE           grace_end        SUSPENDED
    SUSPENDED       suspension_end   EXPIRED     (never while on hold: a hold has no suspension_end)
    EXPIRED         for ever

Pure tables. The verbs, the clock's statement, the forecast, the database's `next_deadline` column and the admin all
read them.
"""

from dataclasses import dataclass

from django.db.models import TextChoices


class Type(TextChoices):
    MAIN = "MAIN", "Main"  # the subscription a tenant's service stands on; at most one lives per tenant
    ADDON = "ADDON", "Add-on"  # more of something, for as long as its main subscription
    TRIAL = "TRIAL", "Trial"  # to try the service; not paid for
    TEMPORARY = "TEMPORARY", "Temporary"  # for an event or a project, ends by itself


class Status(TextChoices):
    TRIAL = "TRIAL", "Trial"  # full service, nothing paid yet
    ACTIVE = "ACTIVE", "Active"  # full service, paid until term_end
    GRACE = "GRACE", "Grace"  # full service, the term is over, renewal awaited until grace_end
    SUSPENDED = "SUSPENDED", "Suspended"  # service withheld, everything remembered
    EXPIRED = "EXPIRED", "Expired"  # over


class Action(TextChoices):
    """What an audit entry says happened."""

    STARTED = "started", "Started"
    ACTIVATED = "activated", "Activated"
    RENEWED = "renewed", "Renewed"
    GRACE_STARTED = "grace_started", "Grace started"
    SUSPENDED = "suspended", "Suspended"
    HOLD_LIFTED = "hold_lifted", "Hold lifted"
    CANCEL_SCHEDULED = "cancel_scheduled", "Cancelled at term end"
    CANCEL_UNDONE = "cancel_undone", "Cancellation undone"
    EXPIRED = "expired", "Expired"
    AMENDED = "amended", "Term amended"
    PLAN_CHANGED = "plan_changed", "Plan changed"
    QUANTITY_CHANGED = "quantity_changed", "Quantity changed"
    BILLING_CHANGED = "billing_changed", "Billing changed"
    GRACE_EXTENDED = "grace_extended", "Grace extended"
    SLOTS_CHANGED = "slots_changed", "Slots changed"
    DEVICES_PARKED = "devices_parked", "Devices parked"
    SLOTS_REPAIRED = "slots_repaired", "Slots repaired"


GRANTS_ACCESS = frozenset({Status.TRIAL, Status.ACTIVE, Status.GRACE})
LIVE = frozenset(Status) - {Status.EXPIRED}

TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.TRIAL: frozenset({Status.ACTIVE, Status.GRACE, Status.SUSPENDED, Status.EXPIRED}),
    Status.ACTIVE: frozenset({Status.GRACE, Status.SUSPENDED, Status.EXPIRED}),
    Status.GRACE: frozenset({Status.ACTIVE, Status.SUSPENDED, Status.EXPIRED}),
    Status.SUSPENDED: frozenset({Status.ACTIVE, Status.EXPIRED}),
    Status.EXPIRED: frozenset(),
}


@dataclass(frozen=True)
class Deadline:
    """What the clock does with a subscription of one status."""

    column: str  # the subscription's column that holds the instant
    then: Status
    if_cancelled: Status


DEADLINES: dict[Status, Deadline] = {
    Status.TRIAL: Deadline("term_deadline", then=Status.GRACE, if_cancelled=Status.EXPIRED),
    Status.ACTIVE: Deadline("term_deadline", then=Status.GRACE, if_cancelled=Status.EXPIRED),
    Status.GRACE: Deadline("grace_end", then=Status.SUSPENDED, if_cancelled=Status.EXPIRED),
    Status.SUSPENDED: Deadline("suspension_end", then=Status.EXPIRED, if_cancelled=Status.EXPIRED),
}


@dataclass(frozen=True)
class Instant:
    """The instant that a subscription gets as it enters a status, and keeps as long as it stays there."""

    column: str
    window: str = ""  # the plan's days that are added; none for an instant that is the entering itself
    counted_from: str = ""  # a column; where there is none, from the entering


INSTANTS: dict[Status, Instant] = {
    Status.GRACE: Instant("grace_end", "grace_days", counted_from="term_end"),
    Status.SUSPENDED: Instant("suspension_end", "suspension_days"),
    Status.EXPIRED: Instant("ended_at"),
}

ACTION_OF_STATUS: dict[Status, Action] = {
    Status.GRACE: Action.GRACE_STARTED,
    Status.SUSPENDED: Action.SUSPENDED,
    Status.EXPIRED: Action.EXPIRED,
}


class EndReason(TextChoices):
    """Why a subscription is EXPIRED."""

    SUSPENSION_OVER = "suspension_over", "Suspended for too long"
    CANCELLED = "cancelled", "Cancelled"
    CANCELLED_AT_TERM_END = "cancelled_at_term_end", "Cancelled at term end"
    MAIN_ENDED = "main_ended", "Its main subscription ended"
    CONVERTED = "converted", "Became another subscription"
    NEVER_PAID = "never_paid", "The first payment never came"


def end_reason(status: Status, *, is_cancelled: bool) -> EndReason | str:
    """Why the clock ended it, where it did; empty for a status that is no end."""
    if status != Status.EXPIRED:
        return ""
    return EndReason.CANCELLED_AT_TERM_END if is_cancelled else EndReason.SUSPENSION_OVER
