"""What the portal's buttons do. Every change is one that a program could ask the API for, and is asked like that."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..cards import NO_CARD, keep_card
from ..errors import ControlError, StripeError
from ..items import items_of
from ..schedules import schedule_for
from ..store import Obj
from ..world import World
from .asking import ask
from .invoice import PAY_SAID, pay_invoice

SAID = PAY_SAID | {
    "changed": ("Your subscription is changed.", "good"),
    "planned": ("Your subscription changes at the end of its period.", "good"),
    "unplanned": ("The planned change is dropped.", "good"),
    "same": ("That is what you have already; nothing was changed.", "good"),
    "not_paid": ("Your card was declined, so nothing was changed.", "bad"),
    "ending": ("Your subscription ends with its period.", "good"),
    "ended": ("Your subscription has ended.", "good"),
    "kept": ("Your subscription goes on.", "good"),
    "resumed": ("Your subscription is resumed.", "good"),
    "card": ("Your payment method is changed.", "good"),
}

CARDS = {
    "ok": ("Card that works", "Every payment succeeds."),
    "declined": ("Card that is declined", "It can be kept, but every payment with it fails."),
    "none": ("No card", "There is nothing to pay with."),
}


# each answers with a key of SAID


@dataclass(frozen=True)
class Wanted:
    """A change that a customer has put together."""

    subscription: Obj
    item: Obj
    price: Obj
    quantity: int
    at_period_end: bool

    @property
    def is_none(self) -> bool:
        return bool((self.price["id"], self.quantity) == (self.item["price"]["id"], self.item["quantity"]))

    @property
    def edit(self) -> Obj:
        """As the API takes it, in an update and in a preview."""
        item = {"id": self.item["id"], "price": self.price["id"], "quantity": self.quantity}
        return {"items": [item], "proration_behavior": "always_invoice"}


def wanted_change(world: World, customer: Obj, given: Mapping[str, str]) -> Wanted:
    """Raises ControlError for what is not offered (400) or somebody else's (404)."""
    subscription, item = _own_item(world, customer, given)
    quantity = _quantity(given.get("quantity", "1"))
    for price in offers(world, subscription, item):
        if price["id"] == given.get("price"):
            return Wanted(subscription, item, price, quantity, given.get("when") == "period_end")
    raise ControlError("that plan is not offered here", status=400)


def _change(world: World, customer: Obj, given: Mapping[str, str]) -> str:
    wanted = wanted_change(world, customer, given)
    if wanted.is_none:
        return "same"
    if wanted.at_period_end:
        _schedule(world, wanted)
        return "planned"
    try:
        ask(world, "POST", _path(wanted.subscription), **wanted.edit, payment_behavior="error_if_incomplete")
    except StripeError as error:
        if error.kind != "card_error" and error.message != NO_CARD:
            raise
        return "not_paid"
    _drop_plan(world, wanted.subscription)
    return "changed"


def _unplan(world: World, customer: Obj, given: Mapping[str, str]) -> str:
    _drop_plan(world, own_subscription(world, customer, given))
    return "unplanned"


def _end(world: World, customer: Obj, given: Mapping[str, str]) -> str:
    subscription = own_subscription(world, customer, given)
    _drop_plan(world, subscription)
    ask(world, "POST", _path(subscription), cancel_at_period_end=True)
    return "ending"


def _end_now(world: World, customer: Obj, given: Mapping[str, str]) -> str:
    ask(world, "DELETE", _path(own_subscription(world, customer, given)))
    return "ended"


def _keep(world: World, customer: Obj, given: Mapping[str, str]) -> str:
    ask(world, "POST", _path(own_subscription(world, customer, given)), cancel_at_period_end=False)
    return "kept"


def _resume(world: World, customer: Obj, given: Mapping[str, str]) -> str:
    subscription = own_subscription(world, customer, given)
    ask(world, "POST", f"{_path(subscription)}/resume")
    return "resumed" if subscription["status"] == "active" else "declined"


def _card(world: World, customer: Obj, given: Mapping[str, str]) -> str:
    if given.get("card") not in CARDS:
        raise ControlError("choose one of the cards that the page shows", status=400)
    keep_card(world, customer, given["card"])
    return "card"


def _pay(world: World, customer: Obj, given: Mapping[str, str]) -> str:
    invoice = world.store.get("invoice", given.get("invoice", ""))
    if invoice is None or invoice["customer"] != customer["id"]:
        raise ControlError("there is no such invoice here", status=404)
    return pay_invoice(world, invoice["id"])


VERBS: dict[str, Callable[[World, Obj, Mapping[str, str]], str]] = {
    "change": _change,
    "unplan": _unplan,
    "end": _end,
    "end_now": _end_now,
    "keep": _keep,
    "resume": _resume,
    "card": _card,
    "pay": _pay,
}


def own_subscription(world: World, customer: Obj, given: Mapping[str, str]) -> Obj:
    """Raises ControlError (404) for what belongs to somebody else."""
    found = world.store.get("subscription", given.get("subscription", ""))
    if found is None or found["customer"] != customer["id"]:
        raise ControlError("there is no such subscription here", status=404)
    return found


def _own_item(world: World, customer: Obj, given: Mapping[str, str]) -> tuple[Obj, Obj]:
    subscription = own_subscription(world, customer, given)
    for item in items_of(subscription):
        if item["id"] == given.get("item"):
            return subscription, item
    raise ControlError("there is no such part of the subscription", status=404)


def _path(subscription: Obj) -> str:
    return f"/v1/subscriptions/{subscription['id']}"


def _schedule(world: World, wanted: Wanted) -> None:
    """As Stripe's portal does it: a schedule whose next phase begins when the present period ends."""
    subscription = wanted.subscription
    if not subscription["schedule"]:
        ask(world, "POST", "/v1/subscription_schedules", from_subscription=subscription["id"])
    schedule = schedule_for(world, subscription)
    assert schedule is not None
    coming = planned_for(world, subscription)
    items = [coming.get(other["id"], _phase_item(other)) for other in items_of(subscription)]
    items[items_of(subscription).index(wanted.item)] = {"price": wanted.price["id"], "quantity": wanted.quantity}
    current = next(p for p in schedule["phases"] if p["start_date"] == schedule["current_phase"]["start_date"])
    present = {name: current[name] for name in ("start_date", "end_date")}
    present["items"] = [_phase_item(other) for other in items_of(subscription)]
    phases = [present, {"items": items, "proration_behavior": "none"}]
    path = f"/v1/subscription_schedules/{schedule['id']}"
    ask(world, "POST", path, phases=phases, end_behavior="release", proration_behavior="none")


def _phase_item(item: Obj) -> Obj:
    return {"price": item["price"]["id"], "quantity": item["quantity"]}


def planned_for(world: World, subscription: Obj) -> dict[str, Obj]:
    """What the next phase of its schedule makes of each item that it changes: price and quantity, by item.

    Items and those of the phase are the same by place; a schedule of another shape is a program's, and not shown.
    """
    schedule = schedule_for(world, subscription)
    if schedule is None or schedule["current_phase"] is None:
        return {}
    following = (p for p in schedule["phases"] if p["start_date"] == schedule["current_phase"]["end_date"])
    coming: list[Obj] = next(following, {"items": []})["items"]
    items = items_of(subscription)
    if len(coming) != len(items):
        return {}
    plain = {
        item["id"]: {name: after[name] for name in ("price", "quantity")}
        for item, after in zip(items, coming, strict=True)
    }
    return {item["id"]: plain[item["id"]] for item in items if plain[item["id"]] != _phase_item(item)}


def _drop_plan(world: World, subscription: Obj) -> None:
    if subscription["schedule"]:
        ask(world, "POST", f"/v1/subscription_schedules/{subscription['schedule']}/release")


def _quantity(word: str) -> int:
    if not word.isascii() or not word.isdigit() or not 1 <= int(word[:9]) <= 999_999:
        raise ControlError("the quantity is a whole number from 1 to 999999", status=400)
    return int(word)


def offers(world: World, subscription: Obj, item: Obj) -> list[Obj]:
    """Prices that the item may have: those on sale in its currency, and its own. Its own product's come first."""
    elsewhere = {other["price"]["id"] for other in items_of(subscription)} - {item["price"]["id"]}
    products = world.store.all("product")
    found = [
        price
        for price in world.store.all("price").values()
        if price["type"] == "recurring"
        and price["currency"] == subscription["currency"]
        and price["id"] not in elsewhere
        and ((price["active"] and products[price["product"]]["active"]) or price["id"] == item["price"]["id"])
    ]
    return sorted(found, key=lambda price: price["product"] != item["price"]["product"])
