"""Whether a customer's card works, and what Stripe says when it does not."""

from .errors import DECLINES, StripeError, declined
from .store import Obj
from .world import World

NO_CARD = (
    "This customer has no attached payment source or default payment method. "
    "Please consider adding a default payment method."
)

_FAILING = ("pm_card_chargeCustomerFail", "pm_card_visa_chargeDeclined")  # Stripe's own for tests


def card_of(world: World, subscription: Obj) -> str:
    """ok, declined or none: the customer's metadata say, else a payment method on file, else the knob."""
    word = _word(world, subscription)
    return "declined" if word in DECLINES else word


def decline_of(world: World, subscription: Obj) -> StripeError:
    """The refusal of a card that is declined."""
    return declined(_word(world, subscription))


def _word(world: World, subscription: Obj) -> str:
    customer = world.need("customer", subscription["customer"])
    told = customer["metadata"].get("card")
    if told in ("ok", "none") or told in DECLINES:
        return str(told)
    on_file = (
        subscription["default_payment_method"]
        or customer["invoice_settings"]["default_payment_method"]
        or customer["default_source"]
    )
    if on_file in _FAILING:
        return "declined"
    return "ok" if on_file else world.knobs.card
