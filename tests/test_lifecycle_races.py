"""Several at once, each in a connection of its own. Beside each lock: the same race without it."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import pytest
from django.db import connection, transaction

from subscriptions import lifecycle
from subscriptions.audit import STRIPE, Change, write
from subscriptions.errors import InvalidFamily, LiveMainExists
from subscriptions.families import consistent
from subscriptions.lifecycle import CancelAt, Purchase
from subscriptions.models import AuditEntry, Subscription
from subscriptions.states import Action, EndReason, Status, Type
from tests.builders import FEB_1, JAN_1, MAR_1, PlanFactory, TenantFactory, subscription
from tests.history import advance, at_once, by, entries, on, state, steps

pytestmark = pytest.mark.django_db(transaction=True)
JAN_10 = on(1, 10)


def sweep(batch_size: int = 1000) -> list[AuditEntry]:
    return advance(on(12, 31), batch_size)


@contextmanager
def held(s: Subscription) -> Iterator[None]:
    """Another transaction has this row locked."""
    taken, done = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic():
            Subscription.objects.select_for_update().get(pk=s.pk)
            taken.set()
            done.wait(timeout=30)
        connection.close()

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert taken.wait(timeout=30)
        yield
    finally:
        done.set()
        thread.join()


# --- one live main ---------------------------------------------------------------------------------------------------


def test_of_eight_starts_for_one_tenant_exactly_one_wins() -> None:
    tenant, plan = TenantFactory.create(), PlanFactory.create()
    begin = partial(lifecycle.start, tenant.pk, Purchase(plan, JAN_1, FEB_1), **by(JAN_1))
    answers = at_once(*[begin] * 8)
    assert sum(isinstance(answer, AuditEntry) for answer in answers) == 1
    assert sum(isinstance(answer, LiveMainExists) for answer in answers) == 7
    assert Subscription.objects.get().audit.count() == 1


@pytest.mark.parametrize("type", [Type.MAIN, Type.TEMPORARY])
def test_of_eight_starts_by_one_source_one_starts_and_the_others_change_nothing(type: Type) -> None:
    tenant, plan = TenantFactory.create(), PlanFactory.create(type=type)
    begin = partial(lifecycle.start, tenant.pk, Purchase(plan, JAN_1, FEB_1), **by(JAN_1, "request-1"))
    answers = at_once(*[begin] * 8)
    assert sum(isinstance(answer, AuditEntry) for answer in answers) == 1
    assert answers.count(None) == 7
    assert Subscription.objects.get().audit.count() == 1


def test_of_eight_trials_that_become_main_exactly_one_wins() -> None:
    tenant, plan = TenantFactory.create(), PlanFactory.create()
    trials = [subscription(Type.TRIAL, tenant=tenant, another_trial=True) for _ in range(8)]
    bought = Purchase(plan, JAN_10, MAR_1)
    answers = at_once(*[partial(lifecycle.activate, trial.pk, purchase=bought, **by(JAN_10)) for trial in trials])
    assert sum(isinstance(answer, AuditEntry) for answer in answers) == 1
    assert sum(isinstance(answer, LiveMainExists) for answer in answers) == 7


# --- one family, one lock --------------------------------------------------------------------------------------------


def test_eight_renewals_by_one_source_are_one_renewal() -> None:
    s = subscription()
    renewals = at_once(*[partial(lifecycle.renew, s.pk, term_end=MAR_1, **by(JAN_10, "invoice-1"))] * 8)
    assert sum(isinstance(answer, AuditEntry) for answer in renewals) == 1
    assert renewals.count(None) == 7
    assert steps(s) == [(Action.RENEWED, JAN_10)]


def test_different_verbs_at_once_happen_one_after_the_other() -> None:
    s = subscription()
    subscription(Type.ADDON, parent=s)
    answers = at_once(
        partial(lifecycle.renew, s.pk, term_end=MAR_1, **by(JAN_10)),
        partial(lifecycle.renew, s.pk, term_end=on(4, 1), **by(JAN_10)),
        partial(lifecycle.amend_term, s.pk, term_end=on(5, 1), **by(JAN_10)),
        partial(lifecycle.cancel, s.pk, at=CancelAt.TERM_END, **by(JAN_10)),
        partial(lifecycle.suspend, s.pk, hold=True, **by(JAN_10)),
    )
    assert not [answer for answer in answers if isinstance(answer, Exception)]
    assert [entry.version for entry in entries(s)] == [*range(1, len(entries(s)) + 1)]
    assert state(s) == "HOLD"


def test_a_payment_and_a_hold_at_once_leave_the_hold() -> None:
    s = subscription(status=Status.GRACE)
    paid, on_hold = at_once(
        partial(lifecycle.renew, s.pk, term_end=MAR_1, actor=STRIPE, now=JAN_10),
        partial(lifecycle.suspend, s.pk, hold=True, **by(JAN_10)),
    )
    assert isinstance(paid, AuditEntry)
    assert isinstance(on_hold, AuditEntry)
    assert (state(s), s.term_end) == ("HOLD", MAR_1)


def somebody_waits_for_a_lock() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")
        return bool(cursor.fetchone()[0])


def test_an_addon_that_joins_a_main_in_the_moment_of_its_end_waits_and_is_refused() -> None:
    main, plan = subscription(), PlanFactory.create(type=Type.ADDON)
    bought = Purchase(plan, JAN_1, FEB_1)
    join = partial(lifecycle.start, main.tenant_id, bought, parent_id=main.pk, **by(JAN_10))
    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            lifecycle.expire(main.pk, why=EndReason.CANCELLED, **by(JAN_10))
            answer = pool.submit(at_once, join)
            while not (answer.done() or somebody_waits_for_a_lock()):
                pass
            assert not answer.done()
        assert isinstance(answer.result()[0], InvalidFamily)
    assert Subscription.objects.get() == main


def renew_with_look(s: Subscription, looked: Callable[[], object], *, locked: bool) -> AuditEntry | None:
    """Read, decide, write: what `renew` does, with a pause between the look and the leap, with the lock or without."""
    with transaction.atomic():
        rows = Subscription.objects.select_for_update(no_key=True) if locked else Subscription.objects.all()
        row = rows.select_related("plan").get(pk=s.pk)
        looked()
        if row.term_end >= MAR_1:
            return None
        change = Change(row, Action.RENEWED, JAN_10, consistent(row, {"term_end": MAR_1}))
        return write([change], actor=STRIPE)[0]


def test_without_the_lock_two_renewals_both_decide_to_renew_and_one_fails() -> None:
    s = subscription()
    both_have_looked = threading.Barrier(2)
    answers = at_once(*[partial(renew_with_look, s, partial(both_have_looked.wait, 30), locked=False)] * 2)
    [failure] = [answer for answer in answers if isinstance(answer, Exception)]
    assert isinstance(failure, RuntimeError)
    assert "was the family's root locked first" in str(failure)
    assert len(steps(s)) == 1


def test_with_the_lock_the_second_renewal_sees_the_first() -> None:
    s = subscription()
    answers = at_once(*[partial(renew_with_look, s, lambda: None, locked=True)] * 2)
    assert answers.count(None) == 1
    assert len(steps(s)) == 1


# --- the clock -------------------------------------------------------------------------------------------------------


def test_four_sweeps_at_once_take_each_step_once() -> None:
    mains = [subscription() for _ in range(20)]
    addons = [subscription(Type.ADDON, parent=main) for main in mains]
    answers = at_once(*[partial(sweep, 3)] * 4)
    assert not [answer for answer in answers if isinstance(answer, Exception)]
    sweep()  # what a sweep left to one that had it locked is done by now
    expected = [(Action.GRACE_STARTED, FEB_1), (Action.SUSPENDED, on(2, 15)), (Action.EXPIRED, on(4, 16))]
    for s in (*mains, *addons):
        assert steps(s) == expected


@pytest.mark.parametrize("batch_size", [1, 2, 1000])
def test_a_sweep_skips_a_family_that_is_held_and_finishes_the_others(batch_size: int) -> None:
    first, second, third = (subscription(term=(JAN_1, on(2, day))) for day in (1, 2, 3))
    with held(first):
        sweep(batch_size)
        assert (state(first), state(second), state(third)) == ("ACTIVE", "EXPIRED", "EXPIRED")
    sweep(batch_size)
    assert state(first) == "EXPIRED"


def test_a_renewal_that_comes_while_the_clock_waits_is_seen_by_it() -> None:
    s = subscription()
    at_once(sweep, partial(lifecycle.renew, s.pk, term_end=on(12, 31, 12), **by(on(12, 30))))
    sweep()
    actions = [action for action, _ in steps(s)]
    assert actions in (["renewed"], ["grace_started", "suspended", "expired"])
