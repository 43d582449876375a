"""The back office: everything is found and explained there; what has a history is not edited there."""

from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.db.models import Model
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from notifications.models import Notice
from subscriptions import lifecycle
from subscriptions.audit import STRIPE
from subscriptions.lifecycle import Purchase
from subscriptions.models import AuditEntry, Plan, SetAside, Subscription, Tenant
from subscriptions.states import Type
from tests.builders import FEB_1, JAN_1, MAR_1, PlanFactory, PlanPriceFactory, TenantFactory, subscription
from tests.history import advance, by, nothing_changes, on
from webhooks.models import StripeEvent, StripeLink, StripePrice

pytestmark = pytest.mark.django_db

FAR = datetime(2099, 1, 1, tzinfo=UTC)
WITH_HISTORY: list[type[Model]] = [Subscription, AuditEntry, SetAside, Notice, StripeEvent, StripeLink]
SHOWN: list[type[Model]] = [*WITH_HISTORY, Tenant, Plan, StripePrice, User]


def url(model: type[Model], page: str, *args: object) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{page}", args=args)


def staff(*permissions: str, **flags: bool) -> Client:
    user = User.objects.create(username=f"staff-{User.objects.count()}", is_staff=True, **flags)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def alice() -> Client:
    return staff(is_superuser=True)


def event(pk: str, **more: Any) -> StripeEvent:
    given = {
        "type": "invoice.paid", "object_id": "in_1", "stripe_subscription_id": "sub_1", "livemode": False,
        "created_at": JAN_1, "received_at": JAN_1, "next_attempt_at": JAN_1, "state": "PARKED",
        "error_code": "unknown_price",
    }  # fmt: skip
    return StripeEvent.objects.create(pk=pk, **given | more)


def one_of_everything(number: int) -> None:
    s = subscription(term=(JAN_1, FEB_1))
    Notice.objects.create(subscription=s, tenant=s.tenant, kind="renewal_30", anchor=FEB_1, next_attempt_at=JAN_1)
    event(f"evt_{number}", stripe_subscription_id=f"sub_{number}")
    StripeLink.objects.create(pk=f"sub_{number}", subscription=s)
    SetAside.objects.create(root=s, error="refused", since=JAN_1, retry_at=JAN_1)
    StripePrice.objects.create(pk=f"price_{number}", plan_price=PlanPriceFactory.create())


def queries(client: Client, address: str) -> int:
    client.get(address)  # what Django remembers for good is asked only once
    with CaptureQueriesContext(connection) as found:
        assert client.get(address).status_code == 200
    return len(found)


def test_every_list_takes_as_many_queries_for_one_row_as_for_thirty(alice: Client) -> None:
    def each() -> dict[str, int]:
        return {model.__name__: queries(alice, url(model, "changelist")) for model in SHOWN}

    one_of_everything(0)
    first = each()
    for number in range(1, 30):
        one_of_everything(number)
    assert each() == first


@pytest.mark.parametrize("model", SHOWN, ids=lambda model: model.__name__)
def test_every_object_has_a_page(model: type[Model], alice: Client) -> None:
    one_of_everything(0)
    found = model._default_manager.first()
    assert found is not None
    assert alice.get(url(model, "change", found.pk)).status_code == 200


def test_the_page_of_a_subscription_takes_no_more_queries_for_a_long_history(alice: Client) -> None:
    s = subscription(term=(JAN_1, MAR_1))
    page = url(Subscription, "change", s.pk)

    def another_day(number: int) -> None:
        plan = PlanFactory.create()
        lifecycle.change_plan(s.pk, plan=plan, price=PlanPriceFactory.create(plan=plan), **by(on(1, 1 + number)))
        anchor = on(1, 1 + number)
        Notice.objects.create(subscription=s, tenant=s.tenant, kind="suspended", anchor=anchor, next_attempt_at=anchor)

    another_day(0)
    first = queries(alice, page)
    for number in range(1, 30):
        another_day(number)
    assert queries(alice, page) == first


def test_the_page_of_a_tenant_takes_no_more_queries_for_many_subscriptions(alice: Client) -> None:
    tenant = subscription(Type.TRIAL).tenant
    page = url(Tenant, "change", tenant.pk)
    first = queries(alice, page)
    for _ in range(30):
        subscription(Type.TEMPORARY, tenant=tenant)
    assert queries(alice, page) == first


class Fields(HTMLParser):
    """The names of what a person can fill in or send along."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("input", "select", "textarea") and (name := dict(attrs).get("name")):
            self.names.add(name)


def fields_of(page: str, model: type[Model]) -> set[str]:
    columns = {name for field in model._meta.fields for name in (field.name, field.attname)}
    keys_of_rows = {"id", "subscription"}  # hidden; Django puts them into every table of rows
    return {name for name in Fields(page).names if name.rpartition("-")[2] in columns - keys_of_rows}


@pytest.mark.parametrize("model", WITH_HISTORY, ids=lambda model: model.__name__)
def test_what_has_a_history_has_no_form(model: type[Model], alice: Client) -> None:
    one_of_everything(0)
    found = model._default_manager.first()
    assert found is not None
    page = alice.get(url(model, "change", found.pk)).content.decode()
    for shown in WITH_HISTORY:
        assert fields_of(page, shown) == set()
    assert fields_of(alice.get(url(model, "changelist")).content.decode(), model) == set()


def test_the_check_for_forms_sees_one(alice: Client) -> None:
    page = alice.get(url(Tenant, "change", TenantFactory.create().pk)).content.decode()
    assert fields_of(page, Tenant) == {"name", "billing_email", "contact_email", "time_zone"}


@pytest.mark.parametrize("model", WITH_HISTORY, ids=lambda model: model.__name__)
@pytest.mark.parametrize("page", ["add", "change", "delete"])
def test_what_has_a_history_is_not_written_here_even_by_a_superuser(
    page: str, model: type[Model], alice: Client
) -> None:
    one_of_everything(0)
    found = model._default_manager.first()
    assert found is not None
    before = [*model._default_manager.values()]
    with nothing_changes():
        address = url(model, page) if page == "add" else url(model, page, found.pk)
        answer = alice.post(address, {"status": "EXPIRED", "state": "DONE", "term_end_0": "2030-01-01", "post": "yes"})
        assert answer.status_code == 403
    assert [*model._default_manager.values()] == before


@pytest.mark.parametrize("model", WITH_HISTORY, ids=lambda model: model.__name__)
def test_nothing_with_a_history_is_deleted_from_a_list(model: type[Model], alice: Client) -> None:
    one_of_everything(0)
    found = model._default_manager.first()
    assert found is not None
    alice.post(url(model, "changelist"), {"action": "delete_selected", "_selected_action": found.pk, "post": "yes"})
    assert model._default_manager.filter(pk=found.pk).exists()


def test_the_audit_trail_stands_on_the_subscriptions_page_and_leads_to_the_stripe_event(alice: Client) -> None:
    caused_by = event("evt_paid", state="DONE", done_at=JAN_1, error_code="", outcome="started")
    price = PlanPriceFactory.create(plan=PlanFactory.create(name="Fleet"))
    entry = lifecycle.start(
        TenantFactory.create().pk, Purchase(price.plan, JAN_1, FEB_1, price, True),
        actor=STRIPE, now=JAN_1, source_id=caused_by.source_id,
    )  # fmt: skip
    assert entry
    advance(MAR_1)
    page = alice.get(url(Subscription, "change", entry.subscription_id)).content.decode()
    assert f'href="{url(StripeEvent, "change", "evt_paid")}"' in page
    for said in ("Started", "Grace started", "stripe", "clock", "2026-02-01 00:00:00", "Fleet, 49.00 EUR per month"):
        assert said in page
    back = alice.get(url(StripeEvent, "change", "evt_paid")).content.decode()
    assert f'href="{url(Subscription, "change", entry.subscription_id)}"' in back


def test_what_comes_stands_on_the_subscriptions_page(alice: Client) -> None:
    main = subscription(term=(JAN_1, FAR))
    addon = subscription(Type.ADDON, parent=main, term=(JAN_1, FAR))
    page = alice.get(url(Subscription, "change", main.pk)).content.decode()
    for said in (
        f"2098-12-02 00:00:00 {main.number}: notice <b>renewal_30</b>. Its term end comes near: 1 January 2099",
        f"2099-01-01 00:00:00 {main.number}: deadline <b>grace_started</b>. The term is over and not renewed",
        f"2099-01-01 00:00:00 {addon.number}: deadline <b>grace_started</b>. Its main subscription does",
    ):
        assert said in page


def test_a_family_that_the_clock_cannot_move_is_listed_and_its_pages_warn(alice: Client) -> None:
    main, other = subscription(), subscription()
    addon = subscription(Type.ADDON, parent=main)
    SetAside.objects.create(root=main, error="term_end <never>", since=FEB_1, retry_at=MAR_1)
    said = "The clock cannot move this family since 2026-02-01 00:00:00 UTC: term_end &lt;never&gt;"
    pages = [alice.get(url(Subscription, "change", s.pk)).content.decode() for s in (main, addon, other)]
    assert [said in page for page in pages] == [True, True, False]
    listed = alice.get(url(SetAside, "changelist")).content.decode()
    assert main.number in listed
    assert "term_end &lt;never&gt;" in listed
    assert other.number not in listed


def test_an_event_shows_what_its_replays_changed_too(alice: Client) -> None:
    s = subscription()
    lifecycle.renew(s.pk, term_end=MAR_1, actor=STRIPE, now=JAN_1, source_id="evt_1")
    lifecycle.renew(s.pk, term_end=on(4, 1), actor=STRIPE, now=JAN_1, source_id="evt_1~1")
    event("evt_1", replays=2)
    assert alice.get(url(StripeEvent, "change", "evt_1")).content.decode().count(": Renewed</div>") == 2


# --- actions ---------------------------------------------------------------------------------------------------------


def test_replaying_makes_an_event_due_again(alice: Client) -> None:
    parked, done = event("evt_parked", attempts=3), event("evt_done", state="DONE", done_at=JAN_1)
    answer = alice.post(
        url(StripeEvent, "changelist"), {"action": "replay", "_selected_action": "evt_parked"}, follow=True
    )
    assert "1 event will be tried again in a moment." in answer.content.decode()
    parked.refresh_from_db()
    assert (parked.state, parked.attempts, parked.replays) == ("PENDING", 0, 1)
    assert StripeEvent.objects.get(pk=done.pk).state == "DONE"


def test_resending_makes_a_failed_notice_due_again(alice: Client) -> None:
    one_of_everything(0)
    Notice.objects.update(state="FAILED", attempts=7, error="The mail server refused the address: 550.")
    sent = {"action": "resend", "_selected_action": Notice.objects.get().pk}
    answer = alice.post(url(Notice, "changelist"), sent, follow=True)
    assert "1 notice will be sent in a moment; others stay as they are." in answer.content.decode()
    assert Notice.objects.values_list("state", "attempts", "error").get() == ("PENDING", 0, "")


ACTIONS = [(StripeEvent, "replay", "PARKED"), (Notice, "resend", "FAILED")]


@pytest.mark.parametrize(("model", "action", "state"), ACTIONS, ids=["replay", "resend"])
def test_an_action_needs_its_permission(model: Any, action: str, state: str) -> None:
    one_of_everything(0)
    model.objects.update(state=state)
    before = [*model.objects.values()]
    name = model._meta.model_name
    viewer, doer = staff(f"view_{name}"), staff(f"view_{name}", f"change_{name}")
    page = url(model, "changelist")
    assert f'value="{action}"' not in viewer.get(page).content.decode()
    viewer.post(page, {"action": action, "_selected_action": before[0][model._meta.pk.name]})
    assert [*model.objects.values()] == before
    assert f'value="{action}"' in doer.get(page).content.decode()
    doer.post(page, {"action": action, "_selected_action": before[0][model._meta.pk.name]})
    assert model.objects.get().state == "PENDING"


# --- who, and what they may write ------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", SHOWN, ids=lambda model: model.__name__)
def test_who_is_not_staff_gets_the_login(model: type[Model]) -> None:
    visitor = Client()
    visitor.force_login(User.objects.create(username="owner"))
    for client in (visitor, Client()):
        answer = client.get(url(model, "changelist"))
        assert (answer.status_code, answer["Location"].split("?")[0]) == (302, "/admin/login/")


@pytest.mark.parametrize("model", SHOWN, ids=lambda model: model.__name__)
def test_staff_without_a_permission_see_nothing(model: type[Model]) -> None:
    assert staff().get(url(model, "changelist")).status_code == 403


def test_a_tenant_is_edited_but_keeps_its_slug(alice: Client) -> None:
    tenant = TenantFactory.create(slug="acme", name="Acme")
    form = {
        "name": "Acme Robotics",
        "billing_email": "pay@acme.example",
        "contact_email": "",
        "slug": "other",
        "time_zone": "UTC",
    }
    rows = {f"{rows}-{what}_FORMS": 0 for rows in ("members", "subscriptions") for what in ("TOTAL", "INITIAL")}
    assert alice.post(url(Tenant, "change", tenant.pk), form | rows).status_code == 302
    tenant.refresh_from_db()
    assert (tenant.name, tenant.billing_email, tenant.slug) == ("Acme Robotics", "pay@acme.example", "acme")


def test_a_plan_gets_new_prices_and_keeps_those_it_has(alice: Client) -> None:
    price = PlanPriceFactory.create(amount_minor=4900)
    page = url(Plan, "change", price.plan_id)
    assert "prices-0-amount_minor" not in Fields(alice.get(page).content.decode()).names
    form = {
        "name": "Fleet", "grace_days": "7", "suspension_days": "", "is_sold": "on", "terms_in": "utc",
        "prices-TOTAL_FORMS": 2, "prices-INITIAL_FORMS": 1,
        "prices-0-id": price.pk, "prices-0-plan": price.plan_id, "prices-0-amount_minor": 1, "prices-0-currency": "EUR",
        "prices-0-interval": "month", "prices-0-interval_count": 1, "prices-0-DELETE": "on",
        "prices-1-plan": price.plan_id, "prices-1-amount_minor": 49000, "prices-1-currency": "EUR",
        "prices-1-interval": "year", "prices-1-interval_count": 1,
        **{f"{rows}-{which}_FORMS": 0 for rows in ("slots", "features") for which in ("TOTAL", "INITIAL")},
    }  # fmt: skip
    assert alice.post(page, form).status_code == 302
    price.plan.refresh_from_db()
    assert (price.plan.name, price.plan.grace_days) == ("Fleet", 7)
    assert sorted(price.plan.prices.values_list("amount_minor", "interval")) == [(4900, "month"), (49000, "year")]


@pytest.mark.parametrize("by_what", ["number", "tenant", "slug", "stripe"])
def test_a_subscription_is_found_by_its_number_its_tenant_and_its_name_at_stripe(by_what: str, alice: Client) -> None:
    other = subscription()
    s = subscription(tenant=TenantFactory.create(name="Borealis Sensors", slug="northern"))
    StripeLink.objects.create(pk="sub_1PQR", subscription=s)
    asked = {"number": s.number, "tenant": "borealis", "slug": "northern", "stripe": "sub_1PQR"}[by_what]
    page = alice.get(url(Subscription, "changelist"), {"q": asked}).content.decode()
    assert s.number in page
    assert other.number not in page
