"""What a tenant may use: summed over what serves, amended by exceptions that revert by themselves."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection

from entitlements import features, slots
from entitlements.errors import InvalidAmount, InvalidExpiry, NoSuchFeature
from entitlements.features import Entitlements, Quota, SlotsOfTier, entitlements_of
from entitlements.limits import resize
from entitlements.models import DeviceTier, Feature, FeatureOverride, FeatureOverrideEntry, QuotaUsage
from subscriptions import lifecycle
from subscriptions.audit import Actor
from subscriptions.errors import DomainError, InvalidTerm, ReasonMissing
from subscriptions.lifecycle import CancelAt
from subscriptions.models import Tenant
from subscriptions.states import Status, Type
from tests.builders import ALICE, APR_1, FEB_1, JAN_1, MAR_1, TenantFactory, giving, subscription
from tests.history import by, in_state, on

pytestmark = pytest.mark.django_db
NOW = on(1, 10)
A_MICROSECOND = timedelta(microseconds=1)


@pytest.fixture
def acme() -> Tenant:
    tenant: Tenant = TenantFactory.create(slug="acme")
    return tenant


def has(tenant: Tenant, now: datetime = NOW) -> dict[str, int | bool]:
    """Code → whether the tenant has the switch, or how much it has of the quota."""
    its = entitlements_of(tenant.pk, now)
    return its.switches | {quota.code: quota.limit for quota in its.quotas}


def holds(tenant: Tenant, now: datetime = NOW) -> list[tuple[str, int, int, int]]:
    its = entitlements_of(tenant.pk, now)
    return [(of.tier, of.limit, of.used, of.available) for of in its.slots]


# --- what the plans give ---------------------------------------------------------------------------------------------


def test_numbers_add_and_one_switch_that_is_on_is_enough(acme: Tenant) -> None:
    main = subscription(tenant=acme, plan=giving(api=100, exports=3, sso=False, audit=True))
    subscription(Type.ADDON, parent=main, plan=giving(Type.ADDON, api=50, sso=True, audit=False))
    assert has(acme) == {"api": 150, "exports": 3, "sso": True, "audit": True}


def test_the_summary_names_everything_in_order_with_what_is_in_use(acme: Tenant) -> None:
    s = subscription(tenant=acme, plan=giving(slots={"basic": 3, "premium": 1}, api=100, sso=True))
    subscription(Type.ADDON, parent=s, plan=giving(Type.ADDON, slots={"basic": 2}))
    DeviceTier.objects.filter(code="basic").update(position=2)
    slots.assign(acme.pk, "d-1", "basic", **by(NOW))
    QuotaUsage.objects.create(tenant=acme, feature=Feature.objects.get(code="api"), used=120)
    assert entitlements_of(acme.pk, NOW) == Entitlements(
        slots=[SlotsOfTier("premium", "Premium", 1, 0), SlotsOfTier("basic", "Basic", 5, 1)],
        switches={"sso": True},
        quotas=[Quota("api", "API", 100, 120)],
        valid_until=on(2, 15),  # the grace period's end, if nobody pays
    )
    assert entitlements_of(acme.pk, NOW).quotas[0].available == 0


def test_a_tier_whose_slots_were_all_taken_away_is_not_named(acme: Tenant) -> None:
    s = subscription(tenant=acme, plan=giving(slots={"basic": 3, "premium": 1}))
    resize(s.pk, "basic", 0, **by(NOW))
    assert holds(acme) == [("premium", 1, 0, 1)]


def test_what_others_use_is_not_counted(acme: Tenant) -> None:
    other = subscription(plan=giving(api=100)).tenant
    QuotaUsage.objects.create(tenant=other, feature=Feature.objects.get(code="api"), used=60)
    subscription(tenant=acme, plan=giving(api=100))
    assert [(quota.limit, quota.used) for quota in entitlements_of(acme.pk, NOW).quotas] == [(100, 0)]


def test_who_bought_nothing_has_nothing_and_is_told_what_it_has_not(acme: Tenant) -> None:
    subscription(plan=giving(slots={"basic": 3}, api=100, sso=True))  # somebody else's
    assert entitlements_of(acme.pk, NOW) == Entitlements([], {"sso": False}, [Quota("api", "API", 0, 0)], None)


@pytest.mark.parametrize("state", ["SUSPENDED", "HOLD", "EXPIRED"])
def test_what_does_not_serve_counts_nothing_not_even_with_an_exception(state: str, acme: Tenant) -> None:
    in_state(state, tenant=acme, plan=giving(slots={"basic": 3}, api=100, sso=True))
    grant(acme, "api", 999)
    grant(acme, "sso", 1, expires_at=MAR_1)
    assert entitlements_of(acme.pk, NOW) == Entitlements([], {"sso": False}, [Quota("api", "API", 0, 0)], None)


@pytest.mark.parametrize("state", ["TRIAL", "ACTIVE", "GRACE", "CANCELLED"])
def test_what_serves_counts_until_it_does_not_though_the_clock_stands_still(state: str, acme: Tenant) -> None:
    in_state(state, tenant=acme, plan=giving(slots={"basic": 3}, api=100))
    until = FEB_1 if state == "CANCELLED" else on(2, 15)
    assert entitlements_of(acme.pk, NOW).valid_until == until
    assert (has(acme, until - A_MICROSECOND), has(acme, until)) == ({"api": 100}, {"api": 0})
    assert (holds(acme, until - A_MICROSECOND), holds(acme, until)) == ([("basic", 3, 0, 3)], [])


def test_what_is_sold_ahead_counts_from_its_beginning_on(acme: Tenant) -> None:
    subscription(tenant=acme, plan=giving(slots={"basic": 3}, api=100), term=(FEB_1, MAR_1))
    assert (has(acme, FEB_1 - A_MICROSECOND), holds(acme, FEB_1 - A_MICROSECOND)) == ({"api": 0}, [])
    assert (has(acme, FEB_1), holds(acme, FEB_1)) == ({"api": 100}, [("basic", 3, 0, 3)])


def test_it_is_valid_until_the_first_instant_at_which_the_clock_changes_it(acme: Tenant) -> None:
    subscription(tenant=acme, plan=giving(api=100), term=(JAN_1, APR_1))
    assert entitlements_of(acme.pk, NOW).valid_until == on(4, 15)
    grant(acme, "api", 7, expires_at=on(3, 20))
    assert entitlements_of(acme.pk, NOW).valid_until == on(3, 20)
    subscription(Type.TEMPORARY, tenant=acme, plan=giving(Type.TEMPORARY), term=(MAR_1, on(3, 10)))
    assert entitlements_of(acme.pk, NOW).valid_until == MAR_1
    assert entitlements_of(acme.pk, MAR_1).valid_until == on(3, 10)  # no grace period for this one
    assert entitlements_of(acme.pk, on(3, 10)).valid_until == on(3, 20)
    assert entitlements_of(acme.pk, on(3, 20)).valid_until == on(4, 15)
    assert entitlements_of(acme.pk, on(4, 15)).valid_until is None


def test_an_addon_of_a_cancelled_main_counts_until_the_main_ends(acme: Tenant) -> None:
    main = subscription(tenant=acme, plan=giving(api=100))
    subscription(Type.ADDON, parent=main, plan=giving(Type.ADDON, api=50))
    lifecycle.cancel(main.pk, at=CancelAt.TERM_END, **by(on(1, 5)))
    assert (has(acme, FEB_1 - A_MICROSECOND), has(acme, FEB_1)) == ({"api": 150}, {"api": 0})


def test_plans_that_together_give_more_than_a_counter_holds_give_what_it_holds(acme: Tenant) -> None:
    main = subscription(tenant=acme, plan=giving(api=2**63 - 1))
    subscription(Type.ADDON, parent=main, plan=giving(Type.ADDON, api=2**63 - 1))
    assert has(acme) == {"api": 2**63 - 1}


def test_one_statement_however_much_there_is(acme: Tenant, django_assert_num_queries: Any) -> None:
    main = subscription(tenant=acme, plan=giving(slots={"basic": 30}, api=100, sso=True))
    for more in (1, 4):
        for number in range(more):
            subscription(Type.ADDON, parent=main, plan=giving(Type.ADDON, {"basic": 1, f"tier-{more}{number}": 1}))
            slots.assign(acme.pk, f"d-{more}-{number}", "basic", **by(NOW))
        with django_assert_num_queries(1):
            entitlements_of(acme.pk, NOW)


def test_it_reads_counters_and_no_devices(acme: Tenant) -> None:
    """So 10,000 devices cost what 10 cost."""
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN {features.ENTITLEMENTS}", features.said(acme.pk, NOW))
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert "tier_allocations" in plan
    assert "devices" not in plan
    assert "slot_assignments" not in plan


def test_an_instant_without_a_zone_is_refused(acme: Tenant) -> None:
    with pytest.raises(InvalidTerm):
        entitlements_of(acme.pk, NOW.replace(tzinfo=None))


# --- exceptions ------------------------------------------------------------------------------------------------------


def grant(tenant: Tenant, feature: str, amount: int, expires_at: datetime | None = None, now: datetime = NOW) -> bool:
    return features.override(
        tenant.pk, feature, amount, reason="as agreed", expires_at=expires_at, actor=ALICE, now=now
    )


def test_an_exception_replaces_what_the_plans_give_and_reverts_at_its_instant(acme: Tenant) -> None:
    main = subscription(tenant=acme, plan=giving(api=100, sso=True))
    subscription(Type.ADDON, parent=main, plan=giving(Type.ADDON, api=50, sso=True))
    assert grant(acme, "api", 120, expires_at=on(1, 20))
    assert grant(acme, "sso", 0, expires_at=on(1, 20))
    assert has(acme) == has(acme, on(1, 20) - A_MICROSECOND) == {"api": 120, "sso": False}
    assert has(acme, on(1, 20)) == {"api": 150, "sso": True}


def test_an_exception_gives_what_no_plan_gives_to_its_tenant_only(acme: Tenant) -> None:
    other = subscription(plan=giving(api=100, sso=False)).tenant
    subscription(tenant=acme, plan=giving())
    grant(acme, "api", 5)
    grant(acme, "sso", 1)
    assert (has(acme, FEB_1), has(other)) == ({"api": 5, "sso": True}, {"api": 100, "sso": False})


def test_an_exception_is_ended_at_once_and_both_are_remembered(acme: Tenant) -> None:
    subscription(tenant=acme, plan=giving(api=100))
    bob = Actor.staff(2, request_id="req-2")
    grant(acme, "api", 120, expires_at=MAR_1)
    assert features.end_override(acme.pk, "api", reason="moved to Fleet", actor=bob, now=on(1, 12))
    assert (has(acme, on(1, 12)), FeatureOverride.objects.get().expires_at) == ({"api": 100}, on(1, 12))
    told = FeatureOverrideEntry.objects.order_by("pk")
    assert [*told.values_list("at", "actor", "request_id", "reason", "amount", "expires_at")] == [
        (NOW, "staff:1", "", "as agreed", 120, MAR_1),
        (on(1, 12), "staff:2", "req-2", "moved to Fleet", 120, on(1, 12)),
    ]


def test_the_same_exception_again_changes_nothing_nor_does_ending_what_is_over(acme: Tenant) -> None:
    subscription(tenant=acme, plan=giving(api=100))
    assert not features.end_override(acme.pk, "api", reason="none", actor=ALICE, now=NOW)
    assert [grant(acme, "api", 120), grant(acme, "api", 120), grant(acme, "api", 130)] == [True, False, True]
    ended = [features.end_override(acme.pk, "api", reason="over", actor=ALICE, now=on(1, 11)) for _ in range(2)]
    assert (ended, FeatureOverrideEntry.objects.count()) == ([True, False], 3)


@pytest.mark.parametrize("ends", [False, True])
def test_whoever_follows_changes_sees_an_exception_made_and_ended(ends: bool, acme: Tenant) -> None:
    subscription(tenant=acme, plan=giving(api=100))
    grant(acme, "api", 120)
    FeatureOverride.objects.update(transaction_id=1)
    if ends:
        features.end_override(acme.pk, "api", reason="over", actor=ALICE, now=NOW)
    else:
        grant(acme, "api", 121)
    with connection.cursor() as cursor:
        cursor.execute("SELECT transaction_id = pg_current_xact_id()::text::bigint FROM feature_overrides")
        assert cursor.fetchall() == [(True,)]


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"reason": " "}, ReasonMissing),
        ({"feature": "nonsense"}, NoSuchFeature),
        ({"amount": -1}, InvalidAmount),
        ({"amount": 10**15 + 1}, InvalidAmount),
        ({"amount": True}, InvalidAmount),
        ({"feature": "sso", "amount": 2}, InvalidAmount),
        ({"expires_at": NOW}, InvalidExpiry),
        ({"expires_at": on(3, 1).replace(tzinfo=None)}, InvalidTerm),
    ],
)
def test_an_exception_that_is_none_is_refused(asked: dict[str, Any], error: type[DomainError], acme: Tenant) -> None:
    subscription(tenant=acme, plan=giving(api=100, sso=True))
    usual: dict[str, Any] = {"feature": "api", "amount": 5, "expires_at": None, "reason": "as agreed"}
    with pytest.raises(error):
        features.override(acme.pk, **usual | asked, actor=ALICE, now=NOW)
    assert not FeatureOverride.objects.exists()
    assert not FeatureOverrideEntry.objects.exists()


def test_ending_an_exception_takes_a_reason_and_a_feature(acme: Tenant) -> None:
    subscription(tenant=acme, plan=giving(api=100))
    grant(acme, "api", 120)
    for feature, reason, error in [("api", "", ReasonMissing), ("nonsense", "over", NoSuchFeature)]:
        with pytest.raises(error):
            features.end_override(acme.pk, feature, reason=reason, actor=ALICE, now=NOW)
    assert has(acme) == {"api": 120}


def test_a_trial_gives_what_its_plan_gives(acme: Tenant) -> None:
    subscription(Type.TRIAL, tenant=acme, plan=giving(Type.TRIAL, api=10), status=Status.TRIAL)
    assert has(acme) == {"api": 10}
