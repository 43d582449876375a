"""How long things last: pure arithmetic, without a database. What the sweep makes of it: test_lifecycle_stories."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subscriptions import terms
from subscriptions.errors import InvalidTerm
from subscriptions.states import INSTANTS, Status

ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia"]


@dataclass
class Every:
    """A price's interval."""

    interval: str
    interval_count: int = 1


@dataclass
class Windows:
    grace_days: int | None = None
    suspension_days: int | None = None


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def there(text: str, zone: str, fold: int = 0) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).astimezone(UTC)


def following(first: str, price: Every, count: int, *, zone: str = "UTC") -> list[str]:
    """The days on which the terms end that begin on this day and follow each other."""
    anniversary = end = there(first, zone)
    days = []
    for _ in range(count):
        end = terms.next_term_end(end, price, anniversary=anniversary, time_zone=zone)
        days.append(end.astimezone(ZoneInfo(zone)).date().isoformat())
    return days


# --- months and days -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "price", "ends"),
    [
        ("2026-01-15", Every("month"), ["2026-02-15", "2026-03-15", "2026-04-15"]),
        ("2026-01-31", Every("month"), ["2026-02-28", "2026-03-31", "2026-04-30"]),
        ("2028-01-31", Every("month"), ["2028-02-29", "2028-03-31", "2028-04-30"]),
        ("2026-01-30", Every("month"), ["2026-02-28", "2026-03-30", "2026-04-30"]),
        ("2026-11-30", Every("month", 3), ["2027-02-28", "2027-05-30", "2027-08-30"]),
        ("2024-02-29", Every("year"), ["2025-02-28", "2026-02-28", "2027-02-28", "2028-02-29"]),
        ("2024-02-29", Every("month"), ["2024-03-29", "2024-04-29"]),
        ("2025-12-31", Every("month", 2), ["2026-02-28", "2026-04-30", "2026-06-30", "2026-08-31"]),
        ("2026-02-28", Every("month"), ["2026-03-28", "2026-04-28"]),
    ],
)
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Pacific/Apia"])
def test_terms_that_follow_each_other_keep_their_day(first: str, price: Every, ends: list[str], zone: str) -> None:
    assert following(first, price, len(ends), zone=zone) == ends


def test_a_term_keeps_its_time_of_day_to_the_microsecond() -> None:
    at = utc("2026-01-31T13:14:15.161718")
    assert terms.months_later(at, 1, "UTC") == utc("2026-02-28T13:14:15.161718")
    assert terms.days_later(at, 1, "UTC") == utc("2026-02-01T13:14:15.161718")


@pytest.mark.parametrize("term_end", ["2026-03-29", "2026-10-25"])
def test_midnight_in_berlin_stays_midnight_over_both_changes_of_its_clock(term_end: str) -> None:
    before = there(term_end, "Europe/Berlin")
    after = there(term_end.replace("-29", "-30").replace("-25", "-26"), "Europe/Berlin")
    assert after - before in (timedelta(hours=23), timedelta(hours=25))
    assert terms.days_later(before, 1, "Europe/Berlin") == after


def test_a_day_in_utc_has_24_hours() -> None:
    at = there("2026-03-29", "Europe/Berlin")
    assert terms.days_later(at, 1, "UTC") - at == timedelta(hours=24)


@pytest.mark.parametrize(
    ("zone", "skipped", "read_as"),
    [
        ("Europe/Berlin", "2026-03-29T02:30", "2026-03-29T03:30"),
        ("America/New_York", "2026-03-08T02:30", "2026-03-08T03:30"),
        ("Australia/Lord_Howe", "2026-10-04T02:15", "2026-10-04T02:45"),  # half an hour
        ("Pacific/Apia", "2011-12-30T12:00", "2011-12-31T12:00"),  # a day
    ],
)
def test_a_time_that_the_clock_skips_is_what_it_would_have_been(zone: str, skipped: str, read_as: str) -> None:
    five_days_before = there(skipped, "UTC") - timedelta(days=5)
    start = there(five_days_before.replace(tzinfo=None).isoformat(), zone)
    assert terms.days_later(start, 5, zone) == there(read_as, zone)


@pytest.mark.parametrize(
    ("zone", "doubled"),
    [
        ("Europe/Berlin", "2026-10-25T02:30"),
        ("America/New_York", "2026-11-01T01:30"),
        ("Australia/Lord_Howe", "2026-04-05T01:45"),
    ],
)
def test_a_time_that_comes_twice_is_the_second(zone: str, doubled: str) -> None:
    five_days_before = there(doubled, "UTC") - timedelta(days=5)
    start = there(five_days_before.replace(tzinfo=None).isoformat(), zone)
    assert there(doubled, zone, fold=0) < there(doubled, zone, fold=1)
    assert terms.days_later(start, 5, zone) == there(doubled, zone, fold=1)


INSTANT = st.datetimes(datetime(1970, 1, 1), datetime(2037, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


@given(at=INSTANT, days=st.integers(0, 400), zone=st.sampled_from(ZONES))
def test_days_later_the_clock_shows_the_same_or_skips_it(at: datetime, days: int, zone: str) -> None:
    later = terms.days_later(at, days, zone)
    before, after = (instant.astimezone(ZoneInfo(zone)) for instant in (at, later))
    shown, wanted = after.replace(tzinfo=None), before.replace(tzinfo=None) + timedelta(days=days)
    assert shown in (wanted, wanted + timedelta(hours=1), wanted + timedelta(minutes=30), wanted + timedelta(days=1))
    assert later.tzinfo is UTC


@given(at=INSTANT, months=st.integers(1, 36), zone=st.sampled_from(ZONES))
def test_terms_always_grow_and_the_anniversary_of_whole_months_is_kept(at: datetime, months: int, zone: str) -> None:
    end = terms.months_later(at, months, zone)
    assert end > at
    price = Every("month")
    assert terms.next_term_end(end, price, anniversary=at, time_zone=zone) > end


# --- the anniversary -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("term_end", "kept"),
    [
        ("2026-02-28", "2026-01-31"),
        ("2026-04-30", "2026-01-31"),
        ("2027-01-31", "2026-01-31"),
        ("2026-04-17", "2026-04-17"),
        ("2026-03-30", "2026-03-30"),
        ("2026-02-28T00:00:00.000001", "2026-02-28T00:00:00.000001"),
        ("2025-12-31", "2026-01-31"),
    ],
)
def test_an_anniversary_is_kept_by_ends_that_are_whole_months_away(term_end: str, kept: str) -> None:
    assert terms.kept_anniversary(utc("2026-01-31"), utc(term_end), "UTC") == utc(kept)


def test_an_anniversary_at_midnight_in_berlin_is_kept_there_and_not_in_utc() -> None:
    january, july = there("2026-01-15", "Europe/Berlin"), there("2026-07-15", "Europe/Berlin")
    assert terms.kept_anniversary(january, july, "Europe/Berlin") == january
    assert terms.kept_anniversary(january, july, "UTC") == july


# --- windows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("plan", "days"), [(None, 14), (0, 0), (30, 30)])
def test_a_plan_overrides_the_settings_window_with_none_at_all_too(plan: int | None, days: int, settings: Any) -> None:
    settings.GRACE_DAYS = 14
    assert terms.window_days(Windows(grace_days=plan), "grace_days") == days


def test_grace_is_counted_from_the_end_of_the_term_and_suspension_from_its_beginning() -> None:
    grace, suspension = INSTANTS[Status.GRACE], INSTANTS[Status.SUSPENDED]
    of = Windows(grace_days=14, suspension_days=60)
    end, since = utc("2026-02-01"), utc("2026-02-04")
    assert terms.until(grace, of, counted_from=end, since=since, time_zone="UTC") == utc("2026-02-15")
    assert terms.until(suspension, of, counted_from=since, since=since, time_zone="UTC") == utc("2026-04-05")


def test_no_status_ends_before_it_began() -> None:
    late = utc("2026-05-01")
    rule = INSTANTS[Status.GRACE]
    assert terms.until(rule, Windows(14), counted_from=utc("2026-02-01"), since=late, time_zone="UTC") == late


@pytest.mark.parametrize(
    ("auto_renews", "is_cancelled", "hours"), [(False, False, 0), (True, False, 72), (True, True, 0), (False, True, 0)]
)
def test_the_clock_waits_for_a_payment_that_may_be_settling(
    auto_renews: bool, is_cancelled: bool, hours: int, settings: Any
) -> None:
    settings.SETTLEMENT_HOURS = 72
    deadline = terms.term_deadline(utc("2026-02-01"), auto_renews=auto_renews, cancel_at_term_end=is_cancelled)
    assert deadline - utc("2026-02-01") == timedelta(hours=hours)


# --- what is no term -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["2026-01-01", "2025-12-31"])
def test_an_empty_or_backward_term_is_none(end: str) -> None:
    with pytest.raises(InvalidTerm, match="must be later than term_start"):
        terms.check_term(utc("2026-01-01"), utc(end))


@pytest.mark.parametrize("bad", [datetime(2026, 1, 1), utc("1899-12-31"), utc("9000-01-01T00:00:01")])  # noqa: DTZ001
def test_an_instant_without_a_zone_or_out_of_the_calendar_is_none(bad: datetime) -> None:
    with pytest.raises(InvalidTerm, match="now "):
        terms.aware(bad, "now")


def test_a_term_that_would_end_out_of_the_calendar_is_refused() -> None:
    with pytest.raises(InvalidTerm, match="ends in 10000"):
        terms.months_later(utc("8999-12-31"), 12_001, "UTC")


@given(st.integers(0, 3650), st.sampled_from(ZONES))
def test_every_window_after_the_last_term_is_a_date(days: int, zone: str) -> None:
    assert terms.days_later(terms.LATEST, days, zone) >= terms.LATEST
