"""A change of a subscription: read and checked, worked out on a draft, and then previewed or made.

The preview and the change itself are one computation, so that what was shown is what is billed.
"""

from dataclasses import dataclass, field
from typing import Any

from . import shapes
from .calls import Call
from .errors import StripeError, missing_param
from .invoices import Charge
from .items import add_item, full_price, interval_of, items_of, restart_cycle
from .ordering import price_for
from .proration import charge, credit
from .store import Obj

Edit = tuple[Obj | None, Obj | None, Obj]  # the item (None: a new one), its new price (None: as it is), what was asked


@dataclass
class Bill:
    """What a change asks for. ``at_once``: on an invoice of its own now; otherwise it waits for the next one."""

    charges: list[Charge] = field(default_factory=list)
    at_once: bool = False


def draft_of(subscription: Obj) -> Obj:
    """A copy that may be changed without changing the subscription; prices are shared."""
    draft = {key: _copied(value) for key, value in subscription.items()}
    draft["items"]["data"] = [dict(item) for item in items_of(subscription)]
    return draft


def _copied(value: Any) -> Any:
    return dict(value) if isinstance(value, dict) else list(value) if isinstance(value, list) else value


def edits_from(call: Call, draft: Obj, asked: list[Obj], *, param: str = "items") -> list[Edit]:
    """Checked before anything is changed. Raises StripeError."""
    present = {item["id"]: item for item in items_of(draft)}
    taken = {item["price"]["id"]: item["id"] for item in items_of(draft)}
    edits: list[Edit] = []
    for index, edit in enumerate(asked):
        price = price_for(call, edit["price"], param=f"{param}[{index}][price]") if "price" in edit else None
        if "id" in edit:
            if edit["id"] not in present:
                message = f"No such subscription_item: '{edit['id']}'"
                raise StripeError(message, code="resource_missing", param=f"{param}[{index}][id]")
            edits.append((present[edit["id"]], price, edit))
            continue
        if price is None:
            raise missing_param(f"{param}[{index}][price]")
        if price["id"] in taken:
            message = f"Cannot add multiple subscription items with the same plan: {price['id']}"
            raise StripeError(message, param=param)
        edits.append((None, price, edit))
    for _, price, _ in edits:
        if price and price["currency"] != draft["currency"]:
            only = f"The price specified only supports `{price['currency']}`."
            message = f"{only} This doesn't match the expected currency: `{draft['currency']}`."
            raise StripeError(message, param=param)
    gone = sum(1 for item, _, edit in edits if item and edit.get("deleted"))
    if gone and gone >= len(present) + sum(1 for item, _, _ in edits if item is None):
        raise StripeError("A subscription must have at least one active plan. To cancel it, delete it.", param=param)
    return edits


def proration_date_from(given: Obj, draft: Obj, *, now: int) -> int:
    at: int = given.get("proration_date", now)
    if "proration_date" not in given:
        return at
    if given.get("proration_behavior") == "none":
        message = "You cannot specify `proration_date` when `proration_behavior` is `none`."
        raise StripeError(message, param="proration_date")
    items = items_of(draft)
    if not all(item["current_period_start"] <= at <= item["current_period_end"] for item in items):
        message = "Cannot specify a proration date outside of the current billing period."
        raise StripeError(message, param="proration_date")
    return at


def carry_out(draft: Obj, edits: list[Edit], given: Obj, *, at: int, now: int) -> Bill:
    """Put the edits into the draft; what they come to as of ``at``.

    A price of another interval, or ``billing_cycle_anchor=now``, begins a whole new period now and bills it at once.
    Nothing is prorated in a trial, nor while nothing has been paid yet.
    """
    behaviour, anchor = given.get("proration_behavior", "create_prorations"), draft["billing_cycle_anchor"]
    before = {item["id"]: dict(item) for item in items_of(draft)}
    restarted = given.get("billing_cycle_anchor") == "now"
    for item, price, asked in edits:
        restarted |= item is not None and price is not None and interval_of(price) != interval_of(item["price"])
        _apply(draft, item, price, asked, now=now)
    if draft["status"] not in ("active", "past_due"):
        return Bill()
    after = {item["id"]: item for item in items_of(draft)}
    changed = [name for name in before | after if restarted or _differs(before.get(name), after.get(name))]
    credits = [credit(before[name], anchor=anchor, at=at) for name in changed if name in before]
    if restarted:
        restart_cycle(draft, now=now)
        whole = [Charge(dict(item), now, item["current_period_end"], full_price(item)) for item in items_of(draft)]
        return Bill((credits if behaviour != "none" else []) + whole, at_once=True)
    if behaviour == "none":
        return Bill()
    charges = [charge(after[name], anchor=anchor, at=at) for name in changed if name in after]
    lines = [line for line in credits + charges if full_price(line.item)]
    return Bill(lines, at_once=behaviour == "always_invoice" and bool(lines))


def _apply(draft: Obj, item: Obj | None, price: Obj | None, asked: Obj, *, now: int) -> None:
    if item is None:
        assert price is not None
        until = draft["trial_end"] if draft["status"] == "trialing" else None
        add_item(draft, price, asked, anchor=draft["billing_cycle_anchor"], until=until, now=now)
        return
    if asked.get("deleted"):
        items_of(draft).remove(item)
        return
    item["price"] = price or item["price"]
    item["quantity"] = asked.get("quantity", item["quantity"])
    if "metadata" in asked:
        item["metadata"] = shapes.relabel(item["metadata"], asked["metadata"])


def _differs(before: Obj | None, after: Obj | None) -> bool:
    if before is None or after is None:
        return True
    return (before["price"]["id"], before["quantity"]) != (after["price"]["id"], after["quantity"])
