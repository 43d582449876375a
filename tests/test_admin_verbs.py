"""What staff do in the back office: each verb through its form, shown beforehand, done once, with its evidence."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing_site.admin.verbs import OFFERS
from subscriptions import lifecycle
from subscriptions.audit import STRIPE
from subscriptions.lifecycle import CancelAt
from subscriptions.management.verbs import VERBS
from subscriptions.models import AuditEntry, Plan, PlanPrice, Subscription, Tenant
from subscriptions.states import EndReason, Status, Type
from tests.builders import ALICE, PlanFactory, PlanPriceFactory, TenantFactory, subscription
from tests.history import at_once, entries, nothing_changes, state, stuck

pytestmark = pytest.mark.django_db

DAY = timedelta(days=1)
TODAY = timezone.now().replace(hour=0, minute=0, second=0, microsecond=0)  # the forms act now
TERM = (TODAY - 10 * DAY, TODAY + 20 * DAY)
LATER = TODAY + 90 * DAY


def client(*permissions: str, **flags: bool) -> Client:
    user = User.objects.create(username=f"staff-{User.objects.count()}", is_staff=True, **flags)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    signed_in = Client(REMOTE_ADDR="2001:db8::1", headers={"X-Request-ID": "req-1"})
    signed_in.force_login(user)
    return signed_in


@pytest.fixture
def alice() -> Client:
    return client("view_subscription", "change_subscription", "view_tenant")


def by() -> dict[str, Any]:
    return {"actor": ALICE, "now": TERM[0] + DAY, "reason": "as agreed"}


def priced(type: Type = Type.MAIN, **given: Any) -> Plan:
    plan: Plan = PlanFactory.create(type=type, **given)
    PlanPriceFactory.create(plan=plan)
    return plan


def in_state(wanted: str, type: Type = Type.MAIN, **bought: Any) -> Subscription:
    """A subscription whose term runs; of an add-on whose MAIN is not held, HOLD is its own."""
    if type == Type.ADDON:
        bought.setdefault("parent", subscription(term=TERM, now=TERM[0]))
    price = bought["plan"].prices.first() if "plan" in bought else None
    status = Status.TRIAL if wanted == "TRIAL" else None
    s = subscription(type, price=price, term=TERM, now=TERM[0], status=status, **bought)
    match wanted:
        case "GRACE":
            lifecycle.enter_grace(s.root_id, **by())
        case "SUSPENDED":
            lifecycle.suspend(s.root_id, **by())
        case "HOLD":
            lifecycle.suspend(s.pk, hold=True, **by())
        case "CANCELLED":
            lifecycle.cancel(s.pk, at=CancelAt.TERM_END, **by())
        case "EXPIRED":
            lifecycle.expire(s.pk, why=EndReason.CANCELLED, **by())
    s.refresh_from_db()
    return s


def address(offer: str, *of: Subscription | Tenant) -> str:
    names = [one.number if isinstance(one, Subscription) else one.slug for one in of]
    return f"{reverse('admin:subscriptions_verb', args=[offer])}?{'&'.join(f'of={name}' for name in names)}"


@dataclass
class Filled:
    """A form that was fetched, and what is sent with it."""

    staff: Client
    url: str
    said: dict[str, Any]

    def preview(self) -> Any:
        answer = self.staff.post(self.url, {**self.said, "preview": "1"})
        if answer.context:
            self.said["seen"] = answer.context["seen"]
        return answer

    def do(self) -> Any:
        return self.staff.post(self.url, {**self.said, "do": "1"}, follow=True)


def form(staff: Client, offer: str, *of: Subscription | Tenant, **said: Any) -> Filled:
    got = staff.get(address(offer, *of))
    assert got.status_code == 200
    said = {name: f"{value:%Y-%m-%d}" if isinstance(value, datetime) else value for name, value in said.items()}
    return Filled(staff, address(offer, *of), {"reason": "ticket 12", "source": got.context["source"], **said})


def done(staff: Client, offer: str, *of: Subscription | Tenant, **said: Any) -> list[str]:
    """Previewed, done; what the next page says."""
    filled = form(staff, offer, *of, **said)
    filled.preview()
    return told(filled.do())


def told(answer: Any) -> list[str]:
    return [str(message) for message in answer.context["messages"]]


def errors(answer: Any) -> dict[str, list[str]]:
    assert answer.status_code == 200
    return dict(answer.context["form"].errors)


def bought(plan: Plan) -> str:
    price = plan.prices.first()
    return f"{plan.pk}:{price.pk if price else ''}"


# --- each verb -------------------------------------------------------------------------------------------------------

# What each is told, of a subscription in which status, and what that makes of it.
AT_WORK: list[tuple[str, dict[str, Any], str, str, str]] = [
    ("renew", {}, "GRACE", "ACTIVE", "renewed"),
    ("renew", {"until": LATER}, "ACTIVE", "ACTIVE", "renewed"),
    ("activate", {}, "GRACE", "ACTIVE", "activated"),
    ("activate", {"bought": "other"}, "SUSPENDED", "ACTIVE", "activated"),
    ("grace", {}, "ACTIVE", "GRACE", "grace_started"),
    ("extend-grace", {"until": LATER}, "GRACE", "GRACE", "grace_extended"),
    ("extend-grace", {"days": "7"}, "GRACE", "GRACE", "grace_extended"),
    ("suspend", {}, "ACTIVE", "SUSPENDED", "suspended"),
    ("suspend-with-hold", {}, "ACTIVE", "HOLD", "suspended"),
    ("suspend-with-hold", {}, "SUSPENDED", "HOLD", "suspended"),
    ("lift-hold", {}, "HOLD", "ACTIVE", "hold_lifted"),
    ("cancel-at-term-end", {}, "ACTIVE", "ACTIVE", "cancel_scheduled"),
    ("cancel-now", {}, "ACTIVE", "EXPIRED", "expired"),
    ("resume", {}, "CANCELLED", "ACTIVE", "cancel_undone"),
    ("expire", {"why": "never_paid"}, "ACTIVE", "EXPIRED", "expired"),
    ("amend-term", {"term_end": LATER}, "ACTIVE", "ACTIVE", "amended"),
    ("change-plan", {"bought": "other"}, "ACTIVE", "ACTIVE", "plan_changed"),
]


def test_every_verb_is_offered_and_tried_here() -> None:
    assert {offer.verb for offer in OFFERS.values()} == set(VERBS)
    assert {offer for offer, *_ in AT_WORK} | {"start"} == set(OFFERS)


@pytest.mark.parametrize(("offer", "said", "before", "after", "action"), AT_WORK)
def test_a_verb_is_shown_beforehand_and_then_done_with_its_evidence(
    offer: str, said: dict[str, Any], before: str, after: str, action: str, alice: Client
) -> None:
    s, other = in_state(before, plan=priced()), priced(name="Other")
    filled = form(alice, offer, s, **{**said, **({"bought": bought(other)} if "bought" in said else {})})
    with nothing_changes():
        shown = filled.preview()
    assert errors(shown) == {}
    ((_, what, _, changes),) = shown.context["preview"]
    filled.do()
    entry = entries(s)[-1]
    assert (state(s), entry.action, entry.get_action_display()) == (after, action, what)
    assert all(f"<b>{column.removesuffix('_id')}</b>" in changes for column in entry.changes)
    staff = User.objects.get()
    assert (entry.actor, entry.reason, entry.request_id, entry.address) == (
        f"staff:{staff.pk}", "ticket 12", "req-1", "2001:db8::1",
    )  # fmt: skip
    assert entry.source_id == f"form:{filled.said['source']}:{s.number}"


STATES = ["TRIAL", "ACTIVE", "GRACE", "SUSPENDED", "HOLD", "CANCELLED", "EXPIRED"]


@pytest.mark.parametrize(
    ("wanted", "type"),
    [
        *((wanted, type) for wanted in STATES for type in (Type.MAIN, Type.TRIAL)),
        *((wanted, Type.ADDON) for wanted in STATES[1:]),  # whose status is its main subscription's
    ],
)
def test_what_is_offered_is_what_the_present_state_can_do(wanted: str, type: Type, alice: Client) -> None:
    s = in_state(wanted, type, plan=priced(type))
    own = {
        "renew": {"until": "2100-01-01"},
        "activate": {"bought": bought(priced(Type.MAIN if type == Type.ADDON else type))},
        "extend-grace": {"days": "7"}, "expire": {"why": "cancelled"}, "amend-term": {"term_end": "2100-01-01"},
        "change-plan": {"bought": bought(priced(type))},
    }  # fmt: skip
    can = set()
    for name in OFFERS.keys() - {"start"}:
        filled = Filled(alice, address(name, s), {"reason": "x", "source": "0" * 32, **own.get(name, {})})
        if not errors(shown := filled.preview()) and shown.context["would_change"]:
            can.add(name)
    page = alice.get(reverse("admin:subscriptions_subscription_change", args=[s.pk])).content.decode()
    offered = {name for name in OFFERS if f"/verbs/{name}/?of={s.number}" in page}
    assert offered == can


def test_a_plan_may_be_sold_in_another_quantity_or_stay_as_many_as_it_was(alice: Client) -> None:
    plan = priced()
    s = in_state("ACTIVE", plan=plan)
    for quantity, then in (("3", 3), ("", 3)):
        done(alice, "change-plan", s, bought=bought(plan), quantity=quantity)
        s.refresh_from_db()
        assert s.quantity == then
    wrong = form(alice, "change-plan", s, bought=bought(plan), quantity="0").preview()
    assert "quantity" in errors(wrong)


def test_the_preview_shows_what_happens_to_every_member_of_the_family(alice: Client) -> None:
    main = in_state("ACTIVE")
    addons = [subscription(Type.ADDON, parent=main, term=TERM, now=TERM[0]) for _ in range(2)]
    filled = form(alice, "suspend-with-hold", main)
    with nothing_changes():
        shown = filled.preview().context["preview"]
    assert [what for _, what, _, _ in shown] == ["Suspended"] * 3
    for s, (of_whom, *_) in zip([main, *addons], shown, strict=True):
        assert s.number in of_whom
    assert told(filled.do()) == [f"{s.number}: Suspended." for s in (main, *addons)]
    assert [state(s) for s in (main, *addons)] == ["HOLD"] * 3


@pytest.mark.parametrize(
    ("offer", "said", "before", "message"),
    [
        ("renew", {}, "ACTIVE", "No price says"),
        ("renew", {"until": LATER}, "EXPIRED", "is EXPIRED"),
        ("lift-hold", {}, "ACTIVE", "is not on hold"),
        ("activate", {}, "HOLD", "only lifting the hold"),
        ("amend-term", {"term_end": TODAY - 30 * DAY}, "ACTIVE", "must be later than term_start"),
        ("extend-grace", {"days": "7"}, "ACTIVE", "has no grace period"),
    ],
)
def test_a_refusal_is_an_error_of_the_form_and_changes_nothing(
    offer: str, said: dict[str, Any], before: str, message: str, alice: Client
) -> None:
    s = in_state(before)
    filled = form(alice, offer, s, **said)
    with nothing_changes():
        for answer in (filled.preview(), filled.do()):
            assert any(message in error for error in errors(answer)["__all__"])
            assert "Do it" not in answer.content.decode()


def test_what_changes_nothing_is_said_and_not_offered_to_be_done(alice: Client) -> None:
    s = in_state("ACTIVE")
    shown = form(alice, "resume", s).preview()
    assert shown.context["preview"] == [(s.number, "Nothing would change", "–", "–")]
    assert "Do it" not in shown.content.decode()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("how", ["RAISE EXCEPTION 'it is stuck'", "PERFORM pg_terminate_backend(pg_backend_pid())"])
def test_what_the_database_does_not_take_is_an_error_of_the_form(how: str, alice: Client) -> None:
    s = in_state("ACTIVE")
    filled = form(alice, "suspend", s)
    seen = filled.preview().context["seen"]
    with stuck(s, how), nothing_changes():
        assert errors(filled.preview())["__all__"][0].startswith("The database did not take it.")
        filled.said["seen"] = seen
        assert errors(filled.do())["__all__"][0].startswith("The database did not take it.")


# --- a new subscription ----------------------------------------------------------------------------------------------


def test_a_subscription_starts_for_one_interval_of_its_price(alice: Client) -> None:
    tenant, plan = TenantFactory.create(), priced()
    filled = form(alice, "start", tenant, bought=bought(plan), term_start=datetime(2026, 1, 31, tzinfo=UTC))
    with nothing_changes():
        assert filled.preview().context["preview"][0][:2] == ("A new subscription", "Started")
    answer = filled.do()
    s = Subscription.objects.get()
    assert (s.tenant, s.plan, s.price, s.status, f"{s.term_end:%m-%d}") == (
        tenant, plan, plan.prices.get(), "ACTIVE", "02-28",
    )  # fmt: skip
    assert answer.redirect_chain[-1][0] == reverse("admin:subscriptions_subscription_change", args=[s.pk])


def test_a_plan_without_a_price_needs_the_end_of_its_term(alice: Client) -> None:
    tenant, plan = TenantFactory.create(), PlanFactory.create()
    assert "name its end" in errors(form(alice, "start", tenant, bought=bought(plan)).preview())["__all__"][0]
    done(alice, "start", tenant, bought=bought(plan), term_end=LATER)
    assert Subscription.objects.get().term_end == LATER


def test_an_addon_becomes_part_of_the_live_main_subscription_and_ends_with_it(alice: Client) -> None:
    main, plan = in_state("ACTIVE"), priced(Type.ADDON)
    done(alice, "start", main.tenant, bought=bought(plan))
    addon = Subscription.objects.get(type=Type.ADDON)
    assert (addon.parent, addon.term_end) == (main, main.term_end)


def test_an_addon_without_a_main_subscription_is_refused(alice: Client) -> None:
    answer = form(alice, "start", TenantFactory.create(), bought=bought(priced(Type.ADDON)), term_end=LATER).preview()
    assert "needs a live main subscription" in errors(answer)["__all__"][0]


def test_a_trial_is_taken_over(alice: Client) -> None:
    trial = in_state("TRIAL", Type.TRIAL)
    filled = form(alice, "start", trial.tenant, bought=bought(priced()), converts=trial.number)
    assert [row[1] for row in filled.preview().context["preview"]] == ["Expired", "Started"]
    filled.do()
    trial.refresh_from_db()
    assert (trial.status, trial.end_reason) == ("EXPIRED", "converted")
    assert told(filled.do()) == [
        f"{trial.tenant.slug}: already done, by this very form. Nothing was done a second time."
    ]
    assert Subscription.objects.count() == 2


def test_only_a_trial_of_the_tenant_is_taken_over(alice: Client) -> None:
    other = in_state("TRIAL", Type.TRIAL)
    answer = form(alice, "start", TenantFactory.create(), bought=bought(priced()), converts=other.number).preview()
    assert list(errors(answer)) == ["converts"]


def test_another_trial_takes_the_permission_for_it(alice: Client) -> None:
    tenant, plan = in_state("EXPIRED", Type.TRIAL).tenant, priced(Type.TRIAL)
    sent = {"bought": bought(plan), "another_trial": "on"}
    filled = form(alice, "start", tenant, **sent)
    assert "another_trial" not in alice.get(address("start", tenant)).content.decode()
    with nothing_changes():
        for answer in (filled.preview(), filled.do()):
            assert "had its trial" in errors(answer)["__all__"][0]
    grantor = client("change_subscription", "grant_another_trial")
    assert "another_trial" in grantor.get(address("start", tenant)).content.decode()
    assert "had its trial" in errors(form(grantor, "start", tenant, bought=bought(plan)).preview())["__all__"][0]
    done(grantor, "start", tenant, **sent)
    assert Subscription.objects.get(status="TRIAL").trial_ordinal == 2


# --- who -------------------------------------------------------------------------------------------------------------


def test_who_may_only_look_sees_no_verbs_and_is_refused() -> None:
    s, viewer = in_state("ACTIVE"), client("view_subscription", "view_tenant")
    pages = [("subscription", s.pk), ("tenant", s.tenant.pk)]
    for model, pk in pages:
        page = viewer.get(reverse(f"admin:subscriptions_{model}_change", args=[pk]))
        assert (page.status_code, "/verbs/" in page.content.decode()) == (200, False)
    listed = viewer.get(reverse("admin:subscriptions_subscription_changelist")).content.decode()
    assert "lift_hold" not in listed
    said = {"reason": "x", "source": "0" * 32, "do": "1"}
    with nothing_changes():
        for url in (address("suspend", s), address("start", s.tenant)):
            assert (viewer.get(url).status_code, viewer.post(url, said).status_code) == (403, 403)
        viewer.post(
            reverse("admin:subscriptions_subscription_changelist"), {"action": "lift_hold", "_selected_action": s.pk}
        )


def test_who_is_not_staff_gets_the_login() -> None:
    s, visitor = in_state("ACTIVE"), Client()
    visitor.force_login(User.objects.create(username="owner"))
    for anybody in (visitor, Client()):
        answer = anybody.post(address("suspend", s), {"reason": "x", "do": "1"})
        assert (answer.status_code, answer["Location"].split("?")[0]) == (302, "/admin/login/")
    assert state(s) == "ACTIVE"


def test_a_form_from_elsewhere_is_refused() -> None:
    s, forger = in_state("ACTIVE"), Client(enforce_csrf_checks=True)
    forger.force_login(User.objects.create(username="root", is_staff=True, is_superuser=True))
    assert forger.post(address("suspend", s), {"reason": "x", "source": "0" * 32, "do": "1"}).status_code == 403


@pytest.mark.parametrize(
    "url", ["verbs/nonsense/?of=SUB-1", "verbs/suspend/", "verbs/suspend/?of=SUB-1", "verbs/start/?of=%00"]
)
def test_what_is_not_there_is_not_found(url: str, alice: Client) -> None:
    assert alice.get(reverse("admin:subscriptions_subscription_changelist") + url).status_code == 404


# --- once, and only what was seen ------------------------------------------------------------------------------------


def test_a_form_that_is_sent_again_is_done_once(alice: Client) -> None:
    s = in_state("ACTIVE", plan=priced())
    filled = form(alice, "renew", s)
    filled.preview()
    assert told(filled.do()) == [f"{s.number}: Renewed."]
    with nothing_changes():
        assert told(filled.do()) == [f"{s.number}: already done, by this very form. Nothing was done a second time."]


@pytest.mark.django_db(transaction=True)
def test_two_clicks_at_once_are_one(alice: Client) -> None:
    s = in_state("ACTIVE", plan=priced())
    filled = form(alice, "renew", s)
    filled.preview()
    at_once(filled.do, filled.do)
    assert [entry.action for entry in entries(s)] == ["started", "renewed"]


@pytest.mark.django_db(transaction=True)
def test_two_clicks_at_once_start_one_subscription(alice: Client) -> None:
    tenant = TenantFactory.create()
    filled = form(alice, "start", tenant, bought=bought(priced(Type.TEMPORARY)))
    filled.preview()
    assert [answer.status_code for answer in at_once(filled.do, filled.do)] == [200, 200]  # type: ignore[union-attr]
    assert Subscription.objects.count() == 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("offer", ["renew", "start"])
def test_of_two_staff_at_once_one_is_asked_to_look_again(offer: str, alice: Client) -> None:
    s = in_state("ACTIVE", plan=priced())
    of: Any = s if offer == "renew" else s.tenant
    said = {} if offer == "renew" else {"bought": bought(priced(Type.TEMPORARY))}
    both = [form(staff, offer, of, **said) for staff in (alice, client("change_subscription"))]
    for filled in both:
        filled.preview()
    answers: list[Any] = [*at_once(*(filled.do for filled in both))]
    assert AuditEntry.objects.filter(actor__in=[f"staff:{user.pk}" for user in User.objects.all()]).count() == 1
    (late,) = [answer for answer in answers if not answer.redirect_chain]
    assert "has changed it since the preview" in errors(late)["__all__"][0]
    assert late.context["would_change"]


def test_what_changed_since_the_preview_is_shown_again_and_not_done(alice: Client) -> None:
    s = in_state("ACTIVE", plan=priced())
    filled = form(alice, "suspend", s)
    filled.preview()
    lifecycle.renew(s.pk, actor=STRIPE, now=TERM[0] + DAY)
    with nothing_changes():
        again = filled.do()
    assert "has changed it since the preview" in errors(again)["__all__"][0]
    filled.said["seen"] = again.context["seen"]
    assert told(filled.do()) == [f"{s.number}: Suspended."]


@pytest.mark.parametrize("what", ["a price for a year", "a longer grace period"])
def test_what_would_be_written_otherwise_than_previewed_is_shown_again_and_not_done(what: str, alice: Client) -> None:
    plan = priced()
    s = in_state("ACTIVE", plan=plan)
    filled = form(alice, "renew" if what == "a price for a year" else "grace", s)
    filled.preview()
    PlanPrice.objects.update(interval="year")
    Plan.objects.update(grace_days=90)
    with nothing_changes():
        again = filled.do()
    assert "has changed it since the preview" in errors(again)["__all__"][0]
    assert again.context["would_change"]


def test_what_one_member_of_staff_previewed_is_not_done_by_another(alice: Client) -> None:
    s = in_state("ACTIVE")
    filled = form(alice, "suspend", s)
    filled.preview()
    filled.staff = client("change_subscription")
    with nothing_changes():
        assert "not what was previewed" in errors(filled.do())["__all__"][0]


@pytest.mark.parametrize("seen", ["", "nonsense", "of other words"])
def test_only_what_was_previewed_is_done(seen: str, alice: Client) -> None:
    s = in_state("ACTIVE")
    filled = form(alice, "amend-term", s, term_end=LATER)
    if seen == "of other words":
        filled.preview()
        filled.said["term_end"] = "2100-01-01"
    else:
        filled.said["seen"] = seen
    with nothing_changes():
        answer = filled.do()
    assert "not what was previewed" in errors(answer)["__all__"][0]
    assert answer.context["would_change"]


def test_a_form_without_its_source_is_refused(alice: Client) -> None:
    s = in_state("ACTIVE")
    for source in ("", "x", "1" * 33):
        assert alice.post(address("suspend", s), {"reason": "x", "source": source, "do": "1"}).status_code == 400


# --- what is typed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("2100-03-01", "2100-03-01T00:00"), (" 2100-03-01 12:30 ", "2100-03-01T12:30"),
        ("2100-03-01T12:30:00Z", "2100-03-01T12:30"), ("2100-03-01T12:30+02:00", "2100-03-01T10:30"),
        ("2104-02-29", "2104-02-29T00:00"),
    ],
)  # fmt: skip
def test_instants_are_read_as_utc_unless_they_name_their_zone(typed: str, read: str, alice: Client) -> None:
    s = in_state("ACTIVE")
    assert "In UTC: 2026-03-01" in alice.get(address("amend-term", s)).content.decode()
    done(alice, "amend-term", s, term_end=typed)
    s.refresh_from_db()
    assert s.term_end == datetime.fromisoformat(read).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    "typed",
    [
        "", "tomorrow", "01/02/2027", "2027-02-29", "2100-02-29", "2027-13-01", "2027-06-30 23:59:60", "9999-12-31",
        "1066-10-14", "99999-01-01", "9999-12-31T23:59-14:00", "0001-01-01T00:00+14:00", "2027-01-01\0",
        "<script>", "１２３４", "2027-01-01T00:00+99:00", "1e9", "2027-01-01 25:00",
    ],
)  # fmt: skip
def test_what_is_no_instant_is_an_error_of_its_field(typed: str, alice: Client) -> None:
    s = in_state("ACTIVE")
    filled = form(alice, "amend-term", s, term_end=typed)
    with nothing_changes():
        for answer in (filled.preview(), filled.do()):
            assert list(errors(answer)) == ["term_end"]


@pytest.mark.parametrize("reason", ["", " \t\n", "a\0b"])
def test_a_reason_is_needed(reason: str, alice: Client) -> None:
    filled = form(alice, "suspend", in_state("ACTIVE"), reason=reason)
    with nothing_changes():
        for answer in (filled.preview(), filled.do()):
            assert list(errors(answer)) == ["reason"]


@pytest.mark.parametrize(
    ("offer", "said", "field"),
    [
        ("extend-grace", {}, "__all__"), ("extend-grace", {"until": LATER, "days": "7"}, "__all__"),
        ("extend-grace", {"days": "0"}, "days"), ("extend-grace", {"days": "9" * 30}, "days"),
        ("extend-grace", {"days": "1.5"}, "days"), ("expire", {"why": "boredom"}, "why"), ("expire", {}, "why"),
        ("change-plan", {"bought": "0:0"}, "bought"), ("change-plan", {}, "bought"),
        ("activate", {"term_end": LATER}, "term_end"),
    ],
)  # fmt: skip
def test_nonsense_is_an_error_of_its_field(offer: str, said: dict[str, Any], field: str, alice: Client) -> None:
    filled = form(alice, offer, in_state("GRACE"), **said)
    with nothing_changes():
        assert list(errors(filled.preview())) == [field]


def test_a_plan_of_another_type_is_not_among_the_choices(alice: Client) -> None:
    filled = form(alice, "change-plan", in_state("ACTIVE"), bought=bought(priced(Type.ADDON)))
    assert list(errors(filled.preview())) == ["bought"]


# --- several ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "offer", "before", "after"),
    [
        ("renew", "renew", "GRACE", "ACTIVE"),
        ("suspend_with_hold", "suspend-with-hold", "ACTIVE", "HOLD"),
        ("lift_hold", "lift-hold", "HOLD", "ACTIVE"),
    ],
)
def test_several_are_chosen_in_the_list_and_done_each_for_itself(
    action: str, offer: str, before: str, after: str, alice: Client
) -> None:
    good = [in_state(before, plan=priced()) for _ in range(2)]
    bad = in_state("EXPIRED")
    chosen = {"action": action, "_selected_action": [s.pk for s in (*good, bad)]}
    answer = alice.post(reverse("admin:subscriptions_subscription_changelist"), chosen)
    assert answer["Location"].startswith(reverse("admin:subscriptions_verb", args=[offer]))
    assert all(s.number in answer["Location"] for s in (*good, bad))
    filled = form(alice, offer, good[0], bad, good[1])
    with nothing_changes():
        shown = filled.preview()
    assert [row[1] for row in shown.context["preview"]].count("Refused") == 1
    said = told(filled.do())
    assert len(said) == 3
    assert said[1].startswith(f"{bad.number}: ")
    assert [state(s) for s in (*good, bad)] == [after, after, "EXPIRED"]
    with nothing_changes():
        assert [line.partition(": ")[2][:12] for line in told(filled.do())].count("already done") == 2


def test_several_of_one_family_are_done_one_after_the_other(alice: Client) -> None:
    addon = in_state("ACTIVE", Type.ADDON)
    main = Subscription.objects.get(type=Type.MAIN)
    done(alice, "suspend-with-hold", addon, main)
    assert ([state(addon), state(main)], addon.own_hold) == (["HOLD", "HOLD"], True)
    done(alice, "lift-hold", main, addon)
    assert [state(addon), state(main)] == ["ACTIVE", "ACTIVE"]


def test_only_what_the_list_offers_is_done_to_several(alice: Client) -> None:
    assert alice.get(address("expire", in_state("ACTIVE"), in_state("ACTIVE"))).status_code == 404
    assert alice.get(address("start", TenantFactory.create(), TenantFactory.create())).status_code == 404


def test_one_of_several_that_changed_since_the_preview_is_left_alone(alice: Client) -> None:
    one, other = in_state("ACTIVE"), in_state("ACTIVE")
    filled = form(alice, "suspend-with-hold", one, other)
    filled.preview()
    lifecycle.enter_grace(one.pk, **by())
    said = told(filled.do())
    assert "has changed it since the preview" in said[0]
    assert [state(one), state(other)] == ["GRACE", "HOLD"]


def test_too_many_at_once_are_sent_to_the_terminal(alice: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("billing_site.admin.verbs.MOST", 1)
    chosen = {"action": "renew", "_selected_action": [in_state("ACTIVE").pk for _ in range(2)]}
    answer = alice.post(reverse("admin:subscriptions_subscription_changelist"), chosen, follow=True)
    assert "Not more than 1 at once" in told(answer)[0]
