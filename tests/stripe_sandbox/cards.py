"""Whether a customer's card works, and what Stripe says when it does not."""

from .errors import StripeError
from .store import Obj
from .world import World

NO_CARD = (
    "This customer has no attached payment source or default payment method. "
    "Please consider adding a default payment method."
)

# what a customer's metadata may say of the card -> Stripe's code, decline code and words
DECLINES = {
    "declined": ("card_declined", "generic_decline", "Your card was declined."),
    "insufficient_funds": ("card_declined", "insufficient_funds", "Your card has insufficient funds."),
    "lost_card": ("card_declined", "lost_card", "Your card was declined."),
    "do_not_honor": ("card_declined", "do_not_honor", "Your card was declined."),
    "expired_card": ("expired_card", "expired_card", "Your card has expired."),
    "incorrect_cvc": ("incorrect_cvc", "incorrect_cvc", "Your card's security code is incorrect."),
    "processing_error": (
        "processing_error",
        "processing_error",
        "An error occurred while processing your card. Try again in a little bit.",
    ),
}
_CHOSEN = {"ok": "pm_card_visa", "declined": "pm_card_chargeCustomerFail", "none": None}
_FAILING = ("pm_card_chargeCustomerFail", "pm_card_visa_chargeDeclined")  # Stripe's own for tests


def card_of(world: World, subscription: Obj) -> str:
    """ok, declined or none: chosen on a page, else said by the customer's metadata, else a method on file, the knob."""
    word = _word(world, subscription)
    return "declined" if word in DECLINES else word


def decline_of(world: World, subscription: Obj) -> StripeError:
    """The refusal of a card that is declined."""
    return declined(_word(world, subscription))


def declined(word: str = "declined") -> StripeError:
    code, decline_code, message = DECLINES.get(word, DECLINES["declined"])
    return StripeError(message, status=402, kind="card_error", code=code, decline_code=decline_code)


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
    return "ok" if on_file else world.knobs.card


def keep_card(world: World, customer: Obj, card: str) -> Obj:
    """The customer has chosen on a page: ok, declined or none. Metadata and the knob count no more for them."""
    customer["_card"] = card
    customer["invoice_settings"]["default_payment_method"] = _CHOSEN[card]
    return world.put(customer)
