"""What will happen, in one list. Each part forecasts its own, from the tables that it acts by; here they are merged.

Deadlines come first: the other parts are told, moment by moment, how the subscriptions will be.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from entitlements import forecast as slots
from notifications import forecast as notices
from notifications import kinds
from notifications.models import Notice
from subscriptions import forecast as deadlines
from subscriptions import terms
from subscriptions.families import Family
from subscriptions.forecast import Moment, WhatIf
from subscriptions.models import Subscription, Tenant


@dataclass(frozen=True)
class Line:
    """One thing that will happen to one subscription."""

    at: datetime
    subscription: str  # its number
    what: str  # an action of the audit, or the kind of a notice
    why: str
    source: str  # the part that says so, one of SOURCES


@dataclass(frozen=True)
class Course:
    """What is known of some families before the parts are asked."""

    now: datetime
    until: datetime
    present: list[Subscription]
    moments: list[Moment]


def of_subscription(
    subscription: Subscription, *, now: datetime, until: datetime | None = None, what_if: Sequence[WhatIf] = ()
) -> list[Line]:
    """What will happen to it before `until`, and where it is a MAIN, to its add-ons. Three queries.

    Raises what `subscriptions.forecast` raises for a `what_if`.
    """
    lines = _merged([deadlines.of_subscription(subscription)], now, until, what_if)
    return [line for line in lines if line.subscription == subscription.number or not subscription.parent_id]


def of_tenant(tenant: Tenant, *, now: datetime, until: datetime | None = None) -> list[Line]:
    """What will happen to everything that a tenant has, before `until`. Three queries."""
    return _merged(deadlines.of_tenant(tenant.pk), now, until)


def _merged(
    families: list[Family], now: datetime, until: datetime | None, what_if: Sequence[WhatIf] = ()
) -> list[Line]:
    until = until or terms.LATEST
    moments = [m for family in families for m in deadlines.forecast(family, now=now, until=until, what_if=what_if)]
    present = [member for family in families for member in (family.root, *family.addons)]
    course = Course(now, until, present, moments)
    return sorted((line for said in SOURCES.values() for line in said(course)), key=lambda line: line.at)


def _deadlines(course: Course) -> Iterable[Line]:
    return [Line(m.at, m.subscription.number, m.action, m.why, "deadline") for m in course.moments]


def _notices(course: Course) -> Iterable[Line]:
    sent = Notice.objects.filter(subscription__in=course.present).exclude(state=Notice.State.CANCELLED)
    told = [*sent.values_list("subscription_id", "kind", "anchor")]
    expected = notices.forecast(course.present, course.moments, now=course.now, until=course.until, told=told)
    return [Line(n.at, n.subscription.number, n.kind, _why_told(n.kind, n.anchor), "notice") for n in expected]


def _why_told(kind: str, anchor: datetime) -> str:
    match kinds.named(kind):
        case kinds.Milestone(column=column):
            return f"Its {column.replace('_', ' ')} comes near: {anchor.astimezone(UTC):%-d %B %Y}"
    return "The tenant is told that it happened"


def _slots(course: Course) -> Iterable[Line]:
    tenants = sorted({s.tenant_id for s in course.present})
    return [
        Line(e.at, e.subscription.number, f"devices_{e.what}", _SLOTS[e.what].format(_devices(e)), "slot")
        for e in slots.forecast(tenants, course.moments)
    ]


_SLOTS = {
    "withheld": "{} are not served while it is suspended",
    "served": "{} are served again",
    "moved": "{} move into free slots of the tenant's other subscriptions",
    "parked": "{} lose their slots and wait for others",
}


def _devices(effect: slots.Effect) -> str:
    return f"{effect.devices} {'device' if effect.devices == 1 else 'devices'} of the tier {effect.tier}"


# Who forecasts what. Of one instant, the first here comes first.
SOURCES: dict[str, Callable[[Course], Iterable[Line]]] = {
    "deadline": _deadlines,
    "slot": _slots,
    "notice": _notices,
}
