"""The workers' side: what is heard from Stripe, compared with it, and told to it, a minute at a time."""

import logging
import time
from datetime import timedelta

from celery import current_app, shared_task
from django.conf import settings
from django.utils import timezone

from webhooks import inbox, poke
from webhooks.models import Reconciliation
from webhooks.outgoing import by_device, outbound, telling
from webhooks.reconciling import reconcile as comparison
from webhooks.reconciling.comparing import Asker, By
from webhooks.reconciling.pace import Pacer
from webhooks.stripe_api import StripeError

log = logging.getLogger(__name__)

LONGEST = timedelta(seconds=60)


@shared_task
def drain_inbox() -> None:
    """Apply what is due. Poked after an intake; several may run at once."""
    tried, enough = 0, timezone.now() + LONGEST
    for event_id, outcome in inbox.drain(now=timezone.now):
        tried += 1
        log.info("%s: %s", event_id, outcome)
        if timezone.now() > enough:  # a slow Stripe must not keep the clock and the mail from this worker
            drain_inbox.delay()
            return
    # Who found nothing schedules nothing: else each poke and each sweep would add one more that wakes for every retry.
    if tried and (wait := inbox.seconds_to_next(now=timezone.now(), within=settings.INBOX_SWEEP_SECONDS)):
        drain_inbox.apply_async(countdown=wait, expires=settings.INBOX_SWEEP_SECONDS)


@shared_task
def sweep_inbox() -> None:
    """Find what no poke announced: it was lost, a worker died, or a retry is due."""
    for _ in range(min(inbox.due(now=timezone.now()), poke.MOST_AT_ONCE)):
        current_app.send_task(drain_inbox.name)


@shared_task
def reconcile() -> None:
    """Compare everything with Stripe: a minute of it, then the next task goes on. One run is under way at a time."""
    if not settings.STRIPE_SECRET_KEY:
        return
    enough = timezone.now() + LONGEST
    ask = Asker(_pacer())

    def by(run: Reconciliation) -> By:
        return By(ask, timezone.now, f"reconciliation:{run.pk}", repairs=settings.RECONCILE_REPAIRS)

    run = comparison.go_on(by, now=timezone.now, enough=lambda: timezone.now() > enough)
    if run is None:
        return
    log.info("%s: %s, %d compared, %d differed, %d repaired, %d reads %s", run, run.phase, run.compared, run.found,
             run.repaired, run.reads, run.error_code)  # fmt: skip
    if not run.finished_at and not run.error_code:
        reconcile.delay()


@shared_task
def ask_about_settling() -> None:
    """A renewal that was paid and that no event told of is here before its settlement window is over."""
    if not settings.STRIPE_SECRET_KEY:
        return
    try:
        comparison.ask_about_settling(By(Asker(_pacer()), timezone.now, "settling"))
    except StripeError as error:
        log.warning("Terms that settle: %s", error.code)


def _pacer() -> Pacer:
    return Pacer(settings.RECONCILE_READS_PER_SECOND, time.monotonic, time.sleep)


@shared_task
def tell_stripe() -> None:
    """Make rows of what nobody has told yet, and deliver those that are due. Several may run at once."""
    by_device.lower(now=timezone.now())
    telling.catch_up(now=timezone.now())
    enough = timezone.now() + LONGEST
    for which, outcome in outbound.deliver(now=timezone.now):
        log.info("%s: %s", which, outcome)
        if timezone.now() > enough:  # as above: the next run goes on
            return
