"""The card that a customer has chosen on a page. Stripe's own names of test cards stand for how they behave."""

from ..store import Obj
from ..world import World

WORKS, FAILS = "pm_card_visa", "pm_card_chargeCustomerFail"
_METHODS = {"ok": WORKS, "declined": FAILS, "none": None}


def keep_card(world: World, customer: Obj, card: str) -> Obj:
    """From now on the customer pays with it: ok, declined or none. The knob and metadata no longer count for them."""
    customer["_card"] = card
    customer["invoice_settings"]["default_payment_method"] = _METHODS[card]
    return world.put(customer)
