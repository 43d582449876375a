"""What a tenant should know first about its subscriptions, most urgent first."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from subscriptions.models import Subscription
from subscriptions.states import Status

SOON = timedelta(days=30)
FAMILY_MOVES = ("status", "on_hold", "cancel_at_term_end", "term_end")  # where an add-on differs, it goes its own way


@dataclass(frozen=True)
class Line:
    level: str
    code: str
    message: str
    subscription: str
    until: datetime | None


@dataclass(frozen=True)
class Rule:
    """One thing worth saying; the order of RULES is the order of urgency."""

    level: str
    code: str
    applies: Callable[[Subscription, datetime], bool]
    until: Callable[[Subscription], datetime | None]
    message: str  # {until} is filled in


RULES = (
    Rule("error", "on_hold", lambda s, now: s.on_hold, lambda s: None, "Service is withheld. Please contact us."),
    Rule("error", "suspended", lambda s, now: s.status == Status.SUSPENDED, lambda s: s.suspension_end,
         "Service is suspended. Renew before {until} to keep your set-up."),
    Rule("warning", "grace", lambda s, now: s.status == Status.GRACE, lambda s: s.grace_end,
         "Payment is due. Service goes on until {until}."),
    Rule("warning", "ending", lambda s, now: s.cancel_at_term_end and s.term_end - now <= SOON, lambda s: s.term_end,
         "Ends on {until}, as you asked."),
    Rule("warning", "trial_ending", lambda s, now: s.status == Status.TRIAL and s.term_end - now <= SOON,
         lambda s: s.term_end, "The trial ends on {until}."),
    Rule("info", "renewal_due", lambda s, now: not s.auto_renews and s.term_end - now <= SOON, lambda s: s.term_end,
         "The term ends on {until}. Renew to go on without a break."),
)  # fmt: skip


def banner(subscriptions: Iterable[Subscription], *, now: datetime) -> list[Line]:
    """The most urgent rule that applies to each, most urgent first, the nearest date first among equals.

    An add-on that goes with its main subscription needs no line of its own.
    """
    lines = []
    for subscription in subscriptions:
        if subscription.parent and _goes_with(subscription.parent, subscription):
            continue
        for urgency, rule in enumerate(RULES):
            if rule.applies(subscription, now):
                until = rule.until(subscription)
                text = rule.message.format(until=f"{until:%-d %B %Y}" if until else "")
                lines.append((urgency, until or now, Line(rule.level, rule.code, text, subscription.number, until)))
                break
    return [line for *_, line in sorted(lines, key=lambda entry: entry[:2])]


def _goes_with(main: Subscription, addon: Subscription) -> bool:
    return all(getattr(addon, name) == getattr(main, name) for name in FAMILY_MOVES)
