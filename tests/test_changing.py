"""A billing owner changes what Stripe bills: Stripe first, then here; a refusal changes nothing on either side."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from entitlements.models import SlotPack
from subscriptions import lifecycle
from subscriptions.audit import Actor
from subscriptions.models import Member, Subscription
from subscriptions.states import Action, Status, Type
from tests import openapi
from tests.builders import ALICE, JAN_1, PlanPriceFactory, TenantFactory, subscription
from tests.changing_cast import Shop, at_stripe, bring, edit, end_of, fill, link_of, owner_of, plan_of
from tests.history import at_once, nothing_changes
from tests.stripe_equal import assert_equal_to_stripe
from tests.stripe_sandbox.client import Sandbox
from tests.test_api import problem
from tests.test_limits import held_by, parked
from tests.test_slots import used
from tests.years import shifted
from webhooks import changing
from webhooks.catalogue import customer_of
from webhooks.changing import AskedBy, WishedChange
from webhooks.errors import PreviewTooOld
from webhooks.models import StripeLink, StripePrice, Telling
from webhooks.stripe_api import StripeRefused

pytestmark = pytest.mark.django_db

VERBS = ("cancel", "resume", "pause", "change", "change/preview")


@pytest.fixture
def shop(stripe: Sandbox) -> Iterator[Shop]:
    shop = Shop.open(stripe)
    yield shop
    shop.was_asked_as_published()


@pytest.fixture
def s(shop: Shop) -> Subscription:
    return shop.buys()


@pytest.fixture
def owner(s: Subscription) -> Client:
    return owner_of(s.tenant)


def ask(client: Client, s: Subscription, verb: str, key: str = "", **body: Any) -> Any:
    headers = {"Idempotency-Key": key} if key else {}
    url = f"/api/v1/customer/subscriptions/{s.number}/{verb}"
    return client.post(url, body, content_type="application/json", headers=headers)


def done(answer: Any) -> dict[str, Any]:
    """What was answered, which is what the description says."""
    assert answer.status_code == 200, answer.content
    verb = answer.wsgi_request.path.rstrip("/").partition("SUB-")[2].partition("/")[2]
    path = f"/api/v1/customer/subscriptions/{{number}}{'/' if verb else ''}{verb}"
    openapi.validate(path, answer.wsgi_request.method.lower(), 200, answer.json())
    found: dict[str, Any] = answer.json()
    return found


def changes_at_stripe(shop: Shop, since: int) -> list[str]:
    """What Stripe was asked to do, since so many requests."""
    return [
        f"{r['method']} {r['path'].rpartition('/')[0]}" for r in shop.stripe.requests()[since:] if r["method"] != "GET"
    ]


# --- ending, going on ------------------------------------------------------------------------------------------------


def test_a_cancellation_at_term_end_is_stripes_and_ours_at_once_and_undone_the_same_way(
    shop: Shop, s: Subscription, owner: Client
) -> None:
    shown = done(ask(owner, s, "cancel"))
    assert (shown["cancel_at_term_end"], shown["status"]) == (True, "ACTIVE")
    assert at_stripe(shop.stripe, s)["cancel_at_period_end"] is True
    assert_equal_to_stripe(shop.stripe, s)
    entry = s.audit.get(action=Action.CANCEL_SCHEDULED)
    assert (entry.actor, entry.source_id) == (
        f"member:{Member.objects.get().pk}",
        f"{entry.request_id}~{StripeLink.objects.get().ticket}",
    )
    assert done(ask(owner, s, "resume"))["cancel_at_term_end"] is False
    assert at_stripe(shop.stripe, s)["cancel_at"] is None
    assert_equal_to_stripe(shop.stripe, s)


def test_to_ask_again_for_what_is_so_already_changes_nothing_anywhere(
    shop: Shop, s: Subscription, owner: Client
) -> None:
    done(ask(owner, s, "cancel"))
    before = len(shop.stripe.requests())
    with nothing_changes():
        done(ask(owner, s, "cancel"))
    assert changes_at_stripe(shop, before) == []


def test_a_cancellation_now_ends_it_there_and_here_with_its_devices(shop: Shop, s: Subscription, owner: Client) -> None:
    fill(s, "a")
    shown = done(ask(owner, s, "cancel", at="now"))
    assert (shown["status"], shown["end_reason"]) == ("EXPIRED", "cancelled")
    assert at_stripe(shop.stripe, s)["status"] == "canceled"
    assert parked() == ["a"]
    assert_equal_to_stripe(shop.stripe, s)
    assert problem(ask(owner, s, "resume")) == (409, "illegal_transition")


def test_what_is_owed_ends_at_once_for_its_paid_term_is_over(shop: Shop, s: Subscription, owner: Client) -> None:
    shop.stripe.fail(link_of(s))
    bring(link_of(s), now=s.term_end + timedelta(hours=1))
    s.refresh_from_db()
    assert s.status == Status.GRACE
    done(ask(owner, s, "cancel"))
    assert_equal_to_stripe(shop.stripe, s)


def test_what_ends_at_an_instant_of_stripes_goes_on_again(shop: Shop, s: Subscription, owner: Client) -> None:
    edit(shop.stripe, s, cancel_at=int((s.term_end - timedelta(days=3)).timestamp()))
    bring(link_of(s))
    assert_equal_to_stripe(shop.stripe, s)
    done(ask(owner, s, "resume"))
    assert at_stripe(shop.stripe, s)["cancel_at"] is None
    assert_equal_to_stripe(shop.stripe, s)


def test_what_stripe_does_not_bill_is_cancelled_and_resumed_here_alone(stripe: Sandbox) -> None:
    offline = subscription(slots={"basic": 1}, term=(JAN_1, timezone.now() + timedelta(days=9)))
    owner = owner_of(offline.tenant)
    assert done(ask(owner, offline, "cancel"))["cancel_at_term_end"] is True
    assert done(ask(owner, offline, "resume"))["cancel_at_term_end"] is False
    fill(offline, "a")
    assert done(ask(owner, offline, "cancel", at="now"))["status"] == "EXPIRED"
    assert parked() == ["a"]
    assert stripe.requests() == []


@pytest.mark.parametrize(("verb", "said"), [("pause", {}), ("change", {"quantity": 2}), ("change/preview", {})])
def test_what_stripe_does_not_bill_is_changed_by_staff(verb: str, said: dict[str, Any], stripe: Sandbox) -> None:
    offline = subscription(slots={"basic": 1}, term=(JAN_1, timezone.now() + timedelta(days=9)))
    with nothing_changes():
        assert problem(ask(owner_of(offline.tenant), offline, verb, **said)) == (409, "not_billed_by_stripe")


# --- pausing ---------------------------------------------------------------------------------------------------------


def test_a_pause_withholds_service_and_payment_and_resuming_brings_both_back(
    shop: Shop, s: Subscription, owner: Client
) -> None:
    until = timezone.now() + timedelta(days=20)
    shown = done(ask(owner, s, "pause", resumes_at=until.isoformat()))
    assert (shown["status"], shown["grants_access"]) == ("SUSPENDED", False)
    pause = at_stripe(shop.stripe, s)["pause_collection"]
    assert pause == {"behavior": "void", "resumes_at": int(until.timestamp())}
    assert_equal_to_stripe(shop.stripe, s)
    assert done(ask(owner, s, "resume"))["status"] == "ACTIVE"
    assert at_stripe(shop.stripe, s)["pause_collection"] is None
    assert_equal_to_stripe(shop.stripe, s)


@pytest.mark.parametrize("days", [-1, 61])
def test_a_pause_ends_later_than_now_and_before_the_suspension_would(
    days: int, shop: Shop, s: Subscription, owner: Client
) -> None:
    until = timezone.now() + timedelta(days=days)
    with nothing_changes():
        assert problem(ask(owner, s, "pause", resumes_at=until.isoformat())) == (400, "invalid_pause")
    assert at_stripe(shop.stripe, s)["pause_collection"] is None


def test_a_pause_is_the_whole_familys_and_nobody_pays_for_an_addon_meanwhile(
    shop: Shop, s: Subscription, owner: Client
) -> None:
    addon = Shop.of_addons(shop.stripe).buys(tenant=s.tenant)
    assert problem(ask(owner, addon, "pause")) == (409, "addon_follows_main")
    done(ask(owner, s, "pause"))
    assert at_stripe(shop.stripe, addon)["pause_collection"]["behavior"] == "void"
    for member in (s, addon):
        assert_equal_to_stripe(shop.stripe, member)
    done(ask(owner, s, "resume"))
    assert at_stripe(shop.stripe, addon)["pause_collection"] is None
    for member in (s, addon):
        assert_equal_to_stripe(shop.stripe, member)


MONTH = timedelta(days=33)


def invoices(shop: Shop, s: Subscription) -> list[tuple[str, int]]:
    """What was to be paid, the latest first."""
    found = shop.stripe.api("GET", "/v1/invoices", subscription=link_of(s))["data"]
    return [(invoice["status"], invoice["amount_due"]) for invoice in found]


def test_a_pause_that_outlasts_what_was_paid_ends_with_a_new_term_that_is_paid_at_once(
    shop: Shop, s: Subscription, owner: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    addon = Shop.of_addons(shop.stripe).adds_to(s)
    done(ask(owner, s, "pause"))
    with shifted(monkeypatch) as move:
        move(MONTH)
        shop.stripe.clock(int(MONTH.total_seconds()))
        owner.force_login(Member.objects.get(tenant=s.tenant).user)
        assert done(ask(owner, s, "resume"))["status"] == "ACTIVE"
        s.refresh_from_db()
        addon.refresh_from_db()
        assert s.term_end > timezone.now() + timedelta(days=27)
        assert abs(addon.term_end - s.term_end) < timedelta(minutes=1)
    assert (invoices(shop, s)[:2], invoices(shop, addon)[:2]) == (
        [("paid", 3000), ("void", 3000)],
        [("paid", 3000), ("void", 3000)],
    )
    for member in (s, addon):
        assert_equal_to_stripe(shop.stripe, member)


def test_a_pause_that_ended_by_itself_after_what_was_paid_is_resumed_with_a_new_term(
    shop: Shop, s: Subscription, owner: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    done(ask(owner, s, "pause", resumes_at=(timezone.now() + MONTH - timedelta(days=1)).isoformat()))
    with shifted(monkeypatch) as move:
        move(MONTH)
        shop.stripe.clock(int(MONTH.total_seconds()))
        bring(link_of(s))
        s.refresh_from_db()
        assert (s.status, at_stripe(shop.stripe, s)["pause_collection"]) == (Status.SUSPENDED, None)
        owner.force_login(Member.objects.get(tenant=s.tenant).user)
        for _ in range(2):
            assert done(ask(owner, s, "resume"))["status"] == "ACTIVE"
        assert invoices(shop, s) == [("paid", 3000), ("void", 3000), ("paid", 3000)]
        assert_equal_to_stripe(shop.stripe, s)


def test_where_a_schedule_keeps_the_periods_of_a_main_its_addons_are_not_paid_before_it(
    shop: Shop, s: Subscription, owner: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    addon = Shop.of_addons(shop.stripe).adds_to(s)
    done(ask(owner, s, "change", plan="small", when="term_end", confirm_parking=True))
    done(ask(owner, s, "pause"))
    with shifted(monkeypatch) as move:
        move(MONTH)
        shop.stripe.clock(int(MONTH.total_seconds()))
        assert at_stripe(shop.stripe, s)["schedule"]
        owner.force_login(Member.objects.get(tenant=s.tenant).user)
        assert done(ask(owner, s, "resume"))["status"] == "SUSPENDED"
    for member, amount in ((s, 1000), (addon, 3000)):
        assert at_stripe(shop.stripe, member)["pause_collection"] is None
        assert invoices(shop, member)[0] == ("void", amount)


def test_who_is_served_and_keeps_a_subscription_pays_nothing_for_that(
    shop: Shop, s: Subscription, owner: Client
) -> None:
    edit(shop.stripe, s, pause_collection={"behavior": "void"})
    shop.stripe.clock(int(MONTH.total_seconds()))  # of which nobody has told us
    edit(shop.stripe, s, pause_collection="", cancel_at_period_end=True)
    done(ask(owner, s, "resume"))
    assert at_stripe(shop.stripe, s)["cancel_at"] is None
    assert invoices(shop, s) == [("void", 3000), ("paid", 3000)]


def test_a_pause_that_ends_without_money_serves_nothing_until_what_is_open_is_paid(
    shop: Shop, s: Subscription, owner: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    done(ask(owner, s, "pause"))
    with shifted(monkeypatch) as move:
        move(MONTH)
        shop.stripe.clock(int(MONTH.total_seconds()))
        shop.stripe.turn(card="declined")
        owner.force_login(Member.objects.get(tenant=s.tenant).user)
        assert done(ask(owner, s, "resume"))["status"] == "SUSPENDED"
        assert invoices(shop, s)[:2] == [("open", 3000), ("void", 3000)]
        assert_equal_to_stripe(shop.stripe, s)
        shop.stripe.turn(card="ok")
        shop.stripe.pay(link_of(s))
        bring(link_of(s))
        s.refresh_from_db()
        assert s.status == Status.ACTIVE
        assert_equal_to_stripe(shop.stripe, s)


def test_a_staff_hold_is_not_lifted_by_the_customer_but_a_cancellation_is(
    shop: Shop, s: Subscription, owner: Client
) -> None:
    edit(shop.stripe, s, pause_collection={"behavior": "void"}, cancel_at_period_end=True)
    lifecycle.suspend(s.pk, hold=True, actor=ALICE, now=timezone.now(), reason="abuse")
    done(ask(owner, s, "resume"))
    now = at_stripe(shop.stripe, s)
    assert (now["cancel_at"], now["pause_collection"]["behavior"]) == (None, "void")
    with nothing_changes():
        assert problem(ask(owner, s, "resume")) == (409, "on_hold")


# --- another plan, quantity, packs -----------------------------------------------------------------------------------


def test_an_upgrade_is_paid_at_once_as_it_was_previewed(shop: Shop, owner: Client, s: Subscription) -> None:
    shown = done(ask(owner, s, "change/preview", quantity=3, packs={"more": 2}))
    assert shown["slots"] == {"basic": {"before": 3, "after": 13}}
    assert (shown["next_minor"], shown["currency"], shown["devices_to_park"]) == (10000, "EUR", 0)
    assert shown["due_now_minor"] == sum(line["amount_minor"] for line in shown["lines"]) > 6900
    assert all(line["proration"] for line in shown["lines"])
    assert plan_of(s) == ("big", "month", 1)
    told = done(ask(owner, s, "change", quantity=3, packs={"more": 2}, proration_date=shown["proration_date"]))
    assert (told["quantity"], told["packs"], told["scheduled_change"]) == (3, {"more": 2}, None)
    assert used(s) == {"basic": (0, 13)}
    invoice = shop.stripe.api("GET", f"/v1/invoices/{at_stripe(shop.stripe, s)['latest_invoice']}")
    assert (invoice["amount_paid"], invoice["status"]) == (shown["due_now_minor"], "paid")
    assert_equal_to_stripe(shop.stripe, s)


def test_a_declined_card_changes_nothing_there_or_here_and_another_card_then_buys(
    shop: Shop, s: Subscription, owner: Client
) -> None:
    customer = at_stripe(shop.stripe, s)["customer"]
    shop.stripe.api("POST", f"/v1/customers/{customer}", metadata={"card": "declined"})
    before = at_stripe(shop.stripe, s)
    with nothing_changes():
        assert problem(ask(owner, s, "change", quantity=3)) == (402, "card_declined")
    assert at_stripe(shop.stripe, s) == before
    shop.stripe.api("POST", f"/v1/customers/{customer}", metadata={"card": "ok"})
    assert done(ask(owner, s, "change", quantity=3))["quantity"] == 3
    assert_equal_to_stripe(shop.stripe, s)


@pytest.mark.parametrize("key", ["", "k-1"])
def test_a_double_click_changes_once(key: str, shop: Shop, s: Subscription, owner: Client) -> None:
    for _ in range(2):
        done(ask(owner, s, "change", key, quantity=4))
    paid = shop.stripe.api("GET", "/v1/invoices", subscription=link_of(s))["data"]
    assert len(paid) == 2  # the first one and that of the change
    assert s.audit.filter(action=Action.QUANTITY_CHANGED).count() == 1


def test_a_key_that_is_used_for_something_else_changes_that_here_too(
    shop: Shop, s: Subscription, owner: Client
) -> None:
    for quantity in (3, 5, 2):
        assert done(ask(owner, s, "change", key="same", quantity=quantity))["quantity"] == quantity
        assert_equal_to_stripe(shop.stripe, s)


@pytest.mark.parametrize("said", [{"quantity": 1}, {"quantity": 3}, {"packs": {"more": 1}}, {"interval": "year"}])
def test_a_term_that_is_owed_is_not_paid_by_changing_something(said: dict[str, Any], shop: Shop) -> None:
    s = shop.buys()
    owner = owner_of(s.tenant)
    done(ask(owner, s, "change", quantity=2))
    shop.stripe.fail(link_of(s))
    bring(link_of(s), now=s.term_end + timedelta(hours=1))
    before = at_stripe(shop.stripe, s)
    with nothing_changes():
        for verb in ("change", "change/preview"):
            assert problem(ask(owner, s, verb, **said)) == (409, "payment_owed")
    assert at_stripe(shop.stripe, s) == before
    shop.stripe.pay(link_of(s))
    done(ask(owner, s, "change", **said))


@pytest.mark.parametrize("said", [{"quantity": 9}, {"plan": "small"}, {"interval": "year"}])
def test_while_nobody_pays_nothing_is_bought(said: dict[str, Any], shop: Shop, s: Subscription, owner: Client) -> None:
    """Its invoice would be void, and to buy less again would give back what was never paid."""
    done(ask(owner, s, "pause"))
    before = at_stripe(shop.stripe, s)
    with nothing_changes():
        for verb in ("change", "change/preview"):
            assert problem(ask(owner, s, verb, **said)) == (409, "paused")
    assert at_stripe(shop.stripe, s) == before
    assert done(ask(owner, s, "resume"))["status"] == "ACTIVE"
    done(ask(owner, s, "change", **said))
    assert_equal_to_stripe(shop.stripe, s)


@pytest.mark.parametrize(
    "strange", [{"status": "asleep"}, {"items": {"data": []}}, {"items": None}, {"cancel_at": "x"}]
)
def test_stripe_is_told_nothing_of_what_is_not_understood(
    strange: dict[str, Any], shop: Shop, s: Subscription, owner: Client
) -> None:
    shop.stripe.override(link_of(s), strange)
    before = len(shop.stripe.requests())
    with nothing_changes():
        for verb in VERBS:
            assert ask(owner, s, verb).status_code == 409
    assert changes_at_stripe(shop, before) == []


def test_who_buys_more_and_then_less_gets_nothing_back_that_was_never_paid(shop: Shop, s: Subscription) -> None:
    """An hour of what was previewed is not an hour before it was bought."""
    later = timezone.now() + timedelta(hours=2)
    shop.stripe.clock(2 * 3600)
    by = AskedBy(Actor.api_key(3), lambda: later)
    in_a_moment, long_ago = (int((later + t).timestamp()) for t in (timedelta(seconds=50), timedelta(minutes=-50)))
    changing.change(s, wish=WishedChange(quantity=9), proration_date=in_a_moment, by=by)
    for date in (long_ago, in_a_moment - 1):
        for verb in (changing.change, changing.preview):
            with nothing_changes(), pytest.raises(PreviewTooOld):
                verb(s, wish=WishedChange(quantity=1), proration_date=date, by=by)
    shown = changing.preview(s, wish=WishedChange(quantity=1), by=by)
    assert shown.proration_date == in_a_moment
    changing.change(s, wish=WishedChange(quantity=1), proration_date=in_a_moment, by=by)
    paper = shop.stripe.api("GET", "/v1/invoices", limit=2)["data"]
    assert sum(invoice["total"] for invoice in paper) == 0
    assert_equal_to_stripe(shop.stripe, s)


def test_a_smaller_plan_asks_before_it_parks_and_parks_the_newest(shop: Shop, s: Subscription, owner: Client) -> None:
    fill(s, "a", "b", "c")
    assert done(ask(owner, s, "change/preview", plan="small"))["devices_to_park"] == 2
    before = len(shop.stripe.requests())
    with nothing_changes():
        answer = ask(owner, s, "change", plan="small")
        assert problem(answer) == (409, "devices_would_be_parked")
    assert answer.json()["devices_to_park"] == 2
    assert changes_at_stripe(shop, before) == []
    done(ask(owner, s, "change", plan="small", confirm_parking=True))
    assert (held_by(s), parked()) == (["a"], ["b", "c"])
    assert_equal_to_stripe(shop.stripe, s)


def test_devices_that_find_a_free_slot_elsewhere_are_not_counted_as_parked(
    shop: Shop, s: Subscription, owner: Client
) -> None:
    fill(s, "a", "b", "c")
    now = timezone.now()
    subscription(Type.TEMPORARY, slots={"basic": 1}, tenant=s.tenant, term=(now, now + timedelta(days=9)), now=now)
    assert done(ask(owner, s, "change/preview", plan="small"))["devices_to_park"] == 1
    done(ask(owner, s, "change", plan="small", confirm_parking=True))
    assert parked() == ["c"]


def test_a_year_instead_of_a_month_begins_now_and_the_term_follows(shop: Shop, s: Subscription, owner: Client) -> None:
    month_end = s.term_end
    shown = done(ask(owner, s, "change/preview", interval="year"))
    assert shown["due_now_minor"] == sum(line["amount_minor"] for line in shown["lines"]) > 26000
    done(ask(owner, s, "change", interval="year", proration_date=shown["proration_date"]))
    assert plan_of(s) == ("big", "year", 1)
    assert s.term_end == end_of(at_stripe(shop.stripe, s)) > month_end + timedelta(days=300)
    assert_equal_to_stripe(shop.stripe, s)


def test_a_month_instead_of_a_year_begins_now_and_the_term_and_the_addons_follow(shop: Shop) -> None:
    s = shop.buys(price=shop.big_yearly)
    offline = subscription(
        Type.ADDON, slots={"basic": 1}, parent=s, term=(s.term_start, s.term_end), now=timezone.now()
    )
    done(ask(owner_of(s.tenant), s, "change", interval="month"))
    assert plan_of(s) == ("big", "month", 1)
    offline.refresh_from_db()
    assert offline.term_end == s.term_end == end_of(at_stripe(shop.stripe, s))
    assert s.term_end < timezone.now() + timedelta(days=32)
    assert_equal_to_stripe(shop.stripe, s)


def test_packs_are_added_changed_and_removed_with_the_plan_at_once(shop: Shop, s: Subscription, owner: Client) -> None:
    for said, slots in (
        ({"packs": {"more": 3}}, 9),
        ({"packs": {"more": 1}, "quantity": 2}, 8),
        ({"plan": "small", "packs": {"more": 2}}, 6),
        ({"packs": {"more": 0}}, 2),
    ):
        done(ask(owner, s, "change", **said))
        assert used(s)["basic"] == (0, slots)
        assert_equal_to_stripe(shop.stripe, s)


def test_an_interval_takes_packs_of_its_own(shop: Shop, s: Subscription, owner: Client) -> None:
    done(ask(owner, s, "change", packs={"more": 1}))
    with nothing_changes():
        assert problem(ask(owner, s, "change", interval="year")) == (400, "no_such_pack")
    packs = {"more": 0, "more-yearly": 1}
    assert done(ask(owner, s, "change", interval="year", packs=packs))["packs"] == {"more-yearly": 1}
    assert_equal_to_stripe(shop.stripe, s)


@pytest.mark.parametrize(
    ("said", "status", "code"),
    [
        ({"plan": "nothing"}, 400, "no_such_price"),
        ({"packs": {"nothing": 1}}, 400, "no_such_pack"),
        ({"currency": "USD"}, 400, "currency_stays"),
        ({"quantity": 0}, 400, "invalid"),
        ({"quantity": 10_001}, 400, "invalid"),
        ({"quantity": "2"}, 400, "invalid"),
        ({"quantity": 2.0}, 400, "invalid"),
        ({"packs": {"more": True}}, 400, "invalid"),
        ({"packs": {"more": 10_001}}, 400, "invalid"),
        ({"interval_count": 3}, 400, "no_such_price"),
        ({"interval_count": "1"}, 400, "invalid"),
        ({"packs": {"more": -1}}, 400, "invalid"),
        ({"price": "price_1"}, 400, "invalid"),
        ({"quantity": 2, "proration_date": 1}, 409, "preview_too_old"),
        ({"quantity": 2, "proration_date": int(JAN_1.timestamp()) + 10**9}, 409, "preview_too_old"),
    ],
)
def test_what_is_not_offered_is_refused_before_stripe_is_told(
    said: dict[str, Any], status: int, code: str, shop: Shop, s: Subscription, owner: Client
) -> None:
    before = len(shop.stripe.requests())
    with nothing_changes():
        assert problem(ask(owner, s, "change", **said)) == (status, code)
    assert changes_at_stripe(shop, before) == []


def test_nobody_pays_for_more_slots_than_a_subscription_can_hold(shop: Shop, s: Subscription, owner: Client) -> None:
    SlotPack.objects.filter(code="more").update(slots=30_000)
    before = len(shop.stripe.requests())
    with nothing_changes():
        for verb in ("change", "change/preview"):
            assert problem(ask(owner, s, verb, packs={"more": 34})) == (400, "invalid_slots")
    assert changes_at_stripe(shop, before) == []
    done(ask(owner, s, "change", packs={"more": 33}))
    assert_equal_to_stripe(shop.stripe, s)


def test_a_plan_of_another_type_or_no_longer_sold_is_not_changed_to(shop: Shop, s: Subscription, owner: Client) -> None:
    Shop.of_addons(shop.stripe)
    assert problem(ask(owner, s, "change", plan="addon-small")) == (400, "invalid_plan")
    shop.small.plan.is_sold = False
    shop.small.plan.save()
    assert problem(ask(owner, s, "change", plan="small")) == (400, "no_such_price")


def test_of_several_lengths_of_an_interval_the_present_one_stays_or_one_is_named(
    shop: Shop, s: Subscription, owner: Client
) -> None:
    PlanPriceFactory.create(plan=shop.big.plan, amount_minor=50000, interval="year", interval_count=2)
    quarterly = PlanPriceFactory.create(plan=shop.big.plan, amount_minor=8000, interval_count=3)
    with nothing_changes():
        refused = ask(owner, s, "change", interval="year")
        assert problem(refused) == (400, "ambiguous_price")
        assert [price["interval_count"] for price in refused.json()["sold"]] == [1, 2]
    done(ask(owner, s, "change", plan="big", quantity=2))
    assert plan_of(s) == ("big", "month", 2)
    assert s.price == shop.big
    done(ask(owner, s, "change", interval_count=3))
    s.refresh_from_db()
    assert s.price == quarterly
    assert_equal_to_stripe(shop.stripe, s)


def test_in_a_trial_a_change_is_free_and_at_once(shop: Shop) -> None:
    s = shop.buys(trial_period_days=14)
    owner = owner_of(s.tenant)
    assert done(ask(owner, s, "change/preview", quantity=2))["due_now_minor"] == 0
    assert done(ask(owner, s, "change", quantity=2))["status"] == "TRIAL"
    assert_equal_to_stripe(shop.stripe, s)
    assert problem(ask(owner, s, "change", quantity=3, when="term_end")) == (409, "illegal_transition")
    assert problem(ask(owner, s, "pause")) == (409, "illegal_transition")


# --- at term end -----------------------------------------------------------------------------------------------------


def test_a_downgrade_at_term_end_is_shown_comes_with_the_renewal_and_parks_then(
    shop: Shop, s: Subscription, owner: Client
) -> None:
    fill(s, "a", "b")
    said = {"plan": "small", "when": "term_end"}
    shown = done(ask(owner, s, "change/preview", **said))
    assert (shown["due_now_minor"], shown["next_minor"], shown["devices_to_park"]) == (0, 1000, 1)
    assert problem(ask(owner, s, "change", **said)) == (409, "devices_would_be_parked")
    told = done(ask(owner, s, "change", confirm_parking=True, **said))
    assert (told["plan"], told["status"]) == ("big", "ACTIVE")
    coming = told["scheduled_change"]
    assert (coming["plan"], coming["quantity"], coming["at"]) == ("small", 1, told["term_end"])
    assert_equal_to_stripe(shop.stripe, s)
    shop.stripe.pay(link_of(s))
    bring(link_of(s), now=s.term_end)
    assert plan_of(s) == ("small", "month", 1)
    assert parked() == ["b"]
    assert_equal_to_stripe(shop.stripe, s)
    assert done(owner.get(f"/api/v1/customer/subscriptions/{s.number}"))["scheduled_change"] is None


def test_a_scheduled_change_is_dropped_or_takes_the_place_of_the_one_before(
    shop: Shop, s: Subscription, owner: Client
) -> None:
    for quantity in (2, 3):
        told = done(ask(owner, s, "change", quantity=quantity, packs={"more": 1}, when="term_end"))
        assert told["scheduled_change"]["quantity"] == quantity
        assert_equal_to_stripe(shop.stripe, s)
    told = done(owner.delete(f"/api/v1/customer/subscriptions/{s.number}/change"))
    assert (told["scheduled_change"], at_stripe(shop.stripe, s)["schedule"]) == (None, None)
    done(ask(owner, s, "change", quantity=2, when="term_end"))
    assert done(ask(owner, s, "change", quantity=1, when="term_end"))["scheduled_change"] is None
    assert at_stripe(shop.stripe, s)["schedule"] is None
    assert_equal_to_stripe(shop.stripe, s)


@pytest.mark.parametrize(
    ("verb", "said"), [("change", {"quantity": 5}), ("cancel", {}), ("cancel", {"at": "now"}), ("pause", {})]
)
def test_what_is_scheduled_gives_way_to_what_is_asked_for_now(
    verb: str, said: dict[str, Any], shop: Shop, s: Subscription, owner: Client
) -> None:
    done(ask(owner, s, "change", quantity=2, when="term_end"))
    done(ask(owner, s, verb, **said))
    assert_equal_to_stripe(shop.stripe, s)
    assert (at_stripe(shop.stripe, s)["schedule"] is None) == (verb != "pause" and said != {"at": "now"})


def test_a_card_that_is_declined_leaves_what_is_scheduled(shop: Shop, s: Subscription, owner: Client) -> None:
    done(ask(owner, s, "change", quantity=2, when="term_end"))
    shop.stripe.turn(card="declined")
    assert problem(ask(owner, s, "change", quantity=9)) == (402, "card_declined")
    assert at_stripe(shop.stripe, s)["schedule"] is not None
    assert_equal_to_stripe(shop.stripe, s)


def test_what_ends_with_its_term_has_no_change_then(shop: Shop, s: Subscription, owner: Client) -> None:
    done(ask(owner, s, "cancel"))
    with nothing_changes():
        assert problem(ask(owner, s, "change", quantity=2, when="term_end")) == (409, "ends_with_term")


# --- who, and what if not --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_engineers_and_others_change_nothing(verb: str, shop: Shop, s: Subscription) -> None:
    engineer, stranger = owner_of(s.tenant, Member.Role.ENGINEER), owner_of(TenantFactory.create())
    before = len(shop.stripe.requests())
    with nothing_changes():
        assert ask(engineer, s, verb).status_code == 403
        assert ask(stranger, s, verb).status_code == 404
        assert ask(Client(), s, verb).status_code == 401
    assert len(shop.stripe.requests()) == before


WHO_CANNOT_PAY = {
    "declined": "card_declined",
    "none": "no_payment_method",
    "requires_action": "payment_needs_confirmation",
}


@pytest.mark.parametrize(("card", "code"), WHO_CANNOT_PAY.items())
def test_who_cannot_pay_for_more_is_told_why_and_nothing_changes(
    card: str, code: str, shop: Shop, s: Subscription, owner: Client
) -> None:
    shop.stripe.api("POST", f"/v1/customers/{customer_of(s.tenant)}", metadata={"card": card})
    with nothing_changes():
        assert problem(ask(owner, s, "change", quantity=5)) == (402, code)


@pytest.mark.parametrize("verb", VERBS)
def test_when_stripe_does_not_answer_nothing_changes_here(
    verb: str, shop: Shop, s: Subscription, owner: Client
) -> None:
    shop.stripe.knobs(errors=[{"status": 500, "times": 0}])
    with nothing_changes():
        assert problem(ask(owner, s, verb)) == (502, "stripe_unavailable")


@pytest.mark.parametrize(
    ("verb", "aspect"),
    [("cancel", "TERM_END"), ("resume", "PAUSE"), ("pause", "PAUSE"), ("change", "ITEMS"), ("change", "END")],
)
def test_what_is_still_being_told_to_stripe_is_not_changed_past_it(
    verb: str, aspect: str, shop: Shop, s: Subscription, owner: Client
) -> None:
    now = timezone.now()
    link = StripeLink.objects.get(subscription=s)
    Telling.objects.create(
        aspect=aspect, link=link, tenant=s.tenant, version=1, actor=ALICE, created_at=now, next_attempt_at=now
    )
    with nothing_changes():
        assert problem(ask(owner, s, verb)) == (409, "change_under_way")


def test_what_has_ended_at_stripe_is_found_to_be_over(shop: Shop, s: Subscription, owner: Client) -> None:
    shop.stripe.api("DELETE", f"/v1/subscriptions/{link_of(s)}")
    assert problem(ask(owner, s, "change", quantity=2)) == (409, "illegal_transition")
    assert_equal_to_stripe(shop.stripe, s)
    assert done(owner.get(f"/api/v1/customer/subscriptions/{s.number}"))["status"] == "EXPIRED"


def test_what_stripe_understands_otherwise_than_we_sold_it_is_left_to_staff(
    shop: Shop, s: Subscription, owner: Client
) -> None:
    StripePrice.objects.all().delete()
    with nothing_changes():
        assert problem(ask(owner, s, "change", quantity=2)) == (409, "unknown_price")


@pytest.mark.parametrize(
    ("verb", "said", "most"),
    [("cancel", {}, 18), ("pause", {}, 18), ("change", {"quantity": 2}, 31), ("change/preview", {"quantity": 2}, 12)],
)
def test_a_change_takes_so_many_queries_however_much_the_tenant_has(
    verb: str, said: dict[str, Any], most: int, shop: Shop, s: Subscription, owner: Client
) -> None:
    now = timezone.now()
    for _ in range(9):
        subscription(Type.TEMPORARY, slots={"basic": 1}, tenant=s.tenant, term=(now, s.term_end), now=now)
    with CaptureQueriesContext(connection) as queries:
        done(ask(owner, s, verb, **said))
    assert len(queries) <= most, "\n".join(q["sql"][:150] for q in queries)


@pytest.mark.django_db(transaction=True)
def test_of_two_clicks_at_the_same_moment_one_changes(shop: Shop, s: Subscription) -> None:
    shop.stripe.knobs(latency_seconds=0.1)  # both look before one of them changes
    by = AskedBy(Actor.member(1), timezone.now)

    def click() -> None:
        changing.change(s, wish=WishedChange(quantity=2, packs={"more": 1}), by=by)

    answers = at_once(click, click)
    assert answers.count(None) >= 1
    assert [error.code for error in answers if isinstance(error, StripeRefused)] in ([], ["idempotency_key_in_use"])
    shop.stripe.knobs()
    assert len(shop.stripe.api("GET", "/v1/invoices", subscription=link_of(s))["data"]) == 2
    assert_equal_to_stripe(shop.stripe, s)
