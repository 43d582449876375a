"""The items of a subscription: what they cost, and when they are due."""

from .periods import add_interval, natural_start, next_end
from .shapes import subscription_item
from .store import Obj


def items_of(subscription: Obj) -> list[Obj]:
    found: list[Obj] = subscription["items"]["data"]
    return found


def period_end(subscription: Obj) -> int:
    """When the first of its items is due."""
    return min((item["current_period_end"] for item in items_of(subscription)), default=0)


def full_price(item: Obj) -> int:
    return int(item["price"]["unit_amount"]) * int(item["quantity"])


def whole_period(item: Obj, *, anchor: int) -> tuple[int, int]:
    """The period that the full price is for, of which an item's own may be the end only."""
    recurring, end = item["price"]["recurring"], item["current_period_end"]
    return natural_start(anchor, end, recurring["interval"], recurring["interval_count"]), end


def interval_of(price: Obj) -> tuple[str, int]:
    return price["recurring"]["interval"], price["recurring"]["interval_count"]


def add_item(sub: Obj, price: Obj, asked: Obj, *, anchor: int, until: int | None = None, now: int) -> Obj:
    """A further item whose period runs from now to the next boundary of the subscription's own rhythm."""
    end = until or next_end(anchor, now, *interval_of(price))
    item = subscription_item(price, asked, subscription_id=sub["id"], start=now, end=end, now=now)
    items_of(sub).append(item)
    return item


def restart_cycle(subscription: Obj, *, now: int) -> None:
    """A whole new period begins now for every item, and later ones are counted from here."""
    subscription["billing_cycle_anchor"] = now
    for item in items_of(subscription):
        interval, count = interval_of(item["price"])
        item |= {"current_period_start": now, "current_period_end": add_interval(now, interval, count)}
