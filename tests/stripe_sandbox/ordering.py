"""What somebody wants to subscribe to: prices that can be bought, a trial, an anchor. Read and checked."""

from .calls import Call
from .errors import StripeError, missing_param
from .periods import DAY, next_end
from .store import Obj


def orders_from(call: Call, asked: list[Obj], *, param: str = "items") -> list[tuple[Obj, Obj]]:
    """(price, what was asked) for each item. Raises StripeError for what cannot be subscribed to."""
    if not asked:
        raise missing_param(param)
    orders = []
    for index, item in enumerate(asked):
        if not item.get("price"):
            raise missing_param(f"{param}[{index}][price]")
        orders.append((price_for(call, item["price"], param=f"{param}[{index}][price]"), item))
    if len({price["currency"] for price, _ in orders}) > 1:
        raise StripeError("All prices of a subscription must have the same currency.", param=param)
    if len({price["id"] for price, _ in orders}) < len(orders):
        raise StripeError("Cannot add multiple subscription items with the same price.", param=param)
    return orders


def price_for(call: Call, price_id: str, *, param: str) -> Obj:
    price = call.refer("price", price_id, param=param)
    if not price["active"]:
        raise StripeError("The price specified is inactive. This field only accepts active prices.", param=param)
    if price["type"] != "recurring":
        message = (
            "The price specified is set to `type=one_time` but this field only accepts prices with `type=recurring`."
        )
        raise StripeError(message, param=param)
    return price


def trial_end_from(given: Obj, *, now: int) -> int | None:
    end = given.get("trial_end")
    if end == "now":
        return None
    if end is None:
        return now + given["trial_period_days"] * DAY if "trial_period_days" in given else None
    if end <= now:
        raise StripeError("Invalid timestamp: must be an integer Unix timestamp in the future.", param="trial_end")
    return int(end)


def check_anchor(given: Obj, orders: list[tuple[Obj, Obj]], *, now: int) -> None:
    anchor = given.get("billing_cycle_anchor")
    if anchor is None:
        return
    if anchor <= now:
        message = "Invalid timestamp: must be an integer Unix timestamp in the future."
        raise StripeError(message, param="billing_cycle_anchor")
    for price, _ in orders:
        recurring = price["recurring"]
        if anchor > next_end(now, now, recurring["interval"], recurring["interval_count"]):
            message = "billing_cycle_anchor cannot be later than next natural billing date"
            raise StripeError(message, param="billing_cycle_anchor")
