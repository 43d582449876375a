"""The rules of billing: what a payment, a failure, a cancellation and the passing of time do to a subscription.

Each verb emits what Stripe would, in the order Stripe would, and only the types this project listens to.
"""

from typing import Protocol

from .errors import ControlError
from .invoices import Charge, bounce, collect, draw_up, subscription_of, unpaid_of
from .periods import DAY, add_interval, next_end
from .shapes import subscription_item
from .store import Obj
from .world import World

UPDATED = "customer.subscription.updated"
OVER = frozenset({"canceled", "incomplete_expired"})


class Deadline(Protocol):
    def __call__(self, world: World, subscription: Obj, *, now: int) -> None: ...


def card_of(world: World, subscription: Obj) -> str:
    """ok, declined or none: what was chosen on a page, else the customer's metadata, a method on file, the knob."""
    customer = world.need("customer", subscription["customer"])
    told = customer.get("_card") or customer["metadata"].get("card")
    if told in ("ok", "declined", "none"):
        return str(told)
    on_file = customer["invoice_settings"]["default_payment_method"] or customer["default_source"]
    return "ok" if on_file or subscription["default_payment_method"] else world.knobs.card


def items_of(subscription: Obj) -> list[Obj]:
    found: list[Obj] = subscription["items"]["data"]
    return found


def period_end(subscription: Obj) -> int:
    """When the first of its items is due."""
    return min((item["current_period_end"] for item in items_of(subscription)), default=0)


def full_price(item: Obj) -> int:
    return int(item["price"]["unit_amount"]) * int(item["quantity"])


# birth


def begin(world: World, subscription: Obj, orders: list[tuple[Obj, Obj]], given: Obj, *, now: int) -> Obj:
    """Give a new subscription its items, first period and first invoice; it is ``trialing`` or ``incomplete`` after.

    ``orders`` are (price, what was asked for). Nothing is emitted yet: the caller knows whether money is there.
    """
    trial_end = given.get("trial_end")
    anchor = trial_end or given.get("billing_cycle_anchor") or now
    subscription["billing_cycle_anchor"] = anchor
    for price, asked in orders:
        add_item(subscription, price, asked, anchor=anchor, until=trial_end, now=now)
    charges = []
    for item in items_of(subscription):
        start, end = item["current_period_start"], item["current_period_end"]
        recurring = item["price"]["recurring"]
        whole = end - add_interval(end, recurring["interval"], -recurring["interval_count"])
        amount = 0 if trial_end else full_price(item) * (end - start) // whole
        if anchor > now and given.get("proration_behavior") == "none":
            amount = 0
        charges.append(Charge(item, start, end, amount, proration=not trial_end and end - start < whole))
    invoice = draw_up(world, subscription, charges, reason="subscription_create", period=(now, now), now=now)
    if trial_end:
        subscription |= {"status": "trialing", "trial_start": now, "trial_end": trial_end}
    elif subscription["collection_method"] == "send_invoice":
        subscription["status"] = "active"
    if invoice["amount_due"] == 0:
        collect(world, invoice, now=now)
        if not trial_end:
            subscription["status"] = "active"
    return world.put(subscription)


def add_item(sub: Obj, price: Obj, asked: Obj, *, anchor: int, until: int | None = None, now: int) -> Obj:
    """A further item whose period runs from now to the next boundary of the subscription's own rhythm."""
    recurring = price["recurring"]
    end = until or next_end(anchor, now, recurring["interval"], recurring["interval_count"])
    item = subscription_item(price, asked, subscription_id=sub["id"], start=now, end=end, now=now)
    items_of(sub).append(item)
    return item


def announce_birth(world: World, subscription: Obj, *, paid: bool, now: int) -> None:
    """``created``, and what the first invoice came to."""
    world.emit("customer.subscription.created", subscription, now=now)
    invoice = world.need("invoice", subscription["latest_invoice"])
    if invoice["status"] == "paid":
        _announce_paid(world, invoice, now=now)
    elif paid:
        settle(world, subscription, now=now)


def _announce_paid(world: World, invoice: Obj, *, now: int) -> None:
    world.emit("invoice.paid", invoice, now=now)
    world.emit("invoice.payment_succeeded", invoice, now=now)


# money


def settle(world: World, subscription: Obj, *, now: int) -> None:
    """Pay what is open; the subscription is active after."""
    for invoice in unpaid_of(world, subscription["id"]):
        _announce_paid(world, collect(world, invoice, now=now), now=now)
    with world.updating(subscription, UPDATED, now=now):
        subscription["status"] = "active"
        subscription.pop("_past_due_since", None)


def settle_invoice(world: World, invoice: Obj, *, now: int, out_of_band: bool = False) -> None:
    """Pay one invoice; its subscription recovers when it was the last open one."""
    _announce_paid(world, collect(world, invoice, now=now, out_of_band=out_of_band), now=now)
    subscription = world.store.get("subscription", subscription_of(invoice) or "")
    recovering = subscription is not None and subscription["status"] in ("incomplete", "past_due", "unpaid")
    if subscription and recovering and not unpaid_of(world, subscription["id"]):
        settle(world, subscription, now=now)


def renew(world: World, subscription: Obj, *, paid: bool, now: int, action_required: bool = False) -> None:
    """The next period begins: an invoice for it, paid (then active) or not (then past due)."""
    with world.updating(subscription, UPDATED, now=now):
        invoice = _cycle(world, subscription, paid=paid, now=now, action_required=action_required)
    if invoice["status"] == "paid":
        _announce_paid(world, invoice, now=now)


def end_trial(world: World, subscription: Obj, *, paid: bool, now: int, action_required: bool = False) -> None:
    """The trial is over now, whatever its date said, and the first paid period begins."""
    with world.updating(subscription, UPDATED, now=now):
        subscription["trial_end"] = now
        _restart_cycle(subscription, now=now)
        invoice = _cycle(world, subscription, paid=paid, now=now, action_required=action_required)
    if invoice["status"] == "paid":
        _announce_paid(world, invoice, now=now)


def fail(world: World, subscription: Obj, *, now: int, action_required: bool = False) -> None:
    """A further attempt to collect what is open did not work."""
    for invoice in unpaid_of(world, subscription["id"]):
        _refuse(world, invoice, now=now, action_required=action_required)


def _refuse(world: World, invoice: Obj, *, now: int, action_required: bool) -> None:
    bounce(world, invoice, now=now, action_required=action_required)
    world.emit("invoice.payment_failed", invoice, now=now)
    if action_required:
        world.emit("invoice.payment_action_required", invoice, now=now)


def _cycle(world: World, subscription: Obj, *, paid: bool, now: int, action_required: bool = False) -> Obj:
    """Begin the next period and settle its invoice one way or the other; the caller announces a payment."""
    invoice = _next_period(world, subscription, now=now)
    if paid or invoice["amount_due"] == 0:
        subscription["status"] = "active"
        subscription.pop("_past_due_since", None)
        return collect(world, invoice, now=now)
    if subscription["collection_method"] == "charge_automatically":
        _refuse(world, invoice, now=now, action_required=action_required)
        if subscription["status"] in ("active", "trialing"):
            subscription |= {"status": "past_due", "_past_due_since": now}
    else:
        subscription["status"] = "active"  # the customer was sent an invoice and has time to pay it
    return invoice


def _restart_cycle(subscription: Obj, *, now: int) -> None:
    subscription["billing_cycle_anchor"] = now
    for item in items_of(subscription):
        item["current_period_end"] = now


def _next_period(world: World, subscription: Obj, *, now: int) -> Obj:
    """Move the items that are due on by one interval and draw up the invoice for it."""
    due = period_end(subscription)
    _change_as_planned(world, subscription, due=due)
    anchor = subscription["billing_cycle_anchor"]
    began = min(item["current_period_start"] for item in items_of(subscription))
    charges = []
    for item in items_of(subscription):
        if item["current_period_end"] != due:
            continue
        recurring = item["price"]["recurring"]
        end = next_end(anchor, due, recurring["interval"], recurring["interval_count"])
        item |= {"current_period_start": due, "current_period_end": end}
        charges.append(Charge(item, due, end, full_price(item)))
    return draw_up(world, subscription, charges, reason="subscription_cycle", period=(began, due), now=now)


def plan_change(world: World, subscription: Obj, item: Obj, *, price: str, quantity: int) -> None:
    """The item becomes so when its period ends. Stripe's portal makes a schedule for it, which is not modelled."""
    subscription.setdefault("_planned", {})[item["id"]] = {"price": price, "quantity": quantity}
    world.put(subscription)


def _change_as_planned(world: World, subscription: Obj, *, due: int) -> None:
    for item in items_of(subscription):
        planned = subscription.get("_planned", {}).pop(item["id"], None) if item["current_period_end"] == due else None
        if planned:
            price = world.need("price", planned["price"])
            rhythms = [(p["recurring"]["interval"], p["recurring"]["interval_count"]) for p in (price, item["price"])]
            if rhythms[0] != rhythms[1]:
                subscription["billing_cycle_anchor"] = due
            item |= {"price": price, "quantity": planned["quantity"]}


# the end


def schedule_end(subscription: Obj, *, at: int | None, at_period_end: bool, now: int) -> None:
    """Plan the end, or with ``at`` None forget the plan. The caller emits."""
    subscription |= {"cancel_at": at, "cancel_at_period_end": at_period_end, "canceled_at": now if at else None}
    subscription["cancellation_details"]["reason"] = "cancellation_requested" if at else None


def cancel(world: World, subscription: Obj, *, now: int, reason: str = "cancellation_requested") -> None:
    status = "incomplete_expired" if subscription["status"] == "incomplete" else "canceled"
    subscription |= {"status": status, "ended_at": now, "canceled_at": subscription["canceled_at"] or now}
    subscription["cancellation_details"]["reason"] = subscription["cancellation_details"]["reason"] or reason
    world.put(subscription)
    for invoice in unpaid_of(world, subscription["id"]):
        invoice |= {"auto_advance": False, "next_payment_attempt": None}
        if status == "incomplete_expired":
            invoice["status"] = "void"
            invoice["status_transitions"]["voided_at"] = now
        world.put(invoice)
    expired = status == "incomplete_expired"
    world.emit(UPDATED if expired else "customer.subscription.deleted", subscription, now=now)


def pause(world: World, subscription: Obj, *, now: int) -> None:
    with world.updating(subscription, UPDATED, now=now):
        subscription["status"] = "paused"
    world.emit("customer.subscription.paused", subscription, now=now)


def unpause(world: World, subscription: Obj, *, paid: bool, now: int) -> None:
    """A new cycle starts now, with an invoice for it; without payment the subscription stays paused."""
    with world.updating(subscription, UPDATED, now=now):
        _restart_cycle(subscription, now=now)
        invoice = _cycle(world, subscription, paid=paid, now=now)
    if invoice["status"] == "paid":
        _announce_paid(world, invoice, now=now)
        world.emit("customer.subscription.resumed", subscription, now=now)


# what the customer does, from the side door


def pay(world: World, subscription: Obj, *, now: int) -> None:
    """The customer pays whatever comes next: ends a trial, completes, recovers, unpauses, or renews."""
    match subscription["status"]:
        case "trialing":
            end_trial(world, subscription, paid=True, now=now)
        case "active" if unpaid_of(world, subscription["id"]):
            settle(world, subscription, now=now)
        case "active":
            renew(world, subscription, paid=True, now=now)
        case "paused":
            unpause(world, subscription, paid=True, now=now)
        case status if status in OVER:
            raise ControlError(f"{subscription['id']} is {status}: nothing more can be paid")
        case _:
            settle(world, subscription, now=now)


def miss(world: World, subscription: Obj, *, now: int, action_required: bool = False) -> None:
    """The next payment does not work."""
    match subscription["status"]:
        case "trialing":
            end_trial(world, subscription, paid=False, now=now, action_required=action_required)
        case "active":
            renew(world, subscription, paid=False, now=now, action_required=action_required)
        case status if status in OVER:
            raise ControlError(f"{subscription['id']} is {status}: there is no payment to fail")
        case _:
            fail(world, subscription, now=now, action_required=action_required)


def give_up(world: World, subscription: Obj, *, now: int) -> None:
    """Dunning ended without a payment: unpaid."""
    if subscription["status"] in ("active", "trialing"):
        miss(world, subscription, now=now)
    with world.updating(subscription, UPDATED, now=now):
        subscription["status"] = "unpaid"


# the clock


def tick(world: World, *, now: int) -> int:
    """Do what has fallen due, each at its own instant; how many deadlines passed. Safe to repeat."""
    passed = 0
    with world.changing():
        for session in world.store.all("checkout.session").values():
            if session["status"] == "open" and session["expires_at"] <= now:
                world.put(session | {"status": "expired", "url": None})
                passed += 1
        for subscription in list(world.store.all("subscription").values()):
            for _ in range(200):  # a clock set years ahead is caught up deadline by deadline
                due = [(when, rank) for rank, (when, _) in enumerate(deadlines(world, subscription)) if when <= now]
                if not due:
                    break
                when, rank = min(due)
                deadlines(world, subscription)[rank][1](world, subscription, now=max(when, subscription["created"]))
                passed += 1
    return passed


def deadlines(world: World, subscription: Obj) -> list[tuple[int, Deadline]]:
    """What time alone will do to it. At the same instant the first one listed wins."""
    found: list[tuple[int, Deadline]] = []
    status = subscription["status"]
    if subscription["cancel_at"] and status not in OVER:
        found.append((subscription["cancel_at"], cancel))
    match status:
        case "incomplete":
            found.append((subscription["created"] + 23 * 3600, _expire))
        case "trialing":
            if not subscription.get("_trial_end_told"):
                found.append((subscription["trial_end"] - 3 * DAY, _tell_trial_end))
            found.append((subscription["trial_end"], _trial_over))
        case "active" | "past_due" if items_of(subscription):
            found.append((period_end(subscription), _renewal))
    since = subscription.get("_past_due_since")
    if status == "past_due" and since is not None:
        found.append((since + world.knobs.dunning_seconds, _end_dunning))
        attempts = [invoice["next_payment_attempt"] for invoice in unpaid_of(world, subscription["id"])]
        found += [(attempt, _try_again) for attempt in attempts if attempt]
    return found


def _expire(world: World, subscription: Obj, *, now: int) -> None:
    cancel(world, subscription, now=now, reason="payment_failed")


def _tell_trial_end(world: World, subscription: Obj, *, now: int) -> None:
    subscription["_trial_end_told"] = True
    world.emit("customer.subscription.trial_will_end", world.put(subscription), now=now)


def _trial_over(world: World, subscription: Obj, *, now: int) -> None:
    card = card_of(world, subscription)
    behaviour = subscription["trial_settings"]["end_behavior"]["missing_payment_method"]
    if card == "none" and behaviour == "cancel":
        cancel(world, subscription, now=now)
    elif card == "none" and behaviour == "pause":
        pause(world, subscription, now=now)
    else:
        end_trial(world, subscription, paid=card == "ok", now=now)


def _renewal(world: World, subscription: Obj, *, now: int) -> None:
    renew(world, subscription, paid=card_of(world, subscription) == "ok", now=now)


def _try_again(world: World, subscription: Obj, *, now: int) -> None:
    if card_of(world, subscription) == "ok":
        settle(world, subscription, now=now)
    else:
        fail(world, subscription, now=now)


def _end_dunning(world: World, subscription: Obj, *, now: int) -> None:
    subscription.pop("_past_due_since")
    match world.knobs.after_dunning:
        case "unpaid":
            give_up(world, subscription, now=now)
        case "cancel":
            cancel(world, subscription, now=now, reason="payment_failed")
    world.put(subscription)
