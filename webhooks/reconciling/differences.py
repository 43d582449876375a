"""Where we and Stripe differ over a subscription. Pure: what we have and what Stripe says in, differences out.

RULES has a row for each kind: how bad it is, whether asking Stripe again mends it, what a member of staff can do. What
is only on its way is no difference: an event that waits, a telling that is not delivered, a renewal that settles.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from subscriptions.models import MOST_UNITS
from subscriptions.states import GRANTS_ACCESS, LIVE, Status, Type
from webhooks.converge import ASIDE, item_that_sells_a_plan
from webhooks.models import Drift, Telling
from webhooks.stripe_state import Item, Unmappable, Wanted

Kind, Severity, Aspect = Drift.Kind, Drift.Severity, Telling.Aspect
Side = dict[str, Any]  # name → what one of us has, as JSON takes it

STRIPE_IS_LATE = timedelta(hours=1)  # it ends and renews within the hour, not at the instant


@dataclass(frozen=True)
class Rule:
    """What a kind of difference means."""

    severity: Drift.Severity
    converges: bool  # asking Stripe again and applying the answer mends it, so a run may do it by itself
    repair: str  # what staff are told that a repair does; empty where nothing can be done from here


RULES: dict[Drift.Kind, Rule] = {
    Kind.STATUS: Rule(Severity.HIGH, True, "Ask Stripe again and apply what it says."),
    Kind.PERIOD: Rule(
        Severity.MEDIUM, True,
        "Ask Stripe again and apply what it says; a term that ends sooner there ends as soon here.",
    ),
    Kind.PLAN: Rule(Severity.MEDIUM, True, "Ask Stripe again and apply what it says."),
    Kind.QUANTITY: Rule(Severity.MEDIUM, True, "Ask Stripe again and apply what it says."),
    Kind.CANCELLATION: Rule(Severity.MEDIUM, True, "Ask Stripe again and apply what it says."),
    Kind.CUSTOMER: Rule(Severity.HIGH, False, ""),
    Kind.BILLED_AFTER_END: Rule(Severity.HIGH, False, "End it at Stripe, too: nobody is billed for nothing."),
    Kind.SERVED_AFTER_END: Rule(Severity.HIGH, True, "Ask Stripe again and apply what it says: it ends here."),
    Kind.DUPLICATE: Rule(Severity.HIGH, False, "Cancel this one at Stripe, at once; the other one goes on."),
    Kind.UNKNOWN_HERE: Rule(
        Severity.HIGH,
        True,
        "Ask Stripe again and begin it here. Whose an unknown customer is, says `manage.py adopt_stripe --map FILE`.",
    ),
    Kind.UNKNOWN_AT_STRIPE: Rule(Severity.HIGH, False, "End it here: nobody pays for it."),
    Kind.UNREADABLE: Rule(Severity.MEDIUM, False, "Ask Stripe again and apply what it says."),
    Kind.REFUND: Rule(Severity.LOW, False, ""),
    Kind.DISPUTE: Rule(Severity.HIGH, False, ""),
}  # fmt: skip

# What many are repaired of at once, by whoever asks for that. Not what a wrong key of ours would make of all of them,
# nor what takes away what somebody bought: each of those takes a person.
REPAIRED_TOGETHER = frozenset(
    {kind for kind, rule in RULES.items() if rule.converges} | {Kind.BILLED_AFTER_END, Kind.UNREADABLE}
)

# What ours may be beside what Stripe says. What the clock suspended stays so while Stripe still tries to be paid.
MAY_STAND_BESIDE: dict[Status, frozenset[Status]] = {
    Status.TRIAL: frozenset({Status.TRIAL}),
    Status.ACTIVE: frozenset({Status.ACTIVE}),
    Status.GRACE: frozenset({Status.GRACE, Status.SUSPENDED}),
    Status.SUSPENDED: frozenset({Status.SUSPENDED}),
}
# The same where Stripe says ACTIVE of a period that nobody has paid yet, or that is over: our clock does not wait.
MAY_STAND_BESIDE_WHAT_SETTLES = LIVE


@dataclass(frozen=True)
class Ours:
    """Our subscription, as far as Stripe has an opinion about it."""

    pk: int
    number: str
    type: Type
    status: Status
    on_hold: bool
    term_end: datetime
    auto_renews: bool
    cancel_at_term_end: bool
    price_id: int | None
    price: str
    quantity: int
    packs: Mapping[str, int]  # by code
    staff_moved_its_term: bool  # last of all who moved it
    main_ends: bool = False  # of an add-on: its main one ends with their term
    scheduled: tuple[datetime | None, int | None, int | None] = (None, None, None)  # when, which price, how many


@dataclass(frozen=True)
class Sold:
    """What a Stripe price sells."""

    price_id: int
    price: str
    type: Type


@dataclass(frozen=True)
class Here:
    """What we know of one Stripe subscription."""

    ours: Ours | None
    tenant_id: int | None  # ours, or its Stripe customer's
    customers_tenant: tuple[int, str] | None  # whom its Stripe customer is
    tenant: str  # slug
    prices: Mapping[str, Sold]  # by Stripe price
    packs: Mapping[str, str]  # codes by Stripe price
    untold: Collection[str] = field(default_factory=frozenset)  # aspects that Stripe will be told
    awaits_event: bool = False
    rival: str = ""  # the Stripe subscription that already is what this one sells to the tenant
    welcomes_strangers: bool = False  # a customer whom nobody knows becomes a tenant


@dataclass(frozen=True)
class Difference:
    kind: Drift.Kind
    ours: Side
    theirs: Side
    converges: bool  # whether asking again may mend it, as far as one can tell from here

    @property
    def severity(self) -> Drift.Severity:
        return RULES[self.kind].severity


def differences(here: Here, said: Wanted | Unmappable, *, now: datetime) -> list[Difference]:
    """All of them, in the order of Drift.Kind; none while news of it is on its way."""
    if is_on_its_way(here):
        return []
    if isinstance(said, Unmappable):
        return [_found(Kind.UNREADABLE, *_unreadable(here, said))]
    if here.ours is None and said.status in (None, Status.EXPIRED):
        return []
    try:
        item = item_that_sells_a_plan(said, here.prices, here.packs)
    except Unmappable as error:
        kind = Kind.UNKNOWN_HERE if here.ours is None else Kind.UNREADABLE
        return [_found(kind, *_unreadable(here, error), converges=False)]
    if here.ours is None:
        return _not_here(here, said, item)
    found = []
    for kind, silenced_by, find in _FINDERS:
        if silenced_by in here.untold:
            continue
        if sides := find(here, here.ours, said, item, now):
            is_its_mains = kind == Kind.STATUS and here.ours.type == Type.ADDON
            found.append(_found(kind, *sides, converges=not is_its_mains))
    return found


def is_on_its_way(here: Here) -> bool:
    """Whether what Stripe says will be brought here, or what we say there, without anybody's doing."""
    return here.awaits_event or Aspect.END in here.untold


def unknown_at_stripe(here: Here) -> list[Difference]:
    """Of a link whose subscription Stripe says there is none."""
    if here.ours is None or here.ours.status == Status.EXPIRED or is_on_its_way(here):
        return []
    return [_found(Kind.UNKNOWN_AT_STRIPE, {"status": here.ours.status, **_plan_of(here.ours)}, {"status": "none"})]


def _found(kind: Drift.Kind, ours: Side, theirs: Side, *, converges: bool = True) -> Difference:
    return Difference(kind, ours, theirs, converges and RULES[kind].converges)


def _unreadable(here: Here, error: Unmappable) -> tuple[Side, Side]:
    ours = {"status": here.ours.status, **_plan_of(here.ours)} if here.ours else {}
    return ours, {"not understood": error.code, "why": error.detail}


def _not_here(here: Here, said: Wanted, item: Item) -> list[Difference]:
    term_start, term_end = said.term(item)
    if term_end <= term_start:  # nothing has been paid yet: nothing is to be served
        return []
    sold = here.prices[item.price_id]
    theirs = _state(said) | {"price": sold.price, "quantity": item.quantity, "customer": said.customer_id or "none"}
    if here.rival:
        return [_found(Kind.DUPLICATE, {"tenant": here.tenant, "goes on": here.rival}, theirs)]
    is_known = here.customers_tenant is not None
    ours = {"tenant": here.tenant if is_known else "none has this customer"}
    return [_found(Kind.UNKNOWN_HERE, ours, theirs, converges=is_known or here.welcomes_strangers)]


# --- the kinds, each: both sides where they differ ------------------------------------------------------------------

Sides = tuple[Side, Side] | None


def _status(here: Here, ours: Ours, said: Wanted, item: Item, now: datetime) -> Sides:
    if Status.EXPIRED in (ours.status, said.status) or said.status is None:
        return None
    if ours.type == Type.ADDON:
        return _status_of_addon(ours, said)
    settles = said.status == Status.ACTIVE and (not said.period_is_paid or said.term(item)[1] <= now)
    allowed = MAY_STAND_BESIDE_WHAT_SETTLES if settles else MAY_STAND_BESIDE[said.status]
    if ours.status in allowed or ours.on_hold:
        return None
    return {"status": ours.status}, _state(said)


def _status_of_addon(ours: Ours, said: Wanted) -> Sides:
    """It is its main one's here, and its own at Stripe: billed while it is withheld, or served while it is not paid."""
    is_billed_for_nothing = said.status == Status.ACTIVE and ours.status == Status.SUSPENDED and not ours.on_hold
    is_served_for_nothing = said.status == Status.SUSPENDED and ours.status in GRANTS_ACCESS
    if not (is_billed_for_nothing or is_served_for_nothing):
        return None
    return {"status": ours.status, "as": "its main one"}, _state(said)


def _period(here: Here, ours: Ours, said: Wanted, item: Item, now: datetime) -> Sides:
    """What is paid. Of an unpaid period Stripe's object does not say until when was paid before; and what staff gave
    beside is theirs to give.
    """
    if ours.type == Type.ADDON or ours.status == Status.EXPIRED:
        return None
    term_end = said.term(item)[1]
    by = term_end - ours.term_end
    if abs(by) < ASIDE or said.status not in (Status.TRIAL, Status.ACTIVE, Status.GRACE):
        return None
    if (said.status == Status.TRIAL) != (ours.status == Status.TRIAL):
        return None  # another status first
    if by < timedelta(0) and (not said.period_is_paid or ours.staff_moved_its_term or term_end <= now):
        return None
    return {"paid until": ours.term_end.isoformat()}, {"paid until": term_end.isoformat()}


def _plan(here: Here, ours: Ours, said: Wanted, item: Item, now: datetime) -> Sides:
    """What is bought, and what is scheduled to be."""
    if not _both_live(ours, said):
        return None
    mine: Side = {}
    theirs: Side = {}
    sold = here.prices[item.price_id]
    if sold.price_id != ours.price_id:
        mine["price"], theirs["price"] = ours.price, sold.price
    coming = _scheduled(here, said)
    if said.schedule_was_read and coming != ours.scheduled:
        mine["scheduled"], theirs["scheduled"] = _change(ours.scheduled), _change(coming)
    return (mine, theirs) if mine else None


Scheduled = tuple[datetime | None, int | None, int | None]


def _scheduled(here: Here, said: Wanted) -> Scheduled:
    if said.coming is None:
        return None, None, None
    selling = [(here.prices[price].price_id, n) for price, n in said.coming.items if price in here.prices]
    is_known = len(selling) == 1 and 0 < selling[0][1] <= MOST_UNITS
    return said.coming.at, *(selling[0] if is_known else (None, None))


def _change(scheduled: Scheduled) -> str:
    at, price_id, quantity = scheduled
    return f"{at.isoformat()}: {quantity} of price {price_id}" if at else "nothing"


def _quantity(here: Here, ours: Ours, said: Wanted, item: Item, now: datetime) -> Sides:
    if not _both_live(ours, said):
        return None
    bought = {here.packs[i.price_id]: i.quantity for i in said.items if i.price_id in here.packs and i.quantity}
    held, theirs = {"quantity": ours.quantity, **ours.packs}, {"quantity": item.quantity, **bought}
    if held == theirs:
        return None
    differ = sorted(name for name in held.keys() | theirs if held.get(name) != theirs.get(name))
    return {name: held.get(name, 0) for name in differ}, {name: theirs.get(name, 0) for name in differ}


def _cancellation(here: Here, ours: Ours, said: Wanted, item: Item, now: datetime) -> Sides:
    if not _both_live(ours, said):
        return None
    mine, theirs = {}, {}
    if not ours.auto_renews:
        mine["billed by Stripe"], theirs["billed by Stripe"] = "no", "yes"
    serve = {Status.TRIAL, Status.ACTIVE}
    is_last = said.is_last(item) and not _only_with_its_main(ours, said)
    if ours.status in serve and said.status in serve and ours.term_end > now and is_last != ours.cancel_at_term_end:
        mine["ends with its term"], theirs["ends with its term"] = _yes(ours.cancel_at_term_end), _yes(is_last)
    return (mine, theirs) if mine else None


def _only_with_its_main(ours: Ours, said: Wanted) -> bool:
    """Whether Stripe ends an add-on only because its main one ends, as we have told it."""
    ends = ours.main_ends and said.cancel_at is not None and not said.cancels_at_period_end
    return ends and said.cancel_at is not None and abs(said.cancel_at - ours.term_end) < ASIDE


def _customer(here: Here, ours: Ours, said: Wanted, item: Item, now: datetime) -> Sides:
    if here.customers_tenant and here.customers_tenant[0] == here.tenant_id:
        return None
    if said.status in (None, Status.EXPIRED) or ours.status == Status.EXPIRED:
        return None
    whose = here.customers_tenant[1] if here.customers_tenant else "none"
    return {"tenant": here.tenant}, {"tenant": whose, "customer": said.customer_id or "none"}


def _billed_after_end(here: Here, ours: Ours, said: Wanted, item: Item, now: datetime) -> Sides:
    if ours.status != Status.EXPIRED or said.status in (None, Status.EXPIRED):
        return None
    ends_at = said.ends_within(item) or (item.period_end if said.is_last(item) else None)
    if ends_at and ends_at <= now + STRIPE_IS_LATE:
        return None
    return {"status": ours.status}, _state(said) | {"billed until": item.period_end.isoformat()}


def _served_after_end(here: Here, ours: Ours, said: Wanted, item: Item, now: datetime) -> Sides:
    if said.status != Status.EXPIRED or ours.status == Status.EXPIRED:
        return None
    theirs = _state(said) | ({"ended": said.ended_at.isoformat()} if said.ended_at else {})
    return {"status": ours.status, "until": ours.term_end.isoformat()}, theirs


def _duplicate(here: Here, ours: Ours, said: Wanted, item: Item, now: datetime) -> Sides:
    if not here.rival or not _both_live(ours, said):
        return None
    return {"tenant": here.tenant, "goes on": here.rival}, _state(said) | _plan_of(ours)


Find = Callable[[Here, Ours, Wanted, Item, datetime], Sides]

# Each with the aspect that Stripe is still to be told, and that says nothing until then.
_FINDERS: tuple[tuple[Drift.Kind, Telling.Aspect, Find], ...] = (
    (Kind.STATUS, Aspect.PAUSE, _status),
    (Kind.PERIOD, Aspect.TERM_END, _period),
    (Kind.PLAN, Aspect.ITEMS, _plan),
    (Kind.QUANTITY, Aspect.ITEMS, _quantity),
    (Kind.CANCELLATION, Aspect.TERM_END, _cancellation),
    (Kind.CUSTOMER, Aspect.END, _customer),
    (Kind.BILLED_AFTER_END, Aspect.END, _billed_after_end),
    (Kind.SERVED_AFTER_END, Aspect.END, _served_after_end),
    (Kind.DUPLICATE, Aspect.END, _duplicate),
)


def _both_live(ours: Ours, said: Wanted) -> bool:
    return ours.status != Status.EXPIRED and said.status not in (None, Status.EXPIRED)


def _state(said: Wanted) -> Side:
    return {"status": said.status or "nothing yet"}


def _plan_of(ours: Ours) -> Side:
    return {"price": ours.price, "quantity": ours.quantity}


def _yes(value: bool) -> str:
    return "yes" if value else "no"
