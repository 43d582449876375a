"""What the demo shows: two plans, three tenants, and a purchase at Stripe that waits for its payment."""

from datetime import timedelta
from typing import Any

from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from subscriptions import lifecycle
from subscriptions.audit import Actor
from subscriptions.lifecycle import Purchase
from subscriptions.models import Member, Plan, PlanPrice, Tenant
from subscriptions.states import Type
from webhooks import stripe_api
from webhooks.catalogue import customer_of, price_at_stripe

PASSWORD = "termkeeper-demo"


def awaited_purchase(tenant: Tenant) -> str:
    """The id of a subscription at Stripe that is `incomplete`: one payment makes it active. Safe to repeat."""
    made = stripe_api.create(
        "/v1/subscriptions",
        idempotency_key=stripe_api.key_for("demo-subscription", tenant.pk, tenant.created_at.isoformat()),
        customer=customer_of(tenant),
        items=[{"price": price_at_stripe(PlanPrice.objects.get(plan__code="fleet"))}],
        payment_behavior="default_incomplete",
    )
    return str(made["id"])


class Command(BaseCommand):
    help = "Fill an empty database with the demo's plans, tenants and people. Safe to repeat: what is there stays."

    def handle(self, **options: Any) -> None:
        staff = self._user("admin", is_staff=True, is_superuser=True)
        fleet = self._plan("fleet", "Fleet", Type.MAIN, 49_00)
        trial = self._plan("trial", "Free trial", Type.TRIAL)
        acme = self._tenant("acme", "Acme Robotics", "owner")
        borealis = self._tenant("borealis", "Borealis Sensors", "borealis")
        self._tenant("cirrus", "Cirrus Weather", "cirrus")
        now, by = timezone.now(), Actor.staff(staff.pk)
        lifecycle.start(
            acme.pk,
            Purchase(trial, now, now + timedelta(days=14)),
            actor=by, now=now, source_id="demo:acme-trial", reason="asked for a trial",
        )  # fmt: skip
        lifecycle.start(
            borealis.pk,
            Purchase(fleet, now - timedelta(days=345), now + timedelta(days=20), fleet.prices.get()),
            actor=by, now=now, source_id="demo:borealis", reason="purchase order 4711",
        )  # fmt: skip
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

    def _plan(self, code: str, name: str, type: Type, amount_minor: int | None = None) -> Plan:
        plan, _ = Plan.objects.get_or_create(code=code, defaults={"name": name, "type": type})
        if amount_minor is not None:
            terms = {"plan": plan, "currency": "EUR", "interval": PlanPrice.Interval.MONTH, "interval_count": 1}
            PlanPrice.objects.get_or_create(**terms, defaults={"amount_minor": amount_minor})
        return plan

    def _tenant(self, slug: str, name: str, owner: str) -> Tenant:
        tenant, _ = Tenant.objects.get_or_create(
            slug=slug, defaults={"name": name, "billing_email": f"billing@{slug}.example"}
        )
        Member.objects.get_or_create(user=self._user(owner), defaults={"tenant": tenant, "role": Member.Role.OWNER})
        return tenant
