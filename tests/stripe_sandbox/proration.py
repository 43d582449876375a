"""What a change in the middle of a period comes to: a credit for the rest of the old, a charge for the rest of the new.

Shares are by the second and in whole minor units, half a unit rounding away from zero. A credit is a share of what
the item costs now; Stripe's flexible mode takes what was debited for it, which differs after a change billed ``none``.
"""

from .invoices import Charge
from .items import full_price, items_of, whole_period
from .store import Obj


def share(amount: int, *, of: tuple[int, int], rest: int) -> int:
    """The part of ``amount`` that falls to the last ``rest`` seconds of the period."""
    whole = of[1] - of[0]
    return (2 * amount * min(max(rest, 0), whole) + whole) // (2 * whole)


def credit(item: Obj, *, anchor: int, at: int) -> Charge:
    """For the rest of the item's period, as a negative amount."""
    period = whole_period(item, anchor=anchor)
    amount = -share(full_price(item), of=period, rest=period[1] - at)
    return Charge(dict(item), at, max(at, period[1]), amount, proration=True)


def charge(item: Obj, *, anchor: int, at: int) -> Charge:
    period = whole_period(item, anchor=anchor)
    amount = share(full_price(item), of=period, rest=period[1] - at)
    return Charge(dict(item), at, max(at, period[1]), amount, proration=True)


def credits_of(subscription: Obj, *, at: int) -> list[Charge]:
    """For everything that is not used up when the subscription ends now."""
    anchor = subscription["billing_cycle_anchor"]
    return [credit(item, anchor=anchor, at=at) for item in items_of(subscription) if full_price(item)]
