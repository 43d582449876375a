"""How long things last: terms, grace and suspension windows. Pure arithmetic on aware datetimes.

Intervals are half-open: `term_start <= now < term_end`; `term_end` is the first instant not covered.
"""

from datetime import UTC, datetime, timedelta
from typing import Protocol

from django.conf import settings

from subscriptions.errors import InvalidTerm

# Wider than any contract, and far enough from the calendar's ends that every window after a term is a date, too.
EARLIEST = datetime(1900, 1, 1, tzinfo=UTC)
LATEST = datetime(9000, 1, 1, tzinfo=UTC)


class Windows(Protocol):
    """What a plan may say about its own windows. None: as the settings say."""

    grace_days: int | None
    suspension_days: int | None


def grace_window(plan: Windows) -> timedelta:
    return timedelta(days=settings.GRACE_DAYS if plan.grace_days is None else plan.grace_days)


def suspension_window(plan: Windows) -> timedelta:
    return timedelta(days=settings.SUSPENSION_DAYS if plan.suspension_days is None else plan.suspension_days)


def term_deadline(term_end: datetime, *, auto_renews: bool, cancel_at_term_end: bool) -> datetime:
    """When the clock acts on the end of a term.

    A term that a payment provider renews may still be settling when it ends: the clock waits `SETTLEMENT_HOURS`. One
    that was cancelled at its end awaits no payment.
    """
    settles = auto_renews and not cancel_at_term_end
    return term_end + timedelta(hours=settings.SETTLEMENT_HOURS) if settles else term_end


def grace_end(term_end: datetime, plan: Windows, *, since: datetime) -> datetime:
    """The end of a grace period that begins at `since`: counted from the end of the term, which was paid for, and never
    before it began.
    """
    return max(term_end + grace_window(plan), since)


def suspension_end(plan: Windows, *, since: datetime) -> datetime:
    return since + suspension_window(plan)


def aware(instant: datetime, name: str) -> datetime:
    """The instant itself. Raises InvalidTerm for a naive one, which names none, and for one out of any calendar."""
    if instant.utcoffset() is None:
        raise InvalidTerm(f"{name} has no time zone.")
    if not EARLIEST <= instant <= LATEST:
        raise InvalidTerm(f"{name} ({instant.isoformat()}) is not between {EARLIEST:%Y} and {LATEST:%Y}.")
    return instant


def check_term(term_start: datetime, term_end: datetime) -> None:
    """Raises InvalidTerm unless the two are instants and make an interval that is not empty."""
    if not aware(term_start, "term_start") < aware(term_end, "term_end"):
        raise InvalidTerm(
            f"term_end ({term_end.isoformat()}) must be later than term_start ({term_start.isoformat()})."
        )
