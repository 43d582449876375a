"""Checkouts that our program did not begin: somebody followed a payment link or a pricing table and paid.

They name no customer and no tenant: all that is known of the buyer is what they typed.
"""

from .checkouts import complete, session_of
from .errors import ControlError
from .ids import new_id
from .store import Obj
from .world import World


def buy(world: World, given: Obj) -> Obj:
    """A completed session, and what it bought.

    ``{"price": "price_…"}``, and if wanted ``quantity``, ``email``, ``name``, ``metadata`` (the link's, which every
    session of it carries), ``client_reference_id``, ``settled`` false for money that is still on its way, and
    ``pricing_table`` true for a session that names no link. Raises ControlError.
    """
    price = world.store.get("price", str(given.get("price")))
    if price is None or not price["recurring"]:
        raise ControlError(f"there is no recurring price {given.get('price')}", status=404)
    asked: Obj = {name: given[name] for name in ("metadata", "client_reference_id") if name in given}
    asked["subscription_data"] = {"metadata": given["metadata"]} if "metadata" in given else {}
    with world.changing():
        now = world.now()
        session = session_of(world, asked, [(price, {"quantity": int(given.get("quantity", 1))})], now=now)
        session |= {
            "payment_link": None if given.get("pricing_table") else new_id("payment_link"),
            "_email": given.get("email", "someone@sandbox.test"),
            "_name": given.get("name", "Someone"),
        }
        world.put(session)
        return complete(world, session, now=now, settled=given.get("settled", True) in (True, "true"))
