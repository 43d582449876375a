"""Buying at Stripe: what may be bought now, by whom, and what Stripe is asked for. Each verb answers with the address
of a page of Stripe's; nothing is bought before somebody pays there, and `truth` brings it here.

Each is safe to repeat: see `checkout_sessions`. Each raises StripeUnavailable, StripeRefused (`errors` says how these
read for callers), TenantClosed, and what `offers` and `checkout_sessions` refuse.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from django.conf import settings

from entitlements import limits
from entitlements.models import SlotPack
from subscriptions import terms
from subscriptions.audit import Actor
from subscriptions.errors import (
    AddonFollowsMain,
    IllegalTransition,
    LiveMainExists,
    NoPrice,
    SubscriptionNotFound,
    TenantClosed,
)
from subscriptions.models import PlanPrice, Subscription, Tenant
from subscriptions.states import LIVE, Status, Type
from webhooks import stripe_api
from webhooks.buying.checkout_sessions import Now, Wish, check_nothing_settles, open_checkout
from webhooks.buying.offers import BESIDE_A_MAIN, BY_ITSELF, Order, packs_for, price_for
from webhooks.catalogue import customer_of, price_at_stripe, price_of_pack
from webhooks.errors import (
    AddonHeld,
    EndsWithTerm,
    HeldByStaff,
    IntervalDiffers,
    NoRunningTerm,
    PurchaseSettling,
    RenewsByItself,
    TermEndsSoon,
    TooEarly,
    TrialNotRenewed,
)
from webhooks.models import StripeLink

SHORTEST = timedelta(minutes=40)  # Stripe's shortest checkout takes 30; the clocks may differ, and somebody has to pay
RUNNING = frozenset({Status.TRIAL, Status.ACTIVE})


@dataclass(frozen=True)
class Ways:
    """Where customers go from Stripe's pages."""

    back: str  # our page that applies what was bought, with a placeholder for the session
    success_url: str  # where that page sends them on; empty: it is the end
    cancel_url: str


def buy(tenant: Tenant, order: Order, ways: Ways, *, actor: Actor, now: Now) -> str:
    """Where a subscription that stands by itself is paid. A tenant that had no trial begins with the plan's.

    Raises LiveMainExists, InvalidSlots, AlreadyBought, PurchaseSettling.
    """
    price = price_for(order, BY_ITSELF)
    packs = packs_for(order, price)
    limits.would_sell(price.plan_id, order.quantity, {pack.pk: units for pack, units in packs})

    def check() -> None:
        _check_open(tenant)
        if price.plan.type == Type.MAIN:
            _check_no_main(tenant)

    check()
    same = {"plan__type": Type.MAIN} if price.plan.type == Type.MAIN else {"plan": price.plan}
    check_nothing_settles(now, tenant=tenant, parent=None, renews=None, **same)
    request = _request(tenant, price, order.quantity, packs, ways) | _trial(tenant, price)
    wish = Wish(tenant, price, request, order.quantity, ways.success_url, ways.cancel_url)
    return open_checkout(wish, check=check, actor=actor, now=now)


def buy_addon(
    tenant: Tenant, parent_number: str, order: Order, ways: Ways, *, actor: Actor, now: Now
) -> tuple[str, datetime]:
    """Where an add-on is paid, and when it ends: with its main subscription. Its first period is the rest of that one's
    term, and costs as much less.

    Raises SubscriptionNotFound, NoRunningTerm, IntervalDiffers, InvalidSlots, TermEndsSoon, TooEarly, AddonHeld,
    PurchaseSettling.
    """
    parent = subscription_of(tenant, parent_number)
    order = _at_the_interval_of(parent, order)
    price = price_for(order, BESIDE_A_MAIN)
    packs = packs_for(order, price)
    limits.would_sell(price.plan_id, order.quantity, {pack.pk: units for pack, units in packs})
    if parent.price and _interval(parent.price) != _interval(price):
        raise IntervalDiffers(interval=parent.price.interval, interval_count=parent.price.interval_count)

    def check() -> None:
        _check_open(tenant)
        parent.refresh_from_db(fields=["status", "term_end", "type"])
        if parent.type != Type.MAIN or parent.status not in RUNNING or parent.term_end <= now():
            raise NoRunningTerm(subscription=parent.number, status=parent.status, term_end=parent.term_end.isoformat())
        held = parent.addons.filter(plan=price.plan, status__in=LIVE).values_list("number", flat=True).first()
        if held:
            raise AddonHeld(subscription=held)

    check()
    _check_within_an_interval(parent.term_end, price, now())
    check_nothing_settles(now, parent=parent, plan=price.plan)
    request = _request(tenant, price, order.quantity, packs, ways) | _anchored(parent.term_end, "create_prorations")
    wish = Wish(
        tenant, price, request, order.quantity, ways.success_url, ways.cancel_url, parent, until=parent.term_end
    )
    return open_checkout(wish, check=check, actor=actor, now=now), parent.term_end


def renew(tenant: Tenant, number: str, ways: Ways, *, actor: Actor, now: Now) -> str:
    """Where a renewal is paid: a checkout for what Stripe does not bill yet, which begins to cost at the end of a term
    that still runs; the open invoice, or the portal, for what Stripe bills and has not been paid.

    Raises SubscriptionNotFound, AddonFollowsMain, IllegalTransition, HeldByStaff, RenewsByItself, EndsWithTerm,
    TrialNotRenewed, NoPrice, TermEndsSoon, TooEarly, PurchaseSettling.
    """
    _check_open(tenant)
    subscription = subscription_of(tenant, number)
    _check_renewable(subscription)
    if StripeLink.objects.filter(subscription=subscription).exists():
        return _paid_at_stripe(subscription, ways, now=now)
    if subscription.type == Type.TRIAL:
        raise TrialNotRenewed
    price = subscription.price
    if price is None:
        raise NoPrice(f"{number} has no price: ask whoever looks after your account.")
    until, anchor = None, {}
    if subscription.term_end > now():
        _check_within_an_interval(subscription.term_end, price, now())
        until, anchor = subscription.term_end, _anchored(subscription.term_end, "none")
    check_nothing_settles(now, renews=subscription)
    quantity = subscription.quantity
    request = _request(tenant, price, quantity, _packs_held(subscription), ways) | anchor
    wish = Wish(
        tenant, price, request, quantity, ways.success_url, ways.cancel_url, renews=subscription, until=until
    )  # fmt: skip

    def check() -> None:
        _check_open(tenant)
        if StripeLink.objects.filter(subscription=subscription).exists():
            raise RenewsByItself

    return open_checkout(wish, check=check, actor=actor, now=now)


def portal(tenant: Tenant, return_url: str) -> str:
    """Where the tenant looks after cards, invoices and what it bought. Good for a few minutes."""
    _check_open(tenant)
    return stripe_api.create_portal_session(customer=customer_of(tenant), return_url=return_url)


def subscription_of(tenant: Tenant, number: str) -> Subscription:
    """The tenant's own, with its price and plan. Raises SubscriptionNotFound."""
    found = tenant.subscriptions.select_related("price__plan", "plan", "tenant").filter(number=number).first()
    if found is None:
        raise SubscriptionNotFound
    return found


def may_have_trial(tenant: Tenant) -> bool:
    """Each tenant has one, of whatever kind."""
    return not tenant.subscriptions.filter(trial_ordinal__isnull=False).exists()


# --- what may be bought -----------------------------------------------------------------------------------------------


def _check_open(tenant: Tenant) -> None:
    tenant.refresh_from_db(fields=["closed_at"])
    if tenant.closed_at is not None:
        raise TenantClosed


def _check_no_main(tenant: Tenant) -> None:
    live = tenant.subscriptions.filter(type=Type.MAIN, status__in=LIVE).values_list("number", flat=True).first()
    if live:
        raise LiveMainExists(f"{live} is live: change its plan instead.", subscription=live)


def _check_renewable(subscription: Subscription) -> None:
    if subscription.parent_id:
        raise AddonFollowsMain
    if subscription.status == Status.EXPIRED:
        raise IllegalTransition(f"{subscription.number} is over: buy a new one.", status=subscription.status)
    if subscription.on_hold:
        raise HeldByStaff
    if subscription.auto_renews and subscription.status in RUNNING:
        raise EndsWithTerm if subscription.cancel_at_term_end else RenewsByItself


def _check_within_an_interval(term_end: datetime, price: PlanPrice, now: datetime) -> None:
    """Stripe begins a rhythm within its first interval, and takes a payment for half an hour at least."""
    if term_end < now + SHORTEST:
        raise TermEndsSoon(term_end=term_end.isoformat())
    months = terms.MONTHS[price.interval] * price.interval_count
    if term_end > terms.months_later(now, months, "UTC"):
        raise TooEarly(term_end=term_end.isoformat())


def _at_the_interval_of(parent: Subscription, order: Order) -> Order:
    """What an order for an add-on leaves out is as its main subscription's price has it."""
    if parent.price is None or order.interval:
        return order
    return Order(order.plan, *_interval(parent.price), order.currency, order.quantity, order.packs)


def _interval(price: PlanPrice) -> tuple[str, int]:
    return price.interval, price.interval_count


def _packs_held(subscription: Subscription) -> list[tuple[SlotPack, int]]:
    held = subscription.packs.select_related("pack").order_by("pack__code")
    return [(row.pack, row.quantity) for row in held]


# --- what Stripe is asked for -----------------------------------------------------------------------------------------


def _request(
    tenant: Tenant, price: PlanPrice, quantity: int, packs: Sequence[tuple[SlotPack, int]], ways: Ways
) -> dict[str, Any]:
    lines = [{"price": price_at_stripe(price), "quantity": quantity}]
    lines += [{"price": price_of_pack(pack), "quantity": units} for pack, units in packs]
    tax: dict[str, Any] = {"automatic_tax": {"enabled": True}} if settings.STRIPE_AUTOMATIC_TAX else {}
    return tax | {
        "mode": "subscription",
        "customer": customer_of(tenant),
        "line_items": lines,
        "success_url": ways.back,
        "cancel_url": ways.cancel_url,
        "allow_promotion_codes": True,
        "tax_id_collection": {"enabled": True},
        "customer_update": {"name": "auto", "address": "auto"},  # else Stripe collects no tax id of a known customer
    }


def _trial(tenant: Tenant, price: PlanPrice) -> dict[str, Any]:
    plan = price.plan
    if plan.trial_days is None or not may_have_trial(tenant):
        return {}
    trial: dict[str, Any] = {
        "subscription_data": {
            "trial_period_days": plan.trial_days,
            "trial_settings": {"end_behavior": {"missing_payment_method": "pause"}},
        }
    }
    return trial if plan.trial_needs_card else trial | {"payment_method_collection": "if_required"}


def _anchored(term_end: datetime, proration: str) -> dict[str, Any]:
    return {
        "subscription_data": {
            "billing_cycle_anchor": int(term_end.astimezone(UTC).timestamp()),
            "proration_behavior": proration,
        }
    }


def _paid_at_stripe(subscription: Subscription, ways: Ways, *, now: Now) -> str:
    """What Stripe bills: the page of the invoice that is open, or the portal. Raises PurchaseSettling."""
    link = StripeLink.objects.get(subscription=subscription)
    at_stripe = stripe_api.fetch_subscription(link.pk)
    if at_stripe.get("status") == "incomplete":
        raise PurchaseSettling
    invoice = at_stripe.get("latest_invoice")
    if isinstance(invoice, dict) and invoice.get("status") == "open":
        page = invoice.get("hosted_invoice_url")
        if isinstance(page, str) and page.startswith(("https://", "http://")):
            return page
    return portal(subscription.tenant, ways.cancel_url)
