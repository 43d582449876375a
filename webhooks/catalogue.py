"""Our customers and prices at Stripe: made there once, remembered here."""

from django.conf import settings
from djstripe.models import Customer

from entitlements.models import SlotPack
from subscriptions.models import PlanPrice, Tenant
from webhooks import stripe_api
from webhooks.models import StripePrice


def customer_of(tenant: Tenant) -> str:
    """The tenant's Stripe customer id; made at Stripe the first time. Safe to repeat, also when killed half way.

    The link is dj-stripe's Customer row, written without its sync, which would ask Stripe for the account and store the
    API key. Raises StripeUnavailable, StripeRefused.
    """
    known = (
        Customer.objects.filter(subscriber=tenant, livemode=settings.STRIPE_LIVE_MODE)
        .values_list("id", flat=True)
        .first()
    )
    if known:
        return str(known)
    made = stripe_api.create(  # in words that never change: else who was killed half way could not ask again
        "/v1/customers",
        idempotency_key=stripe_api.key_for("customer", settings.STRIPE_LIVE_MODE, tenant.pk),
        metadata={"tenant": tenant.slug},
    )
    stripe_api.name_customer(made["id"], name=tenant.name, email=tenant.email)
    row, _ = Customer.objects.get_or_create(
        id=made["id"], defaults={"subscriber": tenant, "livemode": settings.STRIPE_LIVE_MODE, "email": tenant.email}
    )
    return str(row.id)


def price_at_stripe(price: PlanPrice) -> str:
    """The Stripe price id that sells this price of ours; made at Stripe the first time. Safe to repeat.

    Raises StripeUnavailable, StripeRefused.
    """
    known = price.stripe_prices.values_list("pk", flat=True).first()
    if known:
        return str(known)
    key = ("price", settings.STRIPE_LIVE_MODE, price.pk, price.plan.name)
    made = stripe_api.create(
        "/v1/prices",
        idempotency_key=stripe_api.key_for(*key),
        currency=price.currency.lower(),
        unit_amount=price.amount_minor,
        recurring={"interval": price.interval, "interval_count": price.interval_count},
        product_data={"name": price.plan.name},
    )
    row, _ = StripePrice.objects.get_or_create(pk=made["id"], defaults={"plan_price": price})
    return str(row.pk)


def price_of_pack(pack: SlotPack) -> str:
    """The Stripe price id that sells a unit of this slot pack; made at Stripe the first time. Safe to repeat.

    Raises StripeUnavailable, StripeRefused.
    """
    known = pack.stripe_prices.values_list("pk", flat=True).first()
    if known:
        return str(known)
    made = stripe_api.create(
        "/v1/prices",
        idempotency_key=stripe_api.key_for("pack", settings.STRIPE_LIVE_MODE, pack.pk, pack.name),
        currency=pack.currency.lower(),
        unit_amount=pack.amount_minor,
        recurring={"interval": pack.interval, "interval_count": pack.interval_count},
        product_data={"name": pack.name},
    )
    row, _ = StripePrice.objects.get_or_create(pk=made["id"], defaults={"slot_pack": pack})
    return str(row.pk)
