"""What a customer changes of what Stripe bills: Stripe is told first, and what is true there then is brought here.

So a customer's click, Stripe's portal and Stripe's dashboard end in the same state: `truth` brings all three. Where
Stripe refuses, or does not answer, nothing has changed here. What Stripe does not bill is cancelled and resumed by the
verbs of `lifecycle`; the rest of it is staff's to change.

Nothing is locked and no transaction is open while Stripe is asked. Every verb says how it shall be, not what to add, so
it is safe to repeat; a double click is one request to Stripe, for both clicks have the same idempotency key: that of
the caller, or one of the last ticket, which is another once anything was heard from Stripe.

Every verb raises IllegalTransition for what is over, BeingTold, StripeUnavailable, StripeRefused, Unmappable.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, Final

from django.contrib.postgres.expressions import ArraySubquery
from django.db import transaction
from django.db.models import OuterRef

from entitlements import limits
from entitlements.follow import follow
from entitlements.models import SlotPack
from subscriptions import lifecycle
from subscriptions.audit import Actor
from subscriptions.errors import AddonFollowsMain, DomainError, IllegalTransition, InvalidPlan
from subscriptions.families import into
from subscriptions.lifecycle import CancelAt
from subscriptions.models import AuditEntry, PlanPrice, Subscription
from subscriptions.states import Status
from webhooks import stripe_api, telling, truth
from webhooks.catalogue import price_at_stripe, price_of_pack
from webhooks.converge import Overtaken
from webhooks.errors import EndsWithTerm, HeldByStaff, NoSuchPack, NoSuchPrice
from webhooks.models import StripeLink, StripePrice, Telling
from webhooks.stripe_state import Unmappable, owes, stripe_id, wanted

Aspect = Telling.Aspect
OVER: Final = ("canceled", "incomplete_expired")  # statuses of Stripe's
SERVED: Final = ("active", "trialing")
PREVIEWED_FOR: Final = timedelta(hours=1)  # what was previewed may be confirmed at the price that was shown
ASIDE: Final = timedelta(minutes=1)  # two clocks


class NotBilledByStripe(DomainError):
    """Stripe does not bill this subscription: ask your contact to change it."""

    code, http_status = "not_billed_by_stripe", 409


class BeingTold(DomainError):
    """A change of this subscription is still on its way to Stripe: try again in a minute."""

    code, http_status = "change_under_way", 409


class CurrencyStays(DomainError):
    """The currency of a subscription does not change."""

    code, http_status = "currency_stays", 400


class InvalidPause(DomainError):
    """A pause ends later than now, and before a suspension of its length would end the subscription."""

    code, http_status = "invalid_pause", 400


class PaymentOwed(DomainError):
    """The present term is not paid yet: pay that first, by renewing it."""

    code, http_status = "payment_owed", 409


class IsPaused(DomainError):
    """It is paused: resume it first, or change it when its term ends."""

    code, http_status = "paused", 409


class PreviewTooOld(DomainError):
    """What was shown is no longer what it costs: look at the preview again."""

    code, http_status = "preview_too_old", 409


class DevicesWouldBeParked(DomainError):
    """There would be fewer slots than devices: confirm that the newest ones lose theirs."""

    code, http_status = "devices_would_be_parked", 409


Call = Callable[..., dict[str, Any]]


class When(Enum):
    NOW = "now"
    TERM_END = "term_end"


@dataclass(frozen=True)
class By:
    """Who asks, and by which request. `now` is called whenever an instant is needed: Stripe takes its time."""

    actor: Actor
    now: Callable[[], datetime]
    source_id: str = ""
    key: str = ""  # the caller's Idempotency-Key


@dataclass(frozen=True)
class Wish:
    """What shall be bought instead. What is empty stays as it is; so do packs that are not named, and 0 is none."""

    plan: str = ""
    interval: str = ""
    currency: str = ""
    quantity: int | None = None
    packs: Mapping[str, int] = field(default_factory=dict)  # units by the pack's code


# --- ending, going on, pausing ---------------------------------------------------------------------------------------


def cancel(subscription: Subscription, *, at: CancelAt, by: By) -> None:
    """End it at once, or when its paid term ends (at once where that is over and the next was not paid)."""
    billed = _billed(subscription, Aspect.TERM_END)
    if billed is None:
        with transaction.atomic():
            here = {"actor": by.actor, "now": by.now(), "source_id": by.source_id}
            _follow(lifecycle.cancel(subscription.pk, at=at, **here), here)  # type: ignore[arg-type]
        return
    state = billed.state()
    is_owed = state["status"] not in SERVED and subscription.term_end <= by.now()
    if state["status"] in OVER:
        pass
    elif at is CancelAt.NOW or is_owed:
        stripe_api.end_subscription(billed.link_id)
    elif not (state.get("cancel_at_period_end") or (_is_last_period(state) and not subscription.parent_id)):
        billed.release(state, by)
        billed.tell("end", by, stripe_api.update_subscription, cancel_at_period_end=True)
    _bring([billed], by)


def resume(subscription: Subscription, *, by: By) -> None:
    """Undo a cancellation that is to come, and end a pause, of its add-ons too; None of both: nothing changes.

    Raises AddonFollowsMain for an add-on that ends with its main subscription, HeldByStaff where there is only a hold
    to end.
    """
    billed = _billed(subscription, Aspect.TERM_END, Aspect.PAUSE)
    if billed is None:
        with transaction.atomic():
            here = {"actor": by.actor, "now": by.now(), "source_id": by.source_id}
            _follow(lifecycle.resume(subscription.pk, **here), here)  # type: ignore[arg-type]
        return
    if subscription.parent and subscription.parent.cancel_at_term_end:
        raise AddonFollowsMain("It ends with its main subscription: resume that instead.")
    state = _going_on(billed, by)
    undone = _undone(state)
    is_paused = bool(state.get("pause_collection")) or state["status"] == "paused"
    if is_paused and subscription.on_hold and not undone:
        raise HeldByStaff
    lifts = is_paused and not (subscription.on_hold or subscription.parent_id)
    if lifts and state.get("pause_collection"):
        undone |= {"pause_collection": ""}
    if undone:
        billed.tell("go on", by, stripe_api.update_subscription, **undone)
    if lifts and state["status"] == "paused":
        billed.tell("resume", by, stripe_api.resume_subscription)
    addons = _addons(subscription) if lifts else []
    for addon in addons:
        addon.tell("unpause", by, stripe_api.update_subscription, pause_collection="")
    _bring([billed, *addons], by)


def _undone(state: dict[str, Any]) -> dict[str, Any]:
    """What to tell Stripe so that nothing ends it by itself. It takes one of the two."""
    if state.get("cancel_at_period_end"):
        return {"cancel_at_period_end": False}
    return {"cancel_at": ""} if state.get("cancel_at") else {}


def pause(subscription: Subscription, *, resumes_at: datetime | None = None, by: By) -> None:
    """Nobody pays and nothing is served, of its add-ons neither, until `resumes_at` or until it is resumed. A pause
    that lasts longer than a suspension may ends the subscription.

    Raises InvalidPause, NotBilledByStripe, AddonFollowsMain, IllegalTransition for a trial.
    """
    if subscription.parent_id:
        raise AddonFollowsMain
    billed = _billed(subscription, Aspect.PAUSE)
    if billed is None:
        raise NotBilledByStripe
    if subscription.status == Status.TRIAL:
        detail = f"{subscription.number} is TRIAL: nothing is paid that could be paused."
        raise IllegalTransition(detail, status=subscription.status, allowed=[Status.ACTIVE, Status.GRACE])
    now = by.now()
    until = subscription.suspension_end or into(Status.SUSPENDED, subscription, now)["suspension_end"]
    if resumes_at is not None and not now < resumes_at < until:  # type: ignore[operator]
        raise InvalidPause(suspension_end=until)
    _going_on(billed, by)
    paused: dict[str, Any] = {"behavior": "void"}
    if resumes_at is not None:
        paused["resumes_at"] = int(resumes_at.timestamp())
    family = [billed, *_addons(subscription)]
    for member in family:
        member.tell("pause", by, stripe_api.update_subscription, pause_collection=paused)
    _bring(family, by)


# --- another plan, interval, quantity, packs -------------------------------------------------------------------------


@dataclass(frozen=True)
class Slots:
    before: int
    after: int


@dataclass(frozen=True)
class Line:
    description: str
    amount_minor: int
    proration: bool


@dataclass(frozen=True)
class Preview:
    """What a change comes to. Amounts are minor units of `currency`; of what Stripe bills, with tax."""

    due_now_minor: int
    next_minor: int  # the list price of every term from then on
    currency: str
    lines: list[Line]  # of the invoice, as Stripe has it
    at: datetime  # when it becomes so
    proration_date: int | None  # to be confirmed with, within the hour; None where nothing is prorated
    slots: dict[str, Slots]  # by tier
    devices_to_park: int


def change(
    subscription: Subscription,
    *,
    wish: Wish,
    when: When = When.NOW,
    proration_date: int | None = None,
    confirm_parking: bool = False,
    by: By,
) -> None:
    """Buy something else: now, with what it costs more for the rest of the period paid at once, or when the term ends.
    A change that is asked for takes the place of one that is scheduled; asking for what there is drops that one.

    Raises NotBilledByStripe, NoSuchPrice, NoSuchPack, InvalidPlan, CurrencyStays, IsPaused, PaymentOwed,
    PreviewTooOld, DevicesWouldBeParked unless that is confirmed, EndsWithTerm for a later change of what ends then,
    IllegalTransition for one of a trial.
    """
    order = _order(subscription, wish, when, by)
    if order.items:
        to_park = order.devices_to_park
        if to_park and not confirm_parking:
            detail = f"{to_park} {'device' if to_park == 1 else 'devices'} would lose their slots."
            raise DevicesWouldBeParked(detail, devices_to_park=to_park)
        if when is When.TERM_END:
            _schedule(order, by)
        else:
            # Before a schedule is dropped: where the card is declined, it stays.
            order.billed.tell("change", by, stripe_api.update_subscription, **order.now_with(proration_date, by.now()))
    if when is When.NOW or not order.items:
        order.billed.release(order.state, by)
    _bring([order.billed], by)


def unschedule(subscription: Subscription, *, by: By) -> None:
    """Nothing is scheduled any more; it goes on as it is. Raises NotBilledByStripe."""
    billed = _billed(subscription, Aspect.ITEMS)
    if billed is None:
        raise NotBilledByStripe
    billed.release(billed.state(), by)
    _bring([billed], by)


def preview(
    subscription: Subscription, *, wish: Wish, when: When = When.NOW, proration_date: int | None = None, by: By
) -> Preview:
    """What `change` would come to; nothing is changed. Raises as it does, and asks for no confirmation."""
    order = _order(subscription, wish, when, by)
    period_end = order.period[1]
    if when is When.TERM_END:
        asked: dict[str, Any] = {"items": order.items, "proration_behavior": "none"}
    else:
        date = proration_date or int(max(by.now(), order.settled_until).timestamp())
        asked = order.now_with(date, by.now())
        del asked["payment_behavior"]
    paper = stripe_api.preview_change(order.billed.link_id, asked) if order.items else {}
    lines = [_line(line) for line in (paper.get("lines") or {}).get("data", ())]
    restarts = order.target.rhythm != order.bought.rhythm and order.state["status"] != "trialing"
    is_billed_now = when is When.NOW and (restarts or any(line.proration for line in lines))
    prorated = asked.get("proration_date")
    return Preview(
        due_now_minor=int(paper.get("amount_due", 0)) if is_billed_now else 0,
        next_minor=order.target.amount_minor,
        currency=order.target.price.currency,
        lines=lines,
        at=period_end if when is When.TERM_END else datetime.fromtimestamp(prorated, UTC) if prorated else by.now(),
        proration_date=prorated if order.items else None,
        slots=order.slots,
        devices_to_park=order.devices_to_park,
    )


def _line(line: dict[str, Any]) -> Line:
    parent = line.get("parent") or {}
    details = [parent.get(kind) or {} for kind in ("subscription_item_details", "invoice_item_details")]
    is_prorated = any(detail.get("proration") for detail in details)
    return Line(str(line.get("description") or ""), int(line["amount"]), is_prorated)


# --- what is bought, and what shall be -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bought:
    """A plan and packs beside it."""

    price: PlanPrice
    quantity: int
    packs: dict[SlotPack, int]

    @property
    def rhythm(self) -> tuple[str, int]:
        return self.price.interval, self.price.interval_count

    @property
    def amount_minor(self) -> int:
        return self.price.amount_minor * self.quantity + sum(p.amount_minor * n for p, n in self.packs.items())

    @property
    def sells(self) -> tuple[int, int, dict[int, int]]:
        """What the slots are made of."""
        return self.price.plan_id, self.quantity, {pack.pk: n for pack, n in self.packs.items()}


@dataclass(frozen=True)
class _Order:
    """A change as Stripe is asked for it, and what it does to slots."""

    billed: "_Billed"
    state: dict[str, Any]
    bought: Bought
    target: Bought
    items: list[dict[str, Any]]  # what changes of the items at Stripe; nothing if nothing does
    slots: dict[str, Slots]
    devices_to_park: int

    @property
    def period(self) -> tuple[datetime, datetime]:
        items = self.state["items"]["data"]
        start = max(item["current_period_start"] for item in items)
        return datetime.fromtimestamp(start, UTC), datetime.fromtimestamp(
            min(item["current_period_end"] for item in items), UTC
        )

    @property
    def settled_until(self) -> datetime:
        """Nothing before this is reckoned anew: what was billed last begins there. Else whoever buys more and then less
        would get back what was never paid.
        """
        start, end = self.period
        invoice = self.state.get("latest_invoice")
        if not isinstance(invoice, dict):
            return start
        lines = (invoice.get("lines") or {}).get("data", ())
        said = [invoice.get("created"), *((line.get("period") or {}).get("start") for line in lines)]
        billed = [datetime.fromtimestamp(at, UTC) for at in said if at]
        return max([start, *(at for at in billed if at < end)])

    def now_with(self, proration_date: int | None, now: datetime) -> dict[str, Any]:
        """The parameters of a change that is made at once. What was shown within the hour is what it costs; an instant
        of one's own choice would be a price of one's own choice. Raises PreviewTooOld.
        """
        asked: dict[str, Any] = {
            "items": self.items, "proration_behavior": "always_invoice", "payment_behavior": "error_if_incomplete",
        }  # fmt: skip
        if proration_date is None or self.state["status"] == "trialing":
            return asked
        since, end = self.settled_until, self.period[1]
        earliest, latest = max(now - PREVIEWED_FOR, since), min(max(now, since) + ASIDE, end)
        if not earliest.timestamp() - 1 < proration_date <= latest.timestamp():
            raise PreviewTooOld
        return asked | {"proration_date": max(proration_date, int(since.timestamp()))}


def _order(subscription: Subscription, wish: Wish, when: When, by: By) -> _Order:
    billed = _billed(subscription, Aspect.ITEMS)
    if billed is None:
        raise NotBilledByStripe
    state = _going_on(billed, by)
    present, bought = _bought(state)
    target = _target(subscription, bought, wish)
    if when is When.NOW and target != bought and state.get("pause_collection"):  # nobody would pay, and credit is real
        raise IsPaused
    if when is When.NOW and target != bought and owes(state):  # to pay for a change must not pay for the term
        raise PaymentOwed
    if when is When.TERM_END and _is_last_period(state):
        raise EndsWithTerm
    if when is When.TERM_END and state["status"] not in ("active", "past_due"):
        detail = f"{subscription.number} has no term that is paid: change it now."
        raise IllegalTransition(detail, status=subscription.status, allowed=[Status.ACTIVE, Status.GRACE])
    held = limits.in_use(subscription, now=by.now())
    after = {code: use.limit for code, use in held.items()}
    if target.sells != bought.sells:
        after = dict.fromkeys(held, 0) | limits.would_sell(*target.sells)
    slots = {code: Slots(held[code].limit if code in held else 0, n) for code, n in sorted(after.items())}
    to_park = sum(use.parked_by(after[code]) for code, use in held.items())
    return _Order(billed, state, bought, target, _edits(present, bought, target), slots, to_park)


def _bought(state: dict[str, Any]) -> tuple[dict[int | None, dict[str, Any]], Bought]:
    """The items by the pack that they sell, the one of the plan under None; and what they are. Raises Unmappable."""
    by_price = {stripe_id(item.get("price")): item for item in state["items"]["data"]}
    sold = StripePrice.objects.filter(pk__in=by_price).select_related("plan_price__plan", "slot_pack")
    prices = {row.pk: row for row in sold}
    plans = [row.plan_price for row in prices.values() if row.plan_price]
    if prices.keys() != by_price.keys() or len(plans) != 1:
        raise Unmappable("unknown_price", "At Stripe it has items that we do not sell: staff have to look at it.")
    items = {row.slot_pack_id: by_price[pk] for pk, row in prices.items()}
    packs = {row.slot_pack: _units(items[row.slot_pack_id]) for row in prices.values() if row.slot_pack}
    return items, Bought(plans[0], _units(items[None]), packs)


def _units(item: dict[str, Any]) -> int:
    return 1 if item.get("quantity") is None else int(item["quantity"])


def _target(subscription: Subscription, bought: Bought, wish: Wish) -> Bought:
    price = bought.price
    if wish.currency and wish.currency != price.currency:
        raise CurrencyStays(f"{subscription.number} is paid in {price.currency}.")
    if wish.plan or wish.interval:
        price = _price(subscription, price, wish)
    packs = dict(bought.packs)
    known = {pack.code: pack for pack in SlotPack.objects.filter(code__in=wish.packs)} if wish.packs else {}
    for code, units in wish.packs.items():
        pack = known.get(code)
        if pack is None or (units > packs.get(pack, 0) and not pack.is_sold):
            raise NoSuchPack(f"There is no slot pack {code}.")
        packs[pack] = units
    packs = {pack: units for pack, units in packs.items() if units}
    for pack in packs:
        of_pack = pack.currency, pack.interval, pack.interval_count
        if of_pack != (price.currency, price.interval, price.interval_count):
            raise NoSuchPack(f"The slot pack {pack.code} is not paid as the plan is: per {price.interval}.")
    return Bought(price, bought.quantity if wish.quantity is None else wish.quantity, packs)


def _price(subscription: Subscription, present: PlanPrice, wish: Wish) -> PlanPrice:
    """The price of the wished plan and interval; of several, the one as long as the present, else the shortest."""
    code, interval = wish.plan or present.plan.code, wish.interval or present.interval
    found = PlanPrice.objects.filter(plan__code=code, interval=interval, currency=present.currency)
    prices = [*found.select_related("plan").order_by("interval_count")]
    if not prices or not (prices[0].plan.is_sold or prices[0].plan_id == present.plan_id):
        raise NoSuchPrice(f"There is no plan {code} per {interval} in {present.currency} to buy.")
    if prices[0].plan.type != subscription.type:
        raise InvalidPlan
    as_long = [p for p in prices if (p.interval, p.interval_count) == (present.interval, present.interval_count)]
    return (as_long or prices)[0]


def _edits(present: Mapping[int | None, dict[str, Any]], bought: Bought, target: Bought) -> list[dict[str, Any]]:
    """What Stripe is asked to change of the items."""
    edits: list[dict[str, Any]] = []
    if target.price != bought.price:
        price = price_at_stripe(target.price)
        edits.append({"id": present[None]["id"], "price": price, "quantity": target.quantity})
    elif target.quantity != bought.quantity:
        edits.append({"id": present[None]["id"], "quantity": target.quantity})
    for pack in sorted({*bought.packs, *target.packs}, key=lambda pack: pack.pk):
        units = target.packs.get(pack, 0)
        if units == bought.packs.get(pack, 0):
            continue
        if pack not in bought.packs:
            edits.append({"price": price_of_pack(pack), "quantity": units})
        elif units:
            edits.append({"id": present[pack.pk]["id"], "quantity": units})
        else:
            edits.append({"id": present[pack.pk]["id"], "deleted": True})
    return edits


# --- schedules -------------------------------------------------------------------------------------------------------


def _schedule(order: _Order, by: By) -> None:
    """What is bought now to the end of the period, then what was ordered; after that there is no schedule any more."""
    schedule = order.state.get("schedule")
    if not isinstance(schedule, dict):
        schedule = order.billed.tell("schedule", by, stripe_api.begin_schedule)
    start = schedule["current_phase"]["start_date"]
    current = next(phase for phase in schedule["phases"] if phase["start_date"] == start)
    items = order.state["items"]["data"]
    present = [{"price": stripe_id(item["price"]), "quantity": _units(item)} for item in items]
    edited = {edit["id"]: edit for edit in order.items if "id" in edit}
    coming = [
        {"price": edit.get("price", now["price"]), "quantity": edit.get("quantity", now["quantity"])}
        for item, now in zip(items, present, strict=True)
        if not (edit := edited.get(item["id"], {})).get("deleted")
    ] + [edit for edit in order.items if "id" not in edit]
    kept = _kept(current) | {"proration_behavior": "none"}
    end = int(order.period[1].timestamp())
    order.billed.tell(
        "phases", by, stripe_api.update_schedule, of=schedule["id"], end_behavior="release", proration_behavior="none",
        phases=[kept | {"items": present, "start_date": start, "end_date": end}, kept | {"items": coming}],
    )  # fmt: skip


def _kept(phase: dict[str, Any]) -> dict[str, Any]:
    """What a phase has beside its items: whoever writes phases anew loses what is not said again."""
    names = ("collection_method", "default_payment_method", "description", "metadata")
    kept = {name: phase[name] for name in names if phase.get(name)}
    if rates := phase.get("default_tax_rates"):
        kept["default_tax_rates"] = [stripe_id(rate) for rate in rates]
    if discounts := phase.get("discounts"):
        kinds = ("discount", "promotion_code", "coupon")
        kept["discounts"] = [{kind: stripe_id(d[kind]) for kind in kinds if d.get(kind)} for d in discounts]
    return kept


# --- Stripe ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Billed:
    """A subscription of ours by its link."""

    link_id: str
    number: str
    ticket: int

    def state(self) -> dict[str, Any]:
        """As it is at Stripe, which is told nothing of what is not understood here. Raises Unmappable."""
        found = stripe_api.fetch_subscription(self.link_id)
        if not wanted(found).items:
            raise Unmappable("nothing_bought", "At Stripe it has no items.")
        return found

    def tell(self, verb: str, by: By, call: Call, *, of: str = "", **said: Any) -> dict[str, Any]:
        """One call to Stripe that two clicks make once. A refusal is not the answer to the next try as well: the card
        may be another one then.
        """
        asked = json.dumps(said, sort_keys=True)
        key = stripe_api.key_for(verb, of or self.link_id, by.key or self.ticket, asked)
        try:
            return call(of or self.link_id, idempotency_key=key, **said)
        except stripe_api.StripeRefused:
            truth.take_ticket(self.link_id)
            raise

    def release(self, state: dict[str, Any], by: By) -> None:
        """Drop what is scheduled, if anything is."""
        if schedule := stripe_id(state.get("schedule")):
            self.tell("release", by, stripe_api.release_schedule, of=schedule)


def _billed(subscription: Subscription, *aspects: Telling.Aspect) -> _Billed | None:
    """None if Stripe does not bill it. Raises IllegalTransition for what is over, BeingTold. One query."""
    if subscription.status == Status.EXPIRED:
        detail = f"{subscription.number} is EXPIRED: nothing of it changes."
        raise IllegalTransition(detail, status=Status.EXPIRED, allowed=[])
    untold = Telling.objects.filter(link=OuterRef("pk")).exclude(state=Telling.State.DONE)
    links = StripeLink.objects.filter(subscription=subscription)
    link = links.annotate(untold=ArraySubquery(untold.values("aspect"))).first()
    if link is None:
        return None
    if {*aspects, Aspect.END} & {*link.untold}:
        raise BeingTold
    return _Billed(link.pk, subscription.number, link.ticket)


def _addons(subscription: Subscription) -> list[_Billed]:
    """Of a main subscription, those that Stripe bills. What is still to be told of them does not matter here."""
    links = StripeLink.objects.filter(subscription__parent=subscription).exclude(subscription__status=Status.EXPIRED)
    return [_Billed(link.pk, link.subscription.number, link.ticket) for link in links.select_related("subscription")]  # type: ignore[union-attr]


def _going_on(billed: _Billed, by: By) -> dict[str, Any]:
    """How it is at Stripe. Where it is over there, it is over here at once: raises IllegalTransition then."""
    state = billed.state()
    if state["status"] in OVER:
        _bring([billed], by)
        raise IllegalTransition(f"{billed.number} has ended at Stripe.", status=Status.EXPIRED, allowed=[])
    return state


def _is_last_period(state: dict[str, Any]) -> bool:
    end = min(item["current_period_end"] for item in state["items"]["data"])
    return bool(state.get("cancel_at_period_end") or (state.get("cancel_at") and state["cancel_at"] <= end))


def _bring(billed: Iterable[_Billed], by: By) -> None:
    """What is true at Stripe is true here. Whoever keeps overtaking us brings it as well."""
    for one in billed:
        with suppress(Overtaken):
            truth.refresh(one.link_id, now=by.now, actor=by.actor, source_id=by.source_id)


def _follow(entry: AuditEntry | None, by: dict[str, Any]) -> None:
    if entry:
        telling.tell([entry], now=by["now"])
        follow([entry], **by)
