"""What can be bought, by its codes: our catalogue and nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from entitlements.models import SlotPack
from subscriptions.models import PlanPrice
from subscriptions.states import Type
from webhooks.errors import AmbiguousPrice, NoSuchPack, NoSuchPlan, NoSuchPrice, PlanTypeDiffers

BY_ITSELF = frozenset({Type.MAIN, Type.TEMPORARY})
BESIDE_A_MAIN = frozenset({Type.ADDON})


@dataclass(frozen=True)
class Order:
    """What somebody wants to buy. An interval, a currency, that are left out: the one there is."""

    plan: str
    interval: str = ""
    interval_count: int | None = None
    currency: str = ""
    quantity: int = 1
    packs: Mapping[str, int] = field(default_factory=dict)  # code → units


def price_for(order: Order, types: frozenset[Type]) -> PlanPrice:
    """The one price that fits, with its plan. One query.

    Raises NoSuchPlan, PlanTypeDiffers, NoSuchPrice, AmbiguousPrice.
    """
    sold = list(PlanPrice.objects.filter(plan__code=order.plan, plan__is_sold=True).select_related("plan"))
    if not sold:
        raise NoSuchPlan(f"There is no plan {order.plan} to buy.", plan=order.plan)
    if sold[0].plan.type not in types:
        raise PlanTypeDiffers(f"{order.plan} is of the type {sold[0].plan.type}.", plan=order.plan)
    fitting = [
        price
        for price in sold
        if order.interval in ("", price.interval)
        and order.interval_count in (None, price.interval_count)
        and order.currency in ("", price.currency)
    ]
    if not fitting:
        raise NoSuchPrice(plan=order.plan, sold=[named(price) for price in sold])
    if len(fitting) > 1:
        raise AmbiguousPrice(plan=order.plan, sold=[named(price) for price in fitting])
    return fitting[0]


def packs_for(order: Order, price: PlanPrice) -> list[tuple[SlotPack, int]]:
    """The slot packs that are bought beside the plan, in the order of their codes. Raises NoSuchPack."""
    if not order.packs:
        return []
    fitting = SlotPack.objects.filter(
        code__in=list(order.packs), is_sold=True, interval=price.interval, interval_count=price.interval_count,
        currency=price.currency,
    ).order_by("code")  # fmt: skip
    found = [(pack, order.packs[pack.code]) for pack in fitting]
    if missing := sorted(order.packs.keys() - {pack.code for pack, _ in found}):
        raise NoSuchPack(packs=missing)
    return found


def named(price: PlanPrice) -> dict[str, object]:
    """A price as the facts of an error name it."""
    return {name: getattr(price, name) for name in ("interval", "interval_count", "currency", "amount_minor")}
