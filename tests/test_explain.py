"""Why a device was served at an instant, or was not; and what would change it now."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from entitlements import explain as explaining
from entitlements import limits, slots
from entitlements.access import Reason, access
from entitlements.errors import DeviceNotFound, NotYet
from entitlements.explain import Explanation, Help, Step, explain, replayed
from entitlements.follow import follow
from entitlements.limits import Park
from subscriptions import lifecycle
from subscriptions.audit import COLUMNS, Actor
from subscriptions.errors import InvalidTerm
from subscriptions.lifecycle import CancelAt, Purchase
from subscriptions.models import PlanPrice, Subscription, Tenant
from subscriptions.states import EndReason, Type
from tests.builders import FEB_1, JAN_1, MAR_1, PlanPriceFactory, selling, subscription
from tests.history import advance, by, entries, on, refused

pytestmark = pytest.mark.django_db
NOW = on(10, 1)
SECOND = timedelta(seconds=1)
GATEWAY = Actor.api_key(3)


def why(s: Subscription | Tenant, at: datetime, *, now: datetime = NOW, device_id: str = "d-1") -> Explanation:
    return explain(s.tenant_id if isinstance(s, Subscription) else s.pk, device_id, at, now=now)


def reasons(s: Subscription, *instants: datetime, now: datetime = NOW) -> list[str]:
    return [why(s, at, now=now).reason.value for at in instants]


def assigned(s: Subscription, at: datetime, device_id: str = "d-1", tier: str = "basic") -> None:
    slots.assign(s.tenant_id, device_id, tier, actor=GATEWAY, now=at)


def running(slots: dict[str, int] | None = None, **bought: Any) -> Subscription:
    """Bought for January, with the device d-1 in a slot since the 5th."""
    s = subscription(slots={"basic": 1} if slots is None else slots, **bought)
    assigned(s, on(1, 5))
    return s


# --- at an instant ---------------------------------------------------------------------------------------------------


def test_a_device_is_served_from_the_instant_that_it_got_its_slot() -> None:
    s = running()
    assert reasons(s, on(1, 5) - SECOND, on(1, 5), on(1, 20)) == ["unknown_device", "ok", "ok"]
    found = why(s, on(1, 20))
    assert (found.served, found.tier, found.subscription) == (True, "basic", s.number)


def test_it_is_served_through_grace_and_not_from_the_instant_of_the_suspension() -> None:
    s = running()
    advance(on(2, 20))
    assert reasons(s, FEB_1, on(2, 15) - SECOND, on(2, 15), on(2, 19)) == ["ok", "ok", "suspended", "suspended"]


def test_a_clock_that_comes_late_changes_nothing_of_what_was() -> None:
    s = running()
    instants = [on(1, 31), FEB_1, on(2, 15) - SECOND, on(2, 15), on(4, 16) - SECOND, on(4, 16), on(9, 1)]
    before = [reasons(s, *instants), [why(s, at).facts for at in instants[3:6]]]
    advance(on(9, 1))
    after = [
        reasons(s, *instants),
        [[f for f in why(s, at).facts if f.what != "grace_started"] for at in instants[3:6]],
    ]
    assert before == after
    assert after[0] == ["ok", "ok", "ok", "suspended", "suspended", "expired", "expired"]


def test_what_was_suspended_and_renewed_was_not_served_in_between() -> None:
    s = running()
    advance(on(2, 20))
    lifecycle.renew(s.pk, term_end=on(9, 1), **by(on(3, 10)))
    assert reasons(s, on(3, 10) - SECOND, on(3, 10)) == ["suspended", "ok"]


def test_a_device_of_a_trial_that_was_bought_for_later_waits_for_the_term_to_begin() -> None:
    s = running(type=Type.TRIAL)
    bought = Purchase(selling({"basic": 1}), FEB_1, on(12, 1))
    lifecycle.activate(s.pk, purchase=bought, **by(on(1, 10)))
    assert reasons(s, on(1, 10) - SECOND, on(1, 10), FEB_1 - SECOND, FEB_1) == [
        "ok", "not_started", "not_started", "ok",
    ]  # fmt: skip
    assert would_help(s, on(1, 20)) == [Help(Step.WAIT, subscription=s.number, at=FEB_1)]


def test_cancelled_at_term_end_it_is_over_without_a_grace_period() -> None:
    s = running()
    lifecycle.cancel(s.pk, at=CancelAt.TERM_END, **by(on(1, 10)))
    assert reasons(s, FEB_1 - SECOND, FEB_1) == ["ok", "expired"]
    advance(on(2, 3))
    assert reasons(s, FEB_1 - SECOND, FEB_1) == ["ok", "expired"]


def test_an_addon_ends_with_the_main_subscription_that_was_cancelled_then() -> None:
    main = subscription(slots={})
    addon = subscription(Type.ADDON, slots={"basic": 1}, parent=main)
    assigned(addon, on(1, 5))
    lifecycle.cancel(main.pk, at=CancelAt.TERM_END, **by(on(1, 10)))
    assert reasons(addon, on(1, 31), FEB_1) == ["ok", "expired"]
    lifecycle.resume(main.pk, **by(on(1, 20)))
    assert reasons(addon, on(1, 31), FEB_1) == ["ok", "ok"]


def test_an_addon_was_in_grace_though_its_main_subscription_was_renewed_for_the_last_time_later() -> None:
    main = subscription(slots={})
    addon = subscription(Type.ADDON, slots={"basic": 1}, parent=main)
    assigned(addon, on(1, 5))
    lifecycle.renew(main.pk, term_end=MAR_1, cancel_at_term_end=True, **by(on(2, 6)))  # before the clock came
    assert reasons(addon, on(2, 5), on(2, 28), MAR_1) == ["ok", "ok", "expired"]


def test_parked_and_back() -> None:
    s = running({"basic": 1})
    limits.resize(s.pk, "basic", 0, park=Park.NEWEST, **by(on(1, 10)))
    limits.resize(s.pk, "basic", 1, **by(on(1, 20)))
    assert reasons(s, on(1, 10) - SECOND, on(1, 10), on(1, 20) - SECOND, on(1, 20)) == ["ok", "parked", "parked", "ok"]
    found = why(s, on(1, 15))
    assert (found.tier, found.subscription) == ("basic", s.number)
    assert [(f.at, f.what, f.by) for f in found.facts][-1] == (on(1, 10), "parked", "staff")


def test_released_and_assigned_again() -> None:
    s = running()
    slots.release(s.tenant_id, "d-1", actor=Actor.member(7), now=on(1, 10))
    assigned(s, on(1, 20))
    assert reasons(s, on(1, 10) - SECOND, on(1, 10), on(1, 20)) == ["ok", "no_slot", "ok"]
    found = why(s, on(1, 15))
    assert (found.tier, found.subscription) == ("", "")
    assert [(f.what, f.by) for f in found.facts] == [
        ("started", "staff"),
        ("assigned", "apikey"),
        ("released", "member"),
    ]


def test_what_was_yet_to_come_is_no_fact_of_an_instant() -> None:
    s = running()
    slots.release(s.tenant_id, "d-1", actor=GATEWAY, now=on(1, 10))
    assert [fact.what for fact in why(s, on(1, 10) - SECOND).facts] == ["started", "assigned"]


def test_what_became_of_a_subscription_after_a_device_left_it_is_no_fact_of_the_device() -> None:
    s = running()
    slots.release(s.tenant_id, "d-1", actor=GATEWAY, now=on(1, 10))
    advance(on(2, 20))
    assert [fact.what for fact in why(s, on(3, 1)).facts] == ["started", "assigned", "released"]


def test_deleted_it_is_unknown_and_its_history_is_not() -> None:
    s = running()
    slots.delete(s.tenant_id, "d-1", actor=GATEWAY, now=on(1, 10))
    assert reasons(s, on(1, 9), on(1, 10), on(1, 11)) == ["ok", "unknown_device", "unknown_device"]
    assigned(s, on(1, 20))
    assert reasons(s, on(1, 9), on(1, 11), on(1, 20)) == ["ok", "unknown_device", "ok"]


def test_a_device_that_waited_and_gave_up_has_no_slot_now() -> None:
    s = running()
    limits.resize(s.pk, "basic", 0, park=Park.NEWEST, **by(on(1, 10)))
    slots.release(s.tenant_id, "d-1", actor=GATEWAY, now=on(1, 20))
    assert reasons(s, on(1, 15), now=on(1, 25)) == ["parked"]
    assert reasons(s, on(1, 25), now=on(1, 25)) == ["no_slot"]


def test_moved_between_subscriptions_each_answers_for_its_own_time() -> None:
    s = running({"basic": 1})
    other = subscription(Type.TEMPORARY, slots={"basic": 1}, tenant=s.tenant, term=(JAN_1, on(9, 1)))
    slots.move(s.tenant_id, "d-1", other.pk, actor=GATEWAY, now=on(1, 20))
    lifecycle.suspend(s.pk, hold=True, **by(on(1, 10)))
    lifecycle.lift_hold(s.pk, **by(on(1, 12)))
    assert [(why(s, at).reason.value, why(s, at).subscription) for at in (on(1, 11), on(1, 13), on(1, 20))] == [
        ("suspended", s.number), ("ok", s.number), ("ok", other.number),
    ]  # fmt: skip


def test_a_suspension_ends_on_the_leap_day_as_on_any_other() -> None:
    jan, leap = datetime(2028, 1, 1, tzinfo=UTC), datetime(2028, 2, 29, tzinfo=UTC)
    s = subscription(slots={"basic": 1}, term=(jan, datetime(2028, 2, 15, tzinfo=UTC)), now=jan)
    assigned(s, jan)
    now = datetime(2028, 6, 1, tzinfo=UTC)
    assert reasons(s, leap - SECOND, leap, now=now) == ["ok", "suspended"]
    advance(now)
    assert reasons(s, leap - SECOND, leap, now=now) == ["ok", "suspended"]


def test_what_is_written_down_for_a_past_instant_counts_from_that_instant() -> None:
    s = running()
    lifecycle.expire(s.pk, why=EndReason.CANCELLED, ended_at=on(1, 15), **by(on(1, 25)))
    assert reasons(s, on(1, 15) - SECOND, on(1, 15), on(1, 20)) == ["ok", "expired", "expired"]


def test_what_was_written_down_last_is_what_counts() -> None:
    s = running()
    lifecycle.suspend(s.pk, **by(on(1, 20)))
    lifecycle.expire(s.pk, why=EndReason.CANCELLED, ended_at=on(1, 15), **by(on(1, 25)))
    assert reasons(s, on(1, 14), on(1, 16), on(1, 22)) == ["ok", "expired", "expired"]


def test_a_device_that_was_deleted_without_a_slot_is_unknown_since_then() -> None:
    s = running()
    slots.release(s.tenant_id, "d-1", actor=GATEWAY, now=on(1, 10))
    slots.delete(s.tenant_id, "d-1", actor=GATEWAY, now=on(1, 20))
    assert reasons(s, on(1, 20) - SECOND, on(1, 20)) == ["no_slot", "unknown_device"]


def test_the_replay_of_everything_is_the_row() -> None:
    s = running()
    lifecycle.cancel(s.pk, at=CancelAt.TERM_END, **by(on(1, 7)))
    lifecycle.resume(s.pk, **by(on(1, 8)))
    advance(on(2, 20))
    lifecycle.suspend(s.pk, hold=True, **by(on(2, 21)))
    s.refresh_from_db()
    assert replayed(entries(s)) == {column: getattr(s, column) for column in COLUMNS}


@pytest.mark.parametrize("sold", [{}, {"type": Type.TRIAL}, {"type": Type.TEMPORARY}, {"auto_renews": True}])
@pytest.mark.parametrize("later", ["nothing", "cancelled", "held", "swept", "parked", "released", "deleted", "bought"])
def test_of_now_it_says_what_access_says(sold: dict[str, Any], later: str) -> None:
    s, since = running(**sold), on(1, 7)
    match later:
        case "cancelled":
            lifecycle.cancel(s.pk, at=CancelAt.TERM_END, **by(on(1, 6)))
        case "held":
            lifecycle.suspend(s.pk, hold=True, **by(on(1, 6)))
        case "swept":
            advance(since := on(2, 20))
        case "parked":
            limits.resize(s.pk, "basic", 0, park=Park.NEWEST, **by(on(1, 6)))
        case "released":
            slots.release(s.tenant_id, "d-1", **by(on(1, 6)))
        case "deleted":
            slots.delete(s.tenant_id, "d-1", **by(on(1, 6)))
        case "bought" if s.type == Type.TRIAL:
            lifecycle.activate(s.pk, purchase=Purchase(selling({"basic": 1}), on(1, 20), MAR_1), **by(on(1, 6)))
    instants = [on(1, 7), FEB_1, on(2, 4), on(2, 15), on(2, 18), on(2, 20), on(3, 15), on(4, 16), on(4, 19), on(6, 1)]
    for now in (instant for instant in instants if instant >= since):
        found = why(s, now, now=now)
        told = access(s.tenant.slug, "d-1", now)
        assert (found.reason, found.tier) == (told.reason, told.tier or ""), now
        if found.reason != Reason.PARKED:
            assert found.subscription == (told.subscription or "")


# --- the facts -------------------------------------------------------------------------------------------------------


def test_the_facts_are_told_in_their_order_and_name_nobody_of_the_staff() -> None:
    s = running()
    lifecycle.suspend(s.pk, hold=True, **by(on(1, 10)))
    found = why(s, on(1, 12))
    assert [(f.at, f.what, f.by, f.subscription, f.tier) for f in found.facts] == [
        (JAN_1, "started", "staff", s.number, ""),
        (on(1, 5), "assigned", "apikey", s.number, "basic"),
        (on(1, 10), "suspended", "staff", s.number, ""),
    ]


def test_of_a_long_history_the_latest_facts_are_told(django_assert_num_queries: Any) -> None:
    s = running()
    for day in range(6, 31):
        slots.release(s.tenant_id, "d-1", actor=GATEWAY, now=on(1, day))
        assigned(s, on(1, day, 1))
    with django_assert_num_queries(3):
        found = why(s, on(1, 30, 2), now=on(1, 31))
    of_slots = [f.at for f in found.facts if f.tier]
    assert len(of_slots) == 2 * explaining.MOST_FACTS - 1
    assert of_slots[-1] == on(1, 30, 1)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_the_future_is_not_explained() -> None:
    s = running()
    with refused(NotYet, "is yet to come"):
        why(s, NOW + SECOND)


def test_an_instant_without_a_time_zone_is_refused() -> None:
    s = running()
    with refused(InvalidTerm, "at has no time zone"):
        why(s, datetime(2026, 1, 5))  # noqa: DTZ001


def test_nobody_elses_device_is_explained() -> None:
    s, stranger = running(), subscription()
    with refused(DeviceNotFound):
        why(stranger, on(1, 6))
    with refused(DeviceNotFound):
        why(s, on(1, 6), device_id="d-2")


# --- what would help -------------------------------------------------------------------------------------------------


def priced(plan: Any, amount_minor: int, interval: str = "month", currency: str = "EUR", count: int = 1) -> PlanPrice:
    price: PlanPrice = PlanPriceFactory.create(
        plan=plan, amount_minor=amount_minor, interval=interval, currency=currency, interval_count=count
    )
    return price


def would_help(s: Subscription, now: datetime) -> list[Help]:
    return [*why(s, now, now=now).would_help]


def test_a_device_that_is_served_needs_no_help_though_it_was_not_served_then() -> None:
    s = running()
    advance(on(2, 20))
    lifecycle.renew(s.pk, term_end=on(12, 1), **by(on(3, 10)))
    found = why(s, on(3, 1))
    assert (found.reason, found.would_help) == (Reason.SUSPENDED, [])


def test_a_suspended_subscription_is_renewed_at_its_price() -> None:
    plan = selling({"basic": 1})
    price = priced(plan, 4900)
    s = running(plan=plan, price=price)
    advance(on(2, 20))
    assert would_help(s, on(2, 20)) == [Help(Step.RENEW, subscription=s.number, price=price)]


def test_what_would_help_is_about_now_whatever_instant_is_asked_for() -> None:
    s = running()
    advance(on(2, 20))
    found = why(s, on(1, 4), now=on(2, 20))
    assert (found.reason, found.would_help) == (Reason.UNKNOWN_DEVICE, [Help(Step.RENEW, subscription=s.number)])


def test_an_addon_is_renewed_by_its_main_subscription() -> None:
    main = subscription()
    addon = running(type=Type.ADDON, parent=main)
    advance(on(2, 20))
    assert would_help(addon, on(2, 20)) == [Help(Step.RENEW, subscription=main.number)]


def test_a_hold_is_lifted_by_staff_only() -> None:
    s = running()
    lifecycle.suspend(s.pk, hold=True, **by(on(1, 10)))
    assert would_help(s, on(1, 12)) == [Help(Step.CONTACT, subscription=s.number)]


def test_a_free_slot_that_serves_comes_before_what_costs_something() -> None:
    s = running()
    other = subscription(Type.TEMPORARY, slots={"basic": 1}, tenant=s.tenant, term=(JAN_1, on(9, 1)))
    assert would_help(s, on(2, 20)) == [Help(Step.MOVE, subscription=other.number)]
    slots.release(s.tenant_id, "d-1", actor=GATEWAY, now=on(2, 20))
    assert would_help(s, on(2, 20)) == [Help(Step.ASSIGN, subscription=other.number)]


def test_without_room_another_device_is_released_or_the_cheapest_addon_is_bought() -> None:
    s = running()
    slots.release(s.tenant_id, "d-1", actor=GATEWAY, now=on(1, 10))
    assigned(s, on(1, 11), "d-2")
    dear, cheap = selling({"basic": 5}, Type.ADDON), selling({"basic": 5}, Type.ADDON)
    priced(dear, 1000)
    priced(cheap, 1000)
    yearly = priced(cheap, 11_999, "year")  # 999.92 a month
    priced(dear, 3000, count=3)
    priced(selling({"basic": 5}, Type.ADDON, is_sold=False), 1)
    priced(selling({"basic": 0, "premium": 5}, Type.ADDON), 1)
    priced(selling({"basic": 5}, Type.MAIN), 1)  # it has a main subscription
    assert would_help(s, on(1, 12)) == [Help(Step.RELEASE), Help(Step.BUY, plan=cheap.code, price=yearly)]


def test_who_has_nothing_any_more_buys_a_main_plan_in_the_currency_it_paid_in() -> None:
    plan = selling({"basic": 1})
    price = priced(plan, 4900, currency="USD")
    s = running(plan=plan, price=price)
    priced(selling({"basic": 5}, Type.ADDON), 1, currency="USD")
    priced(selling({"basic": 5}), 1, currency="EUR")
    lifecycle.cancel(s.pk, at=CancelAt.NOW, **by(on(1, 10)))
    assert would_help(s, on(1, 12)) == [Help(Step.BUY, plan=plan.code, price=price)]


def test_where_its_currency_is_not_known_each_has_its_cheapest() -> None:
    s = running()
    lifecycle.cancel(s.pk, at=CancelAt.NOW, **by(on(1, 10)))
    plan = selling({"basic": 5})
    prices = [priced(plan, 500, currency="EUR"), priced(plan, 400, currency="USD")]
    assert [help_.price for help_ in would_help(s, on(1, 12))] == prices


def test_a_device_that_lost_its_slot_to_the_end_of_a_trial_returns_with_the_renewal_of_its_main_subscription() -> None:
    main = subscription(slots={"basic": 1}, term=(JAN_1, FEB_1))
    trial = subscription(Type.TRIAL, slots={"basic": 1}, tenant=main.tenant, term=(JAN_1, on(3, 1)))
    lifecycle.suspend(main.pk, **by(on(1, 4)))
    assigned(trial, on(1, 5))
    entry = lifecycle.expire(trial.pk, why=EndReason.CANCELLED, **by(on(1, 10)))
    assert entry
    follow([entry], **by(on(1, 10)))
    found = why(main, on(1, 12), now=on(1, 12))
    assert (found.reason, found.subscription) == (Reason.PARKED, trial.number)
    assert found.would_help == [Help(Step.RENEW, subscription=main.number)]


def test_a_suspended_main_subscription_without_a_free_slot_is_not_renewed_for_it() -> None:
    main = subscription(slots={"basic": 1})
    assigned(main, on(1, 2), "d-2")
    other = subscription(Type.TEMPORARY, slots={"basic": 1}, tenant=main.tenant)
    assigned(other, on(1, 5))
    lifecycle.suspend(main.pk, **by(on(1, 6)))
    lifecycle.cancel(other.pk, at=CancelAt.NOW, **by(on(1, 7)))
    price = priced(selling({"basic": 1}, Type.TEMPORARY), 900)
    priced(selling({"basic": 1}, Type.ADDON), 1)  # needs a main subscription that serves
    assert would_help(main, on(1, 8)) == [Help(Step.BUY, plan=price.plan.code, price=price)]


def test_a_trial_without_a_price_is_not_renewed_but_bought(django_assert_num_queries: Any) -> None:
    s = running(type=Type.TRIAL)
    price = priced(selling({"basic": 1}), 4900)
    advance(on(2, 20))
    with django_assert_num_queries(6):
        assert would_help(s, on(2, 20)) == [Help(Step.BUY, plan=price.plan.code, price=price)]
