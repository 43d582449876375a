"""What Stripe says of a subscription, brought here: ticket → fetch → apply.

No transaction is open while Stripe is asked. What was fetched is applied only if no later ticket of the same Stripe
subscription was, so order, duplicates and slow answers cannot matter. The inbox does this for every event; whoever
wants to know now, a customer who comes back from paying or a comparison, does it with `refresh`.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from django.contrib.postgres.expressions import ArraySubquery
from django.db import connection, transaction
from django.db.models import Exists, OuterRef, Q, Subquery
from django.db.models.functions import JSONObject
from djstripe.models import Customer

from entitlements.models import PlanFeature, PlanSlots, SubscriptionFeature, SubscriptionPack, TierAllocation
from subscriptions.audit import STRIPE, Actor
from subscriptions.errors import DomainError
from subscriptions.models import Plan, PlanPrice, Subscription
from subscriptions.states import LIVE, Status, Type
from webhooks import newcomers, stripe_api
from webhooks.converge import Known, Scheduled, UnknownCustomer, converge, scheduled
from webhooks.models import Checkout, StripeLink, StripePrice, Telling
from webhooks.stripe_state import Wanted, wanted

RULES_OF_A_PLAN = ("id", "type", "grace_days", "suspension_days", "terms_in")
OF_A_MAIN = ("pk", "term_end", "cancel_at_term_end", "auto_renews")
MOST_READINGS = 5  # of what we know, while others apply news of the same Stripe subscription

TICKET = """
    INSERT INTO stripe_links AS link (stripe_subscription_id, ticket, applied_ticket) VALUES (%s, 1, 0)
    ON CONFLICT (stripe_subscription_id) DO UPDATE SET ticket = link.ticket + 1 RETURNING ticket"""

APPLIED = """
    UPDATE stripe_links SET applied_ticket = greatest(applied_ticket, %(ticket)s), subscription_id = %(subscription)s
     WHERE stripe_subscription_id = %(link)s AND applied_ticket = %(applied)s"""

# Told the outcome, the applied ticket as it was read, and our subscription's id; False if it is no longer so, and
# nothing may be kept. It is the last statement of the transaction that applies.
Finish = Callable[[str, int, int | None], bool]


class Overtaken(Exception):
    """Somebody else applied news of the same Stripe subscription since we read what we know about it."""


def refresh(
    stripe_subscription_id: str, *, now: Callable[[], datetime], actor: Actor = STRIPE, source_id: str = ""
) -> str:
    """Ask Stripe about one subscription and apply the answer; the outcome in words. Safe to repeat. `now` is called
    when Stripe has answered.

    Raises StripeUnavailable, StripeRefused, Unmappable, DomainError, Overtaken.
    """
    ticket = take_ticket(stripe_subscription_id)
    state = wanted(stripe_api.fetch_subscription(stripe_subscription_id))

    def finish(outcome: str, applied_ticket: int, subscription_id: int | None) -> bool:
        return mark_applied(stripe_subscription_id, ticket, applied_ticket, subscription_id)

    return apply(state, ticket, finish, now=now(), actor=actor, source_id=source_id)


def take_ticket(stripe_subscription_id: str) -> int:
    """The number of an asking that begins now: what is fetched after is younger than all that lower numbers fetched."""
    with connection.cursor() as cursor:
        cursor.execute(TICKET, [stripe_subscription_id])
        ticket: int = cursor.fetchone()[0]
    return ticket


def mark_applied(stripe_subscription_id: str, ticket: int, applied_ticket: int, subscription_id: int | None) -> bool:
    """Keep that this ticket's answer is applied; False if another one's was since `applied_ticket` was read."""
    parameters: dict[str, Any] = {
        "link": stripe_subscription_id, "ticket": ticket, "applied": applied_ticket, "subscription": subscription_id,
    }  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute(APPLIED, parameters)
        return bool(cursor.rowcount)


def apply(
    state: Wanted, ticket: int, finish: Finish, *, now: datetime, actor: Actor = STRIPE, source_id: str = ""
) -> str:
    """Apply what was fetched under this ticket; the outcome in words. What we know is read before anything is locked,
    so whoever was overtaken meanwhile rolls back and reads again. A refusal may come of the same: it counts when it
    comes again.

    Raises Overtaken, Unmappable, DomainError, and what `newcomers.welcome` raises.
    """
    for reading in range(MOST_READINGS):
        try:
            return _apply_once(state, ticket, finish, now, actor, source_id)
        except UnknownCustomer:
            if not newcomers.are_welcome():
                raise
            newcomers.welcome(state.customer_id, now=now)
        except (Overtaken, DomainError):
            if reading == MOST_READINGS - 1:
                raise
    raise Overtaken


@transaction.atomic
def _apply_once(state: Wanted, ticket: int, finish: Finish, now: datetime, actor: Actor, source_id: str) -> str:
    """Bring our subscription to what was fetched, and finish, in one commit. Raises Overtaken."""
    known = known_of(state)
    if ticket < known.applied_ticket:
        subscription_id, outcome = known.subscription_id, "older than what was applied"
    else:
        subscription_id, outcome = converge(known, state, now=now, actor=actor, source_id=source_id)
        if known.checkout_is_open:
            Checkout.objects.filter(pk=state.checkout_id or 0).update(state=Checkout.State.COMPLETE)
        if (to_come := scheduled(known, state)) != known.scheduled:
            StripeLink.objects.filter(pk=state.stripe_subscription_id).update(**vars(to_come))
    if not finish(outcome, known.applied_ticket, subscription_id):
        raise Overtaken
    return outcome


def known_of(state: Wanted) -> Known:
    """All that converging needs to know, in one statement. No lock here: finishing notices who was overtaken."""
    customer = Customer.objects.filter(id=state.customer_id)
    of_customer = {"tenant__djstripe_customers__id": state.customer_id, "status__in": sorted(LIVE)}
    trial = Subscription.objects.filter(**of_customer, type=Type.TRIAL, stripe_link=None)
    main = Subscription.objects.filter(**of_customer, type=Type.MAIN)
    coming = {price_id for price_id, _ in state.coming.items} if state.coming else set()
    sold = StripePrice.objects.filter(pk__in={item.price_id for item in state.items} | coming)
    plans, packs = sold.filter(plan_price__isnull=False), sold.filter(slot_pack__isnull=False)
    slots_sold = PlanSlots.objects.filter(plan__prices__stripe_prices__in=plans)
    ours = Q(subscription__stripe_link=OuterRef("pk")) | Q(subscription__parent__stripe_link=OuterRef("pk"))
    slots_held = TierAllocation.objects.filter(ours | Q(subscription__in=trial), is_open=True)
    features_sold = PlanFeature.objects.filter(plan__prices__stripe_prices__in=plans)
    features_held = SubscriptionFeature.objects.filter(
        Q(subscription__stripe_link=OuterRef("pk")) | Q(subscription__in=trial)
    )
    packs_held = SubscriptionPack.objects.filter(subscription__stripe_link=OuterRef("pk"))
    untold = Telling.objects.filter(link=OuterRef("pk")).exclude(state=Telling.State.DONE)
    checkout = Checkout.objects.filter(pk=state.checkout_id or 0, tenant__djstripe_customers__id=state.customer_id)
    plan = {field: f"plan_price__plan__{field}" for field in RULES_OF_A_PLAN}
    link = (
        StripeLink.objects.select_related("subscription")
        .annotate(
            tenant=Subquery(customer.values("subscriber_id")[:1]),
            trial=Subquery(trial.order_by("pk").values("pk")[:1]),
            main=Subquery(main.values(row=JSONObject(**{field: field for field in OF_A_MAIN}))[:1]),
            has_slots=Exists(slots_sold) | Exists(slots_held) | Exists(features_sold) | Exists(features_held),
            prices=ArraySubquery(
                plans.values(row=JSONObject(stripe="pk", price="plan_price_id", plan=JSONObject(**plan)))
            ),
            packs=ArraySubquery(packs.values(row=JSONObject(stripe="pk", pack="slot_pack_id"))),
            packs_held=ArraySubquery(packs_held.values(row=JSONObject(pack="pack_id", quantity="quantity"))),
            untold=ArraySubquery(untold.values("aspect")),
            has_addons=Exists(StripeLink.objects.filter(subscription__parent__stripe_link=OuterRef("pk"))),
            checkout=Subquery(checkout.values(row=JSONObject(state="state", renews="renews_id"))[:1]),
        )
        .get(pk=state.stripe_subscription_id)
    )
    checkout_row = link.checkout or {}
    subscription = link.subscription
    has_begun = state.status not in (None, Status.EXPIRED)  # a renewal that was never paid leaves ours as it is
    if subscription is None and checkout_row.get("renews") and has_begun:
        subscription = Subscription.objects.filter(pk=checkout_row["renews"], stripe_link=None).first()
    return Known(
        subscription=subscription,
        applied_ticket=link.applied_ticket,
        tenant_id=link.tenant,
        trial_id=link.trial,
        main=(link.main["pk"], datetime.fromisoformat(link.main["term_end"])) if link.main else None,
        main_ends=bool(link.main) and (link.main["cancel_at_term_end"] or not link.main["auto_renews"]),
        has_addons_at_stripe=link.has_addons,
        has_slots=link.has_slots or bool(link.packs),
        prices={row["stripe"]: PlanPrice(pk=row["price"], plan=Plan(**row["plan"])) for row in link.prices or ()},
        packs={row["stripe"]: row["pack"] for row in link.packs or ()},
        packs_held={row["pack"]: row["quantity"] for row in link.packs_held or ()},
        untold=frozenset(link.untold or ()),
        scheduled=Scheduled(link.schedule_id, link.scheduled_at, link.scheduled_price_id, link.scheduled_quantity),
        checkout_is_open=checkout_row.get("state") == Checkout.State.OPEN,
    )
