"""What the passing of time does: every deadline there is, and what happens when it passes."""

from collections import Counter
from functools import partial
from typing import Protocol

from . import schedules
from .agenda import OWN_TIME
from .billing import OVER, UPDATED, cancel, collect_change, end_trial, fail, give_up, pause, renew, settle, take_pending
from .cards import card_of
from .ids import kind_of
from .invoices import draw_up, unpaid_of
from .items import items_of, period_end
from .periods import DAY
from .store import Obj
from .world import World

_PATIENCE = 2000


class Deadline(Protocol):
    def __call__(self, world: World, obj: Obj, /, *, now: int) -> None: ...


def tick(world: World, *, now: int, clock: str = OWN_TIME) -> int:
    """Do what has fallen due on a clock, each at its own instant and in that order; how many deadlines passed.

    Safe to repeat. A clock set years ahead is caught up deadline by deadline.
    """
    passed = Counter[str]()
    with world.changing():
        while (object_id := world.agenda.first(clock, by=now, ask=partial(_next_of, world))) is not None:
            obj = world.need(kind_of(object_id) or "", object_id)
            when, _, act = _first(world, obj)
            world.agenda.touch(object_id)
            if passed[object_id] == _PATIENCE:
                break  # the rest in the next second: other callers are waiting
            passed[object_id] += 1
            act(world, obj, now=max(when, obj["created"]))
    return passed.total()


def _next_of(world: World, object_id: str) -> tuple[str, int] | None:
    """The clock that something is on, and its next deadline."""
    obj = world.store.get(kind_of(object_id) or "", object_id)
    found = deadlines(world, obj) if obj else []
    if obj is None or not found:
        return None
    return world.clock_of(obj) or OWN_TIME, min(when for when, _ in found)


def _first(world: World, obj: Obj) -> tuple[int, int, Deadline]:
    return min((when, rank, act) for rank, (when, act) in enumerate(deadlines(world, obj)))


def deadlines(world: World, obj: Obj) -> list[tuple[int, Deadline]]:
    """What time alone will do to it. At the same instant the first one listed wins."""
    if obj["object"] == "checkout.session":
        return [(obj["expires_at"], _expire_session)] if obj["status"] == "open" else []
    return _of_subscription(world, obj)


def _of_subscription(world: World, subscription: Obj) -> list[tuple[int, Deadline]]:
    found: list[tuple[int, Deadline]] = []
    status = subscription["status"]
    if subscription["cancel_at"] and status not in OVER:
        found.append((subscription["cancel_at"], _end_as_planned))
    schedule = schedules.schedule_for(world, subscription)
    if schedule and schedule["current_phase"] and status not in OVER:
        found.append((schedules.next_boundary(schedule), schedules.turn))
    paused = subscription["pause_collection"]
    if paused and paused["resumes_at"] and status not in OVER:
        found.append((paused["resumes_at"], _resume_collection))
    match status:
        case "incomplete" if not subscription.get("_awaits_money"):
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


def _end_as_planned(world: World, subscription: Obj, *, now: int) -> None:
    """What was waiting for the next invoice gets a last one, as there is no next."""
    waiting = take_pending(subscription)
    if waiting:
        at = (now, now)
        invoice = draw_up(world, subscription, waiting, reason="subscription_cycle", period=at, now=now)
        collect_change(world, subscription, invoice, attempt=True, now=now)
    cancel(world, subscription, now=now)


def _resume_collection(world: World, subscription: Obj, *, now: int) -> None:
    """Coming invoices are asked for again; those made meanwhile stay as they are."""
    with world.updating(subscription, UPDATED, now=now):
        subscription["pause_collection"] = None


def _expire_session(world: World, session: Obj, *, now: int) -> None:
    world.put(session | {"status": "expired", "url": None})


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
