"""Every kind of notice: what brings it about, and for how long it is worth sending."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings

from subscriptions.models import Subscription
from subscriptions.states import Action, Status


@dataclass(frozen=True)
class Kind:
    """`template` names the pair of files under templates/notices; `still_true(subscription, anchor, now)` says whether
    it would still be right to send it.
    """

    name: str
    template: str
    still_true: Callable[[Subscription, datetime, datetime], bool]
    on: Action | None = None  # the audit action that brings it about, or
    before_term_end: timedelta | None = None  # how long before term_end it is due


def _renewal(days: int) -> Kind:
    return Kind(
        f"renewal_{days}",
        "renewal",
        lambda s, anchor, now: s.status == Status.ACTIVE and s.term_end == anchor and now < anchor,
        before_term_end=timedelta(days=days),
    )


ON_AUDIT = (
    Kind("grace_started", "grace_started", lambda s, anchor, now: s.status == Status.GRACE, on=Action.GRACE_STARTED),
    Kind("suspended", "suspended", lambda s, anchor, now: s.status == Status.SUSPENDED, on=Action.SUSPENDED),
)
# The most urgent first.
SCHEDULE = tuple(_renewal(days) for days in sorted(set(settings.NOTICE_DAYS)))

KINDS: Mapping[str, Kind] = {kind.name: kind for kind in (*ON_AUDIT, *SCHEDULE)}
