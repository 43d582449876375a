"""Whatever is done, in whatever order, at whatever time: what stays true."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from itertools import count
from typing import Any

import pytest
from django.db import connection, transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from subscriptions import lifecycle
from subscriptions.audit import COLUMNS, STRIPE
from subscriptions.errors import DomainError
from subscriptions.lifecycle import CancelAt, Purchase
from subscriptions.models import STEPS_BY_ITSELF, AuditEntry, Subscription
from subscriptions.states import GRANTS_ACCESS, TRANSITIONS, Action, EndReason, Status, Type
from tests.builders import FEB_1, JAN_1, PlanFactory, subscription
from tests.history import advance, entries, on, replayed, written

pytestmark = pytest.mark.django_db

DAYS = st.integers(0, 90).map(lambda days: timedelta(days=days))
WINDOWS = st.sampled_from([None, 0, 1, 30])
YES_OR_NO = st.booleans()
Verb = Callable[[], AuditEntry | None]


@contextmanager
def undone() -> Iterator[None]:
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


def check_what_a_commit_checks() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        cursor.execute("SET CONSTRAINTS ALL DEFERRED")


class Life(RuleBasedStateMachine):
    """A tenant with a main subscription, up to two add-ons and a trial, and everything that can be done to them."""

    def __init__(self) -> None:
        super().__init__()
        self.undone = undone()
        self.undone.__enter__()
        self.sources = map(str, count(1))
        self.now = JAN_1
        self.last: Verb | None = None

    def teardown(self) -> None:
        self.undone.__exit__(None, None, None)

    @initialize(auto_renews=YES_OR_NO, grace=WINDOWS, suspension=WINDOWS, addons=st.integers(0, 2), in_trial=YES_OR_NO)
    def begin(self, auto_renews: bool, grace: int | None, suspension: int | None, addons: int, in_trial: bool) -> None:
        plan = PlanFactory.create(grace_days=grace, suspension_days=suspension)
        main = subscription(plan=plan, auto_renews=auto_renews, status=Status.TRIAL if in_trial else None)
        self.addon_plan, self.another_plan = PlanFactory.create(type=Type.ADDON), PlanFactory.create()
        bought = [subscription(Type.ADDON, parent=main, plan=self.addon_plan) for _ in range(addons)]
        trial = subscription(Type.TRIAL, tenant=main.tenant, another_trial=True)
        self.main, self.tenant_id = main.pk, main.tenant_id
        self.members = [main.pk, trial.pk, *(addon.pk for addon in bought)]

    def attempt(self, verb: Callable[..., AuditEntry | None], *args: Any, **how: Any) -> None:
        """Do it. A refusal changes nothing."""
        call = partial(verb, *args, **how, actor=STRIPE, now=self.now, source_id=next(self.sources))
        before = written()
        try:
            self.last = call if call() else None
        except DomainError:
            transaction.set_rollback(False)
            self.last = None
        if self.last is None:
            assert written() == before

    def member(self, which: int) -> int:
        return self.members[which % len(self.members)]

    which = st.integers(0, 3)

    @rule(ahead=DAYS)
    def time_passes(self, ahead: timedelta) -> None:
        self.now += ahead
        for entry in advance(self.now, batch_size=2):
            assert entry.effective_at <= self.now
        assert not Subscription.objects.filter(STEPS_BY_ITSELF, next_deadline__lte=self.now).exists()

    @rule(ahead=DAYS)
    def time_passes_and_the_clock_sleeps(self, ahead: timedelta) -> None:
        self.now += ahead

    @rule(back=st.integers(0, 48))
    def the_clock_goes_back(self, back: int) -> None:
        before = written() if not Subscription.objects.filter(next_deadline__lte=self.now).exists() else None
        self.now = max(JAN_1, self.now - timedelta(hours=back))
        taken = [*advance(self.now)]
        assert before is None or (not taken and written() == before)

    @rule(which=which, ahead=DAYS, last=YES_OR_NO)
    def renew(self, which: int, ahead: timedelta, last: bool) -> None:
        self.attempt(lifecycle.renew, self.member(which), term_end=self.now + ahead, cancel_at_term_end=last)

    @rule(which=which, ahead=st.integers(-90, 90))
    def amend_term(self, which: int, ahead: int) -> None:
        self.attempt(lifecycle.amend_term, self.member(which), term_end=self.now + timedelta(days=ahead))

    @rule(which=which, verb=st.sampled_from([lifecycle.activate, lifecycle.enter_grace, lifecycle.resume]))
    def activate_or_grace_or_resume(self, which: int, verb: Any) -> None:
        self.attempt(verb, self.member(which))

    @rule(which=which, days=st.integers(-5, 60), cancelled=YES_OR_NO)
    def activate_with_a_purchase(self, which: int, days: int, cancelled: bool) -> None:
        bought = Purchase(self.another_plan, self.now, self.now + timedelta(days=days), cancel_at_term_end=cancelled)
        if not self.is_second_main(self.member(which)):
            self.attempt(lifecycle.activate, self.member(which), purchase=bought)

    def is_second_main(self, pk: int) -> bool:
        """Refused by a unique index, which ends the test's own transaction: test_lifecycle_races has it."""
        mains = Subscription.objects.filter(tenant=self.tenant_id, type=Type.MAIN).exclude(status=Status.EXPIRED)
        return mains.exclude(pk=pk).exists()

    @rule(which=which, hold=YES_OR_NO)
    def suspend(self, which: int, hold: bool) -> None:
        self.attempt(lifecycle.suspend, self.member(which), hold=hold)

    @rule(which=which)
    def lift_hold(self, which: int) -> None:
        self.attempt(lifecycle.lift_hold, self.member(which))

    @rule(which=which, at=st.sampled_from([CancelAt.TERM_END, CancelAt.TERM_END, CancelAt.NOW]))
    def cancel(self, which: int, at: CancelAt) -> None:
        self.attempt(lifecycle.cancel, self.member(which), at=at)

    @rule(which=which)
    def change_plan(self, which: int) -> None:
        self.attempt(lifecycle.change_plan, self.member(which), plan=self.another_plan, price=None)

    @rule(days_ago=st.integers(-1, 3), which=which, rarely=st.sampled_from([False, False, False, True]))
    def expire(self, days_ago: int, which: int, rarely: bool) -> None:
        if rarely:
            at = self.now - timedelta(days=days_ago)
            self.attempt(lifecycle.expire, self.member(which), why=EndReason.CONVERTED, ended_at=at)

    @precondition(lambda self: len(self.members) < 5)
    @rule()
    def buy_an_addon(self) -> None:
        main = Subscription.objects.get(pk=self.main)
        bought = Purchase(self.addon_plan, main.term_end - timedelta(days=3), main.term_end)
        self.attempt(lifecycle.start, self.tenant_id, bought, parent_id=self.main)
        if self.last:
            self.members.append(AuditEntry.objects.latest("pk").subscription_id)

    @precondition(lambda self: self.last)
    @rule()
    def repeat_what_was_done(self) -> None:
        assert self.last
        before = written()
        assert self.last() is None
        assert written() == before

    # What stays true.

    @invariant()
    def everything_could_be_committed(self) -> None:
        check_what_a_commit_checks()

    @invariant()
    def the_audit_tells_each_row_and_every_step_was_legal(self) -> None:
        for s in Subscription.objects.filter(pk__in=getattr(self, "members", [])):
            past = entries(s)
            assert [entry.version for entry in past] == [*range(1, s.version + 1)]
            told = replayed(s)
            assert {column: told.get(column) or None for column in COLUMNS} == {
                column: getattr(s, column) or None for column in COLUMNS
            }
            moves = [entry for entry in past if "status" in entry.changes]
            statuses = [entry.changes["status"][1] for entry in moves]
            for before, entry in zip(statuses, moves[1:], strict=False):
                after = entry.changes["status"][1]  # a hold that is lifted returns to what it hid
                assert after in TRANSITIONS[Status(before)] or entry.action == Action.HOLD_LIFTED
            if Status.EXPIRED in statuses:
                assert past[-1].changes["status"][1] == Status.EXPIRED

    @invariant()
    def addons_go_with_their_main(self) -> None:
        for addon in Subscription.objects.filter(parent__isnull=False).select_related("parent"):
            main = addon.parent
            assert main is not None
            if addon.status == Status.EXPIRED:
                continue
            assert main.status != Status.EXPIRED
            assert addon.cancel_at_term_end or addon.term_end == main.term_end
            if addon.status in GRANTS_ACCESS:
                assert main.status in GRANTS_ACCESS
            if addon.status == main.status and addon.on_hold == main.on_hold:
                assert addon.grace_end == main.grace_end
                assert addon.suspension_end == main.suspension_end


def test_what_stays_true_whatever_is_done() -> None:
    run_state_machine_as_test(Life, settings=settings(max_examples=12, stateful_step_count=20, deadline=None))


History = dict[int, list[tuple[str, datetime, dict[str, Any]]]]


def history_after(instants: list[datetime]) -> History:
    """What the clock wrote when it looked at these instants; then it is undone."""
    told: History = {}
    with undone():
        for now in instants:
            for entry in advance(now, batch_size=2):
                told.setdefault(entry.subscription_id, []).append((entry.action, entry.effective_at, entry.changes))
    return told


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    hours=st.lists(st.integers(0, 24 * 200), min_size=1, max_size=8).map(sorted),
    windows=st.tuples(WINDOWS, WINDOWS),
    auto_renews=YES_OR_NO,
    main_is=st.sampled_from(["going on", "cancelled", "renewed", "suspended", "held"]),
    addons_are=st.lists(st.sampled_from(["going on", "cancelled", "held", "both"]), max_size=3),
)
def test_step_by_step_or_in_one_jump_the_clock_writes_the_same_history(
    hours: list[int],
    windows: tuple[int | None, int | None],
    auto_renews: bool,
    main_is: str,
    addons_are: list[str],
) -> None:
    by: dict[str, Any] = {"actor": STRIPE, "now": on(1, 10)}
    with undone():
        plan = PlanFactory.create(grace_days=windows[0], suspension_days=windows[1])
        main = subscription(plan=plan, auto_renews=auto_renews)
        subscription(Type.TRIAL, tenant=main.tenant, term=(JAN_1, on(1, 20)))
        for its in addons_are:
            addon = subscription(Type.ADDON, parent=main)
            if its in ("cancelled", "both"):
                lifecycle.cancel(addon.pk, at=CancelAt.TERM_END, **by)
            if its in ("held", "both"):
                lifecycle.suspend(addon.pk, hold=True, **by)
        match main_is:
            case "cancelled":
                lifecycle.cancel(main.pk, at=CancelAt.TERM_END, **by)
            case "renewed":
                lifecycle.renew(main.pk, term_end=FEB_1 + timedelta(days=40), **by)
            case "suspended" | "held":
                lifecycle.suspend(main.pk, hold=main_is == "held", **by)
        instants = [JAN_1 + timedelta(hours=hour) for hour in hours]
        assert history_after(instants) == history_after(instants[-1:])
