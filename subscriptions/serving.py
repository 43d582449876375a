"""Whether a subscription serves, and until when if nobody does anything: what the clock will do with it, read ahead.

A clock that stands still extends nothing: past the last deadline that ends service, a subscription serves no more,
whatever its status still says. In SQL for those who ask about many, in Python for one; a test holds them to each other.
"""

from datetime import datetime
from typing import Any

from django.conf import settings

from subscriptions import terms
from subscriptions.models import Subscription
from subscriptions.states import DEADLINES, GRANTS_ACCESS, INSTANTS, Instant, Status


def serves_until(subscription: Subscription) -> datetime | None:
    """The first instant at which it does not serve any more, if nobody does anything; None if it does not serve now.

    Reads its plan and, of an add-on, its main subscription.
    """
    status = Status(subscription.status)
    if status not in GRANTS_ACCESS:
        return None
    rule = DEADLINES[status]
    at: datetime = getattr(subscription, rule.column)
    becomes = rule.if_cancelled if ends_with_its_term(subscription) else rule.then
    if becomes not in GRANTS_ACCESS:
        return at
    instant = INSTANTS[becomes]
    start = getattr(subscription, instant.counted_from) if instant.counted_from else at
    return terms.until(instant, subscription.plan, counted_from=start, since=at, time_zone=subscription.time_zone)


def ends_with_its_term(subscription: Subscription) -> bool:
    """Whether it was cancelled at term end, or, of an add-on, its main subscription was."""
    parent = subscription.parent
    return subscription.cancel_at_term_end or (parent is not None and parent.cancel_at_term_end)


def serves(subscription: Subscription, now: datetime) -> bool:
    """Whether it grants access at this instant. One that was sold ahead begins at `term_start`."""
    until = serves_until(subscription)
    return until is not None and subscription.term_start <= now < until


# --- the same in SQL, with the parameters `windows()` and the table `plans` ------------------------------------------


def windows() -> dict[str, Any]:
    """The windows of plans that say none, by the names that the SQL here gives them."""
    return {column: getattr(settings, setting) for column, setting in terms.DEFAULT_WINDOWS.items()}


def instant(rule: Instant, s: str, at: str) -> str:
    """The instant that a status which is entered at `at` sets, as `terms.until` says it."""
    if not rule.window:
        return at
    start = f"{s}.{rule.counted_from}" if rule.counted_from else at
    days = f"coalesce(plans.{rule.window}, %({rule.window})s::int)"
    local = f"{start} AT TIME ZONE {s}.time_zone + make_interval(days => {days})"
    return f"greatest(({local}) AT TIME ZONE {s}.time_zone, {at})"


def is_cancelled(s: str, main: str) -> str:
    """Whether `s`, or its main subscription, ends with its term."""
    return f"({s}.cancel_at_term_end OR coalesce({main}.cancel_at_term_end, false))"


def _until(s: str, main: str) -> str:
    """`serves_until` of `s`, where `main` is its main subscription's row, or none."""
    cases = []
    for status in sorted(GRANTS_ACCESS):
        rule = DEADLINES[status]
        at = f"{s}.{rule.column}"
        ends = {
            cancelled: instant(INSTANTS[becomes], s, at) if becomes in GRANTS_ACCESS else at
            for cancelled, becomes in ((True, rule.if_cancelled), (False, rule.then))
        }
        cases.append(f"WHEN '{status}' THEN CASE WHEN {is_cancelled(s, main)} THEN {ends[True]} ELSE {ends[False]} END")
    return f"CASE {s}.status {' '.join(cases)} END"


# Joins what it needs to `s`, a row of subscriptions; its answers are columns of `serving`.
JOIN = f"""
    JOIN plans ON plans.id = s.plan_id
    LEFT JOIN subscriptions AS main ON main.id = s.parent_id
    CROSS JOIN LATERAL (SELECT {_until("s", "main")} AS until) AS serving"""
NOW = "(s.term_start <= %(now)s AND %(now)s < serving.until)"  # unknown, so not true, where there is no `until`
