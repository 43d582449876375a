"""Which notices will be made, as far as it is known today. Pure: reads the tables of `kinds`, asks nothing."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Protocol

from notifications import kinds
from notifications.kinds import ON_AUDIT, SILENT_ENDS, STAYED
from subscriptions.models import Subscription
from subscriptions.states import Action

Told = tuple[int, str, datetime]  # subscription, kind, anchor


class Moment(Protocol):
    """Something that will happen: at which instant, and the subscription in memory as it is from then on."""

    @property
    def at(self) -> datetime: ...
    @property
    def subscription(self) -> Subscription: ...
    @property
    def action(self) -> Action: ...


@dataclass(frozen=True)
class Expected:
    """A notice that will be made at this instant, about the subscription as it is then."""

    at: datetime
    subscription: Subscription
    kind: str
    anchor: datetime


@dataclass(frozen=True)
class _State:
    """A subscription as it is from an instant on, and what made it so; None for the present state."""

    since: datetime
    subscription: Subscription
    moment: Moment | None = None


def forecast(
    present: Sequence[Subscription],
    moments: Sequence[Moment],
    *,
    now: datetime,
    until: datetime,
    told: Collection[Told],
) -> list[Expected]:
    """The notices that a scheduler on time will make in `[now, until)`, in their order, if the moments come.

    What was `told` is not told again; leave CANCELLED notices out of it: they return when they are true again. Moments
    that have passed are what the clock does first, in one transaction, as are those of one instant.
    """
    lives = {subscription.pk: [_State(now, subscription)] for subscription in present}
    for moment in sorted(moments, key=lambda moment: moment.at):
        state = _State(max(moment.at, now), moment.subscription, moment)
        lives.setdefault(moment.subscription.pk, []).append(state)
    of_roots = {(m.subscription.pk, m.action, m.at) for m in moments if m.subscription.parent_id is None}
    expected = [notice for life in lives.values() for notice in (*_news(life, of_roots), *_reminders(life, until))]
    known = set(told)
    return [
        notice
        for notice in sorted(expected, key=lambda notice: notice.at)
        if notice.at < until and (notice.subscription.pk, notice.kind, notice.anchor) not in known
    ]


def _news(life: list[_State], of_roots: Collection[tuple[int, Action, datetime]]) -> Iterator[Expected]:
    """Of what one transaction does to a subscription, the last is told; a family is told by its root."""
    last: dict[tuple[datetime, bool], Expected] = {}
    for before, after in pairwise(life):
        s, moment = after.subscription, after.moment
        assert moment is not None, "only the first state has none"
        if (s.parent_id, moment.action, moment.at) in of_roots or s.end_reason in SILENT_ENDS:
            continue
        left = STAYED if s.status == before.subscription.status else before.subscription.status
        for kind in ON_AUDIT:
            if left in kind.on.get(moment.action, ()):
                last[after.since, kind.beside] = Expected(after.since, s, kind.name, moment.at)
    yield from last.values()


def _reminders(life: list[_State], until: datetime) -> Iterator[Expected]:
    """What comes near while a state lasts; of what has passed when it begins, the most urgent."""
    known: set[tuple[str, datetime]] = set()
    for state, end in zip(life, [*(later.since for later in life[1:]), until], strict=True):
        passed: dict[datetime, list[Expected]] = {}  # of each instant the most urgent first
        for kind in kinds.schedule():
            s = state.subscription
            anchor: datetime | None = getattr(s, kind.column)
            if s.parent_id or s.status != kind.status or anchor is None:
                continue
            passes = anchor - kind.before
            at = max(passes, state.since)
            if getattr(s, kind.begins) < passes and at < min(end, anchor):
                passed.setdefault(at, []).append(Expected(at, s, kind.name, anchor))
        for many in passed.values():
            if (many[0].kind, many[0].anchor) not in known:
                yield many[0]
            known |= {(notice.kind, notice.anchor) for notice in many}
