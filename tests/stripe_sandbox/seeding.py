"""Many paid subscriptions at once, for benchmarks: through the rules of billing, without the telling."""

import gc
from typing import Any

from .billing import begin, settle
from .errors import ControlError
from .shapes import customer, subscription
from .store import Obj
from .world import World


def seed(world: World, given: Obj) -> Obj:
    """``{"subscriptions": 10000, "price": "price_…"}``: so many customers, each with one active subscription.

    ``quantity``, ``items`` (instead of ``price``), ``metadata`` of the subscriptions, ``customer_metadata``; ``{n}`` in
    a value of metadata becomes the number of the customer, from 0. ``events`` true tells the webhooks too.
    Answers the ids, in the order of their numbers. Raises ControlError.
    """
    wanted = given.get("items") or [{"price": given.get("price"), "quantity": given.get("quantity", 1)}]
    orders: list[tuple[Obj, Obj]] = []
    for item in wanted:
        price = world.store.get("price", str(item.get("price")))
        if price is None or not price["recurring"]:
            raise ControlError(f"there is no recurring price {item.get('price')}", status=404)
        orders.append((price, {"quantity": int(item.get("quantity", 1))}))
    count = int(given.get("subscriptions", 1))
    made: dict[str, list[str]] = {"customers": [], "subscriptions": []}
    gc.disable()  # hundreds of thousands of new objects, none of them garbage
    try:
        with world.changing(), world.speaking(bool(given.get("events"))):
            for number in range(count):
                buyer, bought = _sold(world, orders, given, number=number)
                made["customers"].append(buyer)
                made["subscriptions"].append(bought)
    finally:
        gc.freeze()
        gc.enable()
    return dict(made)


def _sold(world: World, orders: list[tuple[Obj, Obj]], given: Obj, *, number: int) -> tuple[str, str]:
    now = world.now()
    asked: Obj = {"email": f"customer-{number}@sandbox.test", "name": f"Customer {number}"}
    asked["metadata"] = {"card": "ok"} | _numbered(given.get("customer_metadata"), number)
    buyer = world.put(customer(asked, now=now))
    named: Obj = {"metadata": _numbered(given.get("metadata"), number)}
    bought = subscription(named, customer_id=buyer["id"], currency=orders[0][0]["currency"], now=now)
    begin(world, bought, orders, {}, now=now)
    world.emit("customer.subscription.created", bought, now=now)
    settle(world, bought, now=now)
    return buyer["id"], bought["id"]


def _numbered(labels: Any, number: int) -> dict[str, str]:
    return {str(key): str(value).replace("{n}", str(number)) for key, value in (labels or {}).items()}
