"""Customers at Stripe whom nobody here knows: they bought through a payment link or a pricing table, which names no
tenant. By setting they become tenants, each exactly once; else what they bought waits for staff.
"""

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import IntegrityError, transaction
from django.utils.text import slugify
from djstripe.models import Customer

from subscriptions.models import Tenant
from webhooks import stripe_api


def are_welcome() -> bool:
    return bool(settings.CHECKOUT_PROVISIONS_TENANTS)


def welcome(customer_id: str) -> Tenant:
    """The tenant of a Stripe customer; made the first time, with the name and the mail address that Stripe has of it.

    Never matched by these: whoever knows a tenant's address must not come to stand in its name. Safe to repeat, also at
    the same moment and when killed half way. Raises StripeUnavailable, StripeRefused.
    """
    found = _tenant_of(customer_id)
    if found:
        return found
    at_stripe = stripe_api.fetch_customer(customer_id)
    name, email = (_words(at_stripe.get(field)) for field in ("name", "email"))
    slug = f"{slugify(name or email.partition('@')[0])[:40] or 'customer'}-{customer_id[-8:].lower()}".strip("-")
    try:
        with transaction.atomic():
            tenant = Tenant.objects.create(slug=slugify(slug), name=(name or email or slug)[:200], billing_email=email)
            assign(customer_id, tenant)
            return tenant
    except IntegrityError:  # at the same moment, somebody else
        found = _tenant_of(customer_id)
        if found is None:
            raise
        return found


def assign(customer_id: str, tenant: Tenant) -> None:
    """Let the Stripe customer be this tenant. Raises IntegrityError where it is another's already."""
    livemode = settings.STRIPE_LIVE_MODE
    Customer.objects.create(id=customer_id, subscriber=tenant, livemode=livemode, email=tenant.email)


def _tenant_of(customer_id: str) -> Tenant | None:
    return Tenant.objects.filter(djstripe_customers__id=customer_id).first()


def _words(given: object) -> str:
    """A name or an address as Stripe has it; empty for one that is none."""
    said = given.strip().replace("\x00", "") if isinstance(given, str) else ""
    if "@" in said:
        try:
            validate_email(said)
        except ValidationError:
            return ""
        return said[:254]
    return said[:200]
