"""The verbs, one at a time. Families: test_families; the clock: test_clock; any sequence: test_lifecycle_properties."""

from datetime import UTC, datetime, timedelta

import pytest

from subscriptions import lifecycle
from subscriptions.audit import CLOCK, STRIPE
from subscriptions.errors import IllegalTransition, InvalidTerm, LiveMainExists, ReasonMissing, SubscriptionNotFound
from subscriptions.lifecycle import CancelAt, Purchase
from subscriptions.models import AuditEntry, Subscription
from subscriptions.states import Action, EndReason, Status, Type
from tests.builders import ALICE, FEB_1, JAN_1, MAR_1, PlanFactory, TenantFactory, subscription

pytestmark = pytest.mark.django_db
JAN_10 = datetime(2026, 1, 10, tzinfo=UTC)


def history(s: Subscription) -> list[tuple[str, str]]:
    return [(e.action, e.actor) for e in s.audit.order_by("version")]


def test_a_start_writes_the_subscription_and_its_first_audit_entry() -> None:
    s = subscription(term=(JAN_1, FEB_1))
    entry = s.audit.get()
    assert (s.status, s.type, s.version) == (Status.ACTIVE, Type.MAIN, 1)
    assert (entry.action, entry.actor, entry.reason, entry.effective_at) == (
        Action.STARTED, ALICE, "ordered by letter", JAN_1,
    )  # fmt: skip
    assert entry.changes["status"] == [None, "ACTIVE"]
    assert entry.changes["term_end"] == [None, "2026-02-01T00:00:00+00:00"]


def test_a_number_names_the_day_and_five_crockford_characters() -> None:
    assert Subscription.objects.filter(number__regex=r"^SUB-20260101-[0-9A-HJKMNP-TV-Z]{5}$").get(pk=subscription().pk)
