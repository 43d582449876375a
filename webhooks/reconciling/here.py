"""What we know of many Stripe subscriptions at once, to be compared with what Stripe says of them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from django.contrib.postgres.expressions import ArraySubquery
from django.db.models import F, OuterRef, Subquery
from django.db.models.functions import JSONObject
from djstripe.models import Customer

from entitlements.models import SubscriptionPack
from subscriptions.audit import Actor
from subscriptions.models import AuditEntry, Subscription
from subscriptions.states import LIVE, Status, Type
from webhooks.buying import newcomers
from webhooks.models import StripeEvent, StripeLink, StripePrice, Telling
from webhooks.reconciling.differences import Here, Ours, Sold
from webhooks.stripe_state import Unmappable, Wanted

MOST_TRIES_ON_THE_WAY = 5  # of an event: minutes; what has been refused more often is no news that will be here soon
Said = Mapping[str, Wanted | Unmappable | None]  # what Stripe says, by Stripe subscription; None: there is none


@dataclass(frozen=True)
class Supposed:
    """What is not written yet, and would be: whose customers are whose, and what prices sell."""

    customers: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    prices: Mapping[str, Sold] = field(default_factory=dict)
    packs: Mapping[str, str] = field(default_factory=dict)


def known_here(said: Said, supposed: Supposed = Supposed()) -> dict[str, Here]:
    """By Stripe subscription, in five statements however many they are. Nothing is locked."""
    states = [state for state in said.values() if isinstance(state, Wanted)]
    links = {link.pk: link for link in _links(said)}
    customers = {**supposed.customers, **_customers({state.customer_id for state in states})}
    coming = {price for state in states if state.coming for price, _ in state.coming.items}
    prices, packs = _sold({item.price_id for state in states for item in state.items} | coming)
    prices, packs = {**supposed.prices, **prices}, {**supposed.packs, **packs}
    waiting = StripeEvent.objects.filter(
        state=StripeEvent.State.PENDING, attempts__lt=MOST_TRIES_ON_THE_WAY, stripe_subscription_id__in=[*said]
    )
    awaits = set(waiting.values_list("stripe_subscription_id", flat=True))
    subscriptions = [link.subscription for link in links.values() if link.subscription]
    said_by = {state.customer_id for state in states}
    tenants = {tenant for customer, (tenant, _) in customers.items() if customer in said_by}
    sells = _Sells(tenants | {s.tenant_id for s in subscriptions})
    known = {}
    for stripe_id, state in said.items():
        customer = customers.get(state.customer_id) if isinstance(state, Wanted) else None
        link = links.get(stripe_id)
        subscription = link.subscription if link else None
        whose = (subscription.tenant_id, subscription.tenant.slug) if subscription else customer
        known[stripe_id] = Here(
            ours=_ours(link, subscription) if link and subscription else None,
            tenant_id=whose[0] if whose else None,
            customers_tenant=customer,
            tenant=whose[1] if whose else "",
            prices=prices,
            packs=packs,
            untold=frozenset(link.untold or ()) if link else frozenset(),  # type: ignore[attr-defined]
            awaits_event=stripe_id in awaits,
            rival=sells.rival(stripe_id, state, subscription, whose, prices),
            welcomes_strangers=newcomers.are_welcome(),
        )
    return known


def _links(said: Iterable[str]) -> "Iterable[StripeLink]":
    packs = SubscriptionPack.objects.filter(subscription=OuterRef("subscription_id"))
    untold = Telling.objects.filter(link=OuterRef("pk"), state=Telling.State.PENDING)
    moved = AuditEntry.objects.filter(subscription=OuterRef("subscription_id"), changes__has_key="term_end")
    return (
        StripeLink.objects.filter(pk__in=[*said])
        .select_related("subscription__tenant", "subscription__price__plan", "subscription__parent")
        .annotate(
            packs_held=ArraySubquery(packs.values(row=JSONObject(code=F("pack__code"), quantity="quantity"))),
            untold=ArraySubquery(untold.values("aspect")),
            term_by=Subquery(moved.order_by("-version").values("actor")[:1]),
        )
    )


def _ours(link: StripeLink, s: Subscription) -> Ours:
    return Ours(
        pk=s.pk,
        number=s.number,
        type=Type(s.type),
        status=Status(s.status),
        on_hold=s.on_hold,
        term_end=s.term_end,
        auto_renews=s.auto_renews,
        cancel_at_term_end=s.cancel_at_term_end,
        price_id=s.price_id,
        price=str(s.price or "no price"),
        quantity=s.quantity,
        packs={row["code"]: row["quantity"] for row in link.packs_held or ()},  # type: ignore[attr-defined]
        main_ends=s.parent is not None and (s.parent.cancel_at_term_end or not s.parent.auto_renews),
        scheduled=(link.scheduled_at, link.scheduled_price_id, link.scheduled_quantity),
        staff_moved_its_term=Actor(link.term_by or "").must_say_why,  # type: ignore[attr-defined]
    )


def _customers(ids: set[str]) -> dict[str, tuple[int, str]]:
    rows = Customer.objects.filter(id__in=ids - {""}, subscriber__isnull=False)
    return {pk: (tenant, slug) for pk, tenant, slug in rows.values_list("id", "subscriber_id", "subscriber__slug")}


def _sold(ids: set[str]) -> tuple[dict[str, Sold], dict[str, str]]:
    prices: dict[str, Sold] = {}
    packs: dict[str, str] = {}
    for row in StripePrice.objects.filter(pk__in=ids).select_related("plan_price__plan", "slot_pack"):
        if row.plan_price:
            prices[row.pk] = Sold(row.plan_price.pk, str(row.plan_price), Type(row.plan_price.plan.type))
        elif row.slot_pack:
            packs[row.pk] = row.slot_pack.code
    return prices, packs


class _Sells:
    """What these tenants have that lives and that Stripe bills."""

    def __init__(self, tenant_ids: set[int]) -> None:
        rows = Subscription.objects.filter(tenant__in=tenant_ids, status__in=sorted(LIVE), stripe_link__isnull=False)
        self.rows = [*rows.order_by("pk").values_list("tenant_id", "type", "plan_id", "pk", "stripe_link")]
        self.of: dict[int, list[tuple[str, int, int, str]]] = {}
        for tenant, *row in self.rows:
            self.of.setdefault(tenant, []).append(tuple(row))  # type: ignore[arg-type]

    def rival(
        self,
        stripe_id: str,
        state: Wanted | Unmappable | None,
        subscription: Subscription | None,
        whose: tuple[int, str] | None,
        prices: Mapping[str, Sold],
    ) -> str:
        """The Stripe subscription that is, for this tenant, what the other one would be: a MAIN beside the one that may
        live; the same add-on, bought before.
        """
        beside = self.of.get(whose[0], []) if whose else []
        if subscription is None:
            types = {prices[item.price_id].type for item in getattr(state, "items", ()) if item.price_id in prices}
            mains = [link for type, _, _, link in beside if type == Type.MAIN and link != stripe_id]
            return mains[0] if mains and Type.MAIN in types else ""
        if subscription.type != Type.ADDON or subscription.status == Status.EXPIRED:
            return ""
        older = [
            link for type, plan, pk, link in beside
            if (type, plan) == (Type.ADDON, subscription.plan_id) and pk < subscription.pk
        ]  # fmt: skip
        return older[0] if older else ""
