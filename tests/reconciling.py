"""A comparison with Stripe as the tests do it: at once, at an instant, without waiting."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from django.utils import timezone

from subscriptions.audit import STRIPE, Actor
from webhooks import truth
from webhooks.models import Drift, Reconciliation
from webhooks.reconciling import reconcile
from webhooks.reconciling.comparing import Asker, By, Found
from webhooks.reconciling.pace import Pacer

NEVER_WAITS = Pacer(1e9, lambda: 0.0, lambda seconds: None)


def later(by: timedelta = timedelta(0)) -> Callable[[], datetime]:
    return lambda: timezone.now() + by


def hand(*, ahead: timedelta = timedelta(0), repairs: bool = True, writes: bool = True, actor: Actor = STRIPE,
         reason: str = "", source: str = "reconciliation") -> By:  # fmt: skip
    return By(Asker(NEVER_WAITS), later(ahead), source, actor, reason, repairs, writes)


def reconciled(
    *, ahead: timedelta = timedelta(0), repairs: bool = True, enough: Callable[[], bool] = lambda: False
) -> Reconciliation:
    """A run to its end."""

    def by(run: Reconciliation) -> By:
        return hand(ahead=ahead, repairs=repairs, source=f"reconciliation:{run.pk}")

    run = reconcile.go_on(by, now=later(ahead), enough=enough)
    assert run is not None
    return run


def looked(**how: Any) -> list[Found]:
    """A dry run: what differs."""
    return [found for page in reconcile.look(hand(writes=False, **how)) for found in page]


def kinds(drifts: Any = None) -> list[str]:
    """Of the open drift."""
    return sorted(Drift.objects.filter(resolved_at=None).values_list("kind", flat=True))


def here(at_stripe: dict[str, Any], **ahead: Any) -> None:
    """Bring it here as an event would have."""
    truth.refresh(at_stripe["id"], now=later(timedelta(**ahead)), source_id=f"test:{at_stripe['id']}:{timezone.now()}")


def instant(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
