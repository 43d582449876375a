"""``/_sandbox/``: the side door. JSON in, JSON out; no key, loopback only. Says what happened or why it could not."""

import re
from collections.abc import Callable
from typing import Any

from . import billing, checkouts, deadlines, payment_links, payments, schedules
from .errors import ControlError
from .ids import API_VERSION, OLD_API_VERSION, kind_of
from .render import overridden, render
from .seeding import seed
from .store import Obj
from .world import World

Verb = Callable[[World, Obj, Obj], Obj]

# types a test may emit for an object of each kind; any other word is let through too, for hostile tests
EVENT_TYPES = {
    "checkout.session": ("completed", "async_payment_succeeded", "async_payment_failed"),
    "customer.subscription": ("created", "updated", "deleted", "paused", "resumed", "trial_will_end"),
    "invoice": ("paid", "payment_succeeded", "payment_failed", "payment_action_required"),
}


def answer(world: World, method: str, path: str, given: Obj) -> Any:
    """Raises ControlError (404 for a door or an object that is not there, 409 for what its state forbids)."""
    for door_method, pattern, door in _DOORS:
        match = re.fullmatch(pattern, path)
        if match and method in door_method.split("|"):
            return door(world, given, *match.groups())
    raise ControlError(f"there is no {method} {path} here", status=404)


# subscriptions


def _subscription_verb(world: World, given: Obj, subscription_id: str, verb: str) -> Obj:
    with world.changing():
        subscription = _find(world, subscription_id)
        now = world.time_of(subscription)
        if verb in ("pay", "renew", "fail", "unpaid"):
            schedules.turn_with_period(world, subscription, now=now)
        match verb:
            case "pay" | "renew":
                billing.pay(world, subscription, now=now)
            case "fail":
                billing.miss(world, subscription, now=now, action_required=bool(given.get("action_required")))
            case "unpaid":
                _refuse_if_over(subscription)
                billing.give_up(world, subscription, now=now)
            case "cancel":
                _refuse_if_over(subscription)
                _cancel(world, subscription, at_period_end=_truth(given.get("at_period_end")), now=now)
            case "keep":
                _refuse_if_over(subscription)
                with world.updating(subscription, billing.UPDATED, now=now):
                    billing.schedule_end(subscription, at=None, at_period_end=False, now=now)
            case "pause":
                _refuse_if_over(subscription)
                billing.pause(world, subscription, now=now)
            case "status":
                if not given.get("status"):
                    raise ControlError('say which: {"status": "past_due"}', status=400)
                with world.updating(subscription, billing.UPDATED, now=now):
                    subscription["status"] = str(given["status"])
            case _:
                raise ControlError(f"no such verb: {verb}", status=404)
        return render(world, subscription)


def _cancel(world: World, subscription: Obj, *, at_period_end: bool, now: int) -> None:
    if not at_period_end:
        billing.cancel(world, subscription, now=now)
        return
    with world.updating(subscription, billing.UPDATED, now=now):
        end = billing.period_end(subscription)
        billing.schedule_end(subscription, at=end, at_period_end=True, now=now)


def _refuse_if_over(subscription: Obj) -> None:
    if subscription["status"] in billing.OVER:
        raise ControlError(f"{subscription['id']} is already {subscription['status']}")


def _override(world: World, given: Obj, object_id: str) -> Obj:
    """From now on answers about the object look so; ``{}`` lets them be true again."""
    with world.changing():
        found = _find(world, object_id)
        if given:
            world.store.put("override", {"id": object_id, "value": given})
        else:
            world.store.remove("override", object_id)
        return render(world, found)


# checkout and events


def _checkout_verb(world: World, given: Obj, session_id: str, verb: str) -> Obj:
    with world.changing():
        session = _find(world, session_id)
        now = world.time_of(session)
        match verb:
            case "complete":
                settled = _truth(given.get("settled", checkouts.settles_at_once(session)))
                return render(world, checkouts.complete(world, session, now=now, settled=settled))
            case "arrive":
                succeeded = _truth(given.get("succeeded", True))
                return render(world, checkouts.arrive(world, session, succeeded=succeeded, now=now))
            case _:
                raise ControlError(f"no such verb: {verb}", status=404)


def _bought_by_link(world: World, given: Obj) -> Obj:
    return render(world, payment_links.buy(world, given))


def _dispute_invoice(world: World, given: Obj, invoice_id: str) -> Obj:
    """A customer's bank disputes the payment of an invoice."""
    with world.changing():
        charge = payments.charge_of(world, _find(world, invoice_id))
        reason = str(given.get("reason", "fraudulent"))
        return render(world, payments.dispute(world, charge, reason=reason, now=world.time_of(charge)))


def _close_dispute(world: World, given: Obj, dispute_id: str) -> Obj:
    with world.changing():
        dispute = _find(world, dispute_id)
        status = str(given.get("status", "lost"))
        now = world.time_of(world.need("charge", dispute["charge"]))
        return render(world, payments.close_dispute(world, dispute, status=status, now=now))


def _emit(world: World, given: Obj) -> Obj:
    kind, object_id = str(given.get("type", "")), str(given.get("object", given.get("object_id", "")))
    generation = str(given.get("generation", "2026"))
    if not kind or generation not in ("2024", "2026"):
        raise ControlError('say {"type": "invoice.paid", "object": "in_…", "generation": "2024" or "2026"}', status=400)
    version = OLD_API_VERSION if generation == "2024" else API_VERSION
    with world.changing():
        snapshot = render(world, _find(world, object_id), version=version)
        return world.announce(
            kind,
            snapshot,
            now=world.now(),
            version=version,
            twist=lambda event: overridden(event, given.get("overrides", {})),
        )


# faults, time, records


def _knobs(world: World, given: Obj) -> Obj:
    return world.knobs.plain()


def _put_knobs(world: World, given: Obj) -> Obj:
    return world.turn(given, onto_present=False).plain()


def _patch_knobs(world: World, given: Obj) -> Obj:
    return world.turn(given, onto_present=True).plain()


def _deliveries(world: World, given: Obj) -> Obj:
    return {"attempts": list(world.deliveries.attempts)} | world.deliveries.pending()


def _requests(world: World, given: Obj) -> Obj:
    return {"requests": list(world.requests)}


def _forget_requests(world: World, given: Obj) -> Obj:
    world.requests.clear()
    return {"requests": []}


def _reset(world: World, given: Obj) -> Obj:
    world.reset()
    return {"reset": True}


def _flush(world: World, given: Obj) -> Obj:
    quiet = world.deliveries.flush(float(given.get("timeout_seconds", 30)))
    return {"quiet": quiet} | world.deliveries.pending()


def _quiet(world: World, given: Obj) -> Obj:
    quiet = world.deliveries.wait_quiet(float(given.get("timeout_seconds", 30)))
    return world.deliveries.pending() | {"quiet": quiet}


def _clock(world: World, given: Obj) -> Obj:
    """Set how far the sandbox's time is ahead; what fell due meanwhile is done before this answers."""
    if given:
        world.set_clock(given.get("offset_seconds"))
        if world.knobs.auto_renew:
            deadlines.tick(world, now=world.now())
        world.deliveries.clock_moved(world.now())
    return {"offset_seconds": world.clock_offset, "now": world.now()}


def _tick(world: World, given: Obj) -> Obj:
    return {"deadlines_passed": deadlines.tick(world, now=world.now()), "now": world.now()}


def _health(world: World, given: Obj) -> Obj:
    kinds = ("customer", "product", "price", "subscription", "invoice", "checkout.session", "webhook_endpoint", "event")
    with world.lock:
        counts = {kind: len(world.store.all(kind)) for kind in kinds}
    return {
        "status": "ok",
        "api_version": API_VERSION,
        "url": world.base_url,
        "webhook_url": world.config.webhook_url,
        "started_at": world.started_at,
        "now": world.now(),
        "objects": counts,
        "deliveries": world.deliveries.pending(),
    }


def _find(world: World, object_id: str) -> Obj:
    guessed = kind_of(object_id)
    for kind in [guessed] if guessed else ["product", "customer", "price"]:
        found = world.store.get(kind, object_id)
        if found is not None:
            return found
    raise ControlError(f"there is no {object_id or 'such object'}", status=404)


def _truth(value: Any) -> bool:
    return value in (True, 1, "1", "true", "on")


_DOORS: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", "/health", _health),
    ("GET", "/knobs", _knobs),
    ("PUT", "/knobs", _put_knobs),
    ("PATCH|POST", "/knobs", _patch_knobs),
    ("GET", "/deliveries", _deliveries),
    ("GET", "/requests", _requests),
    ("DELETE", "/requests", _forget_requests),
    ("POST", "/reset", _reset),
    ("POST", "/flush", _flush),
    ("POST", "/quiet", _quiet),
    ("GET|POST", "/clock", _clock),
    ("POST", "/tick", _tick),
    ("POST", "/events", _emit),
    ("POST", "/seed", seed),
    ("POST", "/payment_link", _bought_by_link),
    ("POST", "/checkout/([^/]+)/([a-z]+)", _checkout_verb),
    ("POST", "/subscriptions/([^/]+)/([a-z]+)", _subscription_verb),
    ("POST", "/invoices/([^/]+)/dispute", _dispute_invoice),
    ("POST", "/disputes/([^/]+)/close", _close_dispute),
    ("PATCH", "/(?:subscriptions|objects)/([^/]+)", _override),
]
