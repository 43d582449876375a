"""A MAIN and its add-ons: what moves together, and what an add-on keeps as its own."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from subscriptions import lifecycle
from subscriptions.audit import STRIPE
from subscriptions.errors import (
    AddonFollowsMain,
    AddonTermDiffers,
    IllegalTransition,
    InvalidFamily,
    InvalidPlan,
    InvalidTerm,
)
from subscriptions.lifecycle import CancelAt, Purchase
from subscriptions.models import AuditEntry, Subscription
from subscriptions.states import Action, EndReason, Status, Type
from tests.builders import ALICE, FEB_1, JAN_1, MAR_1, PlanFactory, TenantFactory, subscription
from tests.history import advance, by, changed, entries, in_state, nothing_changes, on, refused, state, steps

pytestmark = pytest.mark.django_db
JAN_10 = on(1, 10)


def addon_of(main: Subscription, term_start: datetime = JAN_1, **given: Any) -> Subscription:
    return subscription(Type.ADDON, parent=main, term=(term_start, main.term_end), **given)


def family(**given: Any) -> tuple[Subscription, Subscription]:
    main = subscription(**given)
    return main, addon_of(main)


def held_addon(main: Subscription) -> Subscription:
    addon = addon_of(main)
    lifecycle.suspend(addon.pk, hold=True, **by(on(1, 5)))
    return addon


def cancelled_addon(main: Subscription) -> Subscription:
    addon = addon_of(main)
    lifecycle.cancel(addon.pk, at=CancelAt.TERM_END, **by(on(1, 5)))
    return addon


# --- moving together -------------------------------------------------------------------------------------------------

FOLLOWED: dict[str, Callable[[Subscription], AuditEntry | None]] = {
    "enter_grace": lambda main: lifecycle.enter_grace(main.pk, **by(JAN_10, "request-1")),
    "suspend": lambda main: lifecycle.suspend(main.pk, **by(JAN_10, "request-1")),
    "hold": lambda main: lifecycle.suspend(main.pk, hold=True, **by(JAN_10, "request-1")),
    "renew early": lambda main: lifecycle.renew(main.pk, term_end=MAR_1, **by(JAN_10, "request-1")),
    "renew late": lambda main: lifecycle.renew(main.pk, term_end=MAR_1, **by(FEB_1, "request-1")),
    "amend_term": lambda main: lifecycle.amend_term(main.pk, term_end=MAR_1, **by(JAN_10, "request-1")),
}


@pytest.mark.parametrize("verb", FOLLOWED)
def test_what_happens_to_a_main_happens_to_its_addons(verb: str) -> None:
    main, addon = family()
    FOLLOWED[verb](main)
    mine, its = entries(main)[-1], entries(addon)[-1]
    assert changed(its) == changed(mine)
    for name in ("action", "actor", "effective_at", "source_id", "reason", "recorded_at", "transaction_id"):
        assert getattr(its, name) == getattr(mine, name)


@pytest.mark.parametrize(("before", "verb"), [("GRACE", "renew"), ("SUSPENDED", "renew"), ("SUSPENDED", "activate")])
def test_addons_come_back_with_their_main(before: str, verb: str) -> None:
    main = in_state(before)
    addon = addon_of(main)
    if verb == "renew":
        lifecycle.renew(main.pk, term_end=MAR_1, **by(JAN_10))
    else:
        lifecycle.activate(main.pk, **by(JAN_10))
    assert (state(main), state(addon)) == ("ACTIVE", "ACTIVE")
    assert (addon.grace_end, addon.suspension_end) == (None, None)


def test_a_purchase_that_activates_a_main_gives_its_addons_its_term() -> None:
    main = subscription(status=Status.TRIAL)
    addon = addon_of(main)
    lifecycle.activate(main.pk, purchase=Purchase(main.plan, JAN_10, MAR_1), **by(JAN_10))
    addon.refresh_from_db()
    assert (addon.status, addon.term_start, addon.term_end) == (Status.ACTIVE, JAN_10, MAR_1)
    assert (addon.type, addon.plan_id) == (Type.ADDON, Subscription.objects.get(pk=addon.pk).plan_id)


def test_a_hold_on_a_main_and_its_lifting_are_the_whole_familys() -> None:
    main, addon = family()
    lifecycle.suspend(main.pk, hold=True, **by(on(1, 5)))
    assert state(addon) == "HOLD"
    lifecycle.lift_hold(main.pk, **by(JAN_10))
    assert state(addon) == "ACTIVE"


@pytest.mark.parametrize("verb", [lifecycle.expire, lifecycle.cancel])
def test_addons_end_with_their_main_because_it_ended(verb: Any) -> None:
    main, addon = family()
    held, cancelled = held_addon(main), cancelled_addon(main)
    how = {"why": EndReason.NEVER_PAID} if verb is lifecycle.expire else {"at": CancelAt.NOW}
    verb(main.pk, **how, **by(JAN_10))
    for its in (addon, held, cancelled):
        its.refresh_from_db()
        assert (its.status, its.ended_at, its.end_reason) == (Status.EXPIRED, JAN_10, EndReason.MAIN_ENDED)
        assert entries(its)[-1].action == Action.EXPIRED


def test_a_change_of_the_mains_plan_is_nothing_to_its_addons() -> None:
    main, addon = family()
    before = [*Subscription.objects.filter(pk=addon.pk).values()]
    lifecycle.change_plan(main.pk, plan=PlanFactory.create(), price=None, **by(JAN_10))
    assert [*Subscription.objects.filter(pk=addon.pk).values()] == before


def test_an_expired_addon_stays_as_it_ended() -> None:
    main, addon = family()
    lifecycle.cancel(addon.pk, at=CancelAt.NOW, **by(on(1, 5)))
    before = [*Subscription.objects.filter(pk=addon.pk).values()]
    lifecycle.renew(main.pk, term_end=MAR_1, **by(JAN_10))
    lifecycle.cancel(main.pk, at=CancelAt.NOW, **by(JAN_10))
    assert [*Subscription.objects.filter(pk=addon.pk).values()] == before


def test_what_happens_to_an_addon_alone_is_nothing_to_its_family() -> None:
    main, other = family()
    addon = addon_of(main)
    before = [*Subscription.objects.filter(pk__in=[main.pk, other.pk]).order_by("pk").values()]
    lifecycle.suspend(addon.pk, hold=True, **by(on(1, 5)))
    lifecycle.cancel(addon.pk, at=CancelAt.NOW, **by(JAN_10))
    assert [*Subscription.objects.filter(pk__in=[main.pk, other.pk]).order_by("pk").values()] == before


def test_an_amended_term_that_would_leave_an_addon_none_is_refused() -> None:
    main = subscription(term=(JAN_1, MAR_1))
    addon_of(main, term_start=FEB_1)
    with refused(InvalidTerm, "must be later than term_start"):
        lifecycle.amend_term(main.pk, term_end=on(1, 15), **by(JAN_10))


def test_a_verb_takes_as_many_statements_for_a_family_as_for_one() -> None:
    main = subscription()
    for _ in range(5):
        addon_of(main)
    with CaptureQueriesContext(connection) as queries:
        lifecycle.renew(main.pk, term_end=MAR_1, **by(JAN_10, "request-1"))
    assert len(queries) == 3
    assert AuditEntry.objects.filter(action=Action.RENEWED).count() == 6


def test_the_mains_entry_is_written_first() -> None:
    main, addon = family()
    lifecycle.renew(main.pk, term_end=MAR_1, **by(JAN_10))
    assert entries(main)[-1].pk < entries(addon)[-1].pk


# --- by the clock ----------------------------------------------------------------------------------------------------


def test_the_clock_takes_addons_along_step_by_step() -> None:
    main, addon = family()
    advance(on(12, 31))
    assert steps(addon) == steps(main) == [
        (Action.GRACE_STARTED, FEB_1),
        (Action.SUSPENDED, on(2, 15)),
        (Action.EXPIRED, on(4, 16)),
    ]  # fmt: skip
    main.refresh_from_db()
    addon.refresh_from_db()
    assert (main.end_reason, addon.end_reason) == (EndReason.SUSPENSION_OVER, EndReason.MAIN_ENDED)


def test_addons_of_a_main_cancelled_at_term_end_end_with_it() -> None:
    main, addon = family()
    lifecycle.cancel(main.pk, at=CancelAt.TERM_END, **by(JAN_10))
    advance(FEB_1)
    assert steps(addon) == [(Action.EXPIRED, FEB_1)]
    addon.refresh_from_db()
    assert addon.end_reason == EndReason.MAIN_ENDED


def test_an_addon_cancelled_alone_ends_at_its_own_term_while_its_main_goes_on() -> None:
    main = subscription()
    addon = cancelled_addon(main)
    lifecycle.renew(main.pk, term_end=MAR_1, **by(JAN_10))
    advance(FEB_1)
    addon.refresh_from_db()
    assert (addon.status, addon.ended_at, addon.term_end) == (Status.EXPIRED, FEB_1, FEB_1)
    assert addon.end_reason == EndReason.CANCELLED_AT_TERM_END
    assert state(main) == "ACTIVE"


def test_an_addon_cancelled_alone_does_not_wait_for_its_mains_settlement() -> None:
    main = subscription(auto_renews=True)
    addon = cancelled_addon(main)
    advance(FEB_1)
    assert (state(main), state(addon)) == ("ACTIVE", "EXPIRED")


def test_addons_wait_for_their_mains_settlement() -> None:
    main, addon = family(auto_renews=True)
    advance(on(2, 3, 23))
    assert (state(main), state(addon)) == ("ACTIVE", "ACTIVE")
    advance(on(2, 4))
    assert (state(main), state(addon)) == ("GRACE", "GRACE")
    assert addon.grace_end == on(2, 15)


# --- what is an add-on's own -----------------------------------------------------------------------------------------


def test_an_addons_own_hold_outlasts_whatever_its_main_goes_through() -> None:
    main = subscription()
    addon = held_addon(main)
    lifecycle.enter_grace(main.pk, **by(JAN_10))
    lifecycle.suspend(main.pk, **by(JAN_10))
    lifecycle.activate(main.pk, **by(JAN_10))
    lifecycle.change_plan(main.pk, plan=PlanFactory.create(), price=None, **by(JAN_10))
    lifecycle.renew(main.pk, term_end=MAR_1, actor=STRIPE, now=JAN_10)
    lifecycle.cancel(main.pk, at=CancelAt.TERM_END, **by(JAN_10))
    lifecycle.resume(main.pk, **by(JAN_10))
    advance(on(3, 20))
    assert (state(main), state(addon)) == ("SUSPENDED", "HOLD")
    assert addon.term_end == MAR_1  # its dates are its main's all the same


def test_an_addons_own_cancellation_outlasts_whatever_its_main_goes_through() -> None:
    main = subscription()
    addon = cancelled_addon(main)
    lifecycle.cancel(main.pk, at=CancelAt.TERM_END, **by(JAN_10))
    lifecycle.resume(main.pk, **by(JAN_10))
    lifecycle.renew(main.pk, term_end=MAR_1, **by(JAN_10))
    lifecycle.cancel(main.pk, at=CancelAt.TERM_END, **by(JAN_10))
    lifecycle.renew(main.pk, term_end=on(4, 1), cancel_at_term_end=True, **by(JAN_10))
    addon.refresh_from_db()
    assert (addon.status, addon.cancel_at_term_end, addon.term_end) == (Status.ACTIVE, True, FEB_1)


def test_a_mains_cancellation_is_no_cancellation_of_its_addons() -> None:
    main, addon = family()
    lifecycle.cancel(main.pk, at=CancelAt.TERM_END, **by(JAN_10))
    addon.refresh_from_db()
    assert (addon.version, addon.cancel_at_term_end) == (1, False)


@pytest.mark.parametrize(
    ("main_is", "then"), [("ACTIVE", "ACTIVE"), ("TRIAL", "TRIAL"), ("SUSPENDED", "SUSPENDED"), ("GRACE", "GRACE")]
)
def test_an_addons_lifted_hold_returns_it_to_its_family(main_is: str, then: str) -> None:
    main = in_state(main_is)
    addon = addon_of(main)
    lifecycle.suspend(addon.pk, hold=True, **by(on(1, 6)))
    lifecycle.lift_hold(addon.pk, **by(JAN_10))
    assert state(addon) == then
    assert addon.suspension_end == main.suspension_end


def test_an_addon_without_a_hold_of_its_own_is_lifted_with_its_main_only() -> None:
    main = subscription()
    addon = addon_of(main)
    lifecycle.suspend(main.pk, hold=True, **by(on(1, 6)))
    with refused(AddonFollowsMain, "lift that hold instead"):
        lifecycle.lift_hold(addon.pk, **by(JAN_10))
    lifecycle.lift_hold(main.pk, **by(JAN_10))
    assert (state(main), state(addon)) == ("ACTIVE", "ACTIVE")


@pytest.mark.parametrize("first", ["main", "addon"])
def test_an_addons_own_hold_and_its_mains_are_lifted_one_by_one(first: str) -> None:
    main, addon = family()
    held = [main, addon] if first == "main" else [addon, main]
    for subscription_ in held:
        lifecycle.suspend(subscription_.pk, hold=True, **by(on(1, 6)))
    lifecycle.lift_hold(main.pk, **by(JAN_10))
    assert (state(main), state(addon)) == ("ACTIVE", "HOLD")
    lifecycle.suspend(main.pk, hold=True, **by(on(1, 11)))
    lifecycle.lift_hold(addon.pk, **by(on(1, 12)))
    assert (state(main), state(addon)) == ("HOLD", "HOLD")
    lifecycle.lift_hold(main.pk, **by(on(1, 13)))
    assert (state(main), state(addon)) == ("ACTIVE", "ACTIVE")


def test_an_addon_is_held_and_cancelled_and_ended_and_replanned_alone() -> None:
    addon = addon_of(subscription())
    assert lifecycle.change_plan(addon.pk, plan=PlanFactory.create(type=Type.ADDON), price=None, **by(JAN_10))
    assert lifecycle.cancel(addon.pk, at=CancelAt.TERM_END, **by(JAN_10))
    assert lifecycle.resume(addon.pk, **by(JAN_10))
    assert lifecycle.suspend(addon.pk, hold=True, **by(JAN_10))
    assert lifecycle.lift_hold(addon.pk, **by(JAN_10))
    assert lifecycle.expire(addon.pk, why=EndReason.CANCELLED, **by(JAN_10))
    with refused(IllegalTransition):
        lifecycle.resume(addon.pk, **by(JAN_10))


def test_an_addons_plan_stays_a_plan_for_addons() -> None:
    addon = addon_of(subscription())
    with refused(InvalidPlan):
        lifecycle.change_plan(addon.pk, plan=PlanFactory.create(), price=None, **by(JAN_10))


# --- what only its main can do ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "verb",
    [
        lambda pk: lifecycle.activate(pk, **by(JAN_10)),
        lambda pk: lifecycle.renew(pk, term_end=MAR_1, **by(JAN_10)),
        lambda pk: lifecycle.amend_term(pk, term_end=MAR_1, **by(JAN_10)),
        lambda pk: lifecycle.enter_grace(pk, **by(JAN_10)),
        lambda pk: lifecycle.suspend(pk, **by(JAN_10)),
    ],
    ids=["activate", "renew", "amend_term", "enter_grace", "suspend"],
)
def test_an_addons_dates_and_status_are_changed_through_its_main_alone(verb: Any) -> None:
    addon = addon_of(subscription())
    with refused(AddonFollowsMain):
        verb(addon.pk)


def test_a_cancelled_addon_whose_main_was_renewed_without_it_cannot_be_resumed() -> None:
    main = subscription()
    addon = cancelled_addon(main)
    lifecycle.renew(main.pk, term_end=MAR_1, **by(JAN_10))
    with refused(AddonFollowsMain, "renewed without it"):
        lifecycle.resume(addon.pk, **by(JAN_10))


# --- joining a family ------------------------------------------------------------------------------------------------


def join(parent: Subscription | None, *, of: Type = Type.ADDON, tenant_id: int | None = None) -> AuditEntry | None:
    plan = PlanFactory.create(type=of)
    tenant_id = tenant_id or (parent.tenant_id if parent else TenantFactory.create().pk)
    purchase = Purchase(plan, JAN_1, parent.term_end if parent else FEB_1)
    return lifecycle.start(tenant_id, purchase, parent_id=parent.pk if parent else None, **by(JAN_10))


@pytest.mark.parametrize("before", ["TRIAL", "ACTIVE", "GRACE", "SUSPENDED", "HOLD"])
def test_an_addon_begins_as_its_main_is(before: str) -> None:
    main = in_state(before)
    addon = addon_of(main, status=Status.ACTIVE, now=JAN_10)
    assert state(addon) == before
    assert (addon.grace_end, addon.suspension_end) == (main.grace_end, main.suspension_end)


def test_an_addon_ends_when_its_main_ends() -> None:
    main = subscription()
    with refused(AddonTermDiffers, "ends when its main"):
        subscription(Type.ADDON, parent=main, term=(JAN_1, MAR_1))


@pytest.mark.parametrize("parent_type", [Type.TRIAL, Type.TEMPORARY, Type.ADDON])
def test_a_parent_is_a_main(parent_type: Type) -> None:
    parent = addon_of(subscription()) if parent_type == Type.ADDON else subscription(parent_type)
    with refused(InvalidFamily):
        join(parent)


def test_a_parent_is_of_the_same_tenant_and_alive_and_exists() -> None:
    main, other, ended = subscription(), TenantFactory.create(), in_state("EXPIRED")
    with refused(InvalidFamily):
        join(main, tenant_id=other.pk)
    with refused(InvalidFamily):
        join(ended)
    with refused(InvalidFamily):
        join(Subscription(pk=0, tenant=other, term_end=FEB_1))


@pytest.mark.parametrize("of", [Type.MAIN, Type.TRIAL, Type.TEMPORARY])
def test_nothing_but_an_addon_has_a_parent(of: Type) -> None:
    main = subscription()
    with refused(InvalidFamily):
        join(main, of=of)


def test_an_addon_has_a_parent() -> None:
    with refused(InvalidFamily):
        join(None)


def test_joining_takes_a_number_check_a_lock_and_a_write() -> None:
    main, plan = subscription(), PlanFactory.create(type=Type.ADDON)
    with CaptureQueriesContext(connection) as queries:
        lifecycle.start(
            main.tenant_id, Purchase(plan, JAN_1, FEB_1), parent_id=main.pk, actor=ALICE, now=JAN_1, reason="r"
        )
    check, lock, write = [query["sql"].strip() for query in queries]
    assert check.startswith("(SELECT")
    assert lock.endswith("FOR NO KEY UPDATE")
    assert write.startswith("WITH born")


def test_a_repeat_on_an_addon_is_recognised() -> None:
    addon = addon_of(subscription())
    assert lifecycle.suspend(addon.pk, hold=True, **by(JAN_10, "request-1"))
    lifecycle.lift_hold(addon.pk, **by(JAN_10))
    with nothing_changes():
        assert lifecycle.suspend(addon.pk, hold=True, **by(JAN_10, "request-1")) is None
