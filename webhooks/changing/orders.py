"""The order for a change: what Stripe is asked for, what it does to slots, and whether it can be had at all."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from entitlements import limits
from subscriptions.errors import IllegalTransition
from subscriptions.models import Subscription
from subscriptions.states import Status
from webhooks.catalogue import price_at_stripe, price_of_pack
from webhooks.changing.asked import AskedBy, ChangeAt, WishedChange
from webhooks.changing.billed import Aspect, Billed, billed_by_stripe, going_on, is_last_period
from webhooks.changing.bought import Bought, bought_by, target_of
from webhooks.errors import EndsWithTerm, IsPaused, NotBilledByStripe, PaymentOwed, PreviewTooOld
from webhooks.stripe_state import owes

PREVIEWED_FOR: Final = timedelta(hours=1)  # what was previewed may be confirmed at the price that was shown
CLOCKS_APART: Final = timedelta(minutes=1)  # Stripe's and ours


@dataclass(frozen=True)
class BeforeAfter:
    before: int
    after: int


@dataclass(frozen=True)
class ChangeOrder:
    """A change as Stripe is asked for it, and what it does to slots."""

    billed: Billed
    state: dict[str, Any]
    bought: Bought
    target: Bought
    items: list[dict[str, Any]]  # what changes of the items at Stripe; nothing if nothing does
    slots: dict[str, BeforeAfter]
    devices_to_park: int

    @property
    def period(self) -> tuple[datetime, datetime]:
        items = self.state["items"]["data"]
        start = max(item["current_period_start"] for item in items)
        return datetime.fromtimestamp(start, UTC), datetime.fromtimestamp(
            min(item["current_period_end"] for item in items), UTC
        )

    @property
    def settled_until(self) -> datetime:
        """Nothing before this is reckoned anew: what was billed last begins there. Else whoever buys more and then less
        would get back what was never paid.
        """
        start, end = self.period
        invoice = self.state.get("latest_invoice")
        if not isinstance(invoice, dict):
            return start
        lines = (invoice.get("lines") or {}).get("data", ())
        said = [invoice.get("created"), *((line.get("period") or {}).get("start") for line in lines)]
        billed = [datetime.fromtimestamp(at, UTC) for at in said if at]
        return max([start, *(at for at in billed if at < end)])

    def now_with(self, proration_date: int | None, now: datetime) -> dict[str, Any]:
        """The parameters of a change that is made at once. What was shown within the hour is what it costs; an instant
        of one's own choice would be a price of one's own choice. Raises PreviewTooOld.
        """
        asked: dict[str, Any] = {
            "items": self.items, "proration_behavior": "always_invoice", "payment_behavior": "error_if_incomplete",
        }  # fmt: skip
        if proration_date is None or self.state["status"] == "trialing":
            return asked
        since, end = self.settled_until, self.period[1]
        earliest, latest = max(now - PREVIEWED_FOR, since), min(max(now, since) + CLOCKS_APART, end)
        if not earliest.timestamp() - 1 < proration_date <= latest.timestamp():
            raise PreviewTooOld
        return asked | {"proration_date": max(proration_date, int(since.timestamp()))}


def order_of(subscription: Subscription, wish: WishedChange, when: ChangeAt, by: AskedBy) -> ChangeOrder:
    """What `change` would do. Raises as it does; asks for no confirmation."""
    billed = billed_by_stripe(subscription, Aspect.ITEMS)
    if billed is None:
        raise NotBilledByStripe
    state = going_on(billed, by)
    present, bought = bought_by(state)
    target = target_of(subscription, bought, wish)
    changes_now = when is ChangeAt.NOW and target != bought
    if changes_now and state.get("pause_collection"):  # nobody would pay, and credit is real
        raise IsPaused
    if changes_now and owes(state):  # to pay for a change must not pay for the term
        raise PaymentOwed
    if when is ChangeAt.TERM_END and is_last_period(state):
        raise EndsWithTerm
    if when is ChangeAt.TERM_END and state["status"] not in ("active", "past_due"):
        detail = f"{subscription.number} has no term that is paid: change it now."
        raise IllegalTransition(detail, status=subscription.status, allowed=[Status.ACTIVE, Status.GRACE])
    held = limits.in_use(subscription, now=by.now())
    after = {code: use.limit for code, use in held.items()}
    if target.sells != bought.sells:
        after = dict.fromkeys(held, 0) | limits.would_sell(*target.sells)
    slots = {code: BeforeAfter(held[code].limit if code in held else 0, n) for code, n in sorted(after.items())}
    to_park = sum(use.parked_by(after[code]) for code, use in held.items())
    return ChangeOrder(billed, state, bought, target, _edits(present, bought, target), slots, to_park)


def _edits(present: Mapping[int | None, dict[str, Any]], bought: Bought, target: Bought) -> list[dict[str, Any]]:
    """What Stripe is asked to change of the items."""
    edits: list[dict[str, Any]] = []
    if target.price != bought.price:
        price = price_at_stripe(target.price)
        edits.append({"id": present[None]["id"], "price": price, "quantity": target.quantity})
    elif target.quantity != bought.quantity:
        edits.append({"id": present[None]["id"], "quantity": target.quantity})
    for pack in sorted({*bought.packs, *target.packs}, key=lambda pack: pack.pk):
        units = target.packs.get(pack, 0)
        if units == bought.packs.get(pack, 0):
            continue
        if pack not in bought.packs:
            edits.append({"price": price_of_pack(pack), "quantity": units})
        elif units:
            edits.append({"id": present[pack.pk]["id"], "quantity": units})
        else:
            edits.append({"id": present[pack.pk]["id"], "deleted": True})
    return edits
