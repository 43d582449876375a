"""How long things last: terms, grace and suspension windows. Pure arithmetic on aware datetimes.

Intervals are half-open: `term_start <= now < term_end`; `term_end` is the first instant not covered.

Days and months are counted on the clock of the subscription's time zone, so that a deadline at midnight stays at
midnight when daylight saving begins or ends. A time of day that the clock skips is read as the time that it would have
been without skipping; one that comes twice, as the second: PostgreSQL's rule, too, for the sweep counts there.
"""

from calendar import monthrange
from datetime import UTC, datetime, timedelta
from typing import Protocol
from zoneinfo import ZoneInfo

from django.conf import settings

from subscriptions.errors import InvalidTerm
from subscriptions.states import Instant

# Wider than any contract, and far enough from the calendar's ends that every window after a term is a date, too.
EARLIEST = datetime(1900, 1, 1, tzinfo=UTC)
LATEST = datetime(9000, 1, 1, tzinfo=UTC)


class Windows(Protocol):
    """What a plan may say about its own windows. None: as the settings say."""

    grace_days: int | None
    suspension_days: int | None


class Price(Protocol):
    """What a price says about the length of a term."""

    interval: str
    interval_count: int


DEFAULT_WINDOWS = {"grace_days": "GRACE_DAYS", "suspension_days": "SUSPENSION_DAYS"}  # column of a plan → setting
MONTHS = {"month": 1, "year": 12}


def window_days(plan: Windows, window: str) -> int:
    """The days of a plan's window, or the setting's where the plan says none."""
    days: int | None = getattr(plan, window)
    return int(getattr(settings, DEFAULT_WINDOWS[window])) if days is None else days


def term_deadline(term_end: datetime, *, auto_renews: bool, cancel_at_term_end: bool) -> datetime:
    """When the clock acts on the end of a term.

    A term that a payment provider renews may still be settling when it ends: the clock waits `SETTLEMENT_HOURS`. One
    that was cancelled at its end awaits no payment.
    """
    settles = auto_renews and not cancel_at_term_end
    return term_end + timedelta(hours=settings.SETTLEMENT_HOURS) if settles else term_end


def until(rule: Instant, plan: Windows, *, counted_from: datetime, since: datetime, time_zone: str) -> datetime:
    """The instant that a status which is entered at `since` sets: never before it was entered.

    A grace period is counted from the end of the term, which was paid for; a suspension from its beginning.
    """
    if not rule.window:
        return since
    return max(days_later(counted_from, window_days(plan, rule.window), time_zone), since)


def days_later(instant: datetime, days: int, time_zone: str) -> datetime:
    """So many days later at the same time of day there."""
    return _on_the_clock(_local(instant, time_zone) + timedelta(days=days), time_zone)


def months_later(instant: datetime, months: int, time_zone: str) -> datetime:
    """So many months later at the same day and time of day there; the last day of a month that is too short."""
    local = _local(instant, time_zone)
    year, month = divmod(local.year * 12 + local.month - 1 + months, 12)
    if not EARLIEST.year <= year <= LATEST.year:
        raise InvalidTerm(f"A term that ends in {year} is not between {EARLIEST:%Y} and {LATEST:%Y}.")
    day = min(local.day, monthrange(year, month + 1)[1])
    return _on_the_clock(local.replace(year=year, month=month + 1, day=day), time_zone)


def next_term(
    term_end: datetime, price: Price, *, anniversary: datetime, time_zone: str, covering: datetime | None = None
) -> tuple[datetime, datetime]:
    """The term of one interval of the price that follows one that ends at `term_end`; the first that covers an instant,
    if one is given: whole intervals are left out before it then.

    Kept are the day and the time of day of the anniversary, month ends and leap days included: 31 January, 28 February,
    31 March; 29 February 2024, 28 February 2025, 29 February 2028.
    """
    anniversary = kept_anniversary(anniversary, term_end, time_zone)
    interval, ended = MONTHS[price.interval] * price.interval_count, _months_between(anniversary, term_end, time_zone)

    def end_of(term: int) -> datetime:
        return months_later(anniversary, ended + term * interval, time_zone)

    left_out = max(0, _months_between(term_end, covering, time_zone) // interval - 1) if covering else 0
    while covering and end_of(left_out + 1) <= covering:
        left_out += 1
    return end_of(left_out), end_of(left_out + 1)


def kept_anniversary(anniversary: datetime, term_end: datetime, time_zone: str) -> datetime:
    """The anniversary once a term ends at `term_end`: the present one where that is a whole number of months away, else
    `term_end`, from which the months are counted now.
    """
    months = _months_between(anniversary, term_end, time_zone)
    return anniversary if months_later(anniversary, months, time_zone) == term_end else term_end


def _months_between(anniversary: datetime, instant: datetime, time_zone: str) -> int:
    first, second = _local(anniversary, time_zone), _local(instant, time_zone)
    return (second.year - first.year) * 12 + second.month - first.month


def _local(instant: datetime, time_zone: str) -> datetime:
    """What the clock shows there."""
    return instant.astimezone(ZoneInfo(time_zone)).replace(tzinfo=None, fold=0)


def _on_the_clock(local: datetime, time_zone: str) -> datetime:
    """The instant, in UTC, at which the clock shows this there."""
    second = local.replace(tzinfo=ZoneInfo(time_zone), fold=1).astimezone(UTC)
    is_skipped = _local(second, time_zone) != local
    return local.replace(tzinfo=ZoneInfo(time_zone), fold=0).astimezone(UTC) if is_skipped else second


def aware(instant: datetime, name: str) -> datetime:
    """The instant itself. Raises InvalidTerm for a naive one, which names none, and for one out of any calendar."""
    if instant.utcoffset() is None:
        raise InvalidTerm(f"{name} has no time zone.")
    if not EARLIEST <= instant <= LATEST:
        raise InvalidTerm(f"{name} ({instant.isoformat()}) is not between {EARLIEST:%Y} and {LATEST:%Y}.")
    return instant


def check_not_over(term_end: datetime, now: datetime) -> None:
    """Raises InvalidTerm for the end of a term that would put service back only for the clock to take it again."""
    if term_end <= now:
        raise InvalidTerm(f"A term that ends on {term_end.isoformat()} is over.")


def check_term(term_start: datetime, term_end: datetime) -> None:
    """Raises InvalidTerm unless the two are instants and make an interval that is not empty."""
    if not aware(term_start, "term_start") < aware(term_end, "term_end"):
        raise InvalidTerm(
            f"term_end ({term_end.isoformat()}) must be later than term_start ({term_start.isoformat()})."
        )
