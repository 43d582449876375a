"""What the demo shows: plans, tenants, devices in slots, and a purchase at Stripe that waits to be paid."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction
from django.utils import timezone

from entitlements.bulk import Wish, assign_many
from entitlements.follow import follow
from entitlements.models import DeviceTier, Feature, PlanFeature, PlanSlots, SlotPack, TierFeature
from subscriptions import lifecycle
from subscriptions.audit import Actor
from subscriptions.lifecycle import Purchase
from subscriptions.models import Member, Plan, PlanPrice, Tenant
from subscriptions.states import Type
from webhooks import stripe_api
from webhooks.catalogue import customer_of, price_at_stripe

PASSWORD = "termkeeper-demo"
MONTH, YEAR = PlanPrice.Interval


def awaited_purchase(tenant: Tenant) -> str:
    """The id of a subscription at Stripe that is `incomplete`: one payment makes it active. Safe to repeat."""
    made = stripe_api.create(
        "/v1/subscriptions",
        idempotency_key=stripe_api.key_for("demo-subscription", tenant.pk, tenant.created_at.isoformat()),
        customer=customer_of(tenant),
        items=[{"price": price_at_stripe(PlanPrice.objects.get(plan__code="fleet", interval=MONTH))}],
        payment_behavior="default_incomplete",
    )
    return str(made["id"])


class Command(BaseCommand):
    help = "Fill an empty database with the demo's plans, tenants and people. Safe to repeat: what is there stays."

    def handle(self, **options: Any) -> None:
        staff = self._user("admin", is_staff=True, is_superuser=True)
        basic = self._tier("basic", "Basic", is_default=True)
        premium = self._tier("premium", "Premium", position=1)
        fleet = self._plan(
            "fleet", "Fleet", Type.MAIN, {MONTH: 49_00, YEAR: 490_00}, {basic: 50, premium: 10}, trial_days=14
        )
        self._plan("fleet-s", "Small fleet", Type.MAIN, {MONTH: 19_00}, {basic: 20, premium: 5})
        self._plan("more-basic", "More basic", Type.ADDON, {MONTH: 9_00, YEAR: 90_00}, {basic: 10})
        self._pack("premium-5", "Five premium slots", premium, 5, 12_00)
        trial = self._plan("trial", "Free trial", Type.TRIAL, {}, {basic: 5})
        calls = self._feature("api-calls", "API calls", Feature.Kind.QUOTA)
        PlanFeature.objects.get_or_create(plan=fleet, feature=calls, defaults={"amount": 100_000})
        PlanFeature.objects.get_or_create(plan=trial, feature=calls, defaults={"amount": 1_000})
        video = self._feature("video", "Video streams", Feature.Kind.SWITCH)
        TierFeature.objects.get_or_create(tier=premium, feature=video)
        acme = self._tenant("acme", "Acme Robotics", "owner")
        borealis = self._tenant("borealis", "Borealis Sensors", "borealis")
        cirrus = self._tenant("cirrus", "Cirrus Weather", "cirrus")
        now, by = timezone.now(), Actor.staff(staff.pk)
        self._start(
            acme, Purchase(trial, now, now + timedelta(days=14)), by, now, "demo:acme-trial", "asked for a trial"
        )
        a_month = fleet.prices.get(interval=MONTH)
        last_year = Purchase(fleet, now - timedelta(days=345), now + timedelta(days=20), a_month)
        self._start(borealis, last_year, by, now, "demo:borealis", "purchase order 4711")
        three_years = Purchase(fleet, now - timedelta(days=20), now + timedelta(days=1075), a_month)
        self._start(cirrus, three_years, by, now, "demo:cirrus", "purchase order 4712")
        wishes = [Wish(f"sensor-{n:02}", "premium" if n > 25 else "basic") for n in range(1, 36)]
        assign_many(cirrus.pk, wishes, all_or_nothing=False, actor=by, now=now, reason="the demo's devices")
        try:
            awaited_purchase(acme)
        except stripe_api.StripeError as error:
            raise CommandError(f"Stripe did not take the demo's purchase: {error}") from None
        self.stdout.write(f"{Tenant.objects.count()} tenants, {Plan.objects.count()} plans.")

    def _user(self, name: str, **flags: bool) -> User:
        user, made = User.objects.get_or_create(
            username=name, defaults={"email": f"{name}@termkeeper.example", **flags}
        )
        if made:
            user.set_password(PASSWORD)
            user.save(update_fields=["password"])
        return user

    @transaction.atomic
    def _start(self, tenant: Tenant, purchase: Purchase, by: Actor, now: datetime, source_id: str, reason: str) -> None:
        said: dict[str, Any] = {"actor": by, "now": now, "source_id": source_id, "reason": reason}
        entry = lifecycle.start(tenant.pk, purchase, **said)
        follow([entry] if entry else [], **said)

    def _tier(self, code: str, name: str, **more: Any) -> DeviceTier:
        return DeviceTier.objects.get_or_create(code=code, defaults={"name": name, **more})[0]

    def _feature(self, code: str, name: str, kind: str) -> Feature:
        return Feature.objects.get_or_create(code=code, defaults={"name": name, "kind": kind})[0]

    def _plan(
        self, code: str, name: str, type: Type, prices: Mapping[str, int], slots: Mapping[DeviceTier, int], **more: Any
    ) -> Plan:
        plan, made = Plan.objects.get_or_create(code=code, defaults={"name": name, "type": type, **more})
        if made:
            PlanSlots.objects.bulk_create(PlanSlots(plan=plan, tier=tier, slots=n) for tier, n in slots.items())
        for interval, amount_minor in prices.items():
            terms = {"plan": plan, "currency": "EUR", "interval": interval, "interval_count": 1}
            PlanPrice.objects.get_or_create(**terms, defaults={"amount_minor": amount_minor})
        return plan

    def _pack(self, code: str, name: str, tier: DeviceTier, slots: int, amount_minor: int) -> None:
        sold = {"currency": "EUR", "interval": MONTH, "amount_minor": amount_minor}
        SlotPack.objects.get_or_create(code=code, defaults={"name": name, "tier": tier, "slots": slots, **sold})

    def _tenant(self, slug: str, name: str, owner: str) -> Tenant:
        tenant, _ = Tenant.objects.get_or_create(
            slug=slug, defaults={"name": name, "billing_email": f"billing@{slug}.example"}
        )
        Member.objects.get_or_create(user=self._user(owner), defaults={"tenant": tenant, "role": Member.Role.OWNER})
        return tenant
