"""Where Stripe and we are of two minds: nobody pays for nothing, nothing is served unpaid, and it is seen."""

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import transaction
from django.utils import timezone

from billing_site.local.process import wait_until
from subscriptions import lifecycle
from subscriptions.models import Subscription
from subscriptions.states import Status
from tests.builders import ALICE, PlanPriceFactory, TenantFactory
from tests.history import advance, by
from tests.reconciling import hand, kinds, reconciled
from tests.stripe_cast import bought_at_stripe, rings
from tests.stripe_sandbox.client import Sandbox
from tests.test_inbox_races import PATIENCE_SECONDS, meanwhile, somebody_waits_for_a_lock, tries
from tests.test_outbound import bought, deliver, does, link, ring, rows, there, with_addon
from webhooks import inbox
from webhooks.catalogue import customer_of
from webhooks.models import Checkout, Drift, Reconciliation, StripeEvent, StripeLink, Telling
from webhooks.outgoing import outbound, telling
from webhooks.reconciling import reconcile, repairs

pytestmark = pytest.mark.django_db

DAY = timedelta(days=1)
VOID = {"behavior": "void"}


def at_stripe(stripe: Sandbox, s: Subscription, **changes: Any) -> None:
    stripe.api("POST", f"/v1/subscriptions/{link(s)}", **changes)


def status(s: Subscription) -> str:
    s.refresh_from_db()
    return s.status


def cancelled_and_undone(stripe: Sandbox) -> Subscription:
    """At Stripe; of the undoing nobody told us."""
    s = bought(stripe)
    stripe.cancel(link(s), at_period_end=True)
    assert ring(s) == "cancelled at term end"
    at_stripe(stripe, s, cancel_at_period_end=False)
    s.refresh_from_db()
    return s


def clock_ends(s: Subscription, now: datetime) -> None:
    telling.tell(advance(now), now=now)
    assert status(s) == Status.EXPIRED


# --- what the clock ends, and Stripe does not ------------------------------------------------------------------------


def test_what_was_cancelled_is_asked_about_once_before_the_clock_ends_it(stripe: Sandbox) -> None:
    s = cancelled_and_undone(stripe)
    ahead = s.term_end - timezone.now() - timedelta(minutes=4)
    assert reconcile.ask_about_settling(hand(ahead=ahead - timedelta(minutes=10), source="settling")) == 0
    assert reconcile.ask_about_settling(hand(ahead=ahead, source="settling")) == 1
    assert reconcile.ask_about_settling(hand(ahead=ahead, source="settling")) == 0
    s.refresh_from_db()
    assert not s.cancel_at_term_end


def test_what_the_clock_ended_and_somebody_has_paid_on_for_is_not_ended_at_stripe_but_shown(stripe: Sandbox) -> None:
    s = cancelled_and_undone(stripe)
    stripe.pay(link(s))
    clock_ends(s, s.term_end)
    assert deliver(s.term_end) == ["stuck: paid_on"]
    assert there(stripe, s)["status"] == "active"
    reconciled(ahead=s.term_end - timezone.now())
    assert kinds() == ["BILLED_AFTER_END"]


def test_a_person_ends_it_there_all_the_same(stripe: Sandbox) -> None:
    s = cancelled_and_undone(stripe)
    stripe.pay(link(s))
    clock_ends(s, s.term_end)
    deliver(s.term_end)
    ahead = s.term_end - timezone.now()
    reconciled(ahead=ahead)
    repairs.repair(Drift.objects.get(), hand(ahead=ahead, actor=ALICE, reason="was given its money back"))
    assert deliver(s.term_end + DAY) == ["told"]
    assert there(stripe, s)["status"] == "canceled"


def test_what_nobody_has_paid_on_for_is_ended_at_stripe(stripe: Sandbox) -> None:
    s = cancelled_and_undone(stripe)
    clock_ends(s, s.term_end)
    assert deliver(s.term_end) == ["told"]
    assert there(stripe, s)["status"] == "canceled"


# --- what staff did meanwhile ----------------------------------------------------------------------------------------


def test_a_pause_that_ends_gives_the_service_back_though_staff_made_the_term_longer(stripe: Sandbox) -> None:
    s = bought(stripe)
    lifecycle.amend_term(s.pk, term_end=s.term_end + 10 * DAY, **by(timezone.now()))
    at_stripe(stripe, s, pause_collection=VOID)
    assert (ring(s), status(s)) == ("suspended", Status.SUSPENDED)
    at_stripe(stripe, s, pause_collection="")
    assert (ring(s), status(s)) == ("activated", Status.ACTIVE)


@pytest.mark.parametrize("aspect", ["PAUSE", "TERM_END", "ITEMS"])
def test_what_is_over_at_stripe_is_over_here_though_stripe_could_not_be_told_something_else(
    aspect: str, stripe: Sandbox
) -> None:
    s = bought(stripe)
    does("suspend", s, hold=True)
    does("lift-hold", s)
    Telling.objects.filter(version=s.version).update(aspect=aspect, state="STUCK")
    Telling.objects.exclude(version=s.version).delete()
    stripe.cancel(link(s))
    assert (ring(s), status(s)) == ("expired", Status.EXPIRED)


@pytest.mark.django_db(transaction=True)
def test_what_staff_sell_while_stripes_news_are_applied_is_not_undone_by_them(stripe: Sandbox) -> None:
    s = bought(stripe)
    item = there(stripe, s)["items"]["data"][0]["id"]
    at_stripe(stripe, s, items=[{"id": item, "quantity": 3}])
    event = rings(link(s))
    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            does("change-plan", s, plan=s.plan, price=s.price, quantity=5)
            news = meanwhile(pool, tries(event))
            assert wait_until(somebody_waits_for_a_lock, seconds=PATIENCE_SECONDS)
        assert news.result(PATIENCE_SECONDS) == "nothing new"
    assert deliver() == ["told"]
    s.refresh_from_db()
    assert (s.quantity, there(stripe, s)["items"]["data"][0]["quantity"]) == (5, 5)


# --- add-ons, which Stripe bills apart -------------------------------------------------------------------------------


def test_an_addon_that_is_withheld_with_its_main_and_billed_at_stripe_is_shown(stripe: Sandbox) -> None:
    main, addon = with_addon(stripe)
    at_stripe(stripe, main, pause_collection=VOID)
    ring(main)
    reconciled()
    assert [(d.kind, d.severity, d.subscription) for d in Drift.objects.all()] == [("STATUS", "HIGH", addon)]
    at_stripe(stripe, addon, pause_collection=VOID)
    reconciled()
    assert kinds() == []


def test_an_addon_that_nobody_pays_for_and_its_main_serves_is_shown(stripe: Sandbox) -> None:
    _, addon = with_addon(stripe)
    stripe.unpaid(link(addon))
    ring(addon)
    reconciled()
    assert [(d.kind, d.severity, d.subscription) for d in Drift.objects.all()] == [("STATUS", "HIGH", addon)]


# --- buying and closing ----------------------------------------------------------------------------------------------


def open_checkout(**row: Any) -> Checkout:
    now = timezone.now()
    price = row.pop("price", None) or PlanPriceFactory.create()
    return Checkout.objects.create(
        plan=price.plan, price=price, actor=ALICE, created_at=now, expires_at=now + DAY, **row
    )  # fmt: skip


def test_a_renewal_that_is_paid_after_what_it_renews_was_over_begins_anew(stripe: Sandbox) -> None:
    s = bought(stripe)
    stripe.cancel(link(s))
    ring(s)
    StripeLink.objects.filter(subscription=s).delete()
    checkout = open_checkout(tenant=s.tenant, renews=s, price=s.price)
    paid = bought_at_stripe(stripe, tenant=s.tenant, price=s.price, metadata={"checkout": str(checkout.pk)})
    assert inbox.apply(rings(paid["id"]).pk, now=timezone.now()) == "started"
    now = Subscription.objects.get(stripe_link=paid["id"])
    assert (now.status, now.pk != s.pk) == (Status.ACTIVE, True)


def test_a_checkout_whose_session_is_being_made_while_its_tenant_is_closed_is_shown_to_nobody(stripe: Sandbox) -> None:
    tenant = TenantFactory.create(closed_at=timezone.now())
    customer_of(tenant)
    checkout = open_checkout(tenant=tenant)
    telling.tell_closed(tenant.pk, actor=ALICE, reason="left", now=timezone.now())
    deliver()
    checkout.refresh_from_db()
    assert checkout.state == Checkout.State.EXPIRED


def test_a_tenant_that_was_closed_twice_and_could_not_be_told_is_told_once() -> None:
    tenant, now = TenantFactory.create(), timezone.now()
    row: dict[str, Any] = {"aspect": "CLOSED", "tenant": tenant, "actor": ALICE, "state": "STUCK"}
    for _ in range(2):
        Telling.objects.create(**row, created_at=now, next_attempt_at=now)
    assert outbound.again(outbound.stuck(), now=now) == 1
    assert rows() == [("CLOSED", "STUCK"), ("CLOSED", "PENDING")]


# --- comparing goes on -----------------------------------------------------------------------------------------------


def shown_dispute(object_id: str) -> None:
    now = timezone.now()
    Drift.objects.create(kind="DISPUTE", severity="HIGH", object_id=object_id, found_at=now, seen_at=now)


def test_a_dispute_that_stripe_does_not_know_any_more_keeps_no_run_from_its_end(stripe: Sandbox) -> None:
    shown_dispute("du_gone")
    assert reconciled().phase == "DONE"
    assert kinds() == ["DISPUTE"]


def test_a_run_that_stripe_keeps_refusing_is_given_up_after_a_day_and_the_next_one_begins(stripe: Sandbox) -> None:
    s, now = bought(stripe), timezone.now()
    Reconciliation.objects.create(started_at=now, phase="OURS")
    refused = "parameter_invalid_empty"
    stripe.knobs(errors=[{"error": "bad_request", "path_prefix": f"/v1/subscriptions/{link(s)}", "times": 0}])
    assert reconciled().error_code == refused
    stripe.pay(link(s))
    assert reconciled(ahead=DAY - timedelta(minutes=1)).error_code == refused
    stripe.knobs()
    run = reconciled(ahead=DAY + timedelta(minutes=1))
    assert (run.phase, run.repaired) == ("DONE", 1)
    given_up = Reconciliation.objects.earliest("pk")
    assert (given_up.phase, given_up.error_code) == ("OURS", refused)
    assert given_up.finished_at is not None


def test_who_may_not_see_refunds_compares_everything_else(stripe: Sandbox) -> None:
    s = bought(stripe)
    stripe.pay(link(s))
    for refusal in ("more_permissions_required", "resource_missing"):
        stripe.knobs(errors=[{"error": refusal, "path_prefix": "/v1/refunds", "times": 0}])
        run = reconciled()
        assert (run.phase, run.error_code, run.finished_at is None) == ("DONE", "", False)
    s.refresh_from_db()
    assert s.audit.filter(action="renewed").exists()


def test_what_a_run_that_was_given_up_has_not_seen_is_seen_by_the_next(stripe: Sandbox) -> None:
    now = timezone.now()
    seen = Reconciliation.objects.create(started_at=now - 20 * DAY, finished_at=now - 20 * DAY, phase="DONE")
    Reconciliation.objects.create(started_at=now, finished_at=now, phase="STRIPE", error_code="stripe_unavailable")
    reconciled()
    asked = [one["params"] for one in stripe.requests() if one["path"] == "/v1/refunds"]
    assert [int(params["created"]["gte"]) for params in asked] == [int((seen.started_at - DAY).timestamp())]


def test_what_was_bought_twice_is_shown_while_its_event_is_refused_again_and_again(stripe: Sandbox) -> None:
    s = bought(stripe)
    event = rings(bought_at_stripe(stripe, tenant=s.tenant)["id"])
    reconciled()
    assert kinds() == []  # its news are on their way
    for _ in range(5):
        assert "live_main_exists" in (inbox.apply(event.pk, now=timezone.now() + DAY) or "")
        StripeEvent.objects.update(next_attempt_at=timezone.now())
    reconciled()
    assert kinds() == ["DUPLICATE"]


def test_a_difference_that_is_left_since_stripe_could_not_be_told_something_says_so(stripe: Sandbox) -> None:
    s = bought(stripe)
    does("cancel", s, at="term-end")
    Telling.objects.update(state="STUCK", error_code="refused")
    stripe.pay(link(s))
    reconciled()
    assert "could not be told: refused" in Drift.objects.get(kind="PERIOD").ours["not brought here"]


def test_a_pause_that_was_there_before_a_hold_is_there_after_it(stripe: Sandbox) -> None:
    s = bought(stripe)
    at_stripe(stripe, s, pause_collection=VOID)
    ring(s)
    for _ in range(2):
        does("suspend", s, hold=True)
        assert deliver() == ["was so already"]
        does("lift-hold", s)
        assert deliver() == ["was so already"]
    assert there(stripe, s)["pause_collection"]["behavior"] == "void"
    assert status(s) == Status.SUSPENDED


@pytest.mark.parametrize("units", [0, -1, 10**12])
def test_a_scheduled_quantity_that_cannot_be_is_something_that_we_do_not_know(units: int, stripe: Sandbox) -> None:
    s = bought(stripe)
    theirs = there(stripe, s)
    item, at = theirs["items"]["data"][0], theirs["items"]["data"][0]["current_period_end"]
    phase = {"start_date": at, "end_date": at + 86400, "items": [{"price": item["price"]["id"], "quantity": units}]}
    now = {"start_date": item["current_period_start"], "end_date": at}
    schedule = {"id": "sub_sched_1", "object": "subscription_schedule", "current_phase": now, "phases": [phase]}
    stripe.override(link(s), {"schedule": schedule})
    assert ring(s) == "nothing new"
    known = StripeLink.objects.get(subscription=s)
    assert (known.schedule_id, known.scheduled_price, known.scheduled_quantity) == ("sub_sched_1", None, None)
