"""Lives of subscriptions, told with dates. Each rule by itself: test_lifecycle, test_families, test_terms."""

from copy import copy
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.contrib.auth.models import User
from django.db import Error, connection, transaction
from django.test import Client
from django.utils import timezone

from subscriptions import lifecycle
from subscriptions.errors import (
    AddonFollowsMain,
    IllegalTransition,
    InvalidPlan,
    InvalidTerm,
    LiveMainExists,
    NoPrice,
    SourceReused,
    TrialUsed,
)
from subscriptions.families import into
from subscriptions.lifecycle import CancelAt, Purchase
from subscriptions.models import AuditEntry, Member, Plan, Subscription, Tenant
from subscriptions.serving import serves
from subscriptions.states import Action, EndReason, Status, Type
from tests.builders import (
    APR_1,
    FEB_1,
    JAN_1,
    MAR_1,
    PlanFactory,
    PlanPriceFactory,
    TenantFactory,
    subscription,
)  # fmt: skip
from tests.history import advance, at_once, by, changed, entries, nothing_changes, on, refused, state, steps

pytestmark = pytest.mark.django_db

DEC_31 = on(12, 31)
BERLIN = ZoneInfo("Europe/Berlin")


def addon_of(main: Subscription, term_start: datetime = JAN_1, **given: Any) -> Subscription:
    main.refresh_from_db()
    return subscription(Type.ADDON, parent=main, term=(term_start, main.term_end), now=term_start, **given)


def term(s: Subscription) -> tuple[datetime, datetime]:
    s.refresh_from_db()
    return s.term_start, s.term_end


def states(*members: Subscription) -> list[str]:
    return [state(s) for s in members]


def ended(s: Subscription) -> tuple[datetime | None, str]:
    s.refresh_from_db()
    return s.ended_at, s.end_reason


# --- an add-on's life ------------------------------------------------------------------------------------------------


def test_an_addon_bought_late_ends_with_its_main_and_then_has_terms_like_its_own() -> None:
    main = subscription()
    addon = addon_of(main, on(1, 20))
    assert term(addon) == (on(1, 20), FEB_1)
    lifecycle.renew(main.pk, term_end=MAR_1, **by(on(1, 25)))
    assert term(addon) == (on(1, 20), MAR_1)  # early: what runs grows
    lifecycle.renew(main.pk, term_end=APR_1, **by(MAR_1))
    assert term(addon) == term(main) == (MAR_1, APR_1)


def test_an_addon_cancelled_early_ends_with_the_term_it_was_paid_for() -> None:
    main = subscription()
    stays, goes = addon_of(main), addon_of(main)
    lifecycle.cancel(goes.pk, at=CancelAt.TERM_END, **by(on(1, 10)))
    lifecycle.renew(main.pk, term_end=MAR_1, **by(on(1, 20)))
    advance(on(2, 2))
    assert states(main, stays, goes) == ["ACTIVE", "ACTIVE", "EXPIRED"]
    assert ended(goes) == (FEB_1, EndReason.CANCELLED_AT_TERM_END)
    lifecycle.cancel(stays.pk, at=CancelAt.NOW, **by(on(2, 10)))
    assert (state(main), ended(stays)) == ("ACTIVE", (on(2, 10), EndReason.CANCELLED))


def test_an_addon_whose_main_is_suspended_is_so_too_and_comes_back_with_it() -> None:
    main = subscription(term=(JAN_1, MAR_1))
    addon = addon_of(main)
    lifecycle.suspend(main.pk, **by(on(1, 10)))
    assert states(main, addon) == ["SUSPENDED", "SUSPENDED"]
    addon.refresh_from_db()
    assert addon.suspension_end == on(3, 11)
    lifecycle.activate(main.pk, **by(on(1, 20)))
    assert states(main, addon) == ["ACTIVE", "ACTIVE"]
    assert steps(addon) == steps(main) == [(Action.SUSPENDED, on(1, 10)), (Action.ACTIVATED, on(1, 20))]


def test_an_addon_whose_main_is_renewed_in_grace_never_lost_a_day() -> None:
    main = subscription()
    addon = addon_of(main)
    advance(on(2, 5))
    assert states(main, addon) == ["GRACE", "GRACE"]
    lifecycle.renew(main.pk, term_end=MAR_1, **by(on(2, 10)))
    advance(on(2, 28))
    assert states(main, addon) == ["ACTIVE", "ACTIVE"]
    assert term(addon) == (FEB_1, MAR_1)


def test_an_addon_whose_main_is_renewed_after_suspension_comes_back_with_it() -> None:
    main = subscription()
    addon = addon_of(main)
    advance(on(2, 20))
    assert states(main, addon) == ["SUSPENDED", "SUSPENDED"]
    lifecycle.renew(main.pk, term_end=APR_1, **by(on(3, 5)))
    assert states(main, addon) == ["ACTIVE", "ACTIVE"]
    assert term(addon) == term(main) == (FEB_1, APR_1)
    advance(APR_1)
    assert states(main, addon) == ["GRACE", "GRACE"]


@pytest.mark.parametrize("comes_back", [lifecycle.lift_hold, lifecycle.renew])
def test_an_addon_cancelled_before_its_main_was_suspended_does_not_come_back_after_its_term(comes_back: Any) -> None:
    main = subscription()
    addon = addon_of(main)
    lifecycle.cancel(addon.pk, at=CancelAt.TERM_END, **by(on(1, 5)))
    if comes_back is lifecycle.lift_hold:
        lifecycle.suspend(main.pk, hold=True, **by(on(1, 10)))
        lifecycle.renew(main.pk, term_end=MAR_1, **by(on(1, 20)))
        lifecycle.lift_hold(main.pk, **by(on(2, 10)))
    else:
        lifecycle.suspend(main.pk, **by(on(1, 10)))
        lifecycle.renew(main.pk, term_end=MAR_1, **by(on(2, 10)))
    assert states(main, addon) == ["ACTIVE", "EXPIRED"]
    assert ended(addon) == (on(2, 10), EndReason.CANCELLED_AT_TERM_END)
    assert entries(addon)[-1].action == Action.EXPIRED
    with nothing_changes():
        advance(on(2, 11))


def test_a_cancelled_addon_whose_own_hold_is_lifted_after_its_term_is_over() -> None:
    main = subscription(term=(JAN_1, FEB_1))
    addon = addon_of(main)
    lifecycle.cancel(addon.pk, at=CancelAt.TERM_END, **by(on(1, 5)))
    lifecycle.suspend(addon.pk, hold=True, **by(on(1, 10)))
    lifecycle.renew(main.pk, term_end=MAR_1, **by(on(1, 20)))
    lifecycle.lift_hold(addon.pk, **by(on(2, 10)))
    assert (state(addon), ended(addon)) == ("EXPIRED", (on(2, 10), EndReason.CANCELLED_AT_TERM_END))


@pytest.mark.parametrize(
    ("at", "ends_at", "its_addon"),
    [(CancelAt.NOW, on(1, 10), EndReason.MAIN_ENDED), (CancelAt.TERM_END, FEB_1, EndReason.MAIN_ENDED)],
)
def test_an_addon_whose_main_is_cancelled_ends_with_it(at: CancelAt, ends_at: datetime, its_addon: EndReason) -> None:
    main = subscription()
    addon = addon_of(main)
    lifecycle.cancel(main.pk, at=at, **by(on(1, 10)))
    advance(DEC_31)
    assert states(main, addon) == ["EXPIRED", "EXPIRED"]
    assert ended(main)[0] == ends_at
    assert ended(addon) == (ends_at, its_addon)


def test_a_cancelled_main_that_is_renewed_after_all_keeps_its_addons() -> None:
    main = subscription()
    addon = addon_of(main)
    lifecycle.cancel(main.pk, at=CancelAt.TERM_END, **by(on(1, 10)))
    lifecycle.renew(main.pk, term_end=MAR_1, **by(on(1, 20)))
    advance(on(2, 10))
    assert states(main, addon) == ["ACTIVE", "ACTIVE"]
    assert term(addon) == term(main)


def test_an_addon_whose_main_changes_its_plan_goes_on_in_the_calendar_of_the_new_one() -> None:
    tenant = TenantFactory.create(time_zone="Europe/Berlin")
    main = subscription(tenant=tenant)
    addon = addon_of(main)
    lifecycle.change_plan(main.pk, plan=PlanFactory.create(terms_in="calendar"), price=None, **by(on(1, 10)))
    addon.refresh_from_db()
    assert (addon.status, addon.time_zone, addon.term_end) == ("ACTIVE", "Europe/Berlin", FEB_1)


def test_an_addon_whose_main_is_replaced_ends_with_it_and_is_bought_anew() -> None:
    old = subscription()
    addon = addon_of(old)
    lifecycle.cancel(old.pk, at=CancelAt.NOW, **by(on(1, 20)))
    new = subscription(tenant=old.tenant, term=(on(1, 20), MAR_1), now=on(1, 20))
    anew = addon_of(new, on(1, 20))
    assert states(old, addon, new, anew) == ["EXPIRED", "EXPIRED", "ACTIVE", "ACTIVE"]
    assert ended(addon) == (on(1, 20), EndReason.MAIN_ENDED)
    assert term(anew) == term(new)


# --- trials ----------------------------------------------------------------------------------------------------------


def test_a_trial_converts_in_place() -> None:
    trial = subscription(Type.TRIAL, term=(JAN_1, on(1, 15)))
    plan = PlanFactory.create()
    lifecycle.activate(trial.pk, purchase=Purchase(plan, on(1, 10), on(2, 10)), **by(on(1, 10)))
    assert (state(trial), trial.type, trial.plan, term(trial)) == ("ACTIVE", "MAIN", plan, (on(1, 10), on(2, 10)))
    assert addon_of(trial, on(1, 11)).parent == trial
    advance(on(2, 10))
    assert state(trial) == "GRACE"


def test_a_trial_converts_in_place_in_its_grace_period_and_while_suspended() -> None:
    for at in (on(1, 20), on(2, 20)):
        trial = subscription(Type.TRIAL, term=(JAN_1, on(1, 15)))
        advance(at)
        lifecycle.activate(trial.pk, purchase=Purchase(PlanFactory.create(), at, APR_1), **by(at))
        assert (state(trial), trial.type, trial.grace_end, trial.suspension_end) == ("ACTIVE", "MAIN", None, None)


def start(tenant: Tenant, plan: Plan, at: datetime, end: datetime, **given: Any) -> Subscription | None:
    entry = lifecycle.start(tenant.pk, Purchase(plan, at, end), **by(at, given.pop("source_id", "")), **given)
    return Subscription.objects.get(pk=entry.subscription_id) if entry else None


def test_a_trial_converts_into_a_new_main_which_takes_over_at_the_same_instant() -> None:
    trial = subscription(Type.TRIAL, term=(JAN_1, on(1, 15)))
    main = start(trial.tenant, PlanFactory.create(), on(1, 10), on(2, 10), converts_id=trial.pk, source_id="order-1")
    assert main
    assert states(trial, main) == ["EXPIRED", "ACTIVE"]
    assert ended(trial) == (on(1, 10), EndReason.CONVERTED)
    assert entries(trial)[-1].source_id == entries(main)[0].source_id == "order-1"
    with nothing_changes():
        assert not start(
            trial.tenant, PlanFactory.create(), on(1, 10), on(2, 10), converts_id=trial.pk, source_id="order-1"
        )


@pytest.mark.parametrize(
    ("of", "plan_type", "error"),
    [
        ("another tenant", Type.MAIN, InvalidPlan),
        ("the same tenant", Type.TEMPORARY, InvalidPlan),
        ("over", Type.MAIN, IllegalTransition),
        ("no trial", Type.MAIN, InvalidPlan),
    ],
)
def test_what_is_no_trial_to_take_over_is_refused_and_the_trial_goes_on(of: str, plan_type: Type, error: Any) -> None:
    trial = subscription(Type.TEMPORARY if of == "no trial" else Type.TRIAL)
    tenant = TenantFactory.create() if of == "another tenant" else trial.tenant
    plan = PlanFactory.create(type=plan_type)
    if of == "over":
        lifecycle.expire(trial.pk, why=EndReason.CANCELLED, **by(on(1, 5)))
    with refused(error):
        start(tenant, plan, on(1, 10), on(2, 10), converts_id=trial.pk)


def test_a_takeover_that_a_live_main_forbids_leaves_the_trial_going() -> None:
    main = subscription()
    trial, plan = subscription(Type.TRIAL, tenant=main.tenant), PlanFactory.create()
    with nothing_changes(), pytest.raises(LiveMainExists), transaction.atomic():
        start(main.tenant, plan, on(1, 10), on(2, 10), converts_id=trial.pk)


def test_a_tenant_has_one_trial_unless_another_is_granted_with_a_reason() -> None:
    first = subscription(Type.TRIAL)
    lifecycle.expire(first.pk, why=EndReason.CANCELLED, **by(on(1, 5)))
    plan = PlanFactory.create(type=Type.TRIAL)
    with refused(TrialUsed):
        start(first.tenant, plan, on(1, 10), FEB_1)
    another = start(first.tenant, plan, on(1, 10), FEB_1, another_trial=True)
    assert another
    assert (another.trial_ordinal, entries(another)[0].reason) == (2, "as agreed")


def test_a_trial_that_became_a_main_was_the_tenants_trial() -> None:
    trial, plan = subscription(Type.TRIAL), PlanFactory.create(type=Type.TRIAL)
    lifecycle.activate(trial.pk, purchase=Purchase(PlanFactory.create(), on(1, 10), FEB_1), **by(on(1, 10)))
    with refused(TrialUsed):
        start(trial.tenant, plan, on(1, 11), FEB_1)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("another", [False, True])
def test_of_four_trials_at_once_one_begins(another: bool) -> None:
    tenant, plan = TenantFactory.create(), PlanFactory.create(type=Type.TRIAL)
    answers = at_once(*[partial(start, tenant, plan, JAN_1, FEB_1, another_trial=another)] * 4)
    assert sum(isinstance(answer, TrialUsed) for answer in answers) + Subscription.objects.count() == 4
    ordinals = [*Subscription.objects.order_by("trial_ordinal").values_list("trial_ordinal", flat=True)]
    assert ordinals == ([*range(1, len(ordinals) + 1)] if another else [1])


# --- temporary, windows, sold ahead ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("windows", "ends"),
    [
        ({}, [FEB_1, on(2, 15), on(4, 16)]),
        ({"grace_days": 0}, [FEB_1, FEB_1, on(4, 2)]),
        ({"suspension_days": 0}, [FEB_1, on(2, 15), on(2, 15)]),
        ({"grace_days": 0, "suspension_days": 0}, [FEB_1, FEB_1, FEB_1]),
    ],
)
@pytest.mark.parametrize("of", [Type.MAIN, Type.TRIAL])
def test_a_term_runs_out_by_the_windows_of_its_plan(of: Type, windows: dict[str, int], ends: list[datetime]) -> None:
    s = subscription(plan=PlanFactory.create(type=of, **windows))
    advance(DEC_31)
    assert [at for _, at in steps(s)] == ends
    assert ended(s) == (ends[-1], EndReason.SUSPENSION_OVER)


def test_a_temporary_one_ends_with_its_term_beside_a_main_that_goes_on() -> None:
    main = subscription(term=(JAN_1, DEC_31))
    temporary = subscription(Type.TEMPORARY, tenant=main.tenant, term=(on(1, 10), on(1, 17)))
    advance(FEB_1)
    assert states(main, temporary) == ["ACTIVE", "EXPIRED"]
    assert ended(temporary) == (on(1, 17), EndReason.CANCELLED_AT_TERM_END)


def test_a_temporary_one_that_is_renewed_ends_with_its_new_term() -> None:
    temporary = subscription(Type.TEMPORARY)
    lifecycle.renew(temporary.pk, term_end=MAR_1, **by(on(1, 20)))
    advance(DEC_31)
    assert ended(temporary) == (MAR_1, EndReason.CANCELLED_AT_TERM_END)


def test_a_main_on_trial_that_was_held_is_on_trial_again_unless_somebody_paid() -> None:
    held, paid = subscription(status=Status.TRIAL), subscription(status=Status.TRIAL)
    for s in (held, paid):
        lifecycle.suspend(s.pk, hold=True, **by(on(1, 5)))
    lifecycle.renew(paid.pk, term_end=MAR_1, **by(on(1, 6)))
    for s in (held, paid):
        lifecycle.lift_hold(s.pk, **by(on(1, 7)))
    assert states(held, paid) == ["TRIAL", "ACTIVE"]


def test_a_payment_never_brings_back_what_would_end_in_the_same_minute() -> None:
    s = subscription(plan=PlanFactory.create(suspension_days=365))
    advance(on(4, 10))
    with refused(InvalidTerm, "is over"):
        lifecycle.renew(s.pk, term_end=MAR_1, **by(on(4, 10)))
    trial = subscription(Type.TRIAL)
    bought = Purchase(PlanFactory.create(), JAN_1, FEB_1)
    with refused(InvalidTerm, "is over"):
        lifecycle.activate(trial.pk, purchase=bought, **by(FEB_1))


def test_a_cancellation_whose_term_is_over_cannot_be_undone_before_the_clock_comes_by() -> None:
    s = subscription()
    lifecycle.cancel(s.pk, at=CancelAt.TERM_END, **by(on(1, 5)))
    with refused(IllegalTransition, "has ended with its term"):
        lifecycle.resume(s.pk, **by(FEB_1))


def test_a_source_that_started_something_for_one_tenant_starts_nothing_for_another() -> None:
    plan, tenants = PlanFactory.create(), [TenantFactory.create() for _ in range(2)]
    lifecycle.start(tenants[0].pk, Purchase(plan, JAN_1, FEB_1), **by(JAN_1, "po-1"))
    with refused(SourceReused):
        lifecycle.start(tenants[1].pk, Purchase(plan, JAN_1, FEB_1), **by(JAN_1, "po-1"))
    assert lifecycle.start(tenants[0].pk, Purchase(plan, JAN_1, FEB_1), **by(JAN_1, "po-1")) is None


def test_what_is_sold_ahead_serves_from_its_beginning_and_not_before() -> None:
    s = subscription(term=(FEB_1, MAR_1), now=on(1, 10))
    assert (s.status, entries(s)[0].effective_at) == ("ACTIVE", on(1, 10))
    assert [serves(s, at) for at in (on(1, 10), FEB_1 - timedelta(microseconds=1), FEB_1)] == [False, False, True]
    with nothing_changes():
        advance(on(2, 28))


def test_what_is_sold_ahead_has_an_addon_that_begins_with_it() -> None:
    main = subscription(term=(FEB_1, MAR_1), now=on(1, 10))
    addon = subscription(Type.ADDON, parent=main, term=(FEB_1, MAR_1), now=on(1, 11))
    assert [serves(addon, at) for at in (on(1, 20), FEB_1)] == [False, True]


def test_what_is_sold_ahead_and_cancelled_before_it_began_never_serves() -> None:
    s = subscription(term=(FEB_1, MAR_1), now=on(1, 10))
    lifecycle.cancel(s.pk, at=CancelAt.NOW, **by(on(1, 20)))
    assert (state(s), serves(s, FEB_1), ended(s)[0]) == ("EXPIRED", False, on(1, 20))


def test_the_api_says_that_what_is_sold_ahead_grants_no_access_yet() -> None:
    now = timezone.now()
    today = subscription(term=(now - timedelta(days=1), now + timedelta(days=30)), now=now)
    ahead = subscription(
        Type.TEMPORARY, tenant=today.tenant, term=(now + timedelta(days=2), now + timedelta(days=9)), now=now
    )
    user = User.objects.create(username="engineer")
    Member.objects.create(user=user, tenant=today.tenant)
    client = Client()
    client.force_login(user)
    told = client.get("/api/v1/customer/billing/status").json()["subscriptions"]
    assert {s["number"]: s["grants_access"] for s in told} == {today.number: True, ahead.number: False}


# --- anniversaries ---------------------------------------------------------------------------------------------------


def monthly(start: datetime, end: datetime, interval: str = "month", **plan: Any) -> Subscription:
    """Sold at a price, so that it can be renewed without a date."""
    price = PlanPriceFactory.create(plan=PlanFactory.create(**plan), interval=interval)
    tenant = TenantFactory.create(time_zone="Europe/Berlin")
    entry = lifecycle.start(tenant.pk, Purchase(price.plan, start, end, price), **by(start))
    assert entry
    return Subscription.objects.get(pk=entry.subscription_id)


def renewed(s: Subscription, at: datetime | None = None, until: datetime | None = None) -> datetime:
    """Where its term ends once it is renewed; a day before its end, if not said otherwise."""
    s.refresh_from_db()
    lifecycle.renew(s.pk, term_end=until, **by(at or s.term_end - timedelta(days=1)))
    return term(s)[1]


def test_renewals_keep_the_31st() -> None:
    s = monthly(on(1, 31), on(2, 28))
    assert [renewed(s) for _ in range(4)] == [on(3, 31), on(4, 30), on(5, 31), on(6, 30)]


def test_renewals_keep_the_leap_day() -> None:
    leap_day = datetime(2024, 2, 29, tzinfo=UTC)
    s = monthly(leap_day, datetime(2025, 2, 28, tzinfo=UTC), "year")
    assert [renewed(s).date().isoformat() for _ in range(3)] == ["2026-02-28", "2027-02-28", "2028-02-29"]


def test_a_renewal_in_grace_keeps_the_31st_though_the_term_ended_on_the_28th() -> None:
    s = monthly(on(1, 31), on(2, 28))
    advance(on(3, 5))
    assert (state(s), renewed(s, at=on(3, 5))) == ("GRACE", on(3, 31))
    assert term(s) == (on(2, 28), on(3, 31))


def test_a_renewal_after_suspension_keeps_the_31st_too() -> None:
    s = monthly(on(1, 31), on(2, 28))
    advance(on(3, 20))
    assert (state(s), renewed(s, at=on(3, 20)), state(s)) == ("SUSPENDED", on(3, 31), "ACTIVE")


def test_an_explicit_date_that_fits_keeps_the_31st_and_another_begins_a_new_count() -> None:
    s = monthly(on(1, 31), on(2, 28))
    assert renewed(s, until=on(4, 30)) == on(4, 30)
    assert renewed(s) == on(5, 31)
    assert renewed(s, until=on(6, 17)) == on(6, 17)
    assert renewed(s) == on(7, 17)


def test_an_amended_term_and_its_correction_lead_back_to_months_from_the_right_day() -> None:
    s = monthly(on(1, 31), on(2, 28))
    lifecycle.amend_term(s.pk, term_end=on(3, 31), **by(on(2, 10)))
    assert renewed(s) == on(4, 30)


def test_an_addon_bought_late_keeps_its_mains_anniversary() -> None:
    main = monthly(on(1, 31), on(2, 28))
    addon = addon_of(main, on(2, 10))
    assert [renewed(main) for _ in range(2)] == [on(3, 31), on(4, 30)]
    assert term(addon)[1] == on(4, 30)


# --- a calendar of one's own -----------------------------------------------------------------------------------------


def midnight(month: int, day: int) -> datetime:
    """In Berlin, in 2026."""
    return datetime(2026, month, day, tzinfo=BERLIN).astimezone(UTC)


@pytest.mark.parametrize(
    ("start", "ends", "grace_ends", "expires"),
    [
        (midnight(2, 20), midnight(3, 20), midnight(4, 3), midnight(6, 2)),
        (midnight(2, 28), midnight(3, 28), midnight(4, 11), midnight(6, 10)),
        (midnight(9, 15), midnight(10, 15), midnight(10, 29), midnight(12, 28)),
        (midnight(7, 20), midnight(8, 20), midnight(9, 3), midnight(11, 2)),
    ],
)
def test_deadlines_of_a_calendar_plan_stay_at_midnight_over_both_changes_of_the_clock(
    start: datetime, ends: datetime, grace_ends: datetime, expires: datetime
) -> None:
    s = monthly(start, ends, terms_in="calendar")
    advance(datetime(2027, 6, 1, tzinfo=UTC))
    assert steps(s) == [(Action.GRACE_STARTED, ends), (Action.SUSPENDED, grace_ends), (Action.EXPIRED, expires)]


def test_terms_of_a_calendar_plan_are_months_in_berlin_and_those_of_another_are_months_in_utc() -> None:
    in_berlin = monthly(midnight(1, 15), midnight(2, 15), terms_in="calendar")
    in_utc = monthly(midnight(1, 15), midnight(2, 15))
    assert [renewed(in_berlin) for _ in range(3)] == [midnight(3, 15), midnight(4, 15), midnight(5, 15)]
    assert [renewed(in_utc) for _ in range(3)] == [on(3, 14, 23), on(4, 14, 23), on(5, 14, 23)]


def test_a_tenant_that_moves_takes_its_terms_along_with_the_next_purchase_only() -> None:
    s = monthly(midnight(1, 15), midnight(2, 15), terms_in="calendar")
    Tenant.objects.update(time_zone="America/New_York")
    assert renewed(s) == midnight(3, 15)


@pytest.mark.parametrize("name", ["Mars/Olympus", "CET", "localtime", "", "Europe/Berlin; DROP TABLE tenants"])
def test_a_time_zone_that_nobody_knows_is_refused_by_the_database(name: str) -> None:
    s = subscription()
    for table, row in (("tenants", s.tenant_id), ("subscriptions", s.pk)):
        with nothing_changes(), pytest.raises(Error), transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f"UPDATE {table} SET time_zone = %s WHERE id = %s", [name, row])


# What the clock shows where a window ends, in each zone: ordinary, skipped (by an hour, by half of one, by a day), and
# twice; and the days of the window that ends then.
WINDOW_ENDS = [
    ("Europe/Berlin", "2026-03-29T02:00"),
    ("Europe/Berlin", "2026-03-29T02:30"),
    ("Europe/Berlin", "2026-03-29T03:00"),
    ("Europe/Berlin", "2026-10-25T02:00"),
    ("Europe/Berlin", "2026-10-25T02:30"),
    ("Europe/Berlin", "2026-10-25T03:00"),
    ("America/New_York", "2026-03-08T02:30"),
    ("America/New_York", "2026-11-01T01:00"),
    ("America/New_York", "2026-11-01T01:30"),
    ("Australia/Lord_Howe", "2026-10-04T02:00"),
    ("Australia/Lord_Howe", "2026-10-04T02:15"),
    ("Australia/Lord_Howe", "2026-04-05T01:30"),
    ("Australia/Lord_Howe", "2026-04-05T01:45"),
    ("Pacific/Apia", "2011-12-29T23:59:59.999999"),
    ("Pacific/Apia", "2011-12-30T00:00"),
    ("Pacific/Apia", "2011-12-30T12:00"),
    ("Pacific/Apia", "2011-12-30T23:59:59.999999"),
    ("Pacific/Apia", "2011-12-31T00:00"),
    ("Pacific/Apia", "2026-06-01T00:00"),
]


@pytest.mark.parametrize("days", [1, 2, 14, 60])
@pytest.mark.parametrize(("zone", "shown"), WINDOW_ENDS)
def test_the_sweep_counts_windows_as_python_does(zone: str, shown: str, days: int) -> None:
    end = (datetime.fromisoformat(shown) - timedelta(days=days)).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
    windows = {"grace_days": days, "suspension_days": days}
    plan = PlanFactory.create(terms_in="calendar", **windows)
    tenant = TenantFactory.create(time_zone=zone)
    s = subscription(tenant=tenant, plan=plan, term=(end - timedelta(days=30), end), now=end - timedelta(days=30))
    for status in (Status.GRACE, Status.SUSPENDED):
        before, at = copy(s), s.next_deadline
        expected = into(status, before, at)
        [entry] = advance(at)
        s.refresh_from_db()
        assert {column: getattr(s, column) for column in expected} == expected
        assert (entry.effective_at, s.status) == (at, status)


# --- a longer grace period -------------------------------------------------------------------------------------------


def in_grace() -> tuple[Subscription, Subscription]:
    main = subscription()
    addon = addon_of(main)
    advance(on(2, 2))
    return main, addon


def test_a_grace_period_is_made_longer_for_the_whole_family() -> None:
    main, addon = in_grace()
    entry = lifecycle.extend_grace(main.pk, until=on(2, 25), **by(on(2, 10)))
    assert changed(entry) == {"grace_end": (on(2, 15), on(2, 25))}
    advance(on(2, 24))
    assert states(main, addon) == ["GRACE", "GRACE"]
    advance(on(2, 25))
    assert states(main, addon) == ["SUSPENDED", "SUSPENDED"]
    assert steps(main) == steps(addon)
    addon.refresh_from_db()
    assert addon.suspension_end == on(4, 26)


@pytest.mark.parametrize("until", [on(2, 15), on(2, 14), on(1, 1)])
def test_a_grace_period_is_never_made_shorter(until: datetime) -> None:
    main, _ = in_grace()
    with nothing_changes():
        assert lifecycle.extend_grace(main.pk, until=until, **by(on(2, 10))) is None


def test_what_has_no_grace_period_gets_none_by_an_extension() -> None:
    s = subscription()
    with refused(IllegalTransition, match="has no grace period"):
        lifecycle.extend_grace(s.pk, until=on(2, 25), **by(on(1, 10)))


def test_an_addons_grace_period_is_its_mains() -> None:
    _, addon = in_grace()
    with refused(AddonFollowsMain):
        lifecycle.extend_grace(addon.pk, until=on(2, 25), **by(on(2, 10)))


def test_a_renewal_after_an_extension_still_begins_where_the_term_ended() -> None:
    main, addon = in_grace()
    lifecycle.extend_grace(main.pk, until=on(2, 25), **by(on(2, 10)))
    lifecycle.renew(main.pk, term_end=MAR_1, **by(on(2, 20)))
    assert term(main) == term(addon) == (FEB_1, MAR_1)
    assert isinstance(entries(main)[-1], AuditEntry)


# --- renewals without a date -----------------------------------------------------------------------------------------


def test_a_renewal_after_a_suspension_buys_the_term_that_covers_today_and_nothing_that_was_withheld() -> None:
    price = PlanPriceFactory.create(plan=PlanFactory.create(suspension_days=365))
    s = subscription(plan=price.plan, price=price)
    advance(on(4, 10))
    assert state(s) == "SUSPENDED"
    lifecycle.renew(s.pk, **by(on(4, 10)))
    assert (state(s), term(s)) == ("ACTIVE", (APR_1, on(5, 1)))


def test_a_renewal_in_grace_pays_for_the_service_that_went_on() -> None:
    price = PlanPriceFactory.create(plan=PlanFactory.create(grace_days=60))
    s = subscription(plan=price.plan, price=price)
    advance(on(3, 10))
    lifecycle.renew(s.pk, **by(on(3, 10)))
    assert term(s) == (FEB_1, MAR_1)
    advance(on(3, 10))
    assert (state(s), s.grace_end) == ("GRACE", on(4, 30))


def test_what_has_no_price_of_its_own_continues_by_its_plans_if_that_is_for_one_interval() -> None:
    plan = PlanFactory.create()
    s = subscription(plan=plan)
    with refused(NoPrice):
        lifecycle.renew(s.pk, **by(on(1, 10)))
    PlanPriceFactory.create(plan=plan)
    lifecycle.renew(s.pk, **by(on(1, 10)))
    assert term(s) == (JAN_1, MAR_1)
    PlanPriceFactory.create(plan=plan, interval="year")
    with refused(NoPrice):
        lifecycle.renew(s.pk, **by(on(1, 11)))
