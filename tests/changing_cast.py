"""What the tests of changing have in common: a shop of plans and packs, a tenant that bought there, and its owner."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from django.utils import timezone

from entitlements import slots
from entitlements.models import SlotPack
from subscriptions.audit import Actor
from subscriptions.models import Plan, PlanPrice, Subscription, Tenant
from subscriptions.states import Type
from tests import stripe_spec
from tests.builders import PlanPriceFactory, TenantFactory, selling, tier
from tests.buying import signs_in as owner_of
from tests.stripe_cast import bought_at_stripe
from tests.stripe_sandbox.client import Sandbox
from webhooks import truth
from webhooks.catalogue import price_at_stripe, price_of_pack

__all__ = ["Shop", "bring", "owner_of"]


@dataclass
class Shop:
    """Two plans, small with one basic slot and big with three, and packs of two, per month and per year."""

    stripe: Sandbox
    small: PlanPrice
    big: PlanPrice
    big_yearly: PlanPrice
    pack: SlotPack
    yearly_pack: SlotPack

    @classmethod
    def open(cls, stripe: Sandbox, type: Type = Type.MAIN, prefix: str = "") -> "Shop":
        small = selling({"basic": 1}, type, code=f"{prefix}small")
        big = selling({"basic": 3}, type, code=f"{prefix}big")
        about = {"tier": tier("basic"), "slots": 2, "currency": "EUR", "amount_minor": 500}
        return cls(
            stripe,
            PlanPriceFactory.create(plan=small, amount_minor=1000),
            PlanPriceFactory.create(plan=big, amount_minor=3000),
            PlanPriceFactory.create(plan=big, amount_minor=30000, interval="year"),
            SlotPack.objects.create(code=f"{prefix}more", name="More", interval="month", **about),
            SlotPack.objects.create(code=f"{prefix}more-yearly", name="More a year", interval="year", **about),
        )

    @classmethod
    def of_addons(cls, stripe: Sandbox) -> "Shop":
        return cls.open(stripe, Type.ADDON, "addon-")

    def sells(self, price: PlanPrice | SlotPack, units: int = 1) -> dict[str, Any]:
        """A position at Stripe."""
        pk = price_at_stripe(price) if isinstance(price, PlanPrice) else price_of_pack(price)
        return {"price": pk, "quantity": units}

    def was_asked_as_published(self) -> None:
        """Every request to Stripe is one of its published spec."""
        for asked in self.stripe.requests():
            stripe_spec.validate_request(asked["method"], asked["path"], asked["params"])

    def adds_to(self, main: Subscription) -> Subscription:
        """An add-on whose periods are its main one's."""
        return self.buys(tenant=main.tenant, billing_cycle_anchor=int(main.term_end.timestamp()))

    def buys(self, *, tenant: Tenant | None = None, price: PlanPrice | None = None, **more: Any) -> Subscription:
        """What a tenant has bought at Stripe, and is here."""
        made = bought_at_stripe(self.stripe, tenant=tenant or TenantFactory.create(), price=price or self.big, **more)
        bring(made["id"])
        return Subscription.objects.get(stripe_link=made["id"])


def bring(stripe_id: str, now: datetime | None = None) -> str:
    """What is true at Stripe, here."""
    return truth.refresh(stripe_id, now=lambda: now or timezone.now(), source_id="")


def link_of(s: Subscription) -> str:
    return str(s.stripe_link.pk)


def at_stripe(stripe: Sandbox, s: Subscription) -> dict[str, Any]:
    found: dict[str, Any] = stripe.api("GET", f"/v1/subscriptions/{link_of(s)}")
    return found


def edit(stripe: Sandbox, s: Subscription, **params: Any) -> Any:
    """As somebody does in Stripe's dashboard."""
    return stripe.api("POST", f"/v1/subscriptions/{link_of(s)}", **params)


def item_of(stripe: Sandbox, s: Subscription) -> str:
    return str(at_stripe(stripe, s)["items"]["data"][0]["id"])


def end_of(subscription: dict[str, Any]) -> datetime:
    return datetime.fromtimestamp(subscription["items"]["data"][0]["current_period_end"], UTC)


def fill(s: Subscription, *devices: str) -> None:
    for device in devices:
        slots.assign(s.tenant_id, device, "basic", actor=Actor.api_key(3), now=timezone.now())


def plan_of(s: Subscription) -> tuple[str, str, int]:
    s.refresh_from_db()
    plan: Plan = s.plan
    return plan.code, s.price.interval if s.price else "", s.quantity
