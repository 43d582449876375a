"""Comparing what Stripe says with what we have, looking closely at what differs, and writing down what is left.

A page of Stripe's list is a moment old when we read what we have. So what differs is asked about once more before it
counts, and brought here by that where it can be: every repair is `truth.apply`, under a ticket.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeVar

from django.db import connection, transaction

from subscriptions.audit import STRIPE, Actor
from subscriptions.errors import DomainError
from webhooks import stripe_api, truth
from webhooks.converge import NOTHING_NEW, Overtaken
from webhooks.models import Drift, Telling
from webhooks.reconciling.differences import Difference, Here, differences, is_on_its_way, unknown_at_stripe
from webhooks.reconciling.here import Said, known_here
from webhooks.reconciling.pace import Pacer
from webhooks.stripe_api import StripeRefused, StripeUnavailable
from webhooks.stripe_state import Unmappable, Wanted, wanted

log = logging.getLogger(__name__)

Kind = Drift.Kind
T = TypeVar("T")
MOST_PAUSES = 5  # that Stripe asks for before one request; then it has other worries
TOO_MANY, LONGEST_PAUSE_SECONDS = 429, 60
NO_SUCH = "resource_missing"
GONE, GONE_MEANWHILE, DISMISSED = "gone by itself", "gone meanwhile", "dismissed"
NOT_APPLIED = "not brought here"  # the name, on our side, of why asking again did not mend it

RESOLVE = """
    UPDATE stripe_drifts AS drift SET resolved_at = %(now)s, resolution = found.resolution, seen_at = %(now)s
      FROM jsonb_to_recordset(%(found)s) AS found (object_id text, kind text, resolution text)
     WHERE drift.object_id = found.object_id AND drift.kind = found.kind AND drift.resolved_at IS NULL
       AND found.resolution <> ''
    RETURNING drift.object_id, drift.kind"""

# What staff dismissed stays dismissed, as long as it is the same.
RECORD = """
    INSERT INTO stripe_drifts AS drift (object_id, kind, severity, subscription_id, tenant_id, ours, theirs,
                                        resolution, found_at, seen_at, resolved_at)
    SELECT object_id, kind, severity, subscription_id, tenant_id, ours, theirs, resolution, %(now)s, %(now)s,
           CASE WHEN resolution <> '' THEN %(now)s::timestamptz END
      FROM jsonb_to_recordset(%(found)s) AS found (object_id text, kind text, severity text, subscription_id bigint,
           tenant_id bigint, ours jsonb, theirs jsonb, resolution text)
     WHERE NOT EXISTS (SELECT FROM stripe_drifts AS before
                        WHERE before.object_id = found.object_id AND before.kind = found.kind
                          AND before.resolved_at IS NOT NULL AND before.resolution LIKE %(dismissed)s
                          AND before.ours = found.ours AND before.theirs = found.theirs)
    ON CONFLICT (object_id, kind) WHERE resolved_at IS NULL
    DO UPDATE SET seen_at = EXCLUDED.seen_at, ours = EXCLUDED.ours, theirs = EXCLUDED.theirs,
                  severity = EXCLUDED.severity, subscription_id = EXCLUDED.subscription_id,
                  tenant_id = EXCLUDED.tenant_id"""


@dataclass
class Asker:
    """Asks Stripe at the pace that is kept, and rests when it is told to; counts."""

    pacer: Pacer
    reads: int = 0

    def __call__(self, ask: Callable[..., T], *args: Any, **params: Any) -> T:
        """Raises StripeUnavailable, StripeRefused."""
        for pause in range(MOST_PAUSES + 1):
            self.pacer()
            self.reads += 1
            try:
                return ask(*args, **params)
            except StripeUnavailable as error:
                if error.said.http_status != TOO_MANY or pause == MOST_PAUSES:
                    raise
                self.pacer.pause(min(error.said.retry_after_seconds or 1, LONGEST_PAUSE_SECONDS))
        raise AssertionError


@dataclass(frozen=True)
class By:
    """Who compares, with what leave, and what a repair's audit entry calls it."""

    ask: Asker
    now: Callable[[], datetime]
    source: str
    actor: Actor = STRIPE
    reason: str = ""
    repairs: bool = True
    writes: bool = True  # else a dry run: nothing at all is written


@dataclass(frozen=True)
class Found:
    """A difference, still there or, with a resolution, mended."""

    object_id: str
    difference: Difference
    subscription_id: int | None = None
    number: str = ""
    tenant_id: int | None = None
    tenant: str = ""
    resolution: str = ""

    def row(self) -> dict[str, Any]:
        d = self.difference
        return {
            "object_id": self.object_id, "kind": d.kind, "severity": d.severity, "ours": d.ours, "theirs": d.theirs,
            "subscription_id": self.subscription_id, "tenant_id": self.tenant_id, "resolution": self.resolution,
        }  # fmt: skip


def read_state(at_stripe: dict[str, Any]) -> Wanted | Unmappable:
    try:
        return wanted(at_stripe)
    except Unmappable as error:
        return error


def compare(said: Said, by: By) -> tuple[list[Found], list[str]]:
    """What differs, or did until now; and which are not to be judged yet, for news of them are on their way. A constant
    number of statements where nothing differs, and a question to Stripe for each that does.

    Raises StripeUnavailable.
    """
    known, now = known_here(said), by.now()
    differing = {
        stripe_id: differ for stripe_id, state in said.items() if (differ := _all(known[stripe_id], state, now))
    }
    on_their_way = [stripe_id for stripe_id in said if is_on_its_way(known[stripe_id])]
    still = _open(differing) if differing else {}
    found: list[Found] = []
    for stripe_id, differ in reversed(differing.items()):  # the oldest first: a MAIN before its add-ons
        is_as_before = {d.kind: (d.ours, d.theirs) for d in differ} == still.get(stripe_id)
        if is_as_before and not (by.repairs and any(d.converges for d in differ)):
            found += [_of(known[stripe_id], stripe_id, d) for d in differ]
        else:
            found += look_closely(stripe_id, differ, known[stripe_id], by)
    return found, on_their_way


def look_closely(stripe_id: str, differ: Sequence[Difference], before: Here, by: By) -> list[Found]:
    """Ask Stripe again, apply what can be, and compare anew: what is left, and what was mended.

    Raises StripeUnavailable.
    """
    may_apply = by.writes and by.repairs
    is_over = bool(before.rival) and _is_over(before.rival, by, may_apply)
    if is_over and before.ours is None:  # not bought twice, but anew
        differ = [replace(d, kind=Kind.UNKNOWN_HERE) if d.kind == Kind.DUPLICATE else d for d in differ]
    outcome, why, state = NOTHING_NEW, "", None
    if may_apply and (is_over or any(d.converges for d in differ)):
        outcome, why, state = ask_and_apply(stripe_id, by)
    else:
        state = _asked(stripe_id, by)
    here = known_here({stripe_id: state})[stripe_id]
    if is_over:
        here = replace(here, rival="")
    left = _all(here, state, by.now())
    why = why or (_cannot_be_told(stripe_id) if left else "")
    if why:
        left = [replace(d, ours=d.ours | {NOT_APPLIED: why}) for d in left]
    kinds = {d.kind for d in left}
    mended = [d for d in differ if d.kind not in kinds] if outcome != NOTHING_NEW else []
    whose = here if here.tenant_id else before
    return [_of(whose, stripe_id, d) for d in left] + [_of(whose, stripe_id, d, f"repaired: {outcome}") for d in mended]


def _cannot_be_told(stripe_id: str) -> str:
    """Why what Stripe says does not count here: something else is ours to say, and could not be said."""
    stuck = Telling.objects.filter(link=stripe_id, state=Telling.State.STUCK).order_by("pk").first()
    return f"{stuck.get_aspect_display()!r} could not be told: {stuck.error_code}" if stuck else ""


def _all(here: Here, state: Wanted | Unmappable | None, now: datetime) -> list[Difference]:
    return unknown_at_stripe(here) if state is None else differences(here, state, now=now)


def _of(here: Here, stripe_id: str, difference: Difference, resolution: str = "") -> Found:
    ours = here.ours
    return Found(
        stripe_id, difference, ours.pk if ours else None, ours.number if ours else "", here.tenant_id, here.tenant,
        resolution[:255],
    )  # fmt: skip


def _asked(stripe_id: str, by: By) -> Wanted | Unmappable | None:
    """None if Stripe knows none. Raises StripeUnavailable."""
    try:
        return read_state(by.ask(stripe_api.fetch_subscription, stripe_id))
    except StripeRefused as error:
        if error.code != NO_SUCH:
            raise StripeUnavailable(error.code, error.detail) from None
        return None


def ask_and_apply(stripe_id: str, by: By) -> tuple[str, str, Wanted | Unmappable | None]:
    """Ask Stripe, and bring the answer here: what that came to, or nothing new; why it could not be; what Stripe says.

    Raises StripeUnavailable.
    """
    ticket = truth.take_ticket(stripe_id)
    state = _asked(stripe_id, by)
    if not isinstance(state, Wanted):
        return NOTHING_NEW, "", state

    def finish(outcome: str, applied_ticket: int, subscription_id: int | None) -> bool:
        return truth.mark_applied(stripe_id, ticket, applied_ticket, subscription_id)

    try:
        source = f"{by.source}:{stripe_id}~{ticket}"  # an asking of its own each time
        said = truth.apply(
            state, ticket, finish, now=by.now(), actor=by.actor, source_id=source, reason=by.reason
        )  # fmt: skip
        return said, "", state
    except StripeUnavailable:
        raise
    except (Unmappable, DomainError, StripeRefused) as error:
        return NOTHING_NEW, f"{error.code}: {error.detail}", state
    except Overtaken:
        return NOTHING_NEW, "", state
    except Exception as error:  # a bug of ours with one of them must not keep the others from being compared
        log.exception("Applying %s failed", stripe_id)
        connection.close_if_unusable_or_obsolete()
        return NOTHING_NEW, f"unexpected: {type(error).__name__}", state


def _is_over(stripe_id: str, by: By, may_apply: bool) -> bool:
    """Whether the other one of two is over at Stripe, which may not have been brought here yet."""
    state: Wanted | Unmappable | None
    state = ask_and_apply(stripe_id, by)[2] if may_apply else _asked(stripe_id, by)
    return state is None or (isinstance(state, Wanted) and state.status == "EXPIRED")


# --- what is written down --------------------------------------------------------------------------------------------


def _open(stripe_ids: Sequence[str] | dict[str, Any]) -> dict[str, dict[str, tuple[Any, Any]]]:
    """Of each, the differences that are known already."""
    rows = Drift.objects.filter(object_id__in=[*stripe_ids], resolved_at=None)
    found: dict[str, dict[str, tuple[Any, Any]]] = {}
    for object_id, kind, ours, theirs in rows.values_list("object_id", "kind", "ours", "theirs"):
        found.setdefault(object_id, {})[kind] = (ours, theirs)
    return found


def record(found: Sequence[Found], on_their_way: Sequence[str], *, now: datetime) -> None:
    """Keep what was found: new rows, the same ones seen again, mended ones resolved."""
    if on_their_way:
        Drift.objects.filter(object_id__in=on_their_way, resolved_at=None).update(seen_at=now)
    if not found:
        return
    rows = [each.row() for each in found]
    with transaction.atomic(), connection.cursor() as cursor:
        resolved: set[tuple[str, str]] = set()
        if any(row["resolution"] for row in rows):
            cursor.execute(RESOLVE, {"found": json.dumps(rows), "now": now})
            resolved = set(cursor.fetchall())
        new = [row for row in rows if (row["object_id"], row["kind"]) not in resolved]
        if new:
            cursor.execute(RECORD, {"found": json.dumps(new), "now": now, "dismissed": f"{DISMISSED}%"})
