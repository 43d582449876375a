"""What will become of devices, as far as it is known today: pure, but for the one query that counts them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from entitlements.models import TierAllocation
from entitlements.room import DURABILITY
from subscriptions.models import Subscription
from subscriptions.states import GRANTS_ACCESS, Status, Type


class Moment(Protocol):
    """Something that will happen: at which instant, and the subscription in memory as it is from then on."""

    @property
    def at(self) -> datetime: ...
    @property
    def subscription(self) -> Subscription: ...


@dataclass(frozen=True)
class Effect:
    """What happens to devices of one subscription and tier at an instant."""

    at: datetime
    subscription: Subscription
    what: str  # withheld, served, moved, parked
    devices: int
    tier: str


@dataclass
class _Held:
    """Slots of one tier that a subscription holds, as they are at a moment of the future."""

    subscription: Subscription
    tier: str
    limit: int
    used: int


def forecast(tenant_ids: Sequence[int], moments: Sequence[Moment]) -> list[Effect]:
    """What the moments do to the devices that are in slots today. One query; subscriptions without moments stay."""
    allocations = TierAllocation.objects.filter(tenant__in=tenant_ids, is_open=True, slot_limit__gt=0)
    held = [
        _Held(a.subscription, a.tier.code, a.slot_limit, a.slots_used)
        for a in allocations.select_related("subscription", "tier").order_by("pk")
    ]
    return [effect for moment in sorted(moments, key=lambda moment: moment.at) for effect in _effects(moment, held)]


def _effects(moment: Moment, held: list[_Held]) -> Iterator[Effect]:
    """What one moment does; `held` is as it leaves it."""
    s = moment.subscription
    for its in [one for one in held if one.subscription.pk == s.pk]:
        served, serves = (one.status in GRANTS_ACCESS for one in (its.subscription, s))
        its.subscription = s
        if s.status == Status.EXPIRED:
            yield from _leave(moment, its, held)
        elif its.used and served != serves:
            yield Effect(moment.at, s, "served" if serves else "withheld", its.used, its.tier)


def _leave(moment: Moment, its: _Held, held: list[_Held]) -> Iterator[Effect]:
    """Devices of what is over move into free slots elsewhere, and only then park."""
    held.remove(its)
    into = [
        one for one in held
        if one.tier == its.tier and one.subscription.tenant_id == its.subscription.tenant_id
        and one.subscription.status in GRANTS_ACCESS and one.subscription.term_start <= moment.at
    ]  # fmt: skip
    happens: Counter[str] = Counter()
    for one in sorted(into, key=lambda one: DURABILITY.index(Type(one.subscription.type))):
        moving = min(its.used - happens["moved"], one.limit - one.used)
        one.used += moving
        happens["moved"] += moving
    happens["parked"] = its.used - happens["moved"]
    for what, devices in happens.items():
        if devices:
            yield Effect(moment.at, moment.subscription, what, devices, its.tier)
