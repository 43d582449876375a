"""May this device be served? Each reason apart, nothing served by accident, one statement, one device or a thousand."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection

from entitlements import slots
from entitlements.access import MANY, Access, Reason, access, access_many, answers, parameters
from entitlements.errors import TooMany
from entitlements.models import Device, Feature, SlotAssignment, TierFeature
from subscriptions import lifecycle
from subscriptions.audit import Actor
from subscriptions.lifecycle import CancelAt
from subscriptions.models import Subscription, Tenant
from subscriptions.states import EndReason, Status, Type
from tests.builders import FEB_1, JAN_1, MAR_1, TenantFactory, selling, subscription, tier
from tests.history import advance, by, nothing_changes, on

pytestmark = pytest.mark.django_db
NOW = on(1, 10)
GATEWAY: dict[str, Any] = {"actor": Actor.api_key(3), "now": NOW}
GRACE_OVER, SUSPENSION_OVER = on(2, 15), on(4, 16)  # of what was sold for January: 14 days, then 60


@pytest.fixture
def acme() -> Tenant:
    tenant: Tenant = TenantFactory.create(slug="acme")
    return tenant


@pytest.fixture
def january(acme: Tenant) -> Subscription:
    """Acme's, for January, with d-1 in one of its two slots."""
    s = subscription(tenant=acme, slots={"basic": 2})
    slots.assign(acme.pk, "d-1", "basic", **GATEWAY)
    return s


def reason(now: datetime = NOW, device_id: str = "d-1", tenant: str = "acme") -> Reason:
    return access(tenant, device_id, now).reason


# --- what is answered ------------------------------------------------------------------------------------------------


def test_a_device_in_a_slot_of_a_subscription_that_serves_is_served(january: Subscription) -> None:
    for code, kind, amount in [("ota", "SWITCH", 1), ("video", "SWITCH", 0), ("messages", "QUOTA", 500)]:
        feature = Feature.objects.create(code=code, name=code, kind=kind)
        TierFeature.objects.create(tier=tier("basic"), feature=feature, amount=amount)
    found = access("acme", "d-1", NOW)
    assert found == Access(
        Reason.OK, "basic", january.number, GRACE_OVER, {"ota": True, "video": False, "messages": 500}
    )
    assert found.allowed


@pytest.mark.parametrize("status", [Status.TRIAL, Status.ACTIVE, Status.GRACE])
def test_what_grants_access_serves(acme: Tenant, status: Status) -> None:
    s = subscription(Type.TRIAL if status == Status.TRIAL else Type.MAIN, tenant=acme, slots={"basic": 1})
    slots.assign(acme.pk, "d-1", "basic", **GATEWAY)
    if status == Status.GRACE:
        lifecycle.enter_grace(s.pk, **by(on(1, 5)))
    assert Subscription.objects.get().status == status
    assert reason() == "ok"


def test_a_suspended_device_is_told_so_and_gets_no_features(january: Subscription) -> None:
    feature = Feature.objects.create(code="ota", name="OTA", kind="SWITCH")
    TierFeature.objects.create(tier=tier("basic"), feature=feature)
    lifecycle.suspend(january.pk, hold=True, **by(NOW))
    assert access("acme", "d-1", NOW) == Access(Reason.SUSPENDED, "basic", january.number)


def test_a_device_that_still_has_its_slot_of_what_is_over_is_expired(january: Subscription) -> None:
    lifecycle.expire(january.pk, why=EndReason.CANCELLED, **by(NOW))  # its slots are released a moment later
    assert access("acme", "d-1", NOW) == Access(Reason.EXPIRED, "basic", january.number)


def test_what_was_sold_ahead_serves_from_its_first_instant(january: Subscription) -> None:
    before = JAN_1 - timedelta(microseconds=1)
    assert access("acme", "d-1", before) == Access(Reason.NOT_STARTED, "basic", january.number, JAN_1)
    assert reason(JAN_1) == "ok"


def test_a_device_without_a_slot_is_not_served(acme: Tenant, january: Subscription) -> None:
    slots.release(acme.pk, "d-1", **GATEWAY)
    assert access("acme", "d-1", NOW) == Access(Reason.NO_SLOT)


def test_a_parked_device_waits_for_its_tier(acme: Tenant, january: Subscription) -> None:
    slots.release(acme.pk, "d-1", **GATEWAY)
    Device.objects.update(parked_at=NOW, parked_tier=tier("basic"))
    assert access("acme", "d-1", NOW) == Access(Reason.PARKED, "basic")


@pytest.mark.parametrize("device_id", ["d-2", "D-1", "d-1 ", "", "d\x00", "\ud800", "ü", "d" * 5000])
def test_what_nobody_registered_is_unknown(january: Subscription, device_id: str) -> None:
    assert access("acme", device_id, NOW) == Access(Reason.UNKNOWN_DEVICE)


def test_a_deleted_device_is_unknown_until_it_is_registered_again(acme: Tenant, january: Subscription) -> None:
    slots.delete(acme.pk, "d-1", **GATEWAY)
    assert reason() == "unknown_device"
    slots.assign(acme.pk, "d-1", "basic", **GATEWAY)
    assert reason() == "ok"


def test_another_tenants_device_is_not_served_to_this_one(january: Subscription) -> None:
    other = TenantFactory.create(slug="other")
    assert access("other", "d-1", NOW) == Access(Reason.WRONG_TENANT)
    assert access("other", "d-1", NOW).as_told_to_a_tenant() == Access(Reason.UNKNOWN_DEVICE)
    slots.delete(january.tenant_id, "d-1", **GATEWAY)
    assert access(other.slug, "d-1", NOW) == Access(Reason.UNKNOWN_DEVICE)


def test_two_tenants_may_each_have_a_device_of_one_name(january: Subscription) -> None:
    other = subscription(slots={"basic": 1}, tenant=TenantFactory.create(slug="other"))
    slots.assign(other.tenant_id, "d-1", "basic", **GATEWAY)
    slots.release(other.tenant_id, "d-1", **GATEWAY)
    assert (reason(tenant="acme"), reason(tenant="other")) == ("ok", "no_slot")


@pytest.mark.parametrize("tenant", ["nobody", "", "ACME", "acme\x00", "\ud800", "a" * 5000])
def test_a_tenant_that_is_none_has_no_devices(january: Subscription, tenant: str) -> None:
    assert access(tenant, "d-1", NOW) == Access(Reason.UNKNOWN_TENANT)


# --- until when, and a clock that is late ----------------------------------------------------------------------------


def late(at: datetime) -> Reason:
    """What is said at that instant, while no status has moved."""
    assert Subscription.objects.get(type=Type.MAIN).status == Status.ACTIVE
    return reason(at)


def test_a_clock_that_stands_still_extends_nothing(january: Subscription) -> None:
    instant = timedelta(microseconds=1)
    assert [late(GRACE_OVER - instant), late(GRACE_OVER)] == ["ok", "suspended"]
    assert [late(SUSPENSION_OVER - instant), late(SUSPENSION_OVER)] == ["suspended", "expired"]


def test_what_was_cancelled_ends_with_its_term_late_or_not(january: Subscription) -> None:
    lifecycle.cancel(january.pk, at=CancelAt.TERM_END, **by(NOW))
    assert access("acme", "d-1", NOW).valid_until == FEB_1
    assert [late(FEB_1 - timedelta(microseconds=1)), late(FEB_1)] == ["ok", "expired"]


def test_an_addon_ends_with_its_cancelled_main_subscription(acme: Tenant) -> None:
    main = subscription(tenant=acme)
    subscription(Type.ADDON, parent=main, slots={"basic": 1})
    slots.assign(acme.pk, "d-1", "basic", **GATEWAY)
    lifecycle.cancel(main.pk, at=CancelAt.TERM_END, **by(NOW))
    assert access("acme", "d-1", NOW).valid_until == FEB_1
    assert late(FEB_1) == "expired"


def test_a_plan_without_grace_or_suspension_ends_at_once(acme: Tenant) -> None:
    subscription(tenant=acme, plan=selling({"basic": 1}, grace_days=0, suspension_days=0))
    slots.assign(acme.pk, "d-1", "basic", **GATEWAY)
    assert [late(FEB_1 - timedelta(microseconds=1)), late(FEB_1)] == ["ok", "expired"]


def test_a_suspension_ends_in_time_and_a_hold_never(january: Subscription) -> None:
    lifecycle.suspend(january.pk, **by(NOW))
    assert [reason(on(3, 10)), reason(on(3, 11))] == ["suspended", "expired"]  # 60 days
    lifecycle.suspend(january.pk, hold=True, **by(on(1, 11)))
    assert reason(on(12, 31)) == "suspended"


@pytest.mark.parametrize("day", [NOW, on(2, 1), on(2, 14), on(2, 15), on(3, 1), on(4, 15), on(4, 16)])
def test_the_clock_when_it_comes_changes_no_answer(january: Subscription, day: datetime) -> None:
    foreseen = access("acme", "d-1", day)
    advance(day)
    assert access("acme", "d-1", day) == foreseen


def test_until_then_it_stays_as_it_was_said(january: Subscription) -> None:
    until = access("acme", "d-1", NOW).valid_until
    assert until == GRACE_OVER
    for day in (on(1, 31), FEB_1, until - timedelta(microseconds=1)):
        advance(day)
        assert reason(day) == "ok"
    advance(until)
    assert reason(until) == "suspended"


# --- many ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def cast(acme: Tenant) -> list[tuple[str, str]]:
    """A device for every reason, and questions about each by every tenant."""
    subscription(tenant=acme, slots={"basic": 9})
    for name in ("served", "free", "parked", "deleted"):
        slots.assign(acme.pk, name, "basic", **GATEWAY)
    slots.release(acme.pk, "free", **GATEWAY)
    slots.release(acme.pk, "parked", **GATEWAY)
    slots.delete(acme.pk, "deleted", **GATEWAY)
    Device.objects.filter(device_id="parked").update(parked_at=NOW, parked_tier=tier("basic"))
    for slug, begins in [("suspended", JAN_1), ("expired", JAN_1), ("ahead", on(1, 20))]:
        s = subscription(tenant=TenantFactory.create(slug=slug), slots={"basic": 1}, term=(begins, MAR_1))
        slots.assign(s.tenant_id, slug, "basic", **GATEWAY | {"now": begins})
    lifecycle.suspend(Subscription.objects.get(tenant__slug="suspended").pk, **by(NOW))
    lifecycle.expire(Subscription.objects.get(tenant__slug="expired").pk, why=EndReason.CANCELLED, **by(NOW))
    devices = ["served", "free", "parked", "deleted", "suspended", "expired", "ahead", "nobody", "no id", "\x00"]
    return [(slug, name) for slug in ("acme", "suspended", "expired", "ahead", "nobody") for name in devices]


def test_a_thousand_questions_are_answered_as_each_alone_would_be(cast: list[tuple[str, str]]) -> None:
    alone = [access(*pair, NOW) for pair in cast]
    assert {found.reason for found in alone} == set(Reason)
    twenty_times = cast[::-1] * 20
    assert len(twenty_times) == 1000
    assert access_many(twenty_times, NOW) == alone[::-1] * 20


def test_only_who_has_an_open_slot_in_what_serves_is_allowed(cast: list[tuple[str, str]]) -> None:
    allowed = [pair for pair, found in zip(cast, access_many(cast, NOW), strict=True) if found.allowed]
    assert allowed == [("acme", "served")]


def test_one_statement_answers_one_or_a_thousand(cast: list[tuple[str, str]], django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(1):
        access("acme", "served", NOW)
    with django_assert_num_queries(1):
        access_many(cast * 20, NOW)
    assert access_many([], NOW) == []


def test_more_than_a_thousand_are_refused(acme: Tenant, django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(0), pytest.raises(TooMany, match="1001 devices, where up to 1000"):
        access_many([("acme", "d-1")] * 1001, NOW)


def test_to_ask_changes_nothing(cast: list[tuple[str, str]]) -> None:
    with nothing_changes():
        access_many(cast, NOW)


def test_no_table_is_read_whole(january: Subscription) -> None:
    """The plan that a large database would get: whatever an index can answer, one answers."""
    questions = parameters([("acme", "d-1"), ("acme", "d-2")], NOW)
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(f"EXPLAIN {answers(MANY)}", questions)
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert SlotAssignment.objects.count() == 1
    assert "Seq Scan" not in plan, plan
