"""The cast of the tests, and what they bought. Everything is made by the verbs that make it in earnest."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import factory

from entitlements.follow import follow
from entitlements.models import DeviceTier, Feature, PlanFeature, PlanSlots
from subscriptions import lifecycle
from subscriptions.audit import Actor
from subscriptions.lifecycle import Purchase
from subscriptions.models import Plan, PlanPrice, Subscription, Tenant
from subscriptions.states import Status, Type

ALICE = Actor.staff(1)  # works in the back office

JAN_1 = datetime(2026, 1, 1, tzinfo=UTC)
FEB_1 = datetime(2026, 2, 1, tzinfo=UTC)
MAR_1 = datetime(2026, 3, 1, tzinfo=UTC)
APR_1 = datetime(2026, 4, 1, tzinfo=UTC)


class TenantFactory(factory.django.DjangoModelFactory[Tenant]):
    class Meta:
        model = Tenant

    slug = factory.Sequence(lambda n: f"tenant-{n}")
    name = factory.Sequence(lambda n: f"Tenant {n}")
    billing_email = factory.LazyAttribute(lambda tenant: f"billing@{tenant.slug}.example")


class PlanFactory(factory.django.DjangoModelFactory[Plan]):
    class Meta:
        model = Plan

    code = factory.Sequence(lambda n: f"plan-{n}")
    name = factory.Sequence(lambda n: f"Plan {n}")
    type = Type.MAIN


class PlanPriceFactory(factory.django.DjangoModelFactory[PlanPrice]):
    class Meta:
        model = PlanPrice

    plan = factory.SubFactory(PlanFactory)
    currency = "EUR"
    amount_minor = 4900
    interval = PlanPrice.Interval.MONTH


def tier(code: str) -> DeviceTier:
    return DeviceTier.objects.get_or_create(code=code, defaults={"name": code.capitalize()})[0]


def selling(slots: Mapping[str, int], type: Type = Type.MAIN, **plan: Any) -> Plan:
    """A plan that sells so many slots of these tiers."""
    made: Plan = PlanFactory.create(type=type, **plan)
    PlanSlots.objects.bulk_create(PlanSlots(plan=made, tier=tier(code), slots=n) for code, n in slots.items())
    return made


def giving(type: Type = Type.MAIN, slots: Mapping[str, int] | None = None, **amounts: int) -> Plan:
    """A plan that gives so much of these features: True or False of a switch, a number of a quota."""
    made = selling(slots or {}, type)
    for code, amount in amounts.items():
        kind = Feature.Kind.SWITCH if isinstance(amount, bool) else Feature.Kind.QUOTA
        feature, _ = Feature.objects.get_or_create(code=code, defaults={"name": code.upper(), "kind": kind})
        PlanFeature.objects.create(plan=made, feature=feature, amount=int(amount))
    return made


def subscription(
    type: Type = Type.MAIN,
    *,
    slots: Mapping[str, int] | None = None,
    tenant: Tenant | None = None,
    plan: Plan | None = None,
    price: PlanPrice | None = None,
    term: tuple[datetime, datetime] = (JAN_1, FEB_1),
    status: Status | None = None,
    auto_renews: bool = False,
    parent: Subscription | None = None,
    another_trial: bool = False,
    now: datetime = JAN_1,
) -> Subscription:
    """A subscription started by staff at `now`, for `term`, with the slots that its plan sells."""
    plan = plan or selling(slots or {}, type)
    tenant = tenant or (parent.tenant if parent else TenantFactory.create())
    entry = lifecycle.start(
        tenant.pk,
        Purchase(plan, *term, price, auto_renews=auto_renews),
        status=status,
        parent_id=parent.pk if parent else None,
        another_trial=another_trial,
        actor=ALICE,
        now=now,
        reason="ordered by letter",
    )
    assert entry is not None
    follow([entry], actor=ALICE, now=now, reason="ordered by letter")
    return Subscription.objects.get(pk=entry.subscription_id)
