"""What is bought, as Stripe has it, and what is bought once a wish has come true. Our catalogue and nothing else."""

from dataclasses import dataclass
from typing import Any

from entitlements.models import SlotPack
from subscriptions.errors import InvalidPlan
from subscriptions.models import PlanPrice, Subscription
from webhooks.buying.offers import named
from webhooks.changing.asked import WishedChange
from webhooks.errors import AmbiguousPrice, CurrencyStays, NoSuchPack, NoSuchPrice
from webhooks.models import StripePrice
from webhooks.stripe_state import Unmappable, stripe_id


@dataclass(frozen=True)
class Bought:
    """A plan and packs beside it."""

    price: PlanPrice
    quantity: int
    packs: dict[SlotPack, int]

    @property
    def rhythm(self) -> tuple[str, int]:
        return self.price.interval, self.price.interval_count

    @property
    def amount_minor(self) -> int:
        return self.price.amount_minor * self.quantity + sum(p.amount_minor * n for p, n in self.packs.items())

    @property
    def sells(self) -> tuple[int, int, dict[int, int]]:
        """What the slots are made of."""
        return self.price.plan_id, self.quantity, {pack.pk: n for pack, n in self.packs.items()}


def bought_by(state: dict[str, Any]) -> tuple[dict[int | None, dict[str, Any]], Bought]:
    """The items by the pack that they sell, the one of the plan under None; and what they are. Raises Unmappable."""
    by_price = {stripe_id(item.get("price")): item for item in state["items"]["data"]}
    sold = StripePrice.objects.filter(pk__in=by_price).select_related("plan_price__plan", "slot_pack")
    prices = {row.pk: row for row in sold}
    plans = [row.plan_price for row in prices.values() if row.plan_price]
    if prices.keys() != by_price.keys() or len(plans) != 1:
        raise Unmappable("unknown_price", "At Stripe it has items that we do not sell: staff have to look at it.")
    items = {row.slot_pack_id: by_price[pk] for pk, row in prices.items()}
    packs = {row.slot_pack: units_of(items[row.slot_pack_id]) for row in prices.values() if row.slot_pack}
    return items, Bought(plans[0], units_of(items[None]), packs)


def units_of(item: dict[str, Any]) -> int:
    return 1 if item.get("quantity") is None else int(item["quantity"])


def target_of(subscription: Subscription, bought: Bought, wish: WishedChange) -> Bought:
    """What is bought once the wish has come true. Raises CurrencyStays, NoSuchPack, and what `_price` does."""
    price = bought.price
    if wish.currency and wish.currency != price.currency:
        raise CurrencyStays(f"{subscription.number} is paid in {price.currency}.")
    if wish.plan or wish.interval or wish.interval_count:
        price = _price(subscription, price, wish)
    packs = dict(bought.packs)
    known = {pack.code: pack for pack in SlotPack.objects.filter(code__in=wish.packs)} if wish.packs else {}
    for code, units in wish.packs.items():
        pack = known.get(code)
        if pack is None or (units > packs.get(pack, 0) and not pack.is_sold):
            raise NoSuchPack(f"There is no slot pack {code}.")
        packs[pack] = units
    packs = {pack: units for pack, units in packs.items() if units}
    for pack in packs:
        of_pack = pack.currency, pack.interval, pack.interval_count
        if of_pack != (price.currency, price.interval, price.interval_count):
            raise NoSuchPack(f"The slot pack {pack.code} is not paid as the plan is: per {price.interval}.")
    return Bought(price, bought.quantity if wish.quantity is None else wish.quantity, packs)


def _price(subscription: Subscription, present: PlanPrice, wish: WishedChange) -> PlanPrice:
    """The price of the wished plan, interval and count of it. Where the count is left out: the one as long as the
    present price, else the only one. Raises NoSuchPrice, InvalidPlan, AmbiguousPrice.
    """
    code, interval = wish.plan or present.plan.code, wish.interval or present.interval
    found = PlanPrice.objects.filter(plan__code=code, interval=interval, currency=present.currency)
    if wish.interval_count:
        found = found.filter(interval_count=wish.interval_count)
    prices = [*found.select_related("plan").order_by("interval_count")]
    if not prices or not (prices[0].plan.is_sold or prices[0].plan_id == present.plan_id):
        per = f"{wish.interval_count} {interval}s" if (wish.interval_count or 1) > 1 else interval
        raise NoSuchPrice(f"There is no plan {code} per {per} in {present.currency} to buy.")
    if prices[0].plan.type != subscription.type:
        raise InvalidPlan
    as_long = [p for p in prices if (p.interval, p.interval_count) == (present.interval, present.interval_count)]
    if len(prices) > 1 and not as_long:
        raise AmbiguousPrice(plan=code, sold=[named(price) for price in prices])
    return (as_long or prices)[0]
