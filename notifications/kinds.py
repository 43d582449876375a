"""Every kind of notice: what brings it about, and for how long it is worth sending."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings

from subscriptions.models import Subscription
from subscriptions.states import Action, Status


@dataclass(frozen=True)
class Kind:
    """`template` names the pair of files under templates/notices; `still_true(subscription, anchor, now)` says whether
    it would still be right to send it.
    """

    name: str
    template: str
    still_true: Callable[[Subscription, datetime, datetime], bool]


@dataclass(frozen=True)
class OnAudit(Kind):
    """Brought about by an audit entry of this action; its anchor is the entry's `effective_at`."""

    action: Action


@dataclass(frozen=True)
class Milestone(Kind):
    """Brought about by `term_end` coming near; its anchor is `term_end`."""

    before_term_end: timedelta


ON_AUDIT = (
    OnAudit("grace_started", "grace_started", lambda s, _, now: s.status == Status.GRACE, Action.GRACE_STARTED),
    OnAudit("suspended", "suspended", lambda s, _, now: s.status == Status.SUSPENDED, Action.SUSPENDED),
)


def schedule() -> tuple[Milestone, ...]:
    """What is told before a term ends, the most urgent first."""
    return tuple(_renewal(days) for days in sorted(set(settings.NOTICE_DAYS)))


def named(name: str) -> Kind | None:
    """None for a kind that is no longer told, such as a milestone that was taken out of the settings."""
    return next((kind for kind in (*ON_AUDIT, *schedule()) if kind.name == name), None)


def _renewal(days: int) -> Milestone:
    return Milestone(
        f"renewal_{days}",
        "renewal",
        lambda s, anchor, now: s.status == Status.ACTIVE and s.term_end == anchor and now < anchor,
        timedelta(days=days),
    )
