"""Whether a customer's card works, and what Stripe says when it does not."""

from .errors import DECLINES, StripeError, declined
from .store import Obj
from .world import World

NO_CARD = (
    "This customer has no attached payment source or default payment method. "
    "Please consider adding a default payment method."
)

_CHOSEN = {"ok": "pm_card_visa", "declined": "pm_card_chargeCustomerFail", "none": None}
_FAILING = ("pm_card_chargeCustomerFail", "pm_card_visa_chargeDeclined")  # Stripe's own for tests


def card_of(world: World, subscription: Obj) -> str:
    """ok, declined or none: chosen on a page, else said by the customer's metadata, else a method on file, the knob."""
    word = _word(world, subscription)
    return "declined" if word in DECLINES else word


def decline_of(world: World, subscription: Obj) -> StripeError:
    """The refusal of a card that is declined."""
    return declined(_word(world, subscription))


def _word(world: World, subscription: Obj) -> str:
    customer = world.need("customer", subscription["customer"])
    told = customer.get("_card") or customer["metadata"].get("card")
    if told in ("ok", "none") or told in DECLINES:
        return str(told)
    on_file = (
        subscription["default_payment_method"]
        or customer["invoice_settings"]["default_payment_method"]
        or customer["default_source"]
    )
    if on_file in _FAILING:
        return "declined"
    if not on_file and subscription.get("_no_card"):  # a free trial that asked for none
        return "none"
    return "ok" if on_file else world.knobs.card


def keep_card(world: World, customer: Obj, card: str) -> Obj:
    """The customer has chosen on a page: ok, declined or none. Metadata and the knob count no more for them."""
    customer["_card"] = card
    customer["invoice_settings"]["default_payment_method"] = _CHOSEN[card]
    return world.put(customer)
