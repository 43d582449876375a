"""What changes here is so at Stripe soon after: rows, delivered until Stripe has it.

Closing a tenant: test_closing. Plans that are sold by the device: test_outbound_by_device.
"""

from datetime import datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from billing_site.verbs import carry_out
from subscriptions import lifecycle
from subscriptions.audit import STRIPE, Actor
from subscriptions.lifecycle import CancelAt
from subscriptions.management.verbs import By
from subscriptions.models import AuditCursor, AuditEntry, PlanPrice, Subscription
from subscriptions.states import EndReason, Status, Type
from tests.builders import ALICE, PlanFactory, PlanPriceFactory, selling, subscription
from tests.history import advance, settle
from tests.stripe_cast import bought_at_stripe, rings
from tests.stripe_sandbox.client import Sandbox
from tests.stripe_spec import validate_request
from tests.years import shifted
from webhooks import inbox, stripe_api, truth
from webhooks.catalogue import price_at_stripe
from webhooks.models import StripeLink, Telling
from webhooks.outgoing import outbound, telling
from webhooks.stripe_state import Wanted, wanted

pytestmark = pytest.mark.django_db

DONE, PENDING, STUCK = Telling.State.DONE, Telling.State.PENDING, Telling.State.STUCK
DAY = timedelta(days=1)


# --- the cast --------------------------------------------------------------------------------------------------------


def bought(stripe: Sandbox, **more: Any) -> Subscription:
    """ACTIVE at Stripe and here."""
    stripe_id = bought_at_stripe(stripe, **more)["id"]
    assert inbox.apply(rings(stripe_id).pk, now=timezone.now()) == "started"
    return Subscription.objects.get(stripe_link=stripe_id)


def with_addon(stripe: Sandbox) -> tuple[Subscription, Subscription]:
    """A MAIN and an add-on, each with a Stripe subscription of its own, for the same term."""
    main = bought(stripe)
    price = PlanPriceFactory.create(plan=selling({}, Type.ADDON), amount_minor=500)
    more: dict[str, Any] = {"tenant": main.tenant, "billing_cycle_anchor": seconds(main.term_end)}
    addon = bought(stripe, price=price, **more)
    assert addon.parent == main
    return main, addon


def seconds(instant: datetime) -> int:
    return int(instant.timestamp())


def link(s: Subscription) -> str:
    return str(StripeLink.objects.get(subscription=s).pk)


def there(stripe: Sandbox, s: Subscription) -> dict[str, Any]:
    found: dict[str, Any] = stripe.api("GET", f"/v1/subscriptions/{link(s)}")
    return found


def end_there(stripe: Sandbox, s: Subscription) -> tuple[bool, int | None]:
    at_stripe = there(stripe, s)
    return at_stripe["cancel_at_period_end"], at_stripe["cancel_at"]


def does(verb: str, s: Subscription, *, now: datetime | None = None, **options: Any) -> None:
    """Alice does it in the back office, or at a terminal."""
    carry_out(verb, s.number, options, By(ALICE, now or timezone.now(), "as agreed"))
    s.refresh_from_db()


def cancels(s: Subscription) -> None:
    does("cancel", s, at="term-end")


def deliver(now: datetime | None = None) -> list[str]:
    return [outcome for _, outcome in outbound.deliver(now=lambda: now or timezone.now())]


def rows() -> list[tuple[str, str]]:
    return [*Telling.objects.order_by("pk").values_list("aspect", "state")]


def ring(s: Subscription) -> str | None:
    return inbox.apply(rings(link(s)).pk, now=timezone.now())


def caught_up(page: int = telling.PAGE) -> int:
    settle()
    return telling.catch_up(now=timezone.now(), page=page)


def calls(stripe: Sandbox, method: str) -> int:
    return sum(one["method"] == method and "/v1/subscriptions/" in one["path"] for one in stripe.requests())


# --- what is told ----------------------------------------------------------------------------------------------------


def test_what_staff_cancel_at_term_end_ends_there_at_stripe_and_goes_on_where_they_resume_it(stripe: Sandbox) -> None:
    s = bought(stripe)
    cancels(s)
    assert (rows(), deliver()) == ([("TERM_END", PENDING)], ["told"])
    assert end_there(stripe, s) == (True, seconds(s.term_end))
    does("resume", s)
    assert deliver() == ["told"]
    assert end_there(stripe, s) == (False, None)
    assert rows() == [("TERM_END", DONE)] * 2
    assert ring(s) == "nothing new"


def test_a_cancellation_for_a_date_is_cleared_too(stripe: Sandbox) -> None:
    s = bought(stripe)
    stripe.api("POST", f"/v1/subscriptions/{link(s)}", cancel_at=seconds(s.term_end))
    assert ring(s) == "cancelled at term end"
    does("resume", s)
    assert deliver() == ["told"]
    assert end_there(stripe, s) == (False, None)


def test_what_staff_end_at_once_is_billed_no_more(stripe: Sandbox) -> None:
    s = bought(stripe)
    does("cancel", s, at="now")
    assert (rows(), deliver()) == ([("END", PENDING)], ["told"])
    assert there(stripe, s)["status"] == "canceled"
    assert ring(s) == "nothing new"


def test_what_staff_hold_is_not_paid_for_until_they_lift_the_hold(stripe: Sandbox) -> None:
    s = bought(stripe)
    does("suspend", s, hold=True)
    assert (rows(), deliver()) == ([("PAUSE", PENDING)], ["told"])
    assert there(stripe, s)["pause_collection"]["behavior"] == "void"
    assert (ring(s), s.on_hold) == ("nothing new", True)
    does("lift-hold", s)
    assert deliver() == ["told"]
    assert there(stripe, s)["pause_collection"] is None
    s.refresh_from_db()
    assert (ring(s), s.status) == ("nothing new", Status.ACTIVE)


def test_another_plan_and_quantity_become_the_items_and_packs_beside_them_stay(stripe: Sandbox) -> None:
    s = bought(stripe)
    other = PlanPriceFactory.create(amount_minor=900)
    pack = stripe.api("POST", "/v1/prices", currency="eur", unit_amount=100, recurring={"interval": "month"},
                      product_data={"name": "pack"})["id"]  # fmt: skip
    stripe.api("POST", f"/v1/subscriptions/{link(s)}", items=[{"price": pack, "quantity": 2}])
    does("change-plan", s, plan=other.plan, price=other)
    lifecycle.change_plan(s.pk, plan=other.plan, price=other, quantity=7, actor=ALICE, now=timezone.now(), reason="7")
    outcomes = deliver()
    items = {item["price"]["id"]: item["quantity"] for item in there(stripe, s)["items"]["data"]}
    assert items == {price_at_stripe(other): 7, pack: 2}
    assert outcomes == ["told; what Stripe has was not applied: unknown_price"]  # nobody here sells that pack


def test_a_plan_without_a_price_waits_for_a_person(stripe: Sandbox) -> None:
    s = bought(stripe)
    does("change-plan", s, plan=PlanFactory.create(), price=None)
    assert (deliver(), rows()) == (["stuck: no_price"], [("ITEMS", STUCK)])


@pytest.mark.django_db(transaction=True)
def test_what_the_clock_ended_and_what_somebody_forgot_is_read_off_the_audit_and_told_once(stripe: Sandbox) -> None:
    s = bought(stripe)
    lifecycle.cancel(s.pk, at=CancelAt.TERM_END, actor=ALICE, now=timezone.now(), reason="forgot to tell")
    assert (caught_up(), caught_up()) == (1, 0)
    assert deliver() == ["told"]
    advance(s.term_end)
    assert (caught_up(), rows()) == (1, [("TERM_END", DONE), ("END", PENDING)])
    assert deliver() == ["told"]
    assert there(stripe, s)["status"] == "canceled"


@pytest.mark.django_db(transaction=True)
def test_what_was_told_already_or_stripe_knew_first_or_stripe_has_not_at_all_is_not_read_off_the_audit(
    stripe: Sandbox,
) -> None:
    s, unknown = bought(stripe), subscription(term=(timezone.now() - DAY, timezone.now() + DAY))
    for actor in (STRIPE, Actor.member(7), Actor.api_key(3)):  # a customer's change goes to Stripe first
        lifecycle.cancel(s.pk, at=CancelAt.TERM_END, actor=actor, now=timezone.now())
        lifecycle.resume(s.pk, actor=actor, now=timezone.now())
    cancels(unknown)
    assert (caught_up(), rows()) == (0, [])
    cancels(s)
    assert (caught_up(), len(rows())) == (0, 1)


@pytest.mark.django_db(transaction=True)
def test_many_entries_about_one_subscription_are_one_row_a_page_and_every_page_is_read(
    stripe: Sandbox, django_assert_num_queries: Any
) -> None:
    s, now = bought(stripe), timezone.now()
    for _ in range(5):
        lifecycle.cancel(s.pk, at=CancelAt.TERM_END, actor=ALICE, now=now, reason="no")
        lifecycle.resume(s.pk, actor=ALICE, now=now, reason="yes")
    assert caught_up(page=1000) == 1
    assert Telling.objects.get().version == Subscription.objects.get().version
    Telling.objects.all().delete()
    AuditCursor.objects.update(transaction_id=0)
    settle()
    with django_assert_num_queries(3 + 7 + 1):  # the cursor is locked, seven pages of eleven entries, the cursor moves
        assert telling.catch_up(now=now, page=2) == 6


@pytest.mark.django_db(transaction=True)
def test_a_dry_run_and_a_change_that_is_taken_back_leave_no_row(stripe: Sandbox) -> None:
    s = bought(stripe)
    carry_out("cancel", s.number, {"at": "now"}, By(ALICE, timezone.now(), "as agreed"), dry_run=True)
    assert rows() == []


def test_to_tell_nothing_takes_no_statement_and_to_tell_something_takes_one(
    stripe: Sandbox, django_assert_num_queries: Any
) -> None:
    s, now = bought(stripe), timezone.now()
    (begun,) = AuditEntry.objects.all()
    slots = AuditEntry(subscription=s, changes={"slots.basic": [0, 3]})
    with django_assert_num_queries(0):
        telling.tell([slots], now=now)
    with django_assert_num_queries(1):
        telling.tell([begun], now=now)


@pytest.mark.parametrize("verb", ["cancel", "change-plan"])
def test_what_staff_do_takes_the_place_of_what_the_customer_had_scheduled(stripe: Sandbox, verb: str) -> None:
    s, later = bought(stripe), PlanPriceFactory.create(amount_minor=900)
    schedule(stripe, s, later)
    does(verb, s, at="term-end", plan=later.plan, price=later)
    assert (deliver(), there(stripe, s)["schedule"]) == (["told"], None)
    assert end_there(stripe, s)[0] == (verb == "cancel")


def test_a_hold_that_outlasts_what_was_paid_is_lifted_with_a_new_term_that_is_paid_at_once(
    stripe: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = bought(stripe)
    does("suspend", s, hold=True)
    deliver()
    with shifted(monkeypatch) as move:
        move(33 * DAY)
        stripe.clock(int((33 * DAY).total_seconds()))
        does("lift-hold", s)
        assert deliver() == ["told"]
        s.refresh_from_db()
        assert s.status == Status.ACTIVE
        assert s.term_end > timezone.now() + 27 * DAY
    invoices = stripe.api("GET", "/v1/invoices", subscription=link(s))["data"]
    assert [invoice["status"] for invoice in invoices] == ["paid", "void", "paid"]


def test_a_hold_and_an_end_leave_a_schedule_to_stripe(stripe: Sandbox) -> None:
    s, later = bought(stripe), PlanPriceFactory.create(amount_minor=900)
    schedule(stripe, s, later)
    does("suspend", s, hold=True)
    assert (deliver(), bool(there(stripe, s)["schedule"])) == (["told"], True)
    does("cancel", s, at="now")
    assert (deliver(), there(stripe, s)["status"]) == (["told"], "canceled")


def schedule(stripe: Sandbox, s: Subscription, later: PlanPrice) -> None:
    """From the next term on, the customer buys at another price."""
    made = stripe.api("POST", "/v1/subscription_schedules", from_subscription=link(s))
    now = made["phases"][0]
    phases = [
        {"items": [{"price": now["items"][0]["price"]}], "start_date": now["start_date"], "end_date": now["end_date"]},
        {"items": [{"price": price_at_stripe(later)}]},
    ]
    stripe.api("POST", f"/v1/subscription_schedules/{made['id']}", phases=phases)


# --- compared first --------------------------------------------------------------------------------------------------


def test_what_stripe_has_already_is_not_said_again(stripe: Sandbox) -> None:
    s = bought(stripe)
    stripe.cancel(link(s), at_period_end=True)
    cancels(s)
    before = calls(stripe, "POST")
    assert (deliver(), calls(stripe, "POST")) == (["was so already"], before)


def test_what_is_over_at_stripe_needs_no_telling_and_is_over_here(stripe: Sandbox) -> None:
    s = bought(stripe)
    cancels(s)
    stripe.cancel(link(s))
    assert deliver() == ["was so already"]
    s.refresh_from_db()
    assert s.status == Status.EXPIRED


def test_an_end_that_stripe_has_no_subscription_for_is_done(stripe: Sandbox) -> None:
    s = bought(stripe)
    does("cancel", s, at="now")
    stripe.reset()
    assert deliver() == ["Stripe has no such subscription"]


def test_news_of_a_renewal_that_waited_behind_a_row_are_applied_with_it(stripe: Sandbox) -> None:
    s = bought(stripe)
    was = s.term_end
    cancels(s)
    does("resume", s)
    stripe.pay(link(s))
    assert ring(s) == "nothing new"  # what is ours to say is not read off Stripe
    assert deliver() == ["was so already", "was so already"]
    s.refresh_from_db()
    assert s.term_end > was


def test_stripes_old_events_in_between_change_nothing_here(stripe: Sandbox) -> None:
    s = bought(stripe)
    cancels(s)
    assert ring(s) == "nothing new"
    s.refresh_from_db()
    assert s.cancel_at_term_end
    Telling.objects.all().delete()  # without the row, the same news undo it
    assert ring(s) == "cancellation undone"


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_while_stripe_is_down_a_row_is_tried_again_for_three_days_and_then_waits_for_a_person(stripe: Sandbox) -> None:
    s = bought(stripe)
    cancels(s)
    stripe.knobs(errors=[{"path_prefix": "/v1/", "status": 500, "times": 0}])
    now, tries = timezone.now(), 0
    began = now
    while Telling.objects.get().state == PENDING:
        now = Telling.objects.get().next_attempt_at
        assert len(deliver(now)) == 1
        tries += 1
    stripe.knobs()
    row = Telling.objects.get()
    assert (tries, row.attempts, row.error_code) == (inbox.MOST_ATTEMPTS, inbox.MOST_ATTEMPTS, "stripe_unavailable")
    assert timedelta(days=2) < now - began < timedelta(days=5)
    assert (outbound.again(outbound.stuck(), now=now), deliver(now)) == (1, ["told"])


def test_what_stripe_refuses_is_stuck_at_once_and_does_not_hold_up_what_comes_after_it(stripe: Sandbox) -> None:
    s = bought(stripe)
    does("suspend", s, hold=True)
    does("cancel", s, at="now")
    stripe.knobs(errors=[{"path_prefix": "/v1/subscriptions/", "method": "GET", "status": 400, "times": 1}])
    assert [outcome.partition(":")[0] for outcome in deliver()] == ["it is over here", "stuck"]
    assert outbound.stuck() == [*Telling.objects.filter(aspect="END").values_list("pk", flat=True)]


def test_killed_between_stripes_answer_and_our_commit_it_finds_it_so_and_says_it_once(stripe: Sandbox) -> None:
    s = bought(stripe)
    cancels(s)
    stripe.knobs(errors=[{"path_prefix": "/v1/subscriptions/", "method": "POST", "close": True, "after": True}])
    assert deliver()[0].startswith("failed: stripe_unavailable")
    said = calls(stripe, "POST")
    assert deliver(timezone.now() + timedelta(minutes=1)) == ["was so already"]
    assert (calls(stripe, "POST"), end_there(stripe, s)[0]) == (said, True)


def test_of_one_subscription_one_row_at_a_time_in_their_order_and_others_do_not_wait(stripe: Sandbox) -> None:
    first, other = bought(stripe), bought(stripe)
    cancels(first)
    does("suspend", first, hold=True)
    cancels(other)
    stripe.knobs(errors=[{"path_prefix": f"/v1/subscriptions/{link(first)}", "status": 500, "times": 1}])
    assert [outcome.partition(":")[0] for outcome in deliver()] == ["failed", "told"]
    assert rows() == [("TERM_END", PENDING), ("PAUSE", PENDING), ("TERM_END", DONE)]
    assert deliver(timezone.now() + timedelta(minutes=1)) == ["told", "told"]


def test_a_row_that_was_given_up_says_by_whom_and_what_stripe_says_counts_again(stripe: Sandbox) -> None:
    s = bought(stripe)
    cancels(s)
    outbound.give_up([Telling.objects.get().pk], by=ALICE, now=timezone.now())
    assert (Telling.objects.get().outcome, deliver()) == ("given up by staff:1", [])
    assert ring(s) == "cancellation undone"


def test_a_row_that_was_given_up_while_it_was_told_stays_so(stripe: Sandbox) -> None:
    s = bought(stripe)
    cancels(s)
    row = Telling.objects.get()
    claimed = outbound._claim(timezone.now())
    assert claimed is not None
    outbound.give_up([row.pk], by=ALICE, now=timezone.now())
    assert outbound._try(claimed, timezone.now) == "somebody else has it"


def test_every_request_is_one_that_stripe_publishes(stripe: Sandbox) -> None:
    main, _ = with_addon(stripe)
    other = PlanPriceFactory.create(amount_minor=900)
    sells_other: dict[str, Any] = {"plan": other.plan, "price": other}
    for verb, more in (
        ("suspend", {"hold": True}), ("lift-hold", {}), ("change-plan", sells_other),
        ("cancel", {"at": "term-end"}), ("resume", {}), ("cancel", {"at": "now"}),
    ):  # fmt: skip
        does(verb, main, **more)
        assert not [outcome for outcome in deliver() if outcome.startswith(("stuck", "failed"))]
    asked = [one for one in stripe.requests() if one["method"] != "GET" and "/v1/subscriptions/" in one["path"]]
    assert len(asked) > 6
    for one in asked:
        validate_request(one["method"], one["path"], one["params"])


# --- races -----------------------------------------------------------------------------------------------------------


def fetched(s: Subscription) -> tuple[int, Wanted]:
    """An event's worker has asked Stripe, and does not go on yet."""
    return truth.take_ticket(link(s)), wanted(stripe_api.fetch_subscription(link(s)))


def applies(s: Subscription, ticket: int, state: Wanted) -> str:
    def finish(outcome: str, applied_ticket: int, subscription_id: int | None) -> bool:
        return truth.mark_applied(link(s), ticket, applied_ticket, subscription_id)

    return truth.apply(state, ticket, finish, now=timezone.now())


def test_news_that_were_fetched_before_stripe_was_told_do_not_undo_it_after(stripe: Sandbox) -> None:
    s = bought(stripe)
    cancels(s)
    ticket, before = fetched(s)
    assert deliver() == ["told"]
    assert applies(s, ticket, before) == "older than what was applied"
    s.refresh_from_db()
    assert s.cancel_at_term_end


def test_a_row_that_is_done_without_a_ticket_of_its_own_would_be_undone_by_them(stripe: Sandbox) -> None:
    """What the rule above guards against."""
    s = bought(stripe)
    cancels(s)
    ticket, before = fetched(s)
    stripe.cancel(link(s), at_period_end=True)
    Telling.objects.update(state=DONE, done_at=timezone.now())
    assert applies(s, ticket, before) == "cancellation undone"


# --- add-ons that Stripe bills apart from their MAIN -----------------------------------------------------------------


def test_an_addon_ends_at_stripe_where_its_main_ends_and_goes_on_where_that_does(stripe: Sandbox) -> None:
    main, addon = with_addon(stripe)
    cancels(main)
    assert deliver() == ["told", "told"]
    assert end_there(stripe, addon) == (False, seconds(main.term_end))
    assert (ring(addon), ring(main)) == ("nothing new", "nothing new")
    addon.refresh_from_db()
    assert not addon.cancel_at_term_end  # nobody has cancelled it
    does("resume", main)
    assert (deliver(), end_there(stripe, addon)) == (["told", "told"], (False, None))


def test_an_addon_that_was_cancelled_itself_stays_so_when_its_main_goes_on(stripe: Sandbox) -> None:
    main, addon = with_addon(stripe)
    cancels(main)
    cancels(addon)
    does("resume", main)
    deliver()
    addon.refresh_from_db()
    assert end_there(stripe, addon) == (False, seconds(addon.term_end))
    assert (addon.cancel_at_term_end, end_there(stripe, main)) == (True, (False, None))


def test_whoever_cancels_a_main_at_stripe_ends_its_addons_there(stripe: Sandbox) -> None:
    main, addon = with_addon(stripe)
    stripe.cancel(link(main), at_period_end=True)
    assert ring(main) == "cancelled at term end"
    assert (rows(), deliver()) == ([("TERM_END", PENDING)], ["told"])
    assert end_there(stripe, addon) == (False, seconds(main.term_end))


def test_a_main_that_ended_at_stripe_takes_its_addons_with_it_there(stripe: Sandbox) -> None:
    main, addon = with_addon(stripe)
    stripe.cancel(link(main))
    assert ring(main) == "expired"
    addon.refresh_from_db()
    assert (addon.status, addon.end_reason) == (Status.EXPIRED, EndReason.MAIN_ENDED)
    assert (deliver(), there(stripe, addon)["status"]) == (["told"], "canceled")


def test_an_addon_that_begins_beside_a_main_that_ends_is_to_end_with_it(stripe: Sandbox) -> None:
    main = bought(stripe)
    cancels(main)
    assert deliver() == ["told"]
    price = PlanPriceFactory.create(plan=selling({}, Type.ADDON), amount_minor=500)
    addon = bought(stripe, tenant=main.tenant, price=price, billing_cycle_anchor=seconds(main.term_end))
    assert (deliver(), end_there(stripe, addon)) == (["told"], (False, seconds(main.term_end)))


def test_a_renewal_of_a_main_with_an_addon_tells_stripe_nothing(stripe: Sandbox) -> None:
    main, _ = with_addon(stripe)
    stripe.pay(link(main))
    assert (ring(main), rows()) == ("renewed", [])


def test_an_addon_of_a_main_that_is_paid_otherwise_moves_its_end_with_each_renewal(stripe: Sandbox) -> None:
    main, addon = with_addon(stripe)
    StripeLink.objects.filter(subscription=main).update(subscription=None)  # by purchase order from now on
    end = main.term_end + 30 * DAY
    does("cancel", main, at="term-end")
    does("renew", main, until=end)
    Telling.objects.all().delete()
    does("cancel", main, at="term-end")
    does("amend-term", main, term_end=end + DAY)
    assert {*deliver()} == {"told", "was so already"}
    assert end_there(stripe, addon) == (False, seconds(end + DAY))


# --- the terminal ----------------------------------------------------------------------------------------------------


def test_the_command_lists_what_waits_tells_it_and_tries_what_is_stuck_again(stripe: Sandbox) -> None:
    s = bought(stripe)
    cancels(s)
    assert told("--dry-run") == f"{Telling.objects.get().pk} TERM_END {link(s)}  pending\n1 to tell.\n"
    stripe.knobs(errors=[{"path_prefix": "/v1/subscriptions/", "status": 400, "times": 1}])
    with pytest.raises(CommandError, match="could not be told everything"):
        told()
    assert rows() == [("TERM_END", STUCK)]
    assert told("--again").endswith("told\n1 tried, 0 without success.\n")


def told(*arguments: str) -> str:
    output = StringIO()
    call_command("tell_stripe", *arguments, stdout=output)
    return output.getvalue()


# --- the back office -------------------------------------------------------------------------------------------------

LIST = reverse("admin:webhooks_telling_changelist")


def staff(*permissions: str) -> Client:
    user = User.objects.create(username=f"staff-{User.objects.count()}", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    signed_in = Client()
    signed_in.force_login(user)
    return signed_in


def row_about(s: Subscription, **more: Any) -> Telling:
    known, _ = StripeLink.objects.get_or_create(pk="sub_1", defaults={"subscription": s})
    now = timezone.now()
    said: dict[str, Any] = {"aspect": "END", "tenant": s.tenant, "actor": "staff:1", "created_at": now}
    return Telling.objects.create(link=known, next_attempt_at=now + DAY, **said | more)


def test_staff_see_what_waits_and_why_it_is_stuck_and_change_nothing_by_hand() -> None:
    s = subscription()
    row = row_about(s, state=STUCK, error_code="no_price", error="sold at no price")
    bob = staff("view_telling")
    page = bob.get(LIST).content.decode()
    assert all(word in page for word in (s.number, "STUCK", "no_price"))
    assert "sold at no price" in bob.get(reverse("admin:webhooks_telling_change", args=[row.pk])).content.decode()
    assert bob.get(reverse("admin:webhooks_telling_add")).status_code == 403
    for action in ("try_again", "give_up"):
        assert action not in page
        bob.post(LIST, {"action": action, "_selected_action": row.pk})
        assert Telling.objects.get().state == STUCK


def test_staff_who_may_try_again_or_give_up() -> None:
    row = row_about(subscription(), state=STUCK, attempts=20)
    carol = staff("view_telling", "change_telling")
    carol.post(LIST, {"action": "try_again", "_selected_action": row.pk})
    row.refresh_from_db()
    assert (row.state, row.attempts) == (PENDING, 0)
    carol.post(LIST, {"action": "give_up", "_selected_action": row.pk})
    row.refresh_from_db()
    assert (row.state, row.outcome.startswith("given up by staff:")) == (DONE, True)


def test_the_list_of_what_waits_takes_as_many_statements_for_one_as_for_many() -> None:
    s, bob = subscription(), staff("view_telling")
    counts = []
    for version in range(3):
        row_about(s, version=version)
        with CaptureQueriesContext(connection) as statements:
            bob.get(LIST)
        counts.append(len(statements))
    assert counts[0] >= counts[1] == counts[2]
