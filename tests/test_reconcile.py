"""A comparison of everything at Stripe with everything here: what was lost comes, what needs a person is shown."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from subscriptions import lifecycle
from subscriptions.models import AuditEntry, Subscription, Tenant
from subscriptions.states import EndReason, Status, Type
from tests.builders import ALICE, PlanPriceFactory, TenantFactory, selling
from tests.history import advance
from tests.reconciling import hand, here, kinds, later, looked, reconciled
from tests.stripe_cast import bought_at_stripe, rings
from tests.stripe_equal import assert_equal_to_stripe
from tests.stripe_sandbox.client import Sandbox
from webhooks import stripe_api
from webhooks.catalogue import price_at_stripe
from webhooks.models import Drift, Reconciliation, StripeLink, Telling
from webhooks.reconciling import reconcile, repairs
from webhooks.reconciling.comparing import Asker, By
from webhooks.reconciling.pace import Pacer

pytestmark = pytest.mark.django_db

DAY = timedelta(days=1)
FORTY = 40 * DAY


def ours(at_stripe: dict[str, Any]) -> Subscription:
    return Subscription.objects.get(stripe_link=at_stripe["id"])


def truth_of(stripe: Sandbox, at_stripe: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = stripe.api("GET", f"/v1/subscriptions/{at_stripe['id']}", expand=["latest_invoice"])
    return found


def assert_equal(stripe: Sandbox) -> None:
    """Every subscription at Stripe against its row here."""
    listed = stripe.api("GET", "/v1/subscriptions", status="all", limit=100)["data"]
    assert listed
    for each in listed:
        assert_equal_to_stripe(stripe, Subscription.objects.get(stripe_link=each["id"]))


def test_an_account_whose_webhooks_were_off_for_forty_days_is_equal_to_stripe_after_one_run(stripe: Sandbox) -> None:
    small, large = PlanPriceFactory.create(), PlanPriceFactory.create(plan=selling({"basic": 9}))
    names = ("renews", "fails", "fails-later", "cancels", "cancels-at-end", "upgrades", "grows", "comes-back")
    had = {name: bought_at_stripe(stripe, tenant=TenantFactory.create(slug=name), price=small) for name in names}
    for sub in had.values():
        here(sub)
    stripe.fail(had["fails"]["id"])
    stripe.cancel(had["cancels"]["id"])
    stripe.cancel(had["comes-back"]["id"])
    bought_at_stripe(stripe, tenant=Tenant.objects.get(slug="comes-back"), price=large)
    stripe.api("POST", f"/v1/subscriptions/{had['cancels-at-end']['id']}", cancel_at_period_end=True)
    item = {name: had[name]["items"]["data"][0]["id"] for name in names}
    up = [{"id": item["upgrades"], "price": price_at_stripe(large)}]
    stripe.api("POST", f"/v1/subscriptions/{had['upgrades']['id']}", items=up)
    stripe.api("POST", f"/v1/subscriptions/{had['grows']['id']}", items=[{"id": item["grows"], "quantity": 3}])
    stripe.clock(int(FORTY.total_seconds()))
    bought_at_stripe(stripe, tenant=TenantFactory.create(slug="new"), price=large)
    stripe.fail(had["fails-later"]["id"])
    advance(later(FORTY)())
    run = reconciled(ahead=FORTY)
    assert (run.phase, run.error_code) == ("DONE", "")
    assert_equal(stripe)
    assert kinds() == []
    assert looked(ahead=FORTY) == []
    assert {e.actor for e in AuditEntry.objects.filter(source_id__startswith="reconciliation")} == {"stripe"}


# --- what is found, and what becomes of it ---------------------------------------------------------------------------


def test_a_lost_renewal_is_brought_here_by_the_verbs_and_the_difference_stays_on_record_as_repaired(
    stripe: Sandbox,
) -> None:
    sub = bought_at_stripe(stripe)
    here(sub)
    stripe.pay(sub["id"])
    run = reconciled()
    entry = ours(sub).audit.latest("pk")
    assert (entry.action, entry.actor) == ("renewed", "stripe")
    assert entry.source_id.startswith(f"reconciliation:{run.pk}:{sub['id']}~")
    drift = Drift.objects.get()
    assert (drift.kind, drift.resolution, drift.subscription) == ("PERIOD", "repaired: renewed", ours(sub))
    assert (run.compared, run.found, run.repaired) == (1, 1, 1)


def test_a_run_that_may_not_repair_shows_what_it_finds_and_changes_nothing(stripe: Sandbox) -> None:
    sub = bought_at_stripe(stripe)
    here(sub)
    before = Subscription.objects.values().get()
    stripe.pay(sub["id"])
    reconciled(repairs=False)
    assert Subscription.objects.values().get() == before
    (drift,) = Drift.objects.all()
    assert (drift.kind, drift.severity, drift.resolved_at) == ("PERIOD", "MEDIUM", None)
    assert drift.ours["paid until"] < drift.theirs["paid until"]
    first = drift.seen_at
    reconciled(repairs=False)
    drift.refresh_from_db()
    assert drift.seen_at > first
    assert Drift.objects.count() == 1


def test_a_difference_that_is_gone_by_itself_is_resolved_by_the_next_run(stripe: Sandbox) -> None:
    sub = bought_at_stripe(stripe)
    here(sub)
    stripe.pay(sub["id"])
    reconciled(repairs=False)
    here(sub)
    reconciled(repairs=False)
    assert Drift.objects.get().resolution == "gone by itself"


def test_a_dry_run_writes_nothing_at_all(stripe: Sandbox) -> None:
    sub = bought_at_stripe(stripe)
    here(sub)
    stripe.cancel(sub["id"])
    bought_at_stripe(stripe)
    with CaptureQueriesContext(connection) as statements:
        found = [(f.difference.kind, f.object_id == sub["id"]) for f in looked()]
    assert sorted(found) == [("SERVED_AFTER_END", True), ("UNKNOWN_HERE", False)]
    assert {query["sql"].split()[0] for query in statements} == {"SELECT"}


def test_who_is_billed_after_the_end_here_waits_for_a_person(stripe: Sandbox) -> None:
    sub = bought_at_stripe(stripe)
    here(sub)
    s = ours(sub)
    lifecycle.expire(s.pk, why=EndReason.CANCELLED, actor=ALICE, now=timezone.now(), reason="moved away")
    reconciled()
    assert kinds() == ["BILLED_AFTER_END"]
    assert Drift.objects.get().severity == "HIGH"


def test_what_stripe_will_be_told_is_no_difference(stripe: Sandbox) -> None:
    sub = bought_at_stripe(stripe)
    here(sub)
    s, now = ours(sub), timezone.now()
    lifecycle.expire(s.pk, why=EndReason.CANCELLED, actor=ALICE, now=now, reason="moved away")
    Telling.objects.create(
        aspect="END", tenant=s.tenant, link_id=sub["id"], version=2, actor=ALICE, created_at=now, next_attempt_at=now
    )
    reconciled()
    assert kinds() == []


def test_what_an_event_is_about_to_bring_is_no_difference_and_does_not_end_a_known_one(stripe: Sandbox) -> None:
    sub = bought_at_stripe(stripe)
    here(sub)
    stripe.pay(sub["id"])
    reconciled(repairs=False)
    event = rings(sub["id"])
    reconciled()
    assert kinds() == ["PERIOD"]
    event.delete()
    reconciled()
    assert kinds() == []


def test_a_hold_of_staff_and_a_term_that_they_made_longer_are_no_difference(stripe: Sandbox) -> None:
    held, longer = bought_at_stripe(stripe), bought_at_stripe(stripe)
    for sub in (held, longer):
        here(sub)
    now = timezone.now()
    lifecycle.suspend(ours(held).pk, hold=True, actor=ALICE, now=now, reason="fraud?")
    end = ours(longer).term_end + 9 * DAY
    lifecycle.amend_term(ours(longer).pk, term_end=end, actor=ALICE, now=now, reason="goodwill")
    assert looked() == []


def test_two_main_subscriptions_of_one_tenant_at_stripe_are_a_duplicate(stripe: Sandbox) -> None:
    tenant, price = TenantFactory.create(), PlanPriceFactory.create()
    first = bought_at_stripe(stripe, tenant=tenant, price=price)
    here(first)
    second = bought_at_stripe(stripe, tenant=tenant, price=price)
    reconciled()
    drift = Drift.objects.get(resolved_at=None)
    assert (drift.kind, drift.object_id, drift.ours["goes on"]) == ("DUPLICATE", second["id"], first["id"])


def test_the_same_addon_twice_is_a_duplicate_of_the_older_one(stripe: Sandbox) -> None:
    tenant = TenantFactory.create()
    main = bought_at_stripe(stripe, tenant=tenant)
    here(main)
    addon = PlanPriceFactory.create(plan=selling({"basic": 1}, Type.ADDON))
    ends = {"billing_cycle_anchor": int(ours(main).term_end.timestamp()), "proration_behavior": "none"}
    twice = [bought_at_stripe(stripe, tenant=tenant, price=addon, **ends) for _ in range(2)]
    reconciled()
    drift = Drift.objects.get(resolved_at=None)
    assert (drift.kind, drift.object_id, drift.ours["goes on"]) == ("DUPLICATE", twice[1]["id"], twice[0]["id"])


def test_what_a_stranger_bought_and_what_we_do_not_sell_is_unknown_here_and_asked_about_once_a_run(
    stripe: Sandbox,
) -> None:
    price = price_at_stripe(PlanPriceFactory.create())
    stranger = stripe.api("POST", "/v1/customers", email="x@y.example", metadata={"card": "ok"})["id"]
    stripe.api("POST", "/v1/subscriptions", customer=stranger, items=[{"price": price}])
    reconciled()
    assert kinds() == ["UNKNOWN_HERE"]
    run = reconciled()
    assert run.reads == 3  # the list, refunds, disputes
    assert not StripeLink.objects.exists()


def test_a_link_that_stripe_does_not_know_waits_for_a_person(stripe: Sandbox) -> None:
    sub = bought_at_stripe(stripe)
    here(sub)
    stripe.reset()
    reconciled()
    assert kinds() == ["UNKNOWN_AT_STRIPE"]
    assert ours(sub).status == Status.ACTIVE


def test_a_status_that_we_do_not_know_is_shown_and_changes_nothing(stripe: Sandbox) -> None:
    sub = bought_at_stripe(stripe)
    here(sub)
    stripe.status(sub["id"], "hibernating")
    reconciled()
    assert (kinds(), ours(sub).status) == (["UNREADABLE"], Status.ACTIVE)


def test_a_link_to_another_tenants_customer_is_shown_and_changes_nothing(stripe: Sandbox) -> None:
    sub, other = bought_at_stripe(stripe), bought_at_stripe(stripe)
    here(sub)
    stripe.override(sub["id"], {"customer": other["customer"]})
    stripe.cancel(other["id"])
    reconciled()
    assert kinds() == ["CUSTOMER"]


def test_refunds_and_disputes_are_shown_once_and_a_dispute_ends_by_itself(stripe: Sandbox) -> None:
    sub = bought_at_stripe(stripe)
    here(sub)
    charge = stripe.api("GET", "/v1/charges")["data"][0]
    stripe.api("POST", "/v1/refunds", charge=charge["id"], amount=100)
    dispute = stripe.dispute(truth_of(stripe, sub)["latest_invoice"]["id"])
    reconciled()
    reconciled()
    found = {d.kind: d for d in Drift.objects.all()}
    assert kinds() == ["DISPUTE", "REFUND"]
    assert {d.subscription for d in found.values()} == {ours(sub)}
    assert found["REFUND"].theirs["amount"] == 100
    stripe.close_dispute(dispute["id"], status="won")
    reconciled()
    assert kinds() == ["REFUND"]
    assert AuditEntry.objects.count() == 1


# --- the run ---------------------------------------------------------------------------------------------------------


def pages_of(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = stripe_api._call
    monkeypatch.setattr(
        stripe_api, "_call", lambda *a, **more: whole(*a, **more | ({"limit": size} if "limit" in more else {}))
    )


class Killed(BaseException):
    """The process is gone."""


def test_a_run_that_was_killed_goes_on_at_the_page_where_it_was_once_its_lease_is_over(
    stripe: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages_of(1, monkeypatch)
    subs = [bought_at_stripe(stripe) for _ in range(3)]
    pages = iter([False, False])

    def killed() -> bool:
        try:
            return next(pages)
        except StopIteration:
            raise Killed from None

    with pytest.raises(Killed):
        reconciled(enough=killed)
    run = Reconciliation.objects.get()
    assert (run.compared, run.finished_at, run.cursor) == (2, None, subs[1]["id"])
    assert reconcile.go_on(lambda run: pytest.fail("it is another's"), now=timezone.now) is None
    later_on = reconciled(ahead=timedelta(minutes=6))
    assert (later_on.pk, later_on.compared) == (run.pk, 3)
    assert Subscription.objects.count() == 3


def test_a_run_stops_when_stripe_does_not_answer_and_goes_on_later(stripe: Sandbox) -> None:
    bought_at_stripe(stripe)
    stripe.knobs(errors=[{"status": 500, "times": 0}])
    run = reconciled()
    assert (run.error_code, run.finished_at, run.compared) == ("stripe_unavailable", None, 0)
    stripe.knobs()
    again = reconciled()
    assert (again.pk, again.error_code, again.compared) == (run.pk, "", 1)
    assert again.finished_at is not None


def test_a_stripe_that_asks_for_a_rest_gets_it_and_is_asked_again(stripe: Sandbox) -> None:
    bought_at_stripe(stripe)
    stripe.knobs(errors=[{"status": 429, "times": 2}])
    rests: list[float] = []
    pacer = Pacer(1000, lambda: 0.0, rests.append)
    found = [*reconcile.look(By(Asker(pacer), timezone.now, "", writes=False))]
    assert len(found[0]) == 1
    assert sum(1 for rest in rests if rest >= 1) >= 2


def test_a_page_takes_the_same_number_of_statements_however_many_are_on_it(stripe: Sandbox) -> None:
    def statements() -> int:
        with CaptureQueriesContext(connection) as queries:
            reconciled()
        return len(queries)

    here(bought_at_stripe(stripe))
    one = statements()
    for _ in range(4):
        here(bought_at_stripe(stripe))
    assert statements() == one


def test_a_renewal_that_nobody_told_of_is_asked_about_while_its_term_settles(stripe: Sandbox) -> None:
    sub = bought_at_stripe(stripe)
    here(sub)
    ahead = ours(sub).term_end - timezone.now() + timedelta(hours=1)
    stripe.clock(int(ahead.total_seconds()))
    assert reconcile.ask_about_settling(hand(ahead=ahead - timedelta(hours=2))) == 0
    assert reconcile.ask_about_settling(hand(ahead=ahead, source="settling")) == 1
    assert ours(sub).audit.latest("pk").action == "renewed"
    assert reconcile.ask_about_settling(hand(ahead=ahead, source="settling")) == 0


def test_what_staff_dismissed_comes_back_only_when_it_is_another_difference(stripe: Sandbox) -> None:
    sub = bought_at_stripe(stripe)
    here(sub)
    stripe.pay(sub["id"])
    reconciled(repairs=False)
    repairs.dismiss(Drift.objects.get(), actor="staff:1", reason="known", now=timezone.now())
    reconciled(repairs=False)
    assert kinds() == []
    stripe.pay(sub["id"])
    reconciled(repairs=False)
    assert kinds() == ["PERIOD"]


@pytest.mark.parametrize("page", [100, 1])
def test_an_addon_that_is_listed_before_its_main_is_brought_here_by_the_same_run(
    stripe: Sandbox, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    pages_of(page, monkeypatch)
    tenant = TenantFactory.create()
    main = bought_at_stripe(stripe, tenant=tenant)
    end = main["items"]["data"][0]["current_period_end"]
    addon = PlanPriceFactory.create(plan=selling({"basic": 1}, Type.ADDON))
    bought_at_stripe(stripe, tenant=tenant, price=addon, billing_cycle_anchor=end, proration_behavior="none")
    reconciled()
    assert sorted(Subscription.objects.values_list("type", flat=True)) == ["ADDON", "MAIN"]
    assert kinds() == []
