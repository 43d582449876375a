"""What changes here is so at Stripe soon after: rows, delivered until Stripe has it."""

from typing import Any

import pytest
from django.utils import timezone

from billing_site.verbs import carry_out
from subscriptions.management.verbs import By
from subscriptions.models import Subscription
from tests.builders import ALICE
from tests.stripe_cast import bought_at_stripe, rings
from tests.stripe_sandbox.client import Sandbox
from webhooks import inbox, outbound
from webhooks.models import StripeLink, Telling

pytestmark = pytest.mark.django_db

DONE, PENDING, STUCK = Telling.State.DONE, Telling.State.PENDING, Telling.State.STUCK


def bought(stripe: Sandbox, **more: Any) -> Subscription:
    """ACTIVE at Stripe and here."""
    stripe_id = bought_at_stripe(stripe, **more)["id"]
    assert inbox.apply(rings(stripe_id).pk, now=timezone.now()) == "started"
    return Subscription.objects.get(stripe_link=stripe_id)


def there(stripe: Sandbox, s: Subscription) -> dict[str, Any]:
    found: dict[str, Any] = stripe.api("GET", f"/v1/subscriptions/{link(s)}")
    return found


def link(s: Subscription) -> str:
    return str(StripeLink.objects.get(subscription=s).pk)


def does(verb: str, s: Subscription, **options: Any) -> None:
    """Alice does it in the back office, or at a terminal."""
    carry_out(verb, s.number, options, By(ALICE, timezone.now(), "as agreed"))
    s.refresh_from_db()


def deliver() -> list[str]:
    return [outcome for _, outcome in outbound.deliver(now=timezone.now)]


def rows() -> list[tuple[str, str]]:
    return [*Telling.objects.order_by("pk").values_list("aspect", "state")]


def ring(s: Subscription) -> str | None:
    return inbox.apply(rings(link(s)).pk, now=timezone.now())


def test_what_staff_cancel_at_term_end_ends_there_at_stripe_and_goes_on_where_they_resume_it(stripe: Sandbox) -> None:
    s = bought(stripe)
    does("cancel", s, at="term-end")
    assert (rows(), deliver()) == ([("TERM_END", PENDING)], ["told"])
    assert there(stripe, s)["cancel_at_period_end"] is True
    does("resume", s)
    assert deliver() == ["told"]
    assert (there(stripe, s)["cancel_at_period_end"], there(stripe, s)["cancel_at"]) == (False, None)
    assert rows() == [("TERM_END", DONE)] * 2
