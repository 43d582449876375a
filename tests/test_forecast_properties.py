"""What the forecast says is what the clock then does, whatever was done before, and whatever is done then."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from django.db import transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from subscriptions import forecast as forecasts
from subscriptions import lifecycle
from subscriptions.audit import STRIPE
from subscriptions.errors import DomainError
from subscriptions.forecast import Cancelled, Moment, Paid, Renewed, WhatIf, forecast
from subscriptions.lifecycle import CancelAt, Purchase
from subscriptions.models import AuditEntry, Plan, PlanPrice, Subscription
from subscriptions.states import DEADLINES, Action, Status, Type
from tests.builders import PlanFactory, PlanPriceFactory, TenantFactory
from tests.history import advance

pytestmark = pytest.mark.django_db

DAY = timedelta(days=1)
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
# Instants that are shown by a clock that skips them, or shows them twice, if days are added on it.
PUT_FORWARD_OR_BACK = [
    ("Europe/Berlin", datetime(2026, 3, 29, 1, 30, tzinfo=UTC)),
    ("Europe/Berlin", datetime(2026, 10, 25, 0, 30, tzinfo=UTC)),
    ("America/New_York", datetime(2026, 3, 8, 7, 30, tzinfo=UTC)),
    ("America/New_York", datetime(2026, 11, 1, 5, 30, tzinfo=UTC)),
]
HOURS = st.sampled_from([0, 0.5, 1.5, 5.5, 7.5, 23])
WINDOWS = st.sampled_from([None, 0, 1, 30])
YES_OR_NO = st.booleans()


@dataclass(frozen=True)
class Deed:
    """One thing that is done to one member, some days after the deed before; the clock may have slept meanwhile."""

    verb: str
    which: int
    days: int
    hours: float
    clock_ticks: bool


DEEDS = st.builds(
    Deed,
    verb=st.sampled_from(
        ["renew", "renew by price", "cancel", "cancel", "hold", "suspend", "grace", "lift", "resume", "buy", "end"]
    ),
    which=st.integers(0, 3),
    days=st.sampled_from([0, 1, 5, 20, 50]),
    hours=HOURS,
    clock_ticks=YES_OR_NO,
)


@st.composite
def families(draw: Any) -> dict[str, Any]:
    grace, suspension = windows = draw(WINDOWS), draw(WINDOWS)
    time_zone = draw(st.sampled_from(["UTC", "Europe/Berlin", "America/New_York"]))
    term_end = BEGIN + timedelta(days=draw(st.integers(10, 120)), hours=draw(HOURS))
    if draw(YES_OR_NO):  # its grace period or its suspension ends just then
        time_zone, instant = draw(st.sampled_from(PUT_FORWARD_OR_BACK))
        ends = (14 if grace is None else grace) + draw(YES_OR_NO) * (60 if suspension is None else suspension)
        term_end = max(instant - timedelta(days=ends), BEGIN + DAY)
    return {
        "type": draw(st.sampled_from([Type.MAIN] * 8 + [Type.TRIAL, Type.TEMPORARY])),
        "in_trial": draw(YES_OR_NO),
        "windows": windows,
        "time_zone": time_zone,
        "auto_renews": draw(YES_OR_NO),
        "has_price": draw(YES_OR_NO),
        "is_ahead": draw(st.sampled_from([False, False, False, True])),
        "term_end": term_end,
        "addons": draw(st.lists(st.sampled_from(["going on", "cancelled", "held", "both"]), max_size=3)),
        "deeds": draw(st.lists(DEEDS, max_size=4)),
    }


@contextmanager
def undone() -> Iterator[None]:
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


def attempt(verb: Any, *args: Any, **how: Any) -> type[DomainError] | None:
    """Do it; what refused it."""
    try:
        verb(*args, **how, actor=STRIPE)
    except DomainError as error:
        transaction.set_rollback(False)
        return type(error)
    return None


class Made:
    """A family, as the verbs made it, and the instant at which it was left alone."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.now, self.type = BEGIN, given["type"]
        self.tenant = TenantFactory.create(time_zone=given["time_zone"])
        grace, suspension = given["windows"]
        more = {"terms_in": Plan.Calendar.TENANT, "grace_days": grace, "suspension_days": suspension}
        plan = PlanFactory.create(type=self.type, **more)
        self.addon_plan = PlanFactory.create(type=Type.ADDON, terms_in=Plan.Calendar.TENANT)
        price = PlanPriceFactory.create(plan=plan, interval=PlanPrice.Interval.MONTH) if given["has_price"] else None
        term_start = given["term_end"] - 5 * DAY if given["is_ahead"] else BEGIN - 20 * DAY
        bought = Purchase(plan, term_start, given["term_end"], price, auto_renews=given["auto_renews"])
        status = Status.TRIAL if given["in_trial"] else None
        started = lifecycle.start(self.tenant.pk, bought, status=status, actor=STRIPE, now=self.now)
        assert started
        self.root_id = started.subscription_id
        self.members = [self.root_id]
        for its in given["addons"]:
            bought_one = self.buy()
            if bought_one and its in ("cancelled", "both"):
                attempt(lifecycle.cancel, self.members[-1], at=CancelAt.TERM_END, now=self.now)
            if bought_one and its in ("held", "both"):
                attempt(lifecycle.suspend, self.members[-1], hold=True, now=self.now)
        for deed in given["deeds"]:
            self.do(deed)

    def root(self) -> Subscription:
        return Subscription.objects.get(pk=self.root_id)

    def buy(self) -> bool:
        """An add-on that begins later, or has begun."""
        root = self.root()
        term_start = min(self.now + 10 * DAY * len(self.members), root.term_end - DAY)
        bought = Purchase(self.addon_plan, term_start, root.term_end, auto_renews=root.auto_renews)
        refused = attempt(lifecycle.start, self.tenant.pk, bought, now=self.now, parent_id=self.root_id)
        if not refused:
            self.members.append(Subscription.objects.latest("pk").pk)
        return not refused

    def do(self, deed: Deed) -> None:
        self.now += timedelta(days=deed.days, hours=deed.hours)
        if deed.clock_ticks:
            advance(self.now)
        pk = self.members[deed.which % len(self.members)]
        until = self.root().term_end + timedelta(days=deed.days)
        verbs = {
            "renew": partial(lifecycle.renew, pk, term_end=until),
            "renew by price": partial(lifecycle.renew, pk),
            "cancel": partial(lifecycle.cancel, pk, at=CancelAt.TERM_END),
            "end": partial(lifecycle.cancel, pk, at=CancelAt.NOW),
            "hold": partial(lifecycle.suspend, pk, hold=True),
            "suspend": partial(lifecycle.suspend, pk),
            "grace": partial(lifecycle.enter_grace, pk),
            "lift": partial(lifecycle.lift_hold, pk),
            "resume": partial(lifecycle.resume, pk),
        }
        if deed.verb == "buy":
            self.buy()
        else:
            attempt(verbs[deed.verb], now=self.now)


Row = dict[str, Any]
Told = dict[int, list[tuple[str, datetime, Row]]]  # subscription → what was done to it, when, and its row after


def row(s: Subscription) -> Row:
    return {field.attname: getattr(s, field.attname) for field in Subscription._meta.concrete_fields}


def said(moments: Sequence[Moment]) -> Told:
    """A beginning is nothing that is done: it is not in the audit."""
    told: Told = {}
    for moment in moments:
        if moment.action != Action.STARTED:
            told.setdefault(moment.subscription.pk, []).append((moment.action, moment.at, row(moment.subscription)))
    return told


class Watched:
    """What is done to a family, read off the audit: the row after each entry is the row before it, and its changes."""

    def __init__(self, made: Made) -> None:
        self.made = made
        self.rows = {s.pk: row(s) for s in Subscription.objects.filter(pk__in=made.members)}
        self.last = AuditEntry.objects.order_by("pk").values_list("pk", flat=True).last() or 0

    def done(self) -> Told:
        told: Told = {}
        for entry in AuditEntry.objects.filter(pk__gt=self.last).order_by("pk"):
            after = self.rows[entry.subscription_id]
            after |= {column: self.parsed(column, new) for column, (_, new) in entry.changes.items()}
            after["version"] = entry.version
            rule = DEADLINES.get(Status(after["status"]))
            after["next_deadline"] = after[rule.column] if rule else None
            told.setdefault(entry.subscription_id, []).append((entry.action, entry.effective_at, dict(after)))
        assert self.rows == {s.pk: row(s) for s in Subscription.objects.filter(pk__in=self.made.members)}
        return told

    def parsed(self, column: str, value: Any) -> Any:
        return datetime.fromisoformat(value) if column in INSTANTS and value else value


INSTANTS = {f.attname for f in Subscription._meta.concrete_fields if f.get_internal_type() == "DateTimeField"}
QUICK = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUICK
@given(family=families(), sleeps=st.integers(0, 60))
def test_what_the_forecast_says_is_what_the_clock_then_does(family: dict[str, Any], sleeps: int) -> None:
    with undone():
        made = Made(family)
        now = made.now + sleeps * DAY
        moments = forecast(forecasts.of_subscription(made.root()), now=now)
        ends = max((moment.at for moment in moments), default=now)
        daily = [now + number * DAY for number in range(max((ends - now).days, 0) + 2)]
        at_each_moment = sorted({max(moment.at, now) for moment in moments})
        for instants in (at_each_moment, daily, [ends + 3650 * DAY]):
            with undone():
                watched = Watched(made)
                for instant in instants:
                    advance(instant, batch_size=2)
                assert watched.done() == said(moments)


def what_ifs(made: Made, moments: list[Moment], asked: list[tuple[str, int, int]], now: datetime) -> list[WhatIf]:
    """Some at an instant at which something happens by itself, too."""
    found: list[WhatIf] = []
    later = [moment.at for moment in moments if moment.at >= now]
    for what, days, which in asked:
        on = later[which % len(later)] if later and which % 2 else now + days * DAY
        match what:
            case "paid":
                found.append(Paid(on))
            case "renewed":
                found.append(Renewed(on, on + timedelta(days=days)))
            case _:
                found.append(Cancelled(on, at_term_end=what == "cancelled at term end"))
    return found


ASKED = st.tuples(
    st.sampled_from(["paid", "renewed", "renewed", "cancelled", "cancelled at term end"]),
    st.integers(0, 120),
    st.integers(0, 7),
)


@QUICK
@given(
    family=families(), sleeps=st.integers(0, 30), which=st.integers(0, 3), asked=st.lists(ASKED, min_size=1, max_size=3)
)
def test_what_if_is_what_the_verb_then_does(
    family: dict[str, Any], sleeps: int, which: int, asked: list[tuple[str, int, int]]
) -> None:
    with undone():
        made = Made(family)
        now = made.now + sleeps * DAY
        subject = Subscription.objects.get(pk=made.members[which % len(made.members)])
        its = forecasts.of_subscription(subject)
        what_if = what_ifs(made, forecast(its, now=now), asked, now)
        refusal: type[DomainError] | None = None
        moments: list[Moment] = []
        try:
            moments = forecast(its, now=now, what_if=what_if)
        except DomainError as error:
            refusal = type(error)
        watched = Watched(made)
        refused: type[DomainError] | None = None
        for change in sorted(what_if, key=lambda change: change.on):
            advance(change.on)
            match change:
                case Paid():
                    refused = attempt(lifecycle.renew, subject.pk, now=change.on)
                case Renewed():
                    refused = attempt(lifecycle.renew, subject.pk, now=change.on, term_end=change.term_end)
                case Cancelled():
                    at = CancelAt.TERM_END if change.at_term_end else CancelAt.NOW
                    refused = attempt(lifecycle.cancel, subject.pk, now=change.on, at=at)
            if refused:
                break
        assert refusal == refused
        if not refused:
            advance(max([now, *(moment.at for moment in moments)]) + 3650 * DAY)
            assert watched.done() == said(moments)


@QUICK
@given(family=families())
def test_a_forecast_until_an_instant_is_the_beginning_of_the_whole(family: dict[str, Any]) -> None:
    with undone():
        made = Made(family)
        its = forecasts.of_subscription(made.root())
        whole = [(m.at, m.subscription.pk, m.action) for m in forecast(its, now=made.now)]
        for until in (made.now, made.now + 30 * DAY, *(at for at, *_ in whole[:3])):
            some = [(m.at, m.subscription.pk, m.action) for m in forecast(its, now=made.now, until=until)]
            assert some == whole[: len(some)]
            assert all(at < until for at, *_ in some)
            assert all(at >= until for at, *_ in whole[len(some) : len(some) + 1])
