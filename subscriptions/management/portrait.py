"""One subscription, as a person at a terminal asks for it: what it is, what comes next, all that happened to it."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from subscriptions import forecast
from subscriptions.errors import SubscriptionNotFound
from subscriptions.forecast import Step
from subscriptions.management import lines
from subscriptions.models import AuditEntry, SetAside, Subscription
from subscriptions.serving import serves

DATES = ("term_start", "term_end", "term_deadline", "grace_end", "suspension_end", "ended_at")
FLAGS = ("on_hold", "own_hold", "auto_renews", "cancel_at_term_end")


@dataclass(frozen=True)
class Portrait:
    subscription: Subscription
    others: list[Subscription]  # of its family, alive
    step: Step | None
    moves_with: Subscription | None  # what the clock moves, and it with it
    set_aside: SetAside | None
    history: list[AuditEntry]
    now: datetime
    changed: bool = False

    def as_json(self) -> dict[str, Any]:
        s = self.subscription
        return {
            "number": s.number,
            "tenant": s.tenant.slug,
            "type": s.type,
            "plan": s.plan.code,
            "price": s.price and str(s.price),
            "status": s.status,
            "serves": serves(s, self.now),
            **{column: _iso(getattr(s, column)) for column in DATES},
            "time_zone": s.time_zone,
            **{column: getattr(s, column) for column in FLAGS},
            "end_reason": s.end_reason,
            "family": [{"number": m.number, "type": m.type, "status": m.status} for m in self.others],
            "next_step": self.step
            and {"at": _iso(self.step.at), "status": self.step.status, "end_reason": self.step.end_reason},
            "set_aside": self.set_aside and {"since": _iso(self.set_aside.since), "error": self.set_aside.error},
            "audit": [lines.as_json(entry) for entry in self.history],
        }

    def lines(self) -> Iterator[str]:
        s = self.subscription
        yield f"{s.number}  {s.status}, {'serves' if serves(s, self.now) else 'does not serve'}"
        yield from (f"  {name:<15} {value}" for name, value in self._facts() if value)
        yield "  history"
        yield from (f"    {self._told(entry)}" for entry in self.history)

    def _facts(self) -> Iterator[tuple[str, str]]:
        s = self.subscription
        yield "tenant", f"{s.tenant.slug} ({s.tenant.name})"
        yield "type", s.type
        yield "plan", f"{s.plan.code} ({s.price or s.plan})"
        for column in DATES:
            if column != "term_deadline" or s.term_deadline != s.term_end:
                yield column.replace("_", " "), self._when(getattr(s, column))
        yield "ended because", s.get_end_reason_display() if s.end_reason else ""
        yield "renews", "by itself, says the payment provider" if s.auto_renews and not s.cancel_at_term_end else ""
        yield "cancelled", "at its term's end" if s.cancel_at_term_end else ""
        whose = "its own" if s.own_hold or not s.parent_id else "its main subscription's"
        yield "on hold", f"{whose}, until staff lift it" if s.on_hold else ""
        yield "family", ", ".join(f"{m.number} ({m.type}, {m.status})" for m in self.others)
        yield "next", self._next()
        if self.set_aside:
            yield "set aside", f"since {self._when(self.set_aside.since)}: {self.set_aside.error}"

    def _next(self) -> str:
        if self.step is None:
            return "nothing by itself"
        with_whom = f", with {self.moves_with.number}" if self.moves_with else ""
        return f"{self.step.status} at {self._when(self.step.at)}{with_whom}"

    def _told(self, entry: AuditEntry) -> str:
        why = "".join(f", {said}" for said in (entry.source_id, entry.reason) if said)
        head = f"{self._when(entry.effective_at)}  {entry.get_action_display()} by {entry.actor}{why}"
        changes = "; ".join(f"{column} {_plain(old)} → {_plain(new)}" for column, (old, new) in entry.changes.items())
        return f"{head}\n      {changes}"

    def _when(self, at: datetime | None) -> str:
        """In UTC, and where its days are counted."""
        if at is None:
            return ""
        zone = self.subscription.time_zone
        there = f" ({at.astimezone(ZoneInfo(zone)):%Y-%m-%d %H:%M:%S} {zone})" if zone != "UTC" else ""
        return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC{there}"


def portrait(number: str, now: datetime) -> Portrait:
    """Four queries, whatever its family and its history. Raises SubscriptionNotFound."""
    found = Subscription.objects.filter(number=number).first()
    if found is None:
        raise SubscriptionNotFound(f"There is no subscription {number}.")
    family = forecast.of_subscription(found)
    s = family.subject
    by_itself = s is family.root or s.cancel_at_term_end
    return Portrait(
        subscription=s,
        others=[m for m in (family.root, *family.addons) if m is not s and m.status != "EXPIRED"],
        step=forecast.next_step(s),
        moves_with=None if by_itself else family.root,
        set_aside=SetAside.objects.filter(root=s.root_id).first(),
        history=[*AuditEntry.objects.filter(subscription=s).select_related("subscription").order_by("version")],
        now=now,
    )


def _iso(at: datetime | None) -> str | None:
    return at.astimezone(UTC).isoformat() if at else None


def _plain(value: object) -> object:
    return "–" if value in (None, "") else value
