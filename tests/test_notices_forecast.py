"""What the forecast of notices says, and that it is what the scheduler then makes."""

from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest

from notifications import forecast as forecasts
from notifications.forecast import Expected, Told
from notifications.models import Notice
from notifications.schedule import make_notices
from subscriptions import families, lifecycle
from subscriptions.families import Family
from subscriptions.forecast import forecast
from subscriptions.lifecycle import CancelAt
from subscriptions.models import Plan, Subscription
from subscriptions.states import Action, EndReason, Status, Type
from tests.builders import APR_1, FEB_1, JAN_1, PlanFactory, subscription
from tests.history import advance, by, on
from tests.test_notices import settle

DAY = timedelta(days=1)
JAN_2 = on(1, 2)
A_YEAR_LATER = JAN_1 + 365 * DAY


@dataclass(frozen=True)
class Moment:
    at: datetime
    subscription: Subscription
    action: Action


PLAN = Plan(pk=1, grace_days=14, suspension_days=60)


def bought(pk: int = 1, type: Type = Type.MAIN, **more: object) -> Subscription:
    """One that was bought for January, in memory only."""
    columns: dict[str, object] = {"status": Status.ACTIVE, "term_start": JAN_1, "term_end": FEB_1} | more
    columns.setdefault("anniversary", columns["term_start"])
    s = Subscription(pk=pk, number=f"SUB-{pk}", type=type, plan=PLAN, **columns)
    return become(s)


def become(s: Subscription, **values: object) -> Subscription:
    """The same subscription with other values, and what hangs together with them."""
    after = copy(s)
    for column, value in families.consistent(s, values).items():
        setattr(after, column, value)
    return after


def into(status: Status, s: Subscription, at: datetime, why: EndReason | None = None) -> Subscription:
    return become(s, **families.into(status, s, at, why))


def expected(
    present: Sequence[Subscription],
    *moments: Moment,
    now: datetime = JAN_2,
    until: datetime = APR_1,
    told: Collection[Told] = (),
) -> list[tuple[datetime, int, str, datetime]]:
    return [_row(notice) for notice in forecasts.forecast(present, moments, now=now, until=until, told=told)]


def by_the_clock(present: Sequence[Subscription], until: datetime) -> list[Moment]:
    """What the clock will do with one family, in memory: the root first."""
    root, *addons = present
    moments = forecast(Family(root, addons, subject=root), now=JAN_1, until=until)
    return [Moment(moment.at, moment.subscription, moment.action) for moment in moments]


# --- news ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "action", "to", "kind"),
    [
        (Status.ACTIVE, Action.GRACE_STARTED, Status.GRACE, "grace_started"),
        (Status.GRACE, Action.SUSPENDED, Status.SUSPENDED, "suspended"),
        (Status.SUSPENDED, Action.EXPIRED, Status.EXPIRED, "expired"),
        (Status.SUSPENDED, Action.ACTIVATED, Status.ACTIVE, "reactivated"),
        (Status.GRACE, Action.ACTIVATED, Status.ACTIVE, "reactivated"),
        (Status.SUSPENDED, Action.HOLD_LIFTED, Status.ACTIVE, "reactivated"),
        (Status.SUSPENDED, Action.RENEWED, Status.ACTIVE, "reactivated"),
        (Status.GRACE, Action.RENEWED, Status.ACTIVE, "renewed"),
        (Status.ACTIVE, Action.RENEWED, Status.ACTIVE, "renewed"),
        (Status.SUSPENDED, Action.RENEWED, Status.SUSPENDED, "renewed"),  # on hold
        (Status.SUSPENDED, Action.HOLD_LIFTED, Status.SUSPENDED, ""),
        (Status.ACTIVE, Action.AMENDED, Status.ACTIVE, ""),
    ],
)
def test_news_come_with_the_moment_that_makes_them(left: Status, action: Action, to: Status, kind: str) -> None:
    s = into(left, bought(term_end=on(1, 30)), JAN_1, EndReason.CANCELLED)
    after = into(to, s, on(1, 20), EndReason.CANCELLED)
    found = [e for e in expected([s], Moment(on(1, 20), after, action), until=on(1, 21)) if e[0] == on(1, 20)]
    assert found == ([(on(1, 20), 1, kind, on(1, 20))] if kind else [])


def test_nobody_is_told_that_what_became_another_subscription_has_ended() -> None:
    s = bought(status=Status.TRIAL)
    after = into(Status.EXPIRED, s, on(1, 20), EndReason.CONVERTED)
    assert expected([s], Moment(on(1, 20), after, Action.EXPIRED)) == []


def test_of_one_instant_the_last_moment_is_told() -> None:
    s = bought()
    grace = into(Status.GRACE, s, FEB_1)
    suspended = into(Status.SUSPENDED, grace, FEB_1)
    told = (1, "renewal_30", FEB_1)
    moments = [Moment(FEB_1, grace, Action.GRACE_STARTED), Moment(FEB_1, suspended, Action.SUSPENDED)]
    assert expected([s], *moments, told=[told]) == [(FEB_1, 1, "suspended", FEB_1)]


def test_a_family_is_told_by_its_root_and_an_addon_where_it_is_alone() -> None:
    main, addon = bought(1, term_end=on(1, 30)), bought(2, Type.ADDON, parent_id=1, term_end=on(1, 30))
    together = [Moment(on(1, 30), into(Status.GRACE, s, on(1, 30)), Action.GRACE_STARTED) for s in (main, addon)]
    alone = Moment(on(1, 20), into(Status.SUSPENDED, addon, on(1, 20)), Action.SUSPENDED)
    assert expected([main, addon], *together, until=on(2, 1)) == [(on(1, 30), 1, "grace_started", on(1, 30))]
    assert expected([main, addon], alone, until=on(1, 29)) == [(on(1, 20), 2, "suspended", on(1, 20))]


def test_what_has_been_told_and_what_comes_later_is_left_out() -> None:
    s = bought()
    moment = Moment(FEB_1, into(Status.GRACE, s, FEB_1), Action.GRACE_STARTED)
    already = [(1, "renewal_30", FEB_1)]
    assert expected([s], moment, until=FEB_1, told=already) == []
    assert expected([s], moment, until=FEB_1 + DAY, told=already) == [(FEB_1, 1, "grace_started", FEB_1)]
    assert expected([s], moment, until=FEB_1 + DAY, told=[*already, (1, "grace_started", FEB_1)]) == []


def test_what_the_clock_is_late_with_is_told_now() -> None:
    s = bought()
    moments = by_the_clock([s], on(2, 20))
    assert expected([s], *moments, now=on(2, 20)) == [(on(2, 20), 1, "suspended", on(2, 15))]


# --- milestones ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "milestones"),
    [
        ({"term_end": APR_1}, [(on(3, 2), "renewal_30", APR_1)]),
        ({"status": Status.TRIAL}, [(on(1, 25), "trial_ending_7", FEB_1), (on(1, 31), "trial_ending_1", FEB_1)]),
        ({"status": Status.GRACE, "grace_end": on(2, 15)}, [(on(2, 12), "grace_ending_3", on(2, 15))]),
        ({"status": Status.GRACE, "grace_end": on(2, 4)}, []),  # a short one
        ({"status": Status.TRIAL, "term_end": on(1, 8)}, [(on(1, 7), "trial_ending_1", on(1, 8))]),
        ({"status": Status.SUSPENDED, "suspension_end": APR_1}, []),
    ],
)
def test_a_milestone_comes_while_its_state_lasts(
    state: dict[str, Any], milestones: list[tuple[datetime, str, datetime]]
) -> None:
    assert expected([bought(**state)]) == [(at, 1, kind, anchor) for at, kind, anchor in milestones]


def test_of_milestones_that_have_passed_the_most_urgent_is_told(settings: Any) -> None:
    settings.NOTICE_DAYS = [90, 60, 30, 14]
    s = bought(term_end=on(3, 31))
    at_once = (on(3, 10), 1, "renewal_30", on(3, 31))
    later = (on(3, 17), 1, "renewal_14", on(3, 31))
    assert expected([s], now=on(3, 10)) == [at_once, later]
    assert expected([s], now=on(3, 10), told=[at_once[1:]]) == [later]


def test_a_term_that_moves_before_its_milestone_has_none() -> None:
    s = bought(term_end=APR_1)
    renewed = Moment(on(2, 1), become(s, term_end=on(7, 1)), Action.RENEWED)
    assert expected([s], renewed, until=on(6, 30)) == [
        (on(2, 1), 1, "renewed", on(2, 1)), (on(6, 1), 1, "renewal_30", on(7, 1)),
    ]  # fmt: skip


def test_a_milestone_is_told_once_though_its_state_is_left_and_comes_back() -> None:
    s = bought(term_end=APR_1)
    grace = into(Status.GRACE, s, on(3, 10))
    back = become(grace, status=Status.ACTIVE)
    moments = Moment(on(3, 10), grace, Action.GRACE_STARTED), Moment(on(3, 12), back, Action.ACTIVATED)
    kinds = [kind for _, _, kind, _ in expected([s], *moments, until=APR_1)]
    assert kinds == ["renewal_30", "grace_started", "reactivated"]


# --- what it says is what happens ------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_what_the_forecast_says_for_a_year_is_what_is_then_made(settings: Any) -> None:
    settings.NOTICE_DAYS = [90, 60, 30, 14, 7, 1]
    main = subscription(term=(JAN_1, APR_1))
    other = subscription(term=(JAN_1, on(6, 1)))
    none = PlanFactory.create(grace_days=0, suspension_days=0)
    short = PlanFactory.create(grace_days=2, suspension_days=10, type=Type.TRIAL)
    families_ = [
        [main, *(subscription(Type.ADDON, parent=main, term=(JAN_1, APR_1)) for _ in range(2))],
        [other, subscription(Type.ADDON, parent=other, term=(JAN_1, on(6, 1)))],
        [subscription(Type.TRIAL, term=(JAN_1, FEB_1))],
        [subscription(Type.TRIAL, plan=short, term=(JAN_1, on(1, 8)))],
        [subscription(plan=none, term=(JAN_1, on(3, 1)))],
        [subscription(term=(JAN_1, A_YEAR_LATER), auto_renews=True)],
        [subscription(term=(JAN_1, on(8, 1)), auto_renews=True)],
        [subscription(Type.TEMPORARY, term=(JAN_1, on(2, 10)))],
    ]
    lifecycle.cancel(families_[0][1].pk, at=CancelAt.TERM_END, **by(JAN_1))
    lifecycle.suspend(families_[0][2].pk, hold=True, **by(JAN_1))
    lifecycle.cancel(families_[1][0].pk, at=CancelAt.TERM_END, **by(JAN_1))
    lifecycle.enter_grace(families_[7][0].pk, **by(JAN_1))
    settle()
    make_notices(now=JAN_1)
    seen = {*Notice.objects.values_list("subscription", "kind", "anchor")}

    now, until = JAN_1 + DAY, A_YEAR_LATER
    every = {s.pk: s for s in Subscription.objects.select_related("plan")}
    present = [[every[s.pk] for s in family] for family in families_]
    moments = [moment for family in present for moment in by_the_clock(family, until)]
    forecast = forecasts.forecast([*every.values()], moments, now=now, until=until, told=seen)

    for day in range(1, 365):
        if advance(JAN_1 + day * DAY):
            settle()
        make_notices(now=JAN_1 + day * DAY)
    made = Notice.objects.filter(state="PENDING", next_attempt_at__gt=JAN_1)
    rows = made.values_list("next_attempt_at", "subscription", "kind", "anchor")
    assert sorted(_row(each) for each in forecast) == sorted(rows)
    assert len(rows) > 30


def _row(notice: Expected) -> tuple[datetime, int, str, datetime]:
    return notice.at, notice.subscription.pk, notice.kind, notice.anchor
