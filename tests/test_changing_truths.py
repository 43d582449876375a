"""What Stripe may say, and what it means here: cancellations, packs, pauses, failing and recovering, in any order."""

from datetime import datetime, timedelta
from itertools import permutations
from typing import Any

import pytest
from django.utils import timezone
from djstripe.models import Customer

from subscriptions import lifecycle
from subscriptions.models import Plan, Subscription
from subscriptions.states import Action, EndReason, Status, Type
from tests.builders import ALICE, PlanPriceFactory, TenantFactory, selling, subscription
from tests.changing_cast import Shop, at_stripe, bring, edit, end_of, fill, item_of, link_of, plan_of
from tests.history import nothing_changes
from tests.stripe_cast import bought_at_stripe, rings
from tests.stripe_equal import assert_equal_to_stripe
from tests.stripe_sandbox.client import Sandbox
from tests.test_limits import held_by, parked
from tests.test_slots import used
from webhooks import inbox, stripe_api, truth
from webhooks.catalogue import customer_of
from webhooks.models import StripeLink, Telling
from webhooks.outgoing import outbound
from webhooks.stripe_state import Unmappable, wanted

pytestmark = pytest.mark.django_db

VOID = {"behavior": "void"}


@pytest.fixture
def shop(stripe: Sandbox) -> Shop:
    return Shop.open(stripe)


@pytest.fixture
def s(shop: Shop) -> Subscription:
    return shop.buys()


def brought(s: Subscription, now: datetime | None = None) -> Subscription:
    bring(link_of(s), now)
    s.refresh_from_db()
    return s


def seconds(at: datetime) -> int:
    return int(at.timestamp())


def held_back(s: Subscription) -> None:
    lifecycle.suspend(s.pk, hold=True, actor=ALICE, now=timezone.now(), reason="abuse")


# --- cancellations ---------------------------------------------------------------------------------------------------


def test_a_cancellation_within_the_period_ends_the_term_there_and_undone_it_ends_where_it_did(
    shop: Shop, s: Subscription
) -> None:
    whole, cut = s.term_end, s.term_start + timedelta(days=10)
    edit(shop.stripe, s, cancel_at=seconds(cut))
    assert abs(brought(s).term_end - cut) < timedelta(seconds=1)
    assert s.cancel_at_term_end
    assert_equal_to_stripe(shop.stripe, s)
    edit(shop.stripe, s, cancel_at="")
    assert (brought(s).term_end, s.cancel_at_term_end) == (whole, False)
    assert_equal_to_stripe(shop.stripe, s)


def test_a_cancellation_within_the_period_that_is_put_off_moves_the_end(shop: Shop, s: Subscription) -> None:
    for days in (10, 20, 5):
        edit(shop.stripe, s, cancel_at=seconds(s.term_start + timedelta(days=days)))
        brought(s)
        assert s.cancel_at_term_end
        assert_equal_to_stripe(shop.stripe, s)


def test_a_cancellation_after_the_period_is_not_the_last_one_until_that_period_comes(
    shop: Shop, s: Subscription
) -> None:
    edit(shop.stripe, s, cancel_at=seconds(s.term_end + timedelta(days=10)))
    assert not brought(s).cancel_at_term_end
    shop.stripe.pay(link_of(s))
    assert brought(s).cancel_at_term_end
    assert_equal_to_stripe(shop.stripe, s)


# --- what is bought --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantity", [0, 100_001])
def test_a_quantity_that_is_none_waits_for_a_person(quantity: int, shop: Shop, s: Subscription) -> None:
    edit(shop.stripe, s, items=[{"id": item_of(shop.stripe, s), "quantity": quantity}], proration_behavior="none")
    with nothing_changes(), pytest.raises(Unmappable, match="nothing_bought"):
        brought(s)


@pytest.mark.parametrize("order", range(6))
def test_packs_stand_in_any_order_beside_the_plan(order: int, shop: Shop, s: Subscription) -> None:
    other = type(shop.pack).objects.create(
        code="most", name="Most", tier=shop.pack.tier, slots=10, currency="EUR", amount_minor=1, interval="month"
    )
    edit(shop.stripe, s, items=[shop.sells(shop.pack, 2), shop.sells(other, 3)], proration_behavior="none")
    items = at_stripe(shop.stripe, s)["items"]["data"]
    shop.stripe.override(link_of(s), {"items": {"data": list([*permutations(items)][order])}})
    brought(s)
    assert used(s)["basic"] == (0, 3 + 2 * 2 + 3 * 10)
    assert_equal_to_stripe(shop.stripe, s)


def test_packs_come_change_and_go_with_the_plan_or_alone(shop: Shop, s: Subscription) -> None:
    fill(s, "a", "b", "c")
    plan = item_of(shop.stripe, s)
    edit(shop.stripe, s, items=[shop.sells(shop.pack, 2)])
    assert (plan_of(brought(s)), used(s)["basic"]) == (("big", "month", 1), (3, 7))
    pack = at_stripe(shop.stripe, s)["items"]["data"][1]["id"]
    edit(shop.stripe, s, items=[{"id": plan, **shop.sells(shop.small, 2)}, {"id": pack, "quantity": 1}])
    assert (plan_of(brought(s)), used(s)["basic"]) == (("small", "month", 2), (3, 4))
    edit(shop.stripe, s, items=[{"id": pack, "deleted": True}])
    assert (used(brought(s))["basic"], parked()) == ((2, 2), ["c"])
    assert_equal_to_stripe(shop.stripe, s)


def test_what_is_bought_with_packs_begins_with_their_slots(shop: Shop) -> None:
    made = shop.stripe.api(
        "POST", "/v1/subscriptions", customer=customer_of(TenantFactory.create()),
        items=[shop.sells(shop.pack, 4), shop.sells(shop.small, 2)],
    )  # fmt: skip
    bring(made["id"])
    s = Subscription.objects.get(stripe_link=made["id"])
    assert used(s)["basic"] == (0, 10)
    assert_equal_to_stripe(shop.stripe, s)


def test_what_staff_sold_stays_while_stripe_has_not_been_told(shop: Shop, s: Subscription) -> None:
    now = timezone.now()
    said: dict[str, Any] = {"actor": ALICE, "created_at": now, "next_attempt_at": now, "version": 1}
    telling = Telling.objects.create(aspect="ITEMS", link_id=link_of(s), tenant=s.tenant, **said)
    position = {"id": item_of(shop.stripe, s), **shop.sells(shop.small, 5)}
    edit(shop.stripe, s, items=[position, shop.sells(shop.pack)], proration_behavior="none")
    with nothing_changes():
        brought(s)
    edit(shop.stripe, s, cancel_at_period_end=True)  # another aspect: that counts
    assert brought(s).cancel_at_term_end
    assert plan_of(s) == ("big", "month", 1)
    outbound.give_up([telling.pk], by=ALICE, now=now)
    assert plan_of(brought(s)) == ("small", "month", 5)
    assert_equal_to_stripe(shop.stripe, s)


# --- pauses ----------------------------------------------------------------------------------------------------------


def test_a_pause_that_ends_within_the_paid_term_gives_the_service_back(shop: Shop, s: Subscription) -> None:
    fill(s, "a")
    edit(shop.stripe, s, pause_collection=VOID)
    assert brought(s).status == Status.SUSPENDED
    assert_equal_to_stripe(shop.stripe, s)
    edit(shop.stripe, s, pause_collection="")
    assert brought(s).status == Status.ACTIVE
    assert held_by(s) == ["a"]
    assert_equal_to_stripe(shop.stripe, s)


def test_what_was_renewed_unpaid_while_paused_stays_suspended_until_it_is_paid(shop: Shop, s: Subscription) -> None:
    paid_until = s.term_end
    edit(shop.stripe, s, pause_collection=VOID)
    brought(s)
    shop.stripe.clock(32 * 86_400)  # the renewal is voided
    later = paid_until + timedelta(days=2)
    edit(shop.stripe, s, pause_collection="")
    assert (brought(s, later).status, s.term_end) == (Status.SUSPENDED, paid_until)
    shop.stripe.pay(link_of(s))
    assert brought(s, later).status == Status.ACTIVE
    assert_equal_to_stripe(shop.stripe, s)


@pytest.mark.parametrize("behavior", ["keep_as_draft", "mark_uncollectible"])
def test_invoices_that_are_kept_or_written_off_leave_service_as_it_is(
    behavior: str, shop: Shop, s: Subscription
) -> None:
    edit(shop.stripe, s, pause_collection={"behavior": behavior})
    with nothing_changes():
        brought(s)
    assert_equal_to_stripe(shop.stripe, s)


def test_a_family_is_paused_together_and_comes_back_together(shop: Shop, s: Subscription) -> None:
    addon = Shop.of_addons(shop.stripe).adds_to(s)
    for said, status in ((VOID, Status.SUSPENDED), ("", Status.ACTIVE)):
        edit(shop.stripe, s, pause_collection=said)
        assert brought(s).status == status
        for member in (s, addon):
            assert brought(member).status == status
            assert_equal_to_stripe(shop.stripe, member)


def test_a_hold_wins_over_a_pause_and_over_its_end(shop: Shop, s: Subscription) -> None:
    held_back(s)
    edit(shop.stripe, s, pause_collection=VOID)
    assert brought(s).on_hold
    edit(shop.stripe, s, pause_collection="")
    assert (brought(s).status, s.on_hold) == (Status.SUSPENDED, True)
    lifecycle.lift_hold(s.pk, actor=ALICE, now=timezone.now(), reason="cleared")
    assert brought(s).status == Status.ACTIVE
    assert_equal_to_stripe(shop.stripe, s)


def test_a_pause_that_begins_under_a_hold_outlasts_it(shop: Shop, s: Subscription) -> None:
    edit(shop.stripe, s, pause_collection=VOID)
    brought(s)
    held_back(s)
    lifecycle.lift_hold(s.pk, actor=ALICE, now=timezone.now(), reason="cleared")
    assert brought(s).status == Status.SUSPENDED
    assert_equal_to_stripe(shop.stripe, s)


def test_a_trial_that_stripe_pauses_is_suspended_and_serves_once_it_is_resumed_and_paid(shop: Shop) -> None:
    s = shop.buys(trial_period_days=14)
    assert (s.status, s.type) == (Status.TRIAL, Type.MAIN)
    trial_end = s.term_end
    shop.stripe.pause(link_of(s))
    assert brought(s, trial_end).status == Status.SUSPENDED
    assert_equal_to_stripe(shop.stripe, s)
    shop.stripe.clock(15 * 86_400)
    shop.stripe.api("POST", f"/v1/subscriptions/{link_of(s)}/resume")
    shop.stripe.pay(link_of(s))
    assert brought(s, trial_end + timedelta(days=1)).status == Status.ACTIVE
    assert_equal_to_stripe(shop.stripe, s)


# --- beginning and ending --------------------------------------------------------------------------------------------


def test_what_was_never_paid_grants_nothing_and_is_over_without_having_begun(shop: Shop) -> None:
    made = bought_at_stripe(shop.stripe, price=shop.big, payment_behavior="default_incomplete")
    with nothing_changes():
        assert bring(made["id"]) == "nothing new"
        shop.stripe.status(made["id"], "incomplete_expired")
        assert bring(made["id"]) == "nothing new"


def test_what_ends_unpaid_says_that_it_was_never_paid(shop: Shop, s: Subscription) -> None:
    shop.stripe.status(link_of(s), "incomplete_expired")
    assert (brought(s).status, s.end_reason) == (Status.EXPIRED, EndReason.NEVER_PAID)


def test_the_trials_invoice_of_zero_ends_nothing(shop: Shop) -> None:
    s = shop.buys(trial_period_days=14)
    for event in ("invoice.paid", "invoice.payment_succeeded", "customer.subscription.updated"):
        with nothing_changes():
            assert inbox.apply(rings(link_of(s), event).pk, now=timezone.now()) == "nothing new"
    assert_equal_to_stripe(shop.stripe, s)


def test_what_was_paid_offline_and_is_billed_by_stripe_from_now_on_says_so(shop: Shop) -> None:
    now = timezone.now()
    made = bought_at_stripe(shop.stripe, price=shop.big)
    offline = subscription(
        plan=shop.big.plan,
        price=shop.big,
        tenant=tenant_of(made),
        term=(now - timedelta(days=9), end_of(made)),
        now=now,
    )
    StripeLink.objects.create(pk=made["id"], subscription=offline)
    assert bring(made["id"]) == "billing changed"
    entry = offline.audit.get(action=Action.BILLING_CHANGED)
    assert entry.changes["auto_renews"] == [False, True]
    assert_equal_to_stripe(shop.stripe, offline)


def tenant_of(made: dict[str, Any]) -> Any:
    return Customer.objects.get(id=made["customer"]).subscriber


def test_a_plan_that_counts_the_tenants_days_keeps_stripes_dates(shop: Shop) -> None:
    plan = selling({"basic": 1}, terms_in=Plan.Calendar.TENANT)
    tenant = TenantFactory.create(time_zone="Europe/Berlin")
    s = shop.buys(tenant=tenant, price=PlanPriceFactory.create(plan=plan, interval="year"))
    assert s.time_zone == "Europe/Berlin"
    edit(shop.stripe, s, items=[{"id": item_of(shop.stripe, s), **shop.sells(shop.big)}])
    assert (brought(s).time_zone, s.term_end) == ("UTC", end_of(at_stripe(shop.stripe, s)))
    assert_equal_to_stripe(shop.stripe, s)


# --- failing and recovering ------------------------------------------------------------------------------------------

RENEWAL = ("customer.subscription.updated", "invoice.payment_failed", "invoice.payment_action_required")


@pytest.mark.parametrize("order", [*permutations(RENEWAL)], ids=lambda order: " ".join(e[-8:] for e in order))
def test_a_failed_renewal_is_a_grace_period_with_an_end_in_whatever_order_its_events_come(
    order: tuple[str, ...], shop: Shop, s: Subscription
) -> None:
    paid_until = s.term_end
    shop.stripe.fail(link_of(s))
    for event in order:
        inbox.apply(rings(link_of(s), event).pk, now=paid_until + timedelta(minutes=1))
        s.refresh_from_db()
        assert (s.status, s.term_end) == (Status.GRACE, paid_until)
        assert s.grace_end == paid_until + timedelta(days=14)
    assert s.audit.filter(action=Action.GRACE_STARTED).count() == 1
    assert_equal_to_stripe(shop.stripe, s)


# What happens at Stripe one after another, and how many of these are known here at each moment that an event comes.
LIFE = ("fail", "pay", "fail", "unpaid", "pay")


@pytest.mark.parametrize("heard", [(1, 2, 3, 4, 5), (2, 5), (3, 5), (1, 4, 5), (5,), (1, 3, 4), (4,)], ids=str)
def test_whatever_was_heard_of_failing_and_recovering_the_state_is_stripes(
    heard: tuple[int, ...], shop: Shop, s: Subscription
) -> None:
    for place, step in enumerate(LIFE[: heard[-1]], start=1):
        getattr(shop.stripe, step)(link_of(s))
        if place in heard:
            brought(s, s.term_end + timedelta(minutes=1))
            assert_equal_to_stripe(shop.stripe, s)


def test_news_that_were_fetched_before_the_payment_change_nothing_after_it(shop: Shop, s: Subscription) -> None:
    shop.stripe.fail(link_of(s))
    old = wanted(stripe_api.fetch_subscription(link_of(s)))
    ticket = truth.take_ticket(link_of(s))
    shop.stripe.pay(link_of(s))
    assert brought(s).status == Status.ACTIVE
    with nothing_changes():
        outcome = truth.apply(
            old, ticket, lambda o, a, sub: truth.mark_applied(link_of(s), ticket, a, sub), now=timezone.now()
        )
    assert outcome == "older than what was applied"
