"""The rules of billing: what a payment, a failure, a cancellation and the passing of time do to a subscription.

Each verb emits what Stripe would, in the order Stripe would, and only the types this project listens to.
"""

from .cards import card_of as card_of
from .errors import ControlError
from .invoices import Charge, bounce, collect, draw_up, subscription_of, unpaid_of
from .items import add_item, full_price, interval_of
from .items import items_of as items_of
from .items import period_end as period_end
from .periods import add_interval, next_end
from .store import Obj
from .world import World

UPDATED = "customer.subscription.updated"
OVER = frozenset({"canceled", "incomplete_expired"})


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
    charges, period = next_charges(subscription)
    invoice = draw_up(world, subscription, charges, reason="subscription_cycle", period=period, now=now)
    if invoice["status"] != "open":  # collection is paused
        subscription["status"] = "active" if subscription["status"] == "trialing" else subscription["status"]
        return invoice
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


def next_charges(subscription: Obj) -> tuple[list[Charge], tuple[int, int]]:
    """Move the items that are due on by one interval; what the invoice for it asks for, and the period it closes.

    What was waiting for the next invoice is on it, and waits no more.
    """
    due, anchor = period_end(subscription), subscription["billing_cycle_anchor"]
    began = min(item["current_period_start"] for item in items_of(subscription))
    charges = take_pending(subscription)
    for item in items_of(subscription):
        if item["current_period_end"] != due:
            continue
        end = next_end(anchor, due, *interval_of(item["price"]))
        item |= {"current_period_start": due, "current_period_end": end}
        charges.append(Charge(item, due, end, full_price(item)))
    return charges, (began, due)


def take_pending(subscription: Obj) -> list[Charge]:
    return [Charge(**kept) for kept in subscription.pop("_pending", [])]


def leave_pending(subscription: Obj, charges: list[Charge]) -> None:
    """They wait for the next invoice."""
    if charges:
        subscription["_pending"] = subscription.get("_pending", []) + [charge.plain() for charge in charges]


def collect_change(world: World, subscription: Obj, invoice: Obj, *, attempt: bool, now: int) -> None:
    """Ask for what a change of the subscription costs. Unpaid, the change stays and the subscription is past due."""
    if invoice["status"] != "open":
        return
    card = card_of(world, subscription)
    if invoice["amount_due"] == 0 or (attempt and card == "ok" and _automatic(subscription)):
        settle_invoice(world, invoice, now=now)
        return
    if not _automatic(subscription):
        return
    if attempt:
        _refuse(world, invoice, now=now, action_required=False)
    if subscription["status"] == "active":
        with world.updating(subscription, UPDATED, now=now):
            subscription |= {"status": "past_due", "_past_due_since": now}


def _automatic(subscription: Obj) -> bool:
    return bool(subscription["collection_method"] == "charge_automatically")


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
    schedule = world.store.get("subscription_schedule", subscription["schedule"] or "")
    if schedule and schedule["status"] == "active":
        schedule |= {"status": "canceled", "canceled_at": now, "current_phase": None}
        world.emit("subscription_schedule.canceled", world.put(schedule), now=now)
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
