"""Make our subscription what Stripe says it is, through the lifecycle's verbs.

Convergence, not deltas: it does not matter which event came, how often, or in which order. Nothing is locked but what
the verbs lock: `inbox` notices who was overtaken.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from entitlements.follow import follow
from entitlements.limits import Park
from subscriptions import lifecycle
from subscriptions.audit import STRIPE, Actor
from subscriptions.lifecycle import CancelAt, Purchase
from subscriptions.models import AuditEntry, PlanPrice, Subscription
from subscriptions.states import Status, Type
from webhooks.stripe_state import Item, Unmappable, Wanted

NOTHING_NEW = "nothing new"


@dataclass(frozen=True)
class Known:
    """What we know about a Stripe subscription before anything is locked."""

    subscription: Subscription | None  # ours, if there is one yet
    applied_ticket: int
    tenant_id: int | None  # whose Stripe customer it is
    trial_id: int | None  # the tenant's trial that a first purchase turns into more: no Stripe subscription has it
    main_id: int | None  # the tenant's live main subscription: the parent of an add-on
    has_slots: bool  # whether it holds slots or gives features, or will
    prices: dict[str, PlanPrice]  # ours by Stripe price id, with their plans; rules and keys only

    @property
    def subscription_id(self) -> int | None:
        return self.subscription.pk if self.subscription else None


def converge(known: Known, wanted: Wanted, *, now: datetime, source_id: str) -> tuple[int | None, str]:
    """The id of our subscription (None if there is none yet) and, in words, what happened.

    Raises Unmappable and DomainError.
    """
    if known.subscription and known.tenant_id not in (None, known.subscription.tenant_id):
        raise Unmappable("other_customer", "At Stripe it belongs to the customer of another tenant.")
    item = _item_that_sells_a_plan(wanted, known.prices)
    price = known.prices[item.price_id]
    term_start, term_end = wanted.term(item)
    is_last = wanted.is_last(item) and wanted.period_is_paid  # else the last one is still to be paid
    purchase = Purchase(price.plan, term_start, term_end, price, True, is_last)
    by = _By(now, source_id)
    if known.subscription is None:
        begun = _begin(known, wanted, purchase, by)
        entries = [begun] if begun else []
    else:
        entries, subscription = [], known.subscription
        for bring in (_term, _status, _plan, _cancellation):
            if entry := bring(subscription, wanted, purchase, by):
                subscription = entry.subscription
                entries.append(entry)
    if known.has_slots:
        follow(entries, park=Park.NEWEST, **by())  # Stripe cannot be refused
    done = ", ".join(entry.get_action_display().lower() for entry in entries)
    return entries[-1].subscription_id if entries else known.subscription_id, done or NOTHING_NEW


@dataclass(frozen=True)
class _By:
    """The part of every verb's arguments that is the same for all of them here."""

    now: datetime
    source_id: str
    actor: Actor = STRIPE

    def __call__(self) -> dict[str, Any]:
        return vars(self)


def _begin(known: Known, wanted: Wanted, purchase: Purchase, by: _By) -> AuditEntry | None:
    """A subscription of ours for one that is new to us; None while there is nothing to serve, or nothing was paid."""
    if wanted.status in (None, Status.EXPIRED) or purchase.term_end <= purchase.term_start:
        return None
    if known.tenant_id is None:
        raise Unmappable("unknown_customer", f"No tenant has the Stripe customer {wanted.customer_id or '(none)'}.")
    is_addon = purchase.plan.type == Type.ADDON
    if is_addon and known.main_id is None:
        raise Unmappable("no_main_for_addon", "An add-on was bought, and the tenant has no live main subscription.")
    if wanted.status == Status.ACTIVE and known.trial_id and not is_addon:
        return lifecycle.activate(known.trial_id, purchase=purchase, **by())
    parent_id = known.main_id if is_addon else None
    return lifecycle.start(known.tenant_id, purchase, status=wanted.status, parent_id=parent_id, **by())


def _term(subscription: Subscription, wanted: Wanted, purchase: Purchase, by: _By) -> AuditEntry | None:
    """Whatever Stripe says of the status: what was paid for is served. What has expired here cannot return: `renew`
    refuses it, and a person must see that somebody pays for nothing.
    """
    if (
        subscription.parent_id
        or subscription.status == Status.TRIAL
        or wanted.status not in (Status.ACTIVE, Status.GRACE)
    ):
        return None
    if subscription.status == Status.EXPIRED:
        pays_for_nothing = wanted.status == Status.ACTIVE
        if not pays_for_nothing:
            return None
    elif purchase.term_end <= subscription.term_end:
        return None
    last = purchase.cancel_at_term_end and wanted.status == Status.ACTIVE
    return lifecycle.renew(subscription.pk, term_end=purchase.term_end, cancel_at_term_end=last, **by())


def _status(subscription: Subscription, wanted: Wanted, purchase: Purchase, by: _By) -> AuditEntry | None:
    """The one verb that brings the status to what Stripe says; None if it is there, or nothing may do it."""
    pk, ours = subscription.pk, Status(subscription.status)
    match wanted.status:
        case Status.EXPIRED if ours != Status.EXPIRED:
            ended_at = min(wanted.ended_at or by.now, by.now)
            return lifecycle.expire(pk, why=wanted.end_reason, ended_at=ended_at, **by())
        case _ if subscription.parent_id:  # an add-on's status and dates are its main's
            return None
        case Status.ACTIVE if ours == Status.TRIAL:
            return lifecycle.activate(pk, purchase=purchase, **by()) if wanted.period_is_paid else None
        case Status.ACTIVE if ours in (Status.GRACE, Status.SUSPENDED) and not subscription.on_hold:
            is_paid_now = purchase.term_end == subscription.term_end > by.now
            return lifecycle.activate(pk, **by()) if is_paid_now else None
        case Status.GRACE if ours in (Status.TRIAL, Status.ACTIVE):  # what the clock has suspended stays so
            return lifecycle.enter_grace(pk, **by())
        case Status.SUSPENDED if ours in (Status.TRIAL, Status.ACTIVE, Status.GRACE):
            return lifecycle.suspend(pk, **by())
        case Status.TRIAL if ours == Status.TRIAL and purchase.term_end != subscription.term_end:
            return lifecycle.amend_term(pk, term_end=purchase.term_end, **by())
    return None


def _plan(subscription: Subscription, wanted: Wanted, purchase: Purchase, by: _By) -> AuditEntry | None:
    if subscription.status == Status.EXPIRED or purchase.price is None or subscription.price_id == purchase.price.pk:
        return None
    return lifecycle.change_plan(subscription.pk, plan=purchase.plan, price=purchase.price, **by())


def _cancellation(subscription: Subscription, wanted: Wanted, purchase: Purchase, by: _By) -> AuditEntry | None:
    """A pending cancellation at Stripe, and its undoing. Of a term that is over there is nothing left to cancel: if its
    renewal is paid, that is the last term.
    """
    serving = subscription.status in (Status.TRIAL, Status.ACTIVE) and wanted.status in (Status.TRIAL, Status.ACTIVE)
    is_last = wanted.is_last(wanted.items[0])
    if not serving or is_last == subscription.cancel_at_term_end or subscription.term_end <= by.now:
        return None
    if is_last:
        return lifecycle.cancel(subscription.pk, at=CancelAt.TERM_END, **by())
    return lifecycle.resume(subscription.pk, **by())


def _item_that_sells_a_plan(wanted: Wanted, prices: dict[str, PlanPrice]) -> Item:
    unknown = sorted({item.price_id for item in wanted.items} - prices.keys())
    if unknown:
        raise Unmappable("unknown_price", f"We sell nothing at the Stripe price {', '.join(unknown)[:200]}.")
    if len(wanted.items) != 1:
        raise Unmappable("ambiguous_plan", f"{len(wanted.items)} items, where exactly one sells a plan.")
    if wanted.items[0].quantity < 1:
        raise Unmappable("nothing_bought", "The quantity of its item is not positive.")
    return wanted.items[0]
