"""What counts as a difference, and what is only on its way: the table of both sides, one line after another."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from subscriptions.states import EndReason, Status, Type
from tests.history import on
from webhooks.models import Drift, Telling
from webhooks.reconciling.differences import (
    MAY_STAND_BESIDE,
    RULES,
    Here,
    Kind,
    Ours,
    Sold,
    differences,
    unknown_at_stripe,
)
from webhooks.reconciling.pace import Pacer
from webhooks.stripe_state import Coming, Item, Unmappable, Wanted

JAN, FEB, MAR, NOW = on(1, 1), on(2, 1), on(3, 1), on(1, 15)
MONTHLY, YEARLY, MORE = "price_month", "price_year", "price_pack"

OURS = Ours(
    pk=1, number="SUB-1", type=Type.MAIN, status=Status.ACTIVE, on_hold=False, term_end=FEB, auto_renews=True,
    cancel_at_term_end=False, price_id=1, price="monthly", quantity=1, packs={}, staff_moved_its_term=False,
)  # fmt: skip
HERE = Here(
    ours=OURS, tenant_id=7, customers_tenant=(7, "acme"), tenant="acme", packs={MORE: "more"},
    prices={MONTHLY: Sold(1, "monthly", Type.MAIN), YEARLY: Sold(2, "yearly", Type.MAIN)},
)  # fmt: skip
SAID = Wanted(
    stripe_subscription_id="sub_1", customer_id="cus_1", status=Status.ACTIVE, items=(Item(MONTHLY, 1, JAN, FEB),),
    period_is_paid=True, started_at=JAN, cancels_at_period_end=False, cancel_at=None, ended_at=None,
    end_reason=EndReason.CANCELLED, schedule_id="", schedule_was_read=True, coming=None, checkout_id=None,
)  # fmt: skip


def found(said: Any = SAID, here: Here = HERE, now: datetime = NOW, **ours: Any) -> list[str]:
    here = replace(here, ours=replace(here.ours, **ours)) if here.ours and ours else here
    return [difference.kind.value for difference in differences(here, said, now=now)]


def said(**more: Any) -> Wanted:
    return replace(SAID, **more)


def paid(start: datetime, end: datetime, **more: Any) -> Wanted:
    return said(items=(Item(MONTHLY, 1, start, end),), **more)


def test_two_that_are_equal_do_not_differ() -> None:
    assert found() == []


def test_every_kind_has_its_rule() -> None:
    assert RULES.keys() == set(Drift.Kind)


@pytest.mark.parametrize(
    ("theirs", "ours", "kinds"),
    [
        (paid(FEB, MAR), {}, ["PERIOD"]),
        (paid(FEB, MAR), {"status": Status.GRACE}, ["STATUS", "PERIOD"]),
        (said(), {"status": Status.SUSPENDED}, ["STATUS"]),
        (said(status=Status.SUSPENDED), {}, ["STATUS"]),
        (paid(FEB, MAR, status=Status.GRACE, period_is_paid=False), {}, ["STATUS"]),
        (said(items=(Item(YEARLY, 1, JAN, FEB),)), {}, ["PLAN"]),
        (said(items=(Item(MONTHLY, 3, JAN, FEB),)), {}, ["QUANTITY"]),
        (said(items=(Item(MONTHLY, 1, JAN, FEB), Item(MORE, 2, JAN, FEB))), {}, ["QUANTITY"]),
        (said(), {"packs": {"more": 2}}, ["QUANTITY"]),
        (said(schedule_id="s", coming=Coming(FEB, ((YEARLY, 1),))), {}, ["PLAN"]),
        (said(cancels_at_period_end=True), {}, ["CANCELLATION"]),
        (said(), {"cancel_at_term_end": True}, ["CANCELLATION"]),
        (said(), {"auto_renews": False}, ["CANCELLATION"]),
        (said(), {"status": Status.EXPIRED}, ["BILLED_AFTER_END"]),
        (said(status=Status.GRACE), {"status": Status.EXPIRED}, ["BILLED_AFTER_END"]),
        (said(status=Status.EXPIRED), {}, ["SERVED_AFTER_END"]),
        (said(status=Status.EXPIRED), {"status": Status.SUSPENDED, "on_hold": True}, ["SERVED_AFTER_END"]),
        (said(items=(Item("price_x", 1, JAN, FEB),)), {}, ["UNREADABLE"]),
        (Unmappable("unknown_status", "?"), {}, ["UNREADABLE"]),
        (said(), {"term_end": MAR}, ["PERIOD"]),
    ],
)
def test_it_differs(theirs: Wanted, ours: dict[str, Any], kinds: list[str]) -> None:
    assert found(theirs, **ours) == kinds


@pytest.mark.parametrize(
    ("theirs", "ours", "now"),
    [
        (said(), {"status": Status.SUSPENDED, "on_hold": True}, NOW),  # held by staff
        (said(), {"term_end": MAR, "staff_moved_its_term": True}, NOW),  # made longer by staff
        (said(status=None), {}, NOW),  # incomplete: nothing yet
        (paid(FEB, MAR, period_is_paid=False), {}, FEB),  # a renewal settles
        (paid(FEB, MAR, period_is_paid=False), {"status": Status.GRACE}, on(2, 5)),  # the clock went on meanwhile
        (said(), {"status": Status.GRACE}, on(2, 5)),  # Stripe has not begun the next period yet
        (paid(FEB, MAR, status=Status.GRACE, period_is_paid=False), {"status": Status.SUSPENDED}, on(2, 20)),
        (said(cancels_at_period_end=True), {"status": Status.EXPIRED}, FEB),  # Stripe ends it within the hour
        (said(status=Status.EXPIRED), {"status": Status.EXPIRED}, NOW),
        (said(), {"term_end": FEB + timedelta(microseconds=9)}, NOW),  # Stripe counts whole seconds
    ],
)
def test_it_is_no_difference(theirs: Wanted, ours: dict[str, Any], now: datetime) -> None:
    assert found(theirs, now=now, **ours) == []


@pytest.mark.parametrize(
    ("aspect", "theirs"),
    [
        ("TERM_END", paid(FEB, MAR, cancels_at_period_end=True)),
        ("ITEMS", said(items=(Item(YEARLY, 2, JAN, FEB),))),
        ("PAUSE", said(status=Status.SUSPENDED)),
        ("END", said(status=Status.EXPIRED)),
    ],
)
def test_what_stripe_is_still_to_be_told_is_ours_to_say(aspect: str, theirs: Wanted) -> None:
    assert found(theirs) != []
    assert found(theirs, replace(HERE, untold={Telling.Aspect(aspect)})) == []


def test_while_an_event_waits_nothing_differs() -> None:
    assert found(said(status=Status.EXPIRED), replace(HERE, awaits_event=True)) == []


def test_an_addons_status_and_dates_are_its_mains() -> None:
    assert found(paid(FEB, MAR), type=Type.ADDON, status=Status.GRACE) == []
    ends = said(cancel_at=FEB)
    assert found(ends, type=Type.ADDON, main_ends=True) == []
    assert found(ends, type=Type.ADDON) == ["CANCELLATION"]


def test_a_customer_of_another_tenant_or_of_none_is_a_difference_of_its_own() -> None:
    assert found(here=replace(HERE, customers_tenant=(8, "other"))) == ["CUSTOMER"]
    assert found(here=replace(HERE, customers_tenant=None)) == ["CUSTOMER"]


NOBODY = replace(HERE, ours=None)


@pytest.mark.parametrize(
    ("theirs", "here", "expected"),
    [
        (said(), NOBODY, [("UNKNOWN_HERE", True)]),
        (said(), replace(NOBODY, customers_tenant=None), [("UNKNOWN_HERE", False)]),
        (said(), replace(NOBODY, customers_tenant=None, welcomes_strangers=True), [("UNKNOWN_HERE", True)]),
        (said(items=(Item("price_x", 1, JAN, FEB),)), NOBODY, [("UNKNOWN_HERE", False)]),
        (said(), replace(NOBODY, rival="sub_0"), [("DUPLICATE", False)]),
        (said(status=Status.EXPIRED), NOBODY, []),
        (said(status=None), NOBODY, []),
        (said(period_is_paid=False), NOBODY, []),  # the first payment is awaited
    ],
)
def test_what_is_not_here_is_brought_where_customer_and_price_are_known(
    theirs: Wanted, here: Here, expected: list[tuple[str, bool]]
) -> None:
    assert [(d.kind, d.converges) for d in differences(here, theirs, now=NOW)] == expected


def test_a_link_that_stripe_does_not_know_matters_while_it_serves() -> None:
    assert [d.kind for d in unknown_at_stripe(HERE)] == [Kind.UNKNOWN_AT_STRIPE]
    assert unknown_at_stripe(replace(HERE, ours=replace(OURS, status=Status.EXPIRED))) == []


def test_the_table_of_what_may_stand_beside_has_every_status_but_the_last() -> None:
    assert MAY_STAND_BESIDE.keys() == set(Status) - {Status.EXPIRED}


def test_requests_are_spaced_and_a_rest_is_kept() -> None:
    clock, waited = [100.0], []

    def wait(seconds: float) -> None:
        waited.append(round(seconds, 6))
        clock[0] += seconds

    pacer = Pacer(20, lambda: clock[0], wait)
    for _ in range(3):
        pacer()
    pacer.pause(2)
    pacer()
    assert waited == [0.05, 0.05, 2.0]
