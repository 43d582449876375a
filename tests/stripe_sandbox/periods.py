"""Billing periods: half-open ``[start, end)``, counted from an anchor so that 31 January stays a 31st."""

from calendar import monthrange
from datetime import UTC, datetime, timedelta

DAY = 86_400


def add_interval(anchor: int, interval: str, count: int) -> int:
    """``count`` intervals after the anchor, in UTC; a day the month does not have becomes its last."""
    moment = datetime.fromtimestamp(anchor, UTC)
    match interval:
        case "day":
            return int((moment + timedelta(days=count)).timestamp())
        case "week":
            return int((moment + timedelta(weeks=count)).timestamp())
        case "year":
            count *= 12
        case "month":
            pass
        case _:
            raise ValueError(f"no such interval: {interval}")
    years, month = divmod(moment.month - 1 + count, 12)
    year, month = moment.year + years, month + 1
    day = min(moment.day, monthrange(year, month)[1])
    return int(moment.replace(year=year, month=month, day=day).timestamp())


def next_end(anchor: int, after: int, interval: str, step: int) -> int:
    """The first boundary later than ``after`` among anchor + k * step intervals; k may be negative."""
    days_in = {"day": 1, "week": 7, "month": 28, "year": 365}[interval]
    k = int((after - anchor) / (days_in * DAY * step)) - 1
    k -= k // 12 + 2 if interval == "month" else 2  # an estimate below the answer; months are longer than 28 days
    while (end := add_interval(anchor, interval, k * step)) <= after:
        k += 1
    return end


def natural_start(anchor: int, end: int, interval: str, step: int) -> int:
    """Where the whole period that ends at ``end`` began, also if the end is no boundary of the anchor's."""
    start = add_interval(end, interval, -step)
    if next_end(anchor, end - 1, interval, step) != end:
        return start
    start -= 4 * DAY  # 28 February less a month is 28 January, and the period may have begun on the 31st
    while (later := next_end(anchor, start, interval, step)) < end:
        start = later
    return start
