"""Every kind of notice: what brings it about, and for how long it is worth sending.

Two tables: ON_AUDIT, news of what happened; LADDERS, reminders of what comes near. The scheduler's statement, the
delivery and the forecast read them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings

from subscriptions.models import Subscription
from subscriptions.states import Action, EndReason, Status


@dataclass(frozen=True)
class Kind:
    """`template` names the pair of files under templates/notices; `still_true(subscription, anchor, now)` says whether
    it would still be right to send it.
    """

    name: str
    template: str
    still_true: Callable[[Subscription, datetime, datetime], bool]


STAYED = ""  # in place of the status that a subscription left: its status did not move
ANY = frozenset({STAYED, *Status})


@dataclass(frozen=True)
class OnAudit(Kind):
    """Brought about by an audit entry; its anchor is the entry's `effective_at`.

    `on` has the actions, and for each the statuses that the subscription left with it. Of what one transaction does to
    a subscription the last is told; what is `beside` is told beside it.
    """

    on: Mapping[Action, frozenset[str]]
    beside: bool = False


@dataclass(frozen=True)
class Milestone(Kind):
    """Brought about by an instant coming near; that instant is its anchor."""

    status: Status  # the only one in which the instant comes near
    column: str  # the subscription's column that holds the instant
    begins: str  # the column before which it is no milestone
    before: timedelta


NEWS_FOR = timedelta(days=90)  # later than that nobody is told: it is history
SILENT_ENDS = frozenset({EndReason.CONVERTED})  # the tenant has something new instead, and knows

ON_AUDIT = (
    OnAudit("grace_started", "grace_started", lambda s, _, now: s.status == Status.GRACE, {Action.GRACE_STARTED: ANY}),
    OnAudit("suspended", "suspended", lambda s, _, now: s.status == Status.SUSPENDED, {Action.SUSPENDED: ANY}),
    OnAudit(
        "expired",
        "expired",
        lambda s, since, now: s.status == Status.EXPIRED and s.end_reason not in SILENT_ENDS and now < since + NEWS_FOR,
        {Action.EXPIRED: ANY},
    ),
    OnAudit(
        "reactivated",
        "reactivated",
        lambda s, since, now: s.status == Status.ACTIVE and now < since + NEWS_FOR,
        {
            Action.ACTIVATED: frozenset({Status.GRACE, Status.SUSPENDED}),
            Action.HOLD_LIFTED: frozenset({Status.SUSPENDED}),
            Action.RENEWED: frozenset({Status.SUSPENDED}),
        },
    ),
    OnAudit(
        "renewed",
        "renewed",
        lambda s, since, now: (s.status == Status.ACTIVE or s.on_hold) and now < s.term_end and now < since + NEWS_FOR,
        {Action.RENEWED: ANY - {Status.SUSPENDED}},
    ),
    OnAudit(
        "devices_parked",
        "devices_parked",
        lambda s, since, now: now < since + NEWS_FOR,
        {Action.DEVICES_PARKED: ANY},
        beside=True,
    ),
)


@dataclass(frozen=True)
class Ladder:
    """Milestones before one instant, days apart. `name` is their template's, and the first half of theirs."""

    name: str
    status: Status
    column: str
    begins: str
    days: Callable[[], Iterable[int]]

    def milestones(self) -> list[Milestone]:
        return [self._milestone(days) for days in sorted(set(self.days()))]

    def _milestone(self, days: int) -> Milestone:
        def still_true(s: Subscription, anchor: datetime, now: datetime) -> bool:
            return s.status == self.status and getattr(s, self.column) == anchor and now < anchor

        before = timedelta(days=days)
        return Milestone(f"{self.name}_{days}", self.name, still_true, self.status, self.column, self.begins, before)


# Grace begins no later than `term_deadline`: a grace period that is short needs no second letter.
LADDERS = (
    Ladder("renewal", Status.ACTIVE, "term_end", "term_start", lambda: settings.NOTICE_DAYS),
    Ladder("grace_ending", Status.GRACE, "grace_end", "term_deadline", lambda: (3,)),
    Ladder("trial_ending", Status.TRIAL, "term_end", "term_start", lambda: (7, 1)),
)


def schedule() -> tuple[Milestone, ...]:
    """What is told before something ends, ladder by ladder, the most urgent first."""
    return tuple(milestone for ladder in LADDERS for milestone in ladder.milestones())


def named(name: str) -> Kind | None:
    """None for a kind that is no longer told, such as a milestone that was taken out of the settings."""
    return next((kind for kind in (*ON_AUDIT, *schedule()) if kind.name == name), None)
