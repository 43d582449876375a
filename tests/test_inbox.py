"""From a doorbell to the truth: what an event does to our subscription, and what becomes of the event.

Failures and retries: test_failures. Races: test_inbox_races.
"""

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from subscriptions import lifecycle
from subscriptions.models import AuditEntry, Subscription
from subscriptions.states import Action, EndReason, Status, Type
from tests.builders import ALICE, PlanFactory, PlanPriceFactory, TenantFactory, subscription
from tests.history import advance
from tests.stripe_cast import bought_at_stripe, period, rings
from tests.stripe_sandbox.client import Sandbox
from webhooks import inbox
from webhooks.catalogue import customer_of
from webhooks.models import StripeEvent, StripeLink, StripePrice

pytestmark = pytest.mark.django_db(transaction=True)

MOST_STATEMENTS = 8  # an event, BEGIN and COMMIT included


def ring(subscription_id: str, type: str = "customer.subscription.updated") -> str:
    """Apply one event about this subscription, within its budget of statements; the outcome."""
    event = rings(subscription_id, type)
    with CaptureQueriesContext(connection) as statements:
        outcome = inbox.apply(event.pk, now=timezone.now())
    assert len(statements) <= MOST_STATEMENTS, [query["sql"][:80] for query in statements]
    assert outcome is not None
    return outcome


def ours(at_stripe: dict[str, Any]) -> Subscription:
    return Subscription.objects.get(stripe_link=at_stripe["id"])


def truth(stripe: Sandbox, at_stripe: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = stripe.api("GET", f"/v1/subscriptions/{at_stripe['id']}")
    return found


def test_a_paid_subscription_at_stripe_becomes_an_active_one_here_for_its_paid_period(stripe: Sandbox) -> None:
    tenant, price = TenantFactory.create(), PlanPriceFactory.create()
    sub = bought_at_stripe(stripe, tenant=tenant, price=price)
    event = rings(sub["id"], "customer.subscription.created")
    assert inbox.apply(event.pk, now=timezone.now()) == "started"
    s = ours(sub)
    assert (s.tenant, s.plan, s.price, s.type, s.status) == (tenant, price.plan, price, Type.MAIN, Status.ACTIVE)
    assert ((s.term_start, s.term_end), s.auto_renews) == (period(sub), True)
    entry = s.audit.get()
    assert (entry.action, entry.actor, entry.source_id) == (Action.STARTED, "stripe", event.pk)


@pytest.mark.parametrize(
    "type",
    ["checkout.session.completed", "customer.subscription.created", "invoice.paid", "customer.subscription.updated"],
)
def test_it_does_not_matter_which_event_comes_first(stripe: Sandbox, type: str) -> None:
    sub = bought_at_stripe(stripe)
    assert ring(sub["id"], type) == "started"
    assert ours(sub).status == Status.ACTIVE


def test_an_event_is_done_in_the_same_commit_as_what_it_changed(stripe: Sandbox) -> None:
    sub = bought_at_stripe(stripe)
    event = rings(sub["id"])
    inbox.apply(event.pk, now=timezone.now())
    event.refresh_from_db()
    written_by = AuditEntry.objects.values_list("transaction_id", flat=True).get()
    with connection.cursor() as cursor:
        cursor.execute("SELECT xmin::text::bigint FROM stripe_events WHERE event_id = %s", [event.pk])
        assert cursor.fetchone() == (written_by % 2**32,)
    assert (event.state, event.attempts, event.outcome, event.error) == (StripeEvent.State.DONE, 1, "started", "")
    assert event.done_at is not None


def test_a_renewal_that_was_paid_moves_the_term_on(stripe: Sandbox) -> None:
    sub = bought_at_stripe(stripe)
    ring(sub["id"])
    stripe.pay(sub["id"])
    assert ring(sub["id"], "invoice.paid") == "renewed"
    assert ours(sub).term_end == period(truth(stripe, sub))[1] > period(sub)[1]


def test_a_second_event_about_the_same_news_changes_nothing(stripe: Sandbox) -> None:
    sub = bought_at_stripe(stripe)
    ring(sub["id"])
    before = Subscription.objects.values().get()
    assert ring(sub["id"], "invoice.paid") == "nothing new"
    assert Subscription.objects.values().get() == before
    assert AuditEntry.objects.count() == 1


def test_a_failed_renewal_starts_a_grace_period_with_an_end_and_does_not_move_the_term(stripe: Sandbox) -> None:
    sub = bought_at_stripe(stripe)
    ring(sub["id"])
    stripe.fail(sub["id"])
    assert ring(sub["id"]) == "grace started"  # the status came before invoice.payment_failed
    s = ours(sub)
    assert (s.status, s.term_end, s.grace_end) == (Status.GRACE, period(sub)[1], period(sub)[1] + timedelta(days=14))
    assert ring(sub["id"], "invoice.payment_failed") == "nothing new"


def test_a_recovered_payment_makes_it_active_for_the_new_period(stripe: Sandbox) -> None:
    sub = bought_at_stripe(stripe)
    ring(sub["id"])
    stripe.fail(sub["id"])
    ring(sub["id"])
    stripe.pay(sub["id"])
    assert ring(sub["id"]) == "renewed"
    s = ours(sub)
    assert (s.status, s.grace_end, s.term_end) == (Status.ACTIVE, None, period(truth(stripe, sub))[1])


def test_unpaid_suspends_and_paying_brings_it_back(stripe: Sandbox) -> None:
    sub = bought_at_stripe(stripe)
    ring(sub["id"])
    stripe.fail(sub["id"])
    stripe.unpaid(sub["id"])
    assert ring(sub["id"]) == "suspended"
    stripe.pay(sub["id"])
    assert ring(sub["id"]) == "renewed"
    assert ours(sub).status == Status.ACTIVE


def test_what_the_clock_has_suspended_stays_so_while_stripe_says_past_due(stripe: Sandbox) -> None:
    sub = bought_at_stripe(stripe)
    ring(sub["id"])
    stripe.fail(sub["id"])
    ring(sub["id"])
    advance(period(sub)[1] + timedelta(days=15))
    assert ours(sub).status == Status.SUSPENDED
    assert ring(sub["id"], "invoice.payment_failed") == "nothing new"
    assert ours(sub).status == Status.SUSPENDED


def test_a_staff_hold_is_not_lifted_by_a_payment(stripe: Sandbox) -> None:
    sub = bought_at_stripe(stripe)
    ring(sub["id"])
    lifecycle.suspend(ours(sub).pk, hold=True, actor=ALICE, now=timezone.now(), reason="abuse")
    stripe.pay(sub["id"])
    assert ring(sub["id"]) == "renewed"
    s = ours(sub)
    assert (s.status, s.on_hold) == (Status.SUSPENDED, True)
    assert s.term_end == period(truth(stripe, sub))[1]


def test_a_deleted_subscription_expires_here(stripe: Sandbox) -> None:
    sub = bought_at_stripe(stripe)
    ring(sub["id"])
    stripe.cancel(sub["id"])
    assert ring(sub["id"], "customer.subscription.deleted") == "expired"
    s = ours(sub)
    assert (s.status, s.end_reason) == (Status.EXPIRED, EndReason.CANCELLED)


def test_a_cancellation_at_period_end_and_its_undoing_come_over(stripe: Sandbox) -> None:
    sub = bought_at_stripe(stripe)
    ring(sub["id"])
    stripe.cancel(sub["id"], at_period_end=True)
    assert ring(sub["id"]) == "cancelled at term end"
    assert (ours(sub).cancel_at_term_end, ours(sub).term_deadline) == (True, ours(sub).term_end)
    stripe.api("POST", f"/v1/subscriptions/{sub['id']}", cancel_at_period_end="false")
    assert ring(sub["id"]) == "cancellation undone"
    assert not ours(sub).cancel_at_term_end


def test_a_renewal_and_a_cancellation_that_come_at_once_are_one_change(stripe: Sandbox) -> None:
    sub = bought_at_stripe(stripe)
    ring(sub["id"])
    stripe.pay(sub["id"])
    stripe.cancel(sub["id"], at_period_end=True)
    assert ring(sub["id"]) == "renewed"
    assert (ours(sub).term_end, ours(sub).cancel_at_term_end) == (period(truth(stripe, sub))[1], True)


def test_another_price_at_stripe_is_another_plan_here(stripe: Sandbox) -> None:
    sub = bought_at_stripe(stripe)
    ring(sub["id"])
    dearer = bought_at_stripe(stripe, price=PlanPriceFactory.create(amount_minor=9900))
    price_id = dearer["items"]["data"][0]["price"]["id"]
    item = sub["items"]["data"][0]["id"]
    stripe.api("POST", f"/v1/subscriptions/{sub['id']}", items=[{"id": item, "price": price_id}])
    assert ring(sub["id"]) == "plan changed"
    s = ours(sub)
    assert s.price is not None
    assert (s.price.amount_minor, s.plan) == (9900, s.price.plan)


def test_a_first_payment_turns_the_tenants_trial_into_what_was_bought(stripe: Sandbox) -> None:
    tenant = TenantFactory.create()
    now = timezone.now()
    trial = subscription(Type.TRIAL, tenant=tenant, term=(now, now + timedelta(days=14)), now=now)
    price = PlanPriceFactory.create()
    sub = bought_at_stripe(stripe, tenant=tenant, price=price)
    assert ring(sub["id"], "checkout.session.completed") == "activated"
    s = ours(sub)
    assert (s.pk, s.type, s.status, s.plan) == (trial.pk, Type.MAIN, Status.ACTIVE, price.plan)
    assert (s.term_start, s.term_end) == period(sub)


def test_a_purchase_whose_first_payment_is_awaited_grants_nothing(stripe: Sandbox) -> None:
    sub = bought_at_stripe(stripe, payment_behavior="default_incomplete")
    assert ring(sub["id"], "customer.subscription.created") == "nothing new"
    assert not Subscription.objects.exists()
    stripe.pay(sub["id"])
    assert ring(sub["id"], "invoice.paid") == "started"


def test_an_unpaid_renewal_invoice_does_not_move_the_term_though_stripe_says_active(stripe: Sandbox) -> None:
    sub = bought_at_stripe(stripe)
    ring(sub["id"])
    stripe.pay(sub["id"])
    unpaid = {"object": "invoice", "status": "draft", "billing_reason": "subscription_cycle"}
    stripe.override(sub["id"], {"latest_invoice": unpaid})
    assert ring(sub["id"]) == "nothing new"
    assert ours(sub).term_end == period(sub)[1]


def test_a_trial_at_stripe_is_a_trial_here_and_its_invoice_of_zero_does_not_end_it(stripe: Sandbox) -> None:
    sub = bought_at_stripe(stripe, trial_period_days=14)
    assert ring(sub["id"], "invoice.paid") == "started"
    assert (ours(sub).status, ours(sub).type) == (Status.TRIAL, Type.MAIN)
    assert ring(sub["id"], "customer.subscription.updated") == "nothing new"


def test_an_addon_joins_the_family_of_the_tenants_main(stripe: Sandbox) -> None:
    tenant = TenantFactory.create()
    main = bought_at_stripe(stripe, tenant=tenant)
    ring(main["id"])
    more = PlanPriceFactory.create(plan=PlanFactory.create(type=Type.ADDON))
    addon = bought_at_stripe(stripe, tenant=tenant, price=more)
    stripe.override(addon["id"], {"items": {"data": [addon["items"]["data"][0] | _period_of(main)]}})
    assert ring(addon["id"]) == "started"
    assert (ours(addon).type, ours(addon).parent, ours(addon).term_end) == (Type.ADDON, ours(main), ours(main).term_end)


def test_older_news_than_what_was_applied_is_left_alone(stripe: Sandbox) -> None:
    sub = bought_at_stripe(stripe)
    ring(sub["id"])
    stripe.pay(sub["id"])
    event = rings(sub["id"])
    claimed = inbox._claim(event.next_attempt_at, event.pk)
    assert claimed is not None
    StripeLink.objects.filter(pk=sub["id"]).update(ticket=9, applied_ticket=9)
    assert inbox._try(claimed, timezone.now) == "older than what was applied"
    assert ours(sub).term_end == period(sub)[1]
    event.refresh_from_db()
    assert event.state == StripeEvent.State.DONE


def test_an_event_that_is_about_no_subscription_is_done_without_asking_stripe(stripe: Sandbox) -> None:
    event = rings("", "invoice.paid", object_id="in_1")
    before = len(stripe.requests())
    assert inbox.apply(event.pk, now=timezone.now()) == "not about a subscription"
    assert len(stripe.requests()) == before


def test_a_completed_checkout_that_does_not_name_its_subscription_is_asked_for_it(stripe: Sandbox) -> None:
    price, tenant = PlanPriceFactory.create(), TenantFactory.create()
    known = bought_at_stripe(stripe, price=price)
    session = stripe.api(
        "POST",
        "/v1/checkout/sessions",
        mode="subscription",
        customer=customer_of(tenant),
        line_items=[{"price": known["items"]["data"][0]["price"]["id"], "quantity": 1}],
        success_url="https://shop.example/thanks",
    )
    stripe.complete(session["id"])
    event = rings("", "checkout.session.completed", object_id=session["id"])
    assert inbox.apply(event.pk, now=timezone.now()) == "started"
    assert Subscription.objects.get(tenant=tenant).status == Status.ACTIVE


def test_an_event_is_not_tried_before_its_time_nor_after_it_is_done(stripe: Sandbox) -> None:
    sub = bought_at_stripe(stripe)
    event = rings(sub["id"])
    assert inbox.apply(event.pk, now=event.next_attempt_at - timedelta(seconds=1)) is None
    assert inbox.apply(event.pk, now=event.next_attempt_at) == "started"
    assert inbox.apply(event.pk, now=event.next_attempt_at + timedelta(days=1)) is None


def test_an_event_that_is_being_tried_is_left_to_whoever_tries_it_until_the_lease_ends(
    stripe: Sandbox, settings: Any
) -> None:
    sub = bought_at_stripe(stripe)
    event = rings(sub["id"])
    now = timezone.now()
    assert inbox._claim(now) is not None
    assert inbox.apply(event.pk, now=now) is None
    assert inbox.apply(event.pk, now=now + timedelta(seconds=settings.INBOX_LEASE_SECONDS)) == "started"


def test_a_replay_asks_stripe_again_and_applies_what_is_true_now(stripe: Sandbox) -> None:
    sub = bought_at_stripe(stripe)
    event = rings(sub["id"])
    inbox.apply(event.pk, now=timezone.now())
    stripe.pay(sub["id"])  # and the event about it was lost
    assert inbox.replay([event.pk], now=timezone.now()) == 1
    assert inbox.apply(event.pk, now=timezone.now()) == "renewed"
    assert ours(sub).audit.get(action=Action.RENEWED).source_id == f"{event.pk}~1"


def test_what_was_paid_for_here_and_has_expired_is_parked_for_a_person(stripe: Sandbox) -> None:
    sub = bought_at_stripe(stripe)
    ring(sub["id"])
    now = timezone.now()
    lifecycle.expire(ours(sub).pk, why=EndReason.CANCELLED, actor=ALICE, now=now, reason="asked by telephone")
    event = rings(sub["id"])
    assert inbox.apply(event.pk, now=timezone.now()) == "parked: illegal_transition"
    assert ours(sub).status == Status.EXPIRED


@pytest.mark.parametrize(
    ("break_it", "code"),
    [
        (lambda stripe, sub: StripePrice.objects.all().delete(), "unknown_price"),
        (lambda stripe, sub: stripe.status(sub["id"], "resting"), "unknown_status"),
        (lambda stripe, sub: stripe.override(sub["id"], {"customer": "cus_nobody"}), "unknown_customer"),
        (lambda stripe, sub: stripe.override(sub["id"], {"items": {"data": []}}), "ambiguous_plan"),
        (
            lambda stripe, sub: stripe.override(sub["id"], {"items": {"data": [_item(sub, quantity=0)]}}),
            "nothing_bought",
        ),
    ],
    ids=["unknown price", "unknown status", "unknown customer", "no item", "quantity 0"],
)
def test_what_can_never_succeed_is_parked_at_once_and_grants_nothing(stripe: Sandbox, break_it: Any, code: str) -> None:
    sub = bought_at_stripe(stripe)
    break_it(stripe, sub)
    event = rings(sub["id"])
    assert inbox.apply(event.pk, now=timezone.now()) == f"parked: {code}"
    event.refresh_from_db()
    assert (event.state, event.error_code, event.attempts) == (StripeEvent.State.PARKED, code, 1)
    assert event.error
    assert not Subscription.objects.exists()


def test_a_new_main_whose_predecessors_end_comes_later_is_tried_again_and_then_served(stripe: Sandbox) -> None:
    tenant, price = TenantFactory.create(), PlanPriceFactory.create()
    first, second = (bought_at_stripe(stripe, tenant=tenant, price=price) for _ in range(2))
    ring(first["id"])
    stripe.cancel(first["id"])
    event = rings(second["id"])
    outcome = inbox.apply(event.pk, now=timezone.now())
    assert outcome is not None
    assert outcome.startswith("failed: live_main_exists, again in")
    assert Subscription.objects.count() == 1
    assert ring(first["id"], "customer.subscription.deleted") == "expired"
    assert inbox.apply(event.pk, now=timezone.now() + timedelta(seconds=5)) == "started"
    assert ours(second).status == Status.ACTIVE


def test_what_belongs_to_another_tenants_customer_at_stripe_is_parked(stripe: Sandbox) -> None:
    sub, other = bought_at_stripe(stripe), bought_at_stripe(stripe)
    ring(sub["id"])
    stripe.override(sub["id"], {"customer": other["customer"], "status": "canceled"})
    event = rings(sub["id"])
    assert inbox.apply(event.pk, now=timezone.now()) == "parked: other_customer"
    assert ours(sub).status == Status.ACTIVE


def test_a_trial_whose_hold_was_lifted_can_still_be_bought(stripe: Sandbox) -> None:
    tenant, now = TenantFactory.create(), timezone.now()
    trial = subscription(Type.TRIAL, tenant=tenant, term=(now, now + timedelta(days=14)), now=now)
    lifecycle.suspend(trial.pk, hold=True, actor=ALICE, now=now, reason="who is this?")
    lifecycle.lift_hold(trial.pk, actor=ALICE, now=now, reason="a customer")
    sub = bought_at_stripe(stripe, tenant=tenant)
    assert ring(sub["id"]) == "activated"
    assert (ours(sub).pk, ours(sub).type) == (trial.pk, Type.MAIN)


def test_a_cancellation_in_a_later_period_does_not_end_this_one(stripe: Sandbox) -> None:
    sub = bought_at_stripe(stripe)
    ring(sub["id"])
    stripe.override(sub["id"], {"cancel_at": int((period(sub)[1] + timedelta(days=150)).timestamp())})
    assert ring(sub["id"]) == "nothing new"
    assert not ours(sub).cancel_at_term_end


def test_a_cancellation_while_the_renewal_settles_waits_for_its_payment(stripe: Sandbox) -> None:
    sub = bought_at_stripe(stripe)
    ring(sub["id"])
    stripe.pay(sub["id"])
    stripe.cancel(sub["id"], at_period_end=True)
    unpaid = {"object": "invoice", "status": "draft", "billing_reason": "subscription_cycle"}
    stripe.override(sub["id"], {"latest_invoice": unpaid})
    event = rings(sub["id"])
    term_is_over = period(sub)[1] + timedelta(minutes=10)
    assert inbox.apply(event.pk, now=term_is_over) == "nothing new"
    assert ours(sub).status == Status.ACTIVE
    stripe.override(sub["id"], {})
    event = rings(sub["id"], "invoice.paid")
    assert inbox.apply(event.pk, now=term_is_over + timedelta(hours=1)) == "renewed"
    assert (ours(sub).cancel_at_term_end, ours(sub).term_end) == (True, period(truth(stripe, sub))[1])


def test_a_paid_term_whose_event_was_lost_is_not_the_last_one_while_the_next_is_to_be_paid(stripe: Sandbox) -> None:
    sub = bought_at_stripe(stripe)
    ring(sub["id"])
    stripe.pay(sub["id"])  # and the event about it was lost
    paid_until = period(truth(stripe, sub))[1]
    stripe.pay(sub["id"])
    stripe.cancel(sub["id"], at_period_end=True)
    unpaid = {"object": "invoice", "status": "draft", "billing_reason": "subscription_cycle"}
    stripe.override(sub["id"], {"latest_invoice": unpaid})
    event = rings(sub["id"])
    assert inbox.apply(event.pk, now=paid_until + timedelta(minutes=10)) == "renewed"
    assert (ours(sub).term_end, ours(sub).cancel_at_term_end) == (paid_until, False)


def test_what_was_paid_before_a_payment_failed_is_served_though_its_event_was_lost(stripe: Sandbox) -> None:
    sub = bought_at_stripe(stripe)
    ring(sub["id"])
    stripe.pay(sub["id"])  # and the event about it was lost
    paid_until = period(truth(stripe, sub))[1]
    stripe.fail(sub["id"])
    event = rings(sub["id"])
    assert inbox.apply(event.pk, now=timezone.now()) == "renewed, grace started"
    assert (ours(sub).term_end, ours(sub).grace_end) == (paid_until, paid_until + timedelta(days=14))


def test_stripe_is_asked_once_an_event_in_the_pinned_version(stripe: Sandbox, settings: Any) -> None:
    sub = bought_at_stripe(stripe)
    before = len(stripe.requests())
    ring(sub["id"])
    (asked,) = stripe.requests()[before:]
    assert (asked["method"], asked["path"]) == ("GET", f"/v1/subscriptions/{sub['id']}")
    assert settings.STRIPE_API_VERSION in str(asked)


def _item(subscription: dict[str, Any], **other: Any) -> dict[str, Any]:
    return dict(subscription["items"]["data"][0] | other)


def _period_of(subscription: dict[str, Any]) -> dict[str, int]:
    item = subscription["items"]["data"][0]
    return {name: item[name] for name in ("current_period_start", "current_period_end")}
