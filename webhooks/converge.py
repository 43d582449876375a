"""Make our subscription what Stripe says it is, through the lifecycle's verbs.

Convergence, not deltas: it does not matter which event came, how often, or in which order. Nothing is locked but what
the verbs lock: `truth` notices who was overtaken.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from entitlements import limits
from entitlements.follow import follow
from entitlements.limits import Park
from subscriptions import lifecycle
from subscriptions.audit import STRIPE, Actor
from subscriptions.lifecycle import CancelAt, Purchase
from subscriptions.models import MOST_UNITS, AuditEntry, PlanPrice, Subscription
from subscriptions.states import Status, Type
from webhooks.models import Telling
from webhooks.outgoing import telling
from webhooks.stripe_state import Item, Unmappable, Wanted

NOTHING_NEW = "nothing new"
ASIDE = timedelta(seconds=1)  # Stripe counts whole seconds, we do not


@dataclass(frozen=True)
class Scheduled:
    """A change that is to come, by the columns of a link that say it; all empty where there is none."""

    schedule_id: str = ""
    scheduled_at: datetime | None = None
    scheduled_price_id: int | None = None
    scheduled_quantity: int | None = None


@dataclass(frozen=True)
class Known:
    """What we know about a Stripe subscription before anything is locked."""

    subscription: Subscription | None  # ours, if there is one yet
    applied_ticket: int
    tenant_id: int | None  # whose Stripe customer it is
    trial_id: int | None  # the tenant's trial that a first purchase turns into more: no Stripe subscription has it
    main: tuple[int, datetime] | None  # the tenant's live main subscription, an add-on's parent, and its term_end
    main_ends: bool  # whether that one ends with its term
    has_addons_at_stripe: bool  # whether add-ons of this one are billed apart from it
    has_slots: bool  # whether it holds slots or gives features, or will
    prices: dict[str, PlanPrice]  # ours by Stripe price id, with their plans; rules and keys only
    packs: dict[str, int]  # slot packs by Stripe price id
    packs_held: dict[int, int]  # pack → units
    untold: frozenset[str]  # aspects that are ours to say, and that Stripe has not been told yet
    checkout_is_open: bool  # whether we sent somebody to buy this, and wait for it
    scheduled: Scheduled = Scheduled()

    @property
    def subscription_id(self) -> int | None:
        return self.subscription.pk if self.subscription else None


class Overtaken(Exception):
    """What we knew is no longer so: somebody else changed it since we read it."""


class UnknownCustomer(Unmappable):
    """Something was bought by a customer whom no tenant has."""


def converge(
    known: Known, wanted: Wanted, *, now: datetime, actor: Actor = STRIPE, source_id: str, reason: str = ""
) -> tuple[int | None, str]:
    """The id of our subscription (None if there is none yet) and, in words, what happened.

    Raises Unmappable, DomainError, Overtaken.
    """
    if known.subscription and known.tenant_id not in (None, known.subscription.tenant_id):
        raise Unmappable("other_customer", "At Stripe it belongs to the customer of another tenant.")
    item = item_that_sells_a_plan(wanted, known.prices, known.packs)
    price = known.prices[item.price_id]
    term_start, term_end = wanted.term(item)
    if price.plan.type == Type.ADDON and _ends_with_its_main(known, wanted):
        wanted = replace(wanted, cancel_at=None)
    is_last = wanted.is_last(item) and wanted.period_is_paid  # else the last one is still to be paid
    purchase = Purchase(price.plan, term_start, term_end, price, True, is_last, item.quantity)
    by = _By(now, source_id, actor, reason)
    if known.subscription is None:
        started = _begin(known, wanted, purchase, by)
        entries = [started] if started else []
    else:
        entries, subscription = [], known.subscription
        is_over = wanted.status == Status.EXPIRED  # there is nothing left that we could say of it
        for aspect, bring in _STEPS:
            if not is_over and {aspect, Telling.Aspect.END} & known.untold:
                continue  # what Stripe says of it is not yet what we said
            if entry := bring(subscription, wanted, purchase, by):
                if entry.version != subscription.version + 1:  # of staff, say: what they did must not be undone by this
                    raise Overtaken
                subscription = entry.subscription
                entries.append(entry)
    if known.has_slots:
        entries += _slots(known, wanted, entries, by)
    begun = known.subscription is None
    if known.has_addons_at_stripe or (begun and known.main_ends and purchase.plan.type == Type.ADDON):
        begun_id = entries[0].subscription_id if begun and entries else None
        telling.tell(entries, now=now, begun_id=begun_id, link_of_begun=wanted.stripe_subscription_id if begun else "")
    done = ", ".join(entry.get_action_display().lower() for entry in entries)
    return entries[-1].subscription_id if entries else known.subscription_id, done or NOTHING_NEW


@dataclass(frozen=True)
class _By:
    """The part of every verb's arguments that is the same for all of them here."""

    now: datetime
    source_id: str
    actor: Actor
    reason: str

    def __call__(self) -> dict[str, Any]:
        return vars(self)


def _ends_with_its_main(known: Known, wanted: Wanted) -> bool:
    """Whether Stripe ends an add-on only because its MAIN ends there, as we have told it (`outbound`): nobody has
    cancelled it, and it goes on when that one does.
    """
    if not (known.main and known.main_ends and wanted.cancel_at) or wanted.cancels_at_period_end:
        return False
    return abs(known.main[1] - wanted.cancel_at) < ASIDE


def _begin(known: Known, wanted: Wanted, purchase: Purchase, by: _By) -> AuditEntry | None:
    """A subscription of ours for one that is new to us; None while there is nothing to serve, or nothing was paid."""
    if wanted.status in (None, Status.EXPIRED) or purchase.term_end <= purchase.term_start:
        return None
    if known.tenant_id is None:
        raise UnknownCustomer(
            "unknown_customer", f"No tenant has the Stripe customer {wanted.customer_id or '(none)'}."
        )
    is_addon = purchase.plan.type == Type.ADDON
    if is_addon:
        if known.main is None:
            raise Unmappable("no_main_for_addon", "An add-on was bought, and the tenant has no live main subscription.")
        parent_id, term_end = known.main
        if abs(term_end - purchase.term_end) < ASIDE:
            purchase = replace(purchase, term_end=term_end)
        return lifecycle.start(known.tenant_id, purchase, parent_id=parent_id, **by())
    if wanted.status == Status.ACTIVE and known.trial_id:
        return lifecycle.activate(known.trial_id, purchase=purchase, **by())
    return lifecycle.start(
        known.tenant_id,
        purchase,
        status=wanted.status,
        converts_id=known.trial_id if wanted.status == Status.TRIAL and purchase.plan.type == Type.MAIN else None,
        another_trial=True,  # whether there is one, Stripe has said already
        **by(),
    )


def _term(subscription: Subscription, wanted: Wanted, purchase: Purchase, by: _By) -> AuditEntry | None:
    """Whatever Stripe says of the status: what was paid for is served. What has expired here cannot return: `renew`
    refuses it, and a person must see that somebody pays for nothing.
    """
    if subscription.parent_id or subscription.status == Status.TRIAL:
        return None
    if wanted.status == Status.SUSPENDED and subscription.status != Status.EXPIRED:
        return _paid_before_it_was_suspended(subscription, purchase, by)
    if wanted.status not in (Status.ACTIVE, Status.GRACE):
        return None
    if subscription.status == Status.EXPIRED:
        pays_for_nothing = wanted.status == Status.ACTIVE
        if not pays_for_nothing:
            return None
    elif purchase.term_end <= subscription.term_end:
        return _shorter_term(subscription, wanted, purchase, by)
    if subscription.status == Status.SUSPENDED and not subscription.on_hold and purchase.term_end <= by.now:
        # It was paid, and is over again: we hear of it late. Nothing comes back for that, but until when is true.
        return lifecycle.amend_term(subscription.pk, term_end=purchase.term_end, **by())
    last = purchase.cancel_at_term_end and wanted.status == Status.ACTIVE
    return lifecycle.renew(subscription.pk, term_end=purchase.term_end, cancel_at_term_end=last, **by())


def _paid_before_it_was_suspended(subscription: Subscription, purchase: Purchase, by: _By) -> AuditEntry | None:
    """A renewal that was paid and not heard of, before Stripe gave up on the next one: the term is as long as was paid,
    and nothing is served by that.
    """
    if purchase.term_end <= subscription.term_end:
        return None
    return lifecycle.amend_term(subscription.pk, term_end=purchase.term_end, **by())


def _shorter_term(subscription: Subscription, wanted: Wanted, purchase: Purchase, by: _By) -> AuditEntry | None:
    """A paid term that ends sooner: another interval was bought, or it is cancelled within its period. Else what ends
    sooner at Stripe leaves the term as it is: staff may have given more.
    """
    is_another = subscription.price_id != (purchase.price and purchase.price.pk)
    is_cut_short = wanted.ends_within(wanted.items[0]) == purchase.term_end
    if not (wanted.period_is_paid and (is_another or is_cut_short)) or purchase.term_end >= subscription.term_end:
        return None
    return lifecycle.amend_term(subscription.pk, term_end=purchase.term_end, **by())


def _billing(subscription: Subscription, wanted: Wanted, purchase: Purchase, by: _By) -> AuditEntry | None:
    """What was paid otherwise is billed by Stripe from now on."""
    if subscription.auto_renews or Status.EXPIRED in (subscription.status, wanted.status) or wanted.status is None:
        return None
    return lifecycle.bill_by_provider(subscription.pk, **by())


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
            is_paid_now = by.now < purchase.term_end <= subscription.term_end  # staff may have given more
            return lifecycle.activate(pk, **by()) if is_paid_now else None
        case Status.GRACE if ours in (Status.TRIAL, Status.ACTIVE):  # what the clock has suspended stays so
            return lifecycle.enter_grace(pk, **by())
        case Status.SUSPENDED if ours in (Status.TRIAL, Status.ACTIVE, Status.GRACE):
            return lifecycle.suspend(pk, **by())
        case Status.TRIAL if ours == Status.TRIAL and purchase.term_end != subscription.term_end:
            return lifecycle.amend_term(pk, term_end=purchase.term_end, **by())
    return None


def _plan(subscription: Subscription, wanted: Wanted, purchase: Purchase, by: _By) -> AuditEntry | None:
    bought = (purchase.price and purchase.price.pk, purchase.quantity)
    if subscription.status == Status.EXPIRED or bought == (subscription.price_id, subscription.quantity):
        return None
    if wanted.status == Status.EXPIRED or wanted.status is None:
        return None
    return lifecycle.change_plan(
        subscription.pk, plan=purchase.plan, price=purchase.price, quantity=purchase.quantity, **by()
    )


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


# What is brought here, one after another, and the aspect that it belongs to while that is ours to say.
_STEPS = (
    (Telling.Aspect.TERM_END, _term),
    (Telling.Aspect.PAUSE, _status),
    (Telling.Aspect.ITEMS, _plan),
    (Telling.Aspect.ITEMS, _billing),
    (Telling.Aspect.TERM_END, _cancellation),
)


def _slots(known: Known, wanted: Wanted, entries: Sequence[AuditEntry], by: _By) -> list[AuditEntry]:
    """The slots of what was bought, those of the packs beside the plan among them. Whoever finds none left is parked:
    Stripe cannot be refused.
    """
    bought = {known.packs[item.price_id]: item.quantity for item in wanted.items if item.price_id in known.packs}
    packs: dict[int, int] | None = {pack: quantity for pack, quantity in bought.items() if quantity}
    if packs == known.packs_held or {Telling.Aspect.ITEMS, Telling.Aspect.END} & known.untold:
        packs = None
    if follow(entries, packs=packs, park=Park.NEWEST, **by()) or packs is None:
        return []
    subscription = entries[-1].subscription if entries else known.subscription
    if subscription is None or subscription.status == Status.EXPIRED:
        return []
    done = limits.set_packs(subscription.pk, packs, park=Park.NEWEST, **by())
    return [done.entry] if done.entry else []


def scheduled(known: Known, wanted: Wanted) -> Scheduled:
    """What is to come, as Stripe says. A schedule of which only the id was read is what it was, or something."""
    if not wanted.schedule_was_read:
        is_the_same = wanted.schedule_id == known.scheduled.schedule_id
        return known.scheduled if is_the_same else Scheduled(wanted.schedule_id)
    if wanted.coming is None:
        return Scheduled()
    selling = [(known.prices[price].pk, units) for price, units in wanted.coming.items if price in known.prices]
    is_known = len(selling) == 1 and 0 < selling[0][1] <= MOST_UNITS
    price_id, quantity = selling[0] if is_known else (None, None)
    return Scheduled(wanted.schedule_id, wanted.coming.at, price_id, quantity)


def item_that_sells_a_plan(wanted: Wanted, prices: Collection[str], packs: Collection[str]) -> Item:
    """Exactly one does, at one of these Stripe prices; the others are slot packs. Raises Unmappable."""
    unknown = sorted({item.price_id for item in wanted.items}.difference(prices, packs))
    if unknown:
        raise Unmappable("unknown_price", f"We sell nothing at the Stripe price {', '.join(unknown)[:200]}.")
    selling = [item for item in wanted.items if item.price_id in prices]
    if len(selling) != 1:
        raise Unmappable("ambiguous_plan", f"{len(selling)} items that sell a plan, where exactly one does.")
    if any(not 0 <= item.quantity <= MOST_UNITS for item in wanted.items):
        raise Unmappable("nothing_bought", f"The quantity of an item is not between 0 and {MOST_UNITS:,}.")
    if selling[0].quantity < 1:
        raise Unmappable("nothing_bought", "The quantity of its item is not positive.")
    return selling[0]
