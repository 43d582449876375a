"""What stands at Stripe in the tests: our catalogue, our tenants as customers, and what they bought there."""

from datetime import UTC, datetime
from typing import Any

from django.utils import timezone

from subscriptions.models import PlanPrice, Tenant
from tests.builders import PlanPriceFactory, TenantFactory
from tests.stripe_sandbox.client import Sandbox
from webhooks.catalogue import customer_of, price_at_stripe
from webhooks.models import StripeEvent


def bought_at_stripe(
    stripe: Sandbox, *, tenant: Tenant | None = None, price: PlanPrice | None = None, **more: Any
) -> dict[str, Any]:
    """A subscription at Stripe whose first period is paid. `more` are parameters of Stripe's."""
    found: dict[str, Any] = stripe.api(
        "POST",
        "/v1/subscriptions",
        customer=customer_of(tenant or TenantFactory.create()),
        items=[{"price": price_at_stripe(price or PlanPriceFactory.create())}],
        **more,
    )
    return found


_count = iter(range(1, 10**9))


def rings(subscription_id: str, type: str = "customer.subscription.updated", *, object_id: str = "") -> StripeEvent:
    """A doorbell that rang: the event's row as the intake writes it."""
    now = timezone.now()
    return StripeEvent.objects.create(
        pk=f"evt_{next(_count)}",
        type=type,
        object_id=object_id or subscription_id,
        stripe_subscription_id=subscription_id,
        livemode=False,
        created_at=now,
        received_at=now,
        next_attempt_at=now,
    )


def period(subscription: dict[str, Any]) -> tuple[datetime, datetime]:
    item = subscription["items"]["data"][0]
    return tuple(datetime.fromtimestamp(item[f"current_period_{end}"], UTC) for end in ("start", "end"))  # type: ignore[return-value]
