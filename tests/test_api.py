"""The customer API: what a member sees of its tenant, and how everything else is refused."""

import base64
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import jsonschema
import pytest
from django.contrib.auth.models import User
from django.test import Client

from billing_site.api import keys
from billing_site.api.customer import monthly_total
from billing_site.banner import banner
from entitlements.models import SlotPack, SubscriptionPack
from subscriptions import lifecycle
from subscriptions.audit import Actor
from subscriptions.lifecycle import CancelAt, Purchase
from subscriptions.models import Member, PlanPrice, Subscription, Tenant
from subscriptions.states import Status, Type
from tests import openapi
from tests.builders import (
    ALICE,
    FEB_1,
    JAN_1,
    MAR_1,
    PlanFactory,
    PlanPriceFactory,
    TenantFactory,
    giving,
    subscription,
)
from tests.history import advance, by, in_state, on

pytestmark = pytest.mark.django_db

STATUS = "/api/v1/customer/billing/status"
LIST = "/api/v1/customer/subscriptions"
ALIAS = "/api/v1/customer/billing/subscriptions"
HISTORY = "/api/v1/customer/subscription/audit"
ONE = "/api/v1/customer/subscriptions/{number}"
ITS_AUDIT, ITS_FORECAST = f"{ONE}/audit", f"{ONE}/forecast"
EVERY = [STATUS, LIST, ALIAS, HISTORY, ONE, ITS_AUDIT, ITS_FORECAST]
PLATFORM = "/api/v1/platform/tenants/{tenant}"  # more of these: test_entitlements_api
ENTITLEMENTS = ["/api/v1/customer/billing/entitlements", f"{PLATFORM}/entitlements"]
QUOTAS = [f"{PLATFORM}/quotas/{{feature}}/{verb}" for verb in ("consume", "release", "set")]
DEVICE = "/api/v1/customer/devices/{device_id}"
OF_DEVICES = {  # held to the description in test_devices_api
    "/api/v1/customer/devices": ["get", "post"],
    DEVICE: ["get", "delete"],
    f"{DEVICE}/tier": ["put", "delete"],
    f"{DEVICE}/access": ["get"],
    f"{DEVICE}/explain": ["get"],
    "/api/v1/customer/device-tiers": ["get"],
    f"{ONE}/devices": ["get"],
}
EDGE = ["/api/v1/platform/changes", f"{PLATFORM}/snapshot", "/.well-known/jwks.json"]  # test_changes, test_snapshots
BUYING = {  # held to the description in test_checkout
    **{f"/api/v1/customer/billing/{word}": ["get"] for word in ("config", "plans")},
    **{
        f"/api/v1/customer/billing/{word}": ["post"]
        for word in ("checkout-session", "addon-checkout", "portal-session")
    },
    f"{ONE}/renew": ["post"],
}
FAR = datetime(2099, 1, 1, tzinfo=UTC)  # no banner speaks of it yet
OF_CHANGING = {  # held to the description in test_changing
    f"{ONE}/cancel": ["post"],
    f"{ONE}/resume": ["post"],
    f"{ONE}/pause": ["post"],
    f"{ONE}/change": ["post", "delete"],
    f"{ONE}/change/preview": ["post"],
}
OF_THE_PLATFORM = {  # held to the description in test_platform_api
    "/api/v1/platform/access": ["post"],
    "/api/v1/platform/tenants/{tenant}/devices/{device_id}/access": ["get"],
    "/api/v1/platform/tenants/{tenant}/devices": ["post"],
    "/api/v1/platform/tenants/{tenant}/devices/{device_id}": ["delete"],
}

Get = Callable[..., Any]
_people = count(1)


def signed_in(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def member_of(tenant: Tenant) -> Client:
    user = User.objects.create(username=f"member-{next(_people)}")
    Member.objects.create(user=user, tenant=tenant)
    return signed_in(user)


def numbers(answer: Any) -> list[str]:
    assert answer.status_code == 200
    return [s["number"] for s in answer.json()["results"]]


def problem(answer: Any) -> tuple[int, str]:
    """Status and code of an answer that is a problem, with all that a problem has."""
    body = answer.json()
    assert answer["Content-Type"] == "application/problem+json"
    assert body.keys() >= {"type", "title", "status", "code", "detail"}
    assert body["status"] == answer.status_code
    return answer.status_code, body["code"]


@pytest.fixture
def acme() -> Tenant:
    tenant: Tenant = TenantFactory.create(slug="acme", name="Acme", billing_email="billing@acme.example")
    return tenant


@pytest.fixture
def trials(acme: Tenant) -> list[Subscription]:
    """Five, oldest first: of these a tenant may have many."""
    return [subscription(Type.TEMPORARY, tenant=acme, term=(JAN_1, FAR)) for _ in range(5)]


# --- answers ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def known_cast(acme: Tenant) -> tuple[Subscription, Subscription, Subscription]:
    """Acme's main subscription, in its grace period; its add-on; and a trial that has time."""
    price = PlanPriceFactory.create(plan=PlanFactory.create(code="fleet"), amount_minor=4900)
    entry = lifecycle.start(
        acme.pk, Purchase(price.plan, JAN_1, FEB_1, price), actor=ALICE, now=JAN_1, reason="ordered by letter"
    )
    assert entry
    main = Subscription.objects.get(pk=entry.subscription_id)
    addon = subscription(Type.ADDON, plan=PlanFactory.create(code="extra", type=Type.ADDON), parent=main)
    advance(FEB_1)
    trial = subscription(
        Type.TRIAL, tenant=acme, plan=PlanFactory.create(code="trial", type=Type.TRIAL), term=(JAN_1, FAR)
    )
    return main, addon, trial


MAIN_IN_GRACE = {
    "type": "MAIN",
    "status": "GRACE",
    "plan": "fleet",
    "parent": None,
    "price": {"amount_minor": 4900, "currency": "EUR", "interval": "month", "interval_count": 1},
    "quantity": 1,
    "packs": {},
    "term_start": "2026-01-01T00:00:00Z",
    "term_end": "2026-02-01T00:00:00Z",
    "grace_end": "2026-02-15T00:00:00Z",
    "suspension_end": None,
    "on_hold": False,
    "auto_renews": False,
    "cancel_at_term_end": False,
    "ended_at": None,
    "end_reason": "",
    "grants_access": False,
    "next_step": {"at": "2026-02-15T00:00:00Z", "status": "SUSPENDED"},
    "scheduled_change": None,
}
TRIAL_WITH_TIME = MAIN_IN_GRACE | {
    "type": "TRIAL",
    "grants_access": True,
    "status": "TRIAL",
    "plan": "trial",
    "price": None,
    "term_end": "2099-01-01T00:00:00Z",
    "grace_end": None,
    "next_step": {"at": "2099-01-01T00:00:00Z", "status": "GRACE"},
}


def test_the_billing_status_says_where_the_tenant_stands(
    acme: Tenant, known_cast: tuple[Subscription, Subscription, Subscription]
) -> None:
    main, addon, trial = (s.number for s in known_cast)
    answer = member_of(acme).get(STATUS)
    assert (answer.status_code, answer["Content-Type"]) == (200, "application/json")
    addon_in_grace = {"number": addon, "type": "ADDON", "plan": "extra", "parent": main, "price": None}
    assert answer.json() == {
        "account": {"slug": "acme", "name": "Acme", "billing_email": "billing@acme.example"},
        "subscriptions": [
            TRIAL_WITH_TIME | {"number": trial}, MAIN_IN_GRACE | addon_in_grace, MAIN_IN_GRACE | {"number": main},
        ],
        "banner": [
            {
                "level": "warning", "code": "grace", "subscription": main, "until": "2026-02-15T00:00:00Z",
                "message": "Payment is due. Service goes on until 15 February 2026.",
            }
        ],
        "monthly_total": [{"amount_minor": 4900, "currency": "EUR"}],
    }  # fmt: skip


@pytest.mark.parametrize("url", [LIST, ALIAS])
def test_the_list_has_the_newest_first(
    url: str, acme: Tenant, known_cast: tuple[Subscription, Subscription, Subscription]
) -> None:
    main, addon, trial = (s.number for s in known_cast)
    body = member_of(acme).get(url).json()
    assert (body["next"], body["previous"]) == (None, None)
    assert [s["number"] for s in body["results"]] == [trial, addon, main]
    assert body["results"][0] == TRIAL_WITH_TIME | {"number": trial}


def test_a_tenant_that_bought_nothing_has_an_empty_status(acme: Tenant) -> None:
    assert member_of(acme).get(STATUS).json() == {
        "account": {"slug": "acme", "name": "Acme", "billing_email": "billing@acme.example"},
        "subscriptions": [], "banner": [], "monthly_total": [],
    }  # fmt: skip


def test_another_tenants_subscriptions_never_appear(acme: Tenant) -> None:
    theirs = subscription()
    mine = subscription(tenant=acme, term=(JAN_1, FAR))
    client = member_of(acme)
    assert numbers(client.get(LIST)) == [mine.number]
    assert theirs.number not in client.get(STATUS).content.decode()


@pytest.mark.parametrize(
    ("url", "its_own"),
    [
        (STATUS, 2),  # the subscriptions, their packs
        (LIST, 2),
        (ONE, 2),
        (HISTORY, 3),  # entries, plans, prices
        (ITS_AUDIT, 4),  # the subscription, too
        (ITS_FORECAST, 4),  # the subscription, its family, its notices, its slots
    ],
)
def test_the_number_of_queries_does_not_grow_with_the_subscriptions(
    url: str, its_own: int, acme: Tenant, django_assert_num_queries: Any
) -> None:
    """Session, user, member, tenant, and what is asked for."""
    client = member_of(acme)
    main = subscription(tenant=acme, term=(JAN_1, FAR))
    for more in (1, 24):
        for number in range(more):
            subscription(Type.TEMPORARY, tenant=acme)
            subscription(Type.ADDON, parent=main, term=(JAN_1, FAR))
            plan = PlanPriceFactory.create().plan
            lifecycle.change_plan(main.pk, plan=plan, price=plan.prices.get(), **by(on(1, 1 + number)))
        with django_assert_num_queries(4 + its_own):
            assert client.get(url.format(number=main.number)).status_code == 200


# --- who may ask -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", [*EVERY, *BUYING])
def test_who_is_not_signed_in_is_asked_to(url: str) -> None:
    (method,) = BUYING.get(url, ["get"])
    answer = Client().generic(method.upper(), url.format(number=subscription().number))
    assert problem(answer) == (401, "not_authenticated")
    assert answer["WWW-Authenticate"] == "Session"


@pytest.mark.parametrize("url", [*EVERY, *BUYING])
@pytest.mark.parametrize("is_staff", [True, False])
def test_who_is_no_member_sees_nothing_not_even_staff(url: str, is_staff: bool) -> None:
    user = User.objects.create(username="nobody", is_staff=is_staff, is_superuser=is_staff)
    (method,) = BUYING.get(url, ["get"])
    answer = signed_in(user).generic(method.upper(), url.format(number=subscription().number))
    assert (problem(answer), answer.json()["detail"]) == (
        (403, "permission_denied"), "Only members of a tenant can use this.",
    )  # fmt: skip


def test_who_was_locked_out_is_no_longer_signed_in(acme: Tenant) -> None:
    client = member_of(acme)
    User.objects.update(is_active=False)
    assert problem(client.get(STATUS)) == (401, "not_authenticated")


@pytest.mark.parametrize("url", [*EVERY, *BUYING])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_other_methods_are_refused(method: str, url: str, acme: Tenant) -> None:
    if [method.lower()] == BUYING.get(url, ["get"]):
        return
    address, client = url.format(number=subscription(tenant=acme).number), member_of(acme)
    Member.objects.update(role=Member.Role.OWNER)
    assert problem(client.generic(method, address)) == (405, "method_not_allowed")


def test_a_session_alone_changes_nothing_without_the_csrf_token(acme: Tenant) -> None:
    user = User.objects.create(username="owner")
    Member.objects.create(user=user, tenant=acme)
    client = Client(enforce_csrf_checks=True)
    client.force_login(user)
    answer = client.post(STATUS)
    assert (problem(answer), answer.json()["detail"].split(":")[0]) == ((403, "permission_denied"), "CSRF Failed")


@pytest.mark.parametrize("url", ["/api/v1/nothing", "/nothing", "/api/v1/customer/subscriptions/"])
def test_what_is_not_there_is_a_problem_too(url: str) -> None:
    assert problem(Client().get(url)) == (404, "not_found")


# --- the list --------------------------------------------------------------------------------------------------------


def test_what_is_over_appears_only_when_asked_for(acme: Tenant) -> None:
    over = in_state("EXPIRED", tenant=acme)
    live = subscription(tenant=acme, term=(JAN_1, FAR))
    get = member_of(acme).get
    for asked, expected in {
        "": [live],
        "include_expired=false": [live],
        "include_expired=true": [live, over],
        "status=EXPIRED": [over],
        "status=EXPIRED&include_expired=false": [over],
        "status=ACTIVE&include_expired=true": [live],
    }.items():
        assert numbers(get(f"{LIST}?{asked}")) == [s.number for s in expected], asked
    assert [s["number"] for s in get(STATUS).json()["subscriptions"]] == [live.number]


def test_the_list_is_filtered_by_status_and_type(
    acme: Tenant, known_cast: tuple[Subscription, Subscription, Subscription]
) -> None:
    main, addon, trial = (s.number for s in known_cast)
    get = member_of(acme).get
    assert numbers(get(f"{LIST}?status=GRACE")) == [addon, main]
    assert numbers(get(f"{LIST}?type=TRIAL")) == [trial]
    assert numbers(get(f"{ALIAS}?status=GRACE&type=MAIN")) == [main]
    assert numbers(get(f"{LIST}?status=SUSPENDED")) == []


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("status=active", "status"),
        ("status=%00", "status"),
        ("type=Nonsense", "type"),
        ("include_expired=perhaps", "include_expired"),
        ("cursor=nonsense", "cursor"),
        ("cursor=%C3%A9", "cursor"),
        ("cursor=" + base64.b64encode(b"p=abc").decode(), "cursor"),
        ("cursor=" + base64.b64encode(b"p=-1").decode(), "cursor"),
        ("cursor=" + base64.b64encode(b"o=-1&p=1").decode(), "cursor"),
        ("cursor=" + base64.b64encode(b"p=").decode(), "cursor"),
        ("cursor=", "cursor"),
    ],
)
def test_a_parameter_that_is_not_valid_is_named(
    query: str, parameter: str, acme: Tenant, trials: list[Subscription]
) -> None:
    answer = member_of(acme).get(f"{LIST}?{query}")
    assert problem(answer) == (400, "invalid")
    assert list(answer.json()["errors"]) == [parameter]


def pages(client: Client, url: str) -> list[list[str]]:
    found = []
    while url:
        answer = client.get(url)
        found.append(numbers(answer))
        url = answer.json()["next"]
    return found


def test_pages_follow_each_other_to_the_end(acme: Tenant, trials: list[Subscription]) -> None:
    newest_first = [s.number for s in reversed(trials)]
    assert pages(member_of(acme), f"{LIST}?page_size=2") == [newest_first[:2], newest_first[2:4], newest_first[4:]]


def test_no_page_skips_or_repeats_what_was_there_when_rows_are_added(acme: Tenant, trials: list[Subscription]) -> None:
    client = member_of(acme)
    first = client.get(f"{LIST}?page_size=2")
    for _ in range(3):
        subscription(Type.TEMPORARY, tenant=acme, term=(JAN_1, FAR))
    seen = numbers(first) + [number for page in pages(client, first.json()["next"]) for number in page]
    assert seen == [s.number for s in reversed(trials)]


def test_a_cursor_of_another_tenant_shows_nothing_of_it(acme: Tenant, trials: list[Subscription]) -> None:
    cursor = member_of(acme).get(f"{LIST}?page_size=2").json()["next"].split("cursor=")[1].split("&")[0]
    stranger = member_of(TenantFactory.create())
    assert numbers(stranger.get(f"{LIST}?cursor={cursor}")) == []


def test_a_page_is_never_larger_than_two_hundred(acme: Tenant) -> None:
    for _ in range(201):
        subscription(Type.TEMPORARY, tenant=acme, plan=PlanFactory.create(type=Type.TEMPORARY), term=(JAN_1, FAR))
    client = member_of(acme)
    assert len(numbers(client.get(f"{LIST}?page_size=100000"))) == 200
    assert len(numbers(client.get(LIST))) == 50


# --- one subscription ------------------------------------------------------------------------------------------------


def test_one_subscription_is_shown_as_in_the_list_also_when_it_is_over(
    acme: Tenant, known_cast: tuple[Subscription, Subscription, Subscription]
) -> None:
    get, main = member_of(acme).get, known_cast[0]
    assert get(ONE.format(number=main.number)).json() == MAIN_IN_GRACE | {"number": main.number}
    lifecycle.cancel(main.pk, at=CancelAt.NOW, **by(on(2, 5)))
    assert get(ONE.format(number=main.number)).json()["status"] == "EXPIRED"


@pytest.mark.parametrize("url", [ONE, ITS_AUDIT, ITS_FORECAST])
def test_another_tenants_number_is_not_there_nor_is_one_that_is_none(url: str, acme: Tenant) -> None:
    client, theirs = member_of(acme), subscription()
    for number in (theirs.number, "SUB-20260101-00000", "%00", "%ff", "a%2Fb"):
        assert problem(client.get(url.format(number=number))) == (404, "not_found"), number


def test_the_audit_says_what_happened_newest_first_and_not_who_of_the_staff_nor_their_words(acme: Tenant) -> None:
    price = PlanPriceFactory.create(plan=PlanFactory.create(code="fleet"))
    fleet, bought = price.plan, subscription(tenant=acme, plan=PlanFactory.create(code="small"))
    lifecycle.change_plan(bought.pk, plan=fleet, price=price, actor=Actor.member(7), now=on(1, 5), reason="We grew.")
    lifecycle.suspend(bought.pk, hold=True, actor=Actor.operator(9876543210), now=on(1, 6), reason="They do not pay")
    lifecycle.lift_hold(bought.pk, actor=ALICE, now=on(1, 7), reason="They paid")
    advance(FEB_1)
    answer = member_of(acme).get(ITS_AUDIT.format(number=bought.number))
    told = answer.json()["results"]
    assert [(e["action"], e["actor"], e["reason"], e["effective_at"]) for e in told] == [
        ("grace_started", "clock", "", "2026-02-01T00:00:00Z"),
        ("hold_lifted", "staff", "", "2026-01-07T00:00:00Z"),
        ("suspended", "staff", "", "2026-01-06T00:00:00Z"),
        ("plan_changed", "member", "We grew.", "2026-01-05T00:00:00Z"),
        ("started", "staff", "", "2026-01-01T00:00:00Z"),
    ]
    assert {e["subscription"] for e in told} == {bought.number}
    assert told[0].keys() == {
        "subscription", "action", "effective_at", "recorded_at", "actor", "reason", "changes",
    }  # fmt: skip
    assert told[0]["changes"] == {
        "status": ["ACTIVE", "GRACE"], "grace_end": [None, "2026-02-15T00:00:00+00:00"],
    }  # fmt: skip
    assert told[3]["changes"] == {"plan": ["small", "fleet"], "price": [None, MAIN_IN_GRACE["price"]]}
    for secret in ("pay", "9876543210", "staff:", "plan_id"):
        assert secret not in answer.content.decode()


def test_the_whole_history_is_that_of_every_subscription_and_of_nobody_else(acme: Tenant) -> None:
    first, second = subscription(tenant=acme), subscription(Type.TEMPORARY, tenant=acme)
    subscription()
    advance(FEB_1)
    told = member_of(acme).get(HISTORY).json()["results"]
    assert [(e["subscription"], e["action"]) for e in told] == [
        (second.number, "expired"),
        (first.number, "grace_started"),
        (second.number, "started"),
        (first.number, "started"),
    ]


@pytest.mark.parametrize("url", [HISTORY, ITS_AUDIT])
def test_a_history_comes_in_pages(url: str, acme: Tenant) -> None:
    s = subscription(tenant=acme)
    advance(on(12, 31))
    client, found = member_of(acme), []
    page = url.format(number=s.number) + "?page_size=3"
    while page:
        answer = client.get(page).json()
        found.append([e["action"] for e in answer["results"]])
        page = answer["next"]
    assert found == [["expired", "suspended", "grace_started"], ["started"]]
    assert problem(client.get(url.format(number=s.number) + "?cursor=nonsense")) == (400, "invalid")


def foretold(answer: Any) -> list[tuple[str, str]]:
    assert answer.status_code == 200
    return [(e["at"], e["what"]) for e in answer.json()["events"] if e["source"] == "deadline"]


@pytest.fixture
def far(acme: Tenant) -> Subscription:
    """Bought until the end of the century, at a price by the month."""
    price = PlanPriceFactory.create()
    entry = lifecycle.start(
        acme.pk, Purchase(price.plan, JAN_1, FAR, price), actor=ALICE, now=JAN_1, reason="by letter"
    )
    assert entry
    return Subscription.objects.get(pk=entry.subscription_id)


def test_the_forecast_says_what_will_happen_and_when_and_why(acme: Tenant, far: Subscription) -> None:
    answer = member_of(acme).get(ITS_FORECAST.format(number=far.number))
    assert foretold(answer) == [
        ("2099-01-01T00:00:00Z", "grace_started"), ("2099-01-15T00:00:00Z", "suspended"),
        ("2099-03-16T00:00:00Z", "expired"),
    ]  # fmt: skip
    assert answer.json()["events"][0] == {
        "at": "2098-12-02T00:00:00Z", "subscription": far.number, "what": "renewal_30", "source": "notice",
        "why": "Its term end comes near: 1 January 2099",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "then"),
    [
        ({"paid_on": "2098-06-01T00:00:00Z"}, [("2098-06-01", "renewed"), ("2099-02-01", "grace_started")]),
        ({"renewed_until": "2099-06-01T02:00:00+02:00"}, [("", "renewed"), ("2099-06-01", "grace_started")]),
        ({"cancelled_on": "2098-06-01T00:00:00Z"}, [("2098-06-01", "expired")]),
        (
            {"cancelled_on": "2098-06-01T00:00:00Z", "at_term_end": "true", "paid_on": "2098-05-01T00:00:00Z"},
            [("2098-05-01", "renewed"), ("2098-06-01", "cancel_scheduled"), ("2099-02-01", "expired")],
        ),
    ],
)
def test_the_forecast_says_what_would_happen_if(
    asked: dict[str, str], then: list[tuple[str, str]], acme: Tenant, far: Subscription
) -> None:
    told = foretold(member_of(acme).get(ITS_FORECAST.format(number=far.number), asked))
    assert [(at[: len(day)], what) for (at, what), (day, _) in zip(told, then, strict=False)] == then


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"paid_on": "soon"}, "paid_on"),
        ({"paid_on": "2098-06-01T00:00:00"}, "paid_on"),
        ({"paid_on": "2098-06-01"}, "paid_on"),
        ({"paid_on": ""}, "paid_on"),
        ({"renewed_until": "2098-02-30T00:00:00Z"}, "renewed_until"),
        ({"cancelled_on": "\0"}, "cancelled_on"),
        ({"cancelled_on": "2098-06-01T00:00:00Z", "at_term_end": "perhaps"}, "at_term_end"),
        ({"at_term_end": "true"}, "at_term_end"),
    ],
)
def test_a_question_that_is_none_is_named(asked: dict[str, str], named: str, acme: Tenant, far: Subscription) -> None:
    answer = member_of(acme).get(ITS_FORECAST.format(number=far.number), asked)
    assert problem(answer) == (400, "invalid")
    assert list(answer.json()["errors"]) == [named]


def test_what_could_not_be_done_then_is_a_problem_with_the_verbs_own_code(acme: Tenant, far: Subscription) -> None:
    addon = subscription(Type.ADDON, parent=far, term=(JAN_1, FAR))
    unpriced = subscription(Type.TEMPORARY, tenant=acme, term=(JAN_1, FAR))
    get = member_of(acme).get
    for s, asked, found in [
        (far, {"cancelled_on": "2020-01-01T00:00:00Z"}, (400, "invalid_term")),
        (far, {"renewed_until": "9500-01-01T00:00:00Z"}, (400, "invalid_term")),
        (far, {"cancelled_on": "2150-01-01T00:00:00Z"}, (409, "illegal_transition")),
        (addon, {"paid_on": "2098-06-01T00:00:00Z"}, (409, "addon_follows_main")),
        (unpriced, {"paid_on": "2098-06-01T00:00:00Z"}, (409, "no_price")),
    ]:
        assert problem(get(ITS_FORECAST.format(number=s.number), asked)) == found


# --- the banner and the total ----------------------------------------------------------------------------------------


def lines(*subscriptions: Subscription, now: datetime) -> list[tuple[str, str, str]]:
    for s in subscriptions:
        s.refresh_from_db()
    return [(line.level, line.code, line.message) for line in banner(subscriptions, now=now)]


def test_the_banner_says_the_most_urgent_first() -> None:
    ending = in_state("CANCELLED")
    cast = [
        subscription(term=(JAN_1, FEB_1)), in_state("TRIAL"), ending, in_state("GRACE"), in_state("SUSPENDED"),
        in_state("HOLD"),
    ]  # fmt: skip
    assert lines(*cast, now=on(1, 10)) == [
        ("error", "on_hold", "Service is withheld. Please contact us."),
        ("error", "suspended", "Service is suspended. Renew before 6 March 2026 to keep your set-up."),
        ("warning", "grace", "Payment is due. Service goes on until 15 February 2026."),
        ("warning", "ending", "Ends on 1 February 2026, as you asked."),
        ("warning", "trial_ending", "The trial ends on 1 February 2026."),
        ("info", "renewal_due", "The term ends on 1 February 2026. Renew to go on without a break."),
    ]


def test_among_equals_the_nearest_date_comes_first() -> None:
    later, sooner = subscription(term=(JAN_1, on(1, 25))), subscription(term=(JAN_1, on(1, 20)))
    assert [message for *_, message in lines(later, sooner, now=on(1, 10))] == [
        "The term ends on 20 January 2026. Renew to go on without a break.",
        "The term ends on 25 January 2026. Renew to go on without a break.",
    ]


def test_the_banner_speaks_of_an_end_from_thirty_days_before() -> None:
    s = subscription(term=(JAN_1, MAR_1))
    assert lines(s, now=MAR_1 - timedelta(days=30, microseconds=1)) == []
    assert [code for _, code, _ in lines(s, now=MAR_1 - timedelta(days=30))] == ["renewal_due"]


def test_who_renews_by_itself_hears_nothing() -> None:
    assert lines(subscription(auto_renews=True), now=on(1, 20)) == []


def test_a_family_speaks_with_one_voice_unless_an_addon_goes_its_own_way() -> None:
    main = in_state("GRACE")
    follows = subscription(Type.ADDON, parent=main, status=Status.GRACE)
    assert [code for _, code, _ in lines(main, follows, now=on(1, 10))] == ["grace"]
    lifecycle.suspend(follows.pk, hold=True, **by(on(1, 9)))
    assert [code for _, code, _ in lines(main, follows, now=on(1, 10))] == ["on_hold", "grace"]


def costing(
    *prices: tuple[int, str, str, int], cancelled: bool = False, quantity: int = 1, packs: dict[int, int] | None = None
) -> list[Subscription]:
    """Subscriptions that are in no database, with packs: so many units by what one costs."""
    found = []
    for amount, currency, interval, per in prices:
        s = Subscription(pk=1, cancel_at_term_end=cancelled, quantity=quantity)
        s.price = PlanPrice(amount_minor=amount, currency=currency, interval=interval, interval_count=per)
        same = {"currency": currency, "interval": interval, "interval_count": per}
        held = [
            SubscriptionPack(pack=SlotPack(amount_minor=each, **same), quantity=n) for each, n in (packs or {}).items()
        ]
        s._prefetched_objects_cache = {"packs": held}  # type: ignore[attr-defined]
        found.append(s)
    return found


@pytest.mark.parametrize(
    ("prices", "total"),
    [
        ([], {}),
        ([(4900, "EUR", "month", 1)], {"EUR": 4900}),
        ([(100, "EUR", "year", 1)], {"EUR": 8}),  # 8.33
        ([(102, "EUR", "year", 1)], {"EUR": 9}),  # 8.50: half up
        ([(101, "EUR", "year", 1)], {"EUR": 8}),  # 8.42
        ([(99, "EUR", "month", 2)], {"EUR": 50}),  # 49.50
        ([(1200, "EUR", "year", 2)], {"EUR": 50}),
        ([(1, "USD", "month", 1), (4900, "EUR", "month", 1), (1200, "EUR", "year", 1)], {"EUR": 5000, "USD": 1}),
        ([(9_007_199_254_740_993, "EUR", "month", 1)], {"EUR": 9_007_199_254_740_993}),  # a float would lose one
    ],
)
def test_the_monthly_total_is_whole_minor_units_per_currency(
    prices: list[tuple[int, str, str, int]], total: dict[str, int]
) -> None:
    expected = [{"amount_minor": amount, "currency": currency} for currency, amount in total.items()]
    assert monthly_total(costing(*prices)) == expected
    assert monthly_total(costing(*prices, cancelled=True)) == []


def test_the_monthly_total_counts_every_unit_and_the_packs_beside_the_plan() -> None:
    live = costing((100, "EUR", "year", 1), quantity=3, packs={12: 2, 60: 1})
    assert monthly_total(live) == [{"amount_minor": 25 + 2 + 5, "currency": "EUR"}]


# --- the description -------------------------------------------------------------------------------------------------


def test_the_description_names_every_path() -> None:
    assert {path: list(methods) for path, methods in openapi.document()["paths"].items()} == {
        url: ["get"] for url in [*EVERY, *ENTITLEMENTS, *EDGE]
    } | {url: ["post"] for url in QUOTAS} | OF_DEVICES | OF_CHANGING | OF_THE_PLATFORM | BUYING  # fmt: skip


@pytest.mark.parametrize("url", EVERY)
def test_real_answers_are_what_the_description_says(
    url: str, acme: Tenant, known_cast: tuple[Subscription, Subscription, Subscription]
) -> None:
    in_state("EXPIRED", tenant=acme, plan=PlanFactory.create(type=Type.TEMPORARY))
    lifecycle.cancel(known_cast[2].pk, at=CancelAt.TERM_END, **by(on(1, 5)))
    asked = {"include_expired": "true"} if url in (LIST, ALIAS) else {}
    answer = member_of(acme).get(url.format(number=known_cast[0].number), asked).json()
    openapi.validate(url, "get", 200, answer)
    wrong = json.loads(re.sub(r'"(GRACE|started|deadline)"', '"nonsense"', json.dumps(answer)))
    with pytest.raises(jsonschema.ValidationError):
        openapi.validate(url, "get", 200, wrong)


def test_entitlements_and_quotas_are_what_the_description_says(acme: Tenant) -> None:
    subscription(tenant=acme, plan=giving(slots={"basic": 3}, api=100, sso=True), term=(JAN_1, FAR))
    _, secret = keys.make("a service", keys.SCOPES, tenant=acme)
    service = Client(headers={"Authorization": f"Bearer {secret}"})
    for url in ENTITLEMENTS:
        answer = service.get(url.format(tenant="acme")).json()
        openapi.validate(url, "get", 200, answer)
        assert (answer["slots"][0]["limit"], answer["features"], answer["quotas"][0]["limit"]) == (
            3,
            {"sso": True},
            100,
        )
        with pytest.raises(jsonschema.ValidationError):
            openapi.validate(url, "get", 200, answer | {"features": {"sso": 1}})
    for url in QUOTAS:
        address = url.format(tenant="acme", feature="api")
        answer = service.post(address, {"amount": 5}, content_type="application/json").json()
        openapi.validate(url, "post", 200, answer)
        with pytest.raises(jsonschema.ValidationError):
            openapi.validate(url, "post", 200, answer | {"allowed": 1})


def test_the_docs_need_no_other_server() -> None:
    client = Client()
    page = client.get("/api/docs/").content.decode()
    sources = re.findall(r"""(?:src|href|url)\s*[=:(]\s*["']?([^"'\s>)]+)""", page)
    assert sources
    assert [url for url in sources if "//" in url] == []
    assert client.get("/api/schema").status_code == 200
