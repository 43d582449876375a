"""Everything at Stripe beside everything here, page by page: a lost event is found, and brought here.

One row of Reconciliation is a run. It keeps how far it has come after every page, so a run that was killed goes on
there; whoever compares holds its lease. Reads are spaced (`pace`), and no transaction is open while Stripe is asked.
"""

import logging
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import F, Q, QuerySet
from djstripe.models import Customer

from subscriptions.models import Subscription, Tenant
from subscriptions.states import Status
from webhooks import stripe_api
from webhooks.models import Drift, Reconciliation, StripeLink
from webhooks.reconciling import money
from webhooks.reconciling.comparing import (
    GONE,
    NO_SUCH,
    NOT_APPLIED,
    By,
    Found,
    ask_and_apply,
    compare,
    read_state,
    record,
)
from webhooks.reconciling.here import Said
from webhooks.stripe_api import StripeError, StripeRefused, StripeUnavailable

log = logging.getLogger(__name__)

FORBIDDEN = (401, 403)
# Taken anew after each page. A page that lasts longer, at a slow pace, may be another worker's by then: it is dropped.
LEASE = timedelta(minutes=5)
EXPANDED = ["data.latest_invoice", "data.schedule"]
ONE_BY_ONE = 25  # links asked about between two looks at the clock
MOST_AGAIN = 500  # that were refused, asked about once more at the end
ASKED_AGAIN = timedelta(minutes=5)  # about a term that settles
ENDS_SOON = timedelta(minutes=10)  # and was cancelled: Stripe is asked before the clock ends it for good
LONGEST_RUN = timedelta(days=1)  # what keeps it from its end for longer must not keep the next one from beginning

Phase = Reconciliation.Phase
Tell = Callable[[Found], None]


class LostLease(Exception):
    """Somebody else goes on with this run."""


def go_on(
    by: Callable[[Reconciliation], By],
    *,
    now: Callable[[], datetime],
    enough: Callable[[], bool] = lambda: False,
    tell: Tell = lambda found: None,
    tick: Callable[[Reconciliation], None] = lambda run: None,
) -> Reconciliation | None:
    """Go on with the run that is open, or begin one, until it is done or `enough` says so, between two pages; None if
    somebody else is at it. Safe to be killed at any moment. A Stripe that does not answer stops it, with `error_code`.
    """
    run = _claim(now())
    if run is None:
        return None
    hand = by(run)
    try:
        while run.phase != Phase.DONE and not enough():
            reads = hand.ask.reads
            found, on_their_way = _PHASES[Phase(run.phase)](run, hand)
            run.found += len(found)
            run.repaired += sum(1 for each in found if each.resolution)
            run.reads += hand.ask.reads - reads
            with transaction.atomic():
                record(found, on_their_way, now=now())
                if run.phase == Phase.DONE:
                    _close_unseen(run, now())
                    run.finished_at = now()
                _keep(run, now())
            for each in found:
                tell(each)
            tick(run)
        run.error_code = ""
    except (StripeUnavailable, StripeRefused) as error:
        run.error_code = error.code[:64]
    except LostLease:
        return None
    _release(run)
    return run


def _claim(now: datetime) -> Reconciliation | None:
    _give_up_what_never_ends(now)
    try:
        run, _ = Reconciliation.objects.get_or_create(finished_at=None, defaults={"started_at": now})
    except IntegrityError:  # begun by another one at the same moment
        run = Reconciliation.objects.get(finished_at=None)
    free = Q(lease_until=None) | Q(lease_until__lte=now)
    run.lease_until = now + LEASE
    mine = Reconciliation.objects.filter(free, pk=run.pk, finished_at=None).update(lease_until=run.lease_until)
    if not mine:
        return None
    run.refresh_from_db()
    return run


def _give_up_what_never_ends(now: datetime) -> None:
    """A run that trips over the same thing again and again: its phase and its error stay to be seen."""
    free = Q(lease_until=None) | Q(lease_until__lte=now)
    begun = Reconciliation.objects.filter(free, finished_at=None, started_at__lte=now - LONGEST_RUN)
    begun.update(finished_at=now, lease_until=None)


def _keep(run: Reconciliation, now: datetime) -> None:
    """How far it has come. Raises LostLease."""
    held, run.lease_until = run.lease_until, now + LEASE
    names = ("phase", "cursor", "compared", "found", "repaired", "reads", "lease_until", "finished_at")
    kept = Reconciliation.objects.filter(pk=run.pk, lease_until=held).update(
        **{name: getattr(run, name) for name in names}, error_code=""
    )
    if not kept:
        raise LostLease


def _release(run: Reconciliation) -> None:
    mine = Reconciliation.objects.filter(pk=run.pk, lease_until=run.lease_until)
    mine.update(lease_until=None, error_code=run.error_code)


def _close_unseen(run: Reconciliation, now: datetime) -> None:
    """What was not found any more is gone. Refunds and disputes do not go by themselves: see `money`."""
    unseen = Drift.objects.filter(resolved_at=None, seen_at__lt=run.started_at)
    unseen.exclude(kind__in=money.KINDS).update(resolved_at=now, resolution=GONE)


# --- the phases, a page at a time: what was found, and what is not to be judged yet ----------------------------------

Page = tuple[list[Found], list[str]]


def _stripe(run: Reconciliation, by: By) -> Page:
    try:
        said, more = _listed(by, run.cursor)
    except StripeRefused as error:
        if not run.cursor or error.code != NO_SUCH:
            raise
        run.cursor = ""  # the last one that was seen is gone: from the beginning
        return [], []
    page = compare(said, by)
    StripeLink.objects.filter(pk__in=[*said]).update(compared_at=by.now())
    run.compared += len(said)
    run.cursor = [*said][-1] if more else ""
    if not more:
        run.phase = Phase.OURS
    return page


def _ours(run: Reconciliation, by: By) -> Page:
    links = [*_not_seen(_served(), run.started_at, run.cursor)]
    page = _one_by_one(links if run.cursor else [*dict.fromkeys([*_refused(run), *links])], by)
    StripeLink.objects.filter(pk__in=links).update(compared_at=by.now())
    run.compared += len(links)
    run.cursor = links[-1] if links else ""
    if len(links) < ONE_BY_ONE:
        run.phase, run.cursor = Phase.MONEY, ""
    return page


def _money(run: Reconciliation, by: By) -> Page:
    """A key that may not see refunds or disputes keeps nobody from being compared: the run ends without them."""
    before = Reconciliation.objects.filter(finished_at__isnull=False, phase=Phase.DONE).order_by("-pk").first()
    since = before.started_at - money.OVERLAP if before else run.started_at - money.FIRST
    try:
        found, run.cursor = money.page(run.cursor, since, by)
    except StripeError as error:
        if isinstance(error, StripeUnavailable) and error.said.http_status not in FORBIDDEN:
            raise
        log.error("Refunds and disputes cannot be read: %s %s", error.code, error.detail)
        found, run.cursor = [], ""
    if not run.cursor:
        run.phase = Phase.DONE
    return found, []


_PHASES: dict[Reconciliation.Phase, Callable[[Reconciliation, By], Page]] = {
    Phase.STRIPE: _stripe,
    Phase.OURS: _ours,
    Phase.MONEY: _money,
}


def _listed(by: By, after: str, **only: str) -> tuple[Said, bool]:
    rows, more = by.ask(
        stripe_api.list_page, "/v1/subscriptions", after=after, status="all", expand=EXPANDED, **only
    )  # fmt: skip
    return {row["id"]: read_state(row) for row in rows}, more


def _served() -> "QuerySet[StripeLink]":
    return StripeLink.objects.exclude(subscription=None).exclude(subscription__status=Status.EXPIRED)


def _refused(run: Reconciliation) -> "QuerySet[Drift, str]":
    """What could not be brought here when it came up, and may be now that all has: an add-on before its MAIN."""
    refused = Drift.objects.filter(resolved_at=None, seen_at__gte=run.started_at, ours__has_key=NOT_APPLIED)
    return refused.order_by("object_id").values_list("object_id", flat=True).distinct()[:MOST_AGAIN]


def _not_seen(links: "QuerySet[StripeLink]", since: datetime, after: str) -> "QuerySet[StripeLink, str]":
    unseen = Q(compared_at=None) | Q(compared_at__lt=since)
    return links.filter(unseen, pk__gt=after).order_by("pk").values_list("pk", flat=True)[:ONE_BY_ONE]


def _one_by_one(links: list[str], by: By) -> Page:
    """Those that were not in the list."""
    found: list[Found] = []
    on_their_way: list[str] = []
    for stripe_id in links:
        try:
            state = read_state(by.ask(stripe_api.fetch_subscription, stripe_id))
            some, waiting = compare({stripe_id: state}, by)
        except StripeRefused as error:
            if error.code != NO_SUCH:
                raise
            some, waiting = compare({stripe_id: None}, by)
        found += some
        on_their_way += waiting
    return found, on_their_way


# --- beside the run --------------------------------------------------------------------------------------------------


def look(by: By, tenant: Tenant | None = None) -> Iterator[list[Found]]:
    """Compare everything, or all that is a tenant's, in one go and without a run: a list for each page. With `writes`
    what is found is recorded. Raises StripeUnavailable, StripeRefused.
    """
    seen: set[str] = set()
    began = by.now()
    customers = [*Customer.objects.filter(subscriber=tenant).values_list("id", flat=True)] if tenant else [""]
    for customer in customers:
        after, more = "", True
        while more:
            said, more = _listed(by, after, **({"customer": customer} if customer else {}))
            seen |= said.keys()
            after = [*said][-1] if said else ""
            yield _kept(compare(said, by), by)
    links = _served().filter(subscription__tenant=tenant) if tenant else _served()
    after = ""
    while page := [*links.filter(pk__gt=after).order_by("pk").values_list("pk", flat=True)[:100]]:
        after = page[-1]
        if unseen := [pk for pk in page if pk not in seen]:
            yield _kept(_one_by_one(unseen, by), by)
    if by.writes and tenant:
        gone = Drift.objects.filter(tenant=tenant, resolved_at=None, seen_at__lt=began).exclude(kind__in=money.KINDS)
        gone.update(resolved_at=by.now(), resolution=GONE)


def _kept(page: Page, by: By) -> list[Found]:
    if by.writes:
        record(*page, now=by.now())
    return page[0]


def ask_about_settling(by: By, *, limit: int = 100) -> int:
    """Ask about terms that are over and whose renewal may be settling at Stripe, the longest over first, and those that
    end in a moment because they were cancelled, which may be undone there; how many.

    Each every few minutes at most: what an event would have told comes a little later. Raises StripeUnavailable.
    """
    now = by.now()
    window = {"term_end__lte": now, "term_end__gt": now - timedelta(hours=settings.SETTLEMENT_HOURS)}
    over = Q(status=Status.ACTIVE, **window) | Q(status=Status.TRIAL, **window)
    soon = {"term_end__gt": now, "term_end__lte": now + ENDS_SOON, "cancel_at_term_end": True}
    ends = Q(status=Status.ACTIVE, **soon) | Q(status=Status.TRIAL, **soon)
    not_asked = Q(stripe_link__compared_at=None) | Q(stripe_link__compared_at__lte=now - ASKED_AGAIN)
    links = (
        Subscription.objects.filter(over & Q(term_deadline__gt=F("term_end")) | ends, not_asked, auto_renews=True)
        .filter(stripe_link__isnull=False, parent=None)
        .order_by("term_end")
        .values_list("stripe_link", flat=True)[:limit]
    )
    asked = [*links]
    for stripe_id in asked:
        StripeLink.objects.filter(pk=stripe_id).update(compared_at=by.now())
        ask_and_apply(stripe_id, by)
    return len(asked)
