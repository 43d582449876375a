"""The customer API: what a member sees of its tenant, and how everything else is refused."""

import base64
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from io import StringIO
from itertools import count
from typing import Any

import jsonschema
import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client

from billing_site.api.customer import monthly_total
from billing_site.banner import banner
from subscriptions import lifecycle
from subscriptions.lifecycle import CancelAt, Purchase
from subscriptions.models import Member, PlanPrice, Subscription, Tenant
from subscriptions.states import Status, Type
from tests.builders import ALICE, FEB_1, JAN_1, MAR_1, PlanFactory, PlanPriceFactory, TenantFactory, subscription
from tests.history import advance, by, in_state, on

pytestmark = pytest.mark.django_db

STATUS = "/api/v1/customer/billing/status"
LIST = "/api/v1/customer/subscriptions"
ALIAS = "/api/v1/customer/billing/subscriptions"
FAR = datetime(2099, 1, 1, tzinfo=UTC)  # no banner speaks of it yet

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
    "term_start": "2026-01-01T00:00:00Z",
    "term_end": "2026-02-01T00:00:00Z",
    "grace_end": "2026-02-15T00:00:00Z",
    "suspension_end": None,
    "on_hold": False,
    "auto_renews": False,
    "cancel_at_term_end": False,
    "ended_at": None,
    "end_reason": "",
    "grants_access": True,
    "next_step": {"at": "2026-02-15T00:00:00Z", "status": "SUSPENDED"},
}
TRIAL_WITH_TIME = MAIN_IN_GRACE | {
    "type": "TRIAL",
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


@pytest.mark.parametrize("url", [STATUS, LIST])
def test_the_number_of_queries_does_not_grow_with_the_subscriptions(
    url: str, acme: Tenant, django_assert_num_queries: Any
) -> None:
    """Session, user, member, tenant, subscriptions."""
    client = member_of(acme)
    for more in (1, 49):
        for _ in range(more):
            subscription(Type.TEMPORARY, tenant=acme)
        with django_assert_num_queries(5):
            assert client.get(url).status_code == 200


# --- who may ask -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", [STATUS, LIST, ALIAS])
def test_who_is_not_signed_in_is_asked_to(url: str) -> None:
    answer = Client().get(url)
    assert problem(answer) == (401, "not_authenticated")
    assert answer["WWW-Authenticate"] == "Session"


@pytest.mark.parametrize("url", [STATUS, LIST, ALIAS])
@pytest.mark.parametrize("is_staff", [True, False])
def test_who_is_no_member_sees_nothing_not_even_staff(url: str, is_staff: bool) -> None:
    user = User.objects.create(username="nobody", is_staff=is_staff, is_superuser=is_staff)
    answer = signed_in(user).get(url)
    assert (problem(answer), answer.json()["detail"]) == (
        (403, "permission_denied"), "Only members of a tenant can use this.",
    )  # fmt: skip


def test_who_was_locked_out_is_no_longer_signed_in(acme: Tenant) -> None:
    client = member_of(acme)
    User.objects.update(is_active=False)
    assert problem(client.get(STATUS)) == (401, "not_authenticated")


@pytest.mark.parametrize("url", [STATUS, LIST, ALIAS])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_other_methods_are_refused(method: str, url: str, acme: Tenant) -> None:
    assert problem(member_of(acme).generic(method, url)) == (405, "method_not_allowed")


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


def costing(*prices: tuple[int, str, str, int], cancelled: bool = False) -> list[Subscription]:
    return [
        Subscription(
            price=PlanPrice(amount_minor=amount, currency=currency, interval=interval, interval_count=per),
            cancel_at_term_end=cancelled,
        )
        for amount, currency, interval, per in prices
    ]


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


# --- the description -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    """The OpenAPI document; a warning while it is made is an error."""
    out = StringIO()
    call_command("spectacular", "--validate", "--fail-on-warn", "--format", "openapi-json", stdout=out)
    document: dict[str, Any] = json.loads(out.getvalue())
    return document


def test_the_description_names_every_path(described: dict[str, Any]) -> None:
    assert {path: list(methods) for path, methods in described["paths"].items()} == {
        STATUS: ["get"], LIST: ["get"], ALIAS: ["get"],
    }  # fmt: skip


@pytest.mark.parametrize("url", [STATUS, LIST, ALIAS])
def test_real_answers_are_what_the_description_says(
    url: str, described: dict[str, Any], acme: Tenant, known_cast: tuple[Subscription, Subscription, Subscription]
) -> None:
    in_state("EXPIRED", tenant=acme, plan=PlanFactory.create(type=Type.TEMPORARY))
    lifecycle.cancel(known_cast[2].pk, at=CancelAt.TERM_END, **by(on(1, 5)))
    answer = member_of(acme).get(url, {} if url == STATUS else {"include_expired": "true"}).json()
    schema = described["paths"][url]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.Draft202012Validator(
        schema | {"components": described["components"]},
        format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER,
    ).validate(answer)
    wrong = json.loads(json.dumps(answer).replace('"GRACE"', '"GRACEFUL"'))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema | {"components": described["components"]}).validate(wrong)


def test_the_docs_need_no_other_server() -> None:
    client = Client()
    page = client.get("/api/docs/").content.decode()
    sources = re.findall(r"""(?:src|href|url)\s*[=:(]\s*["']?([^"'\s>)]+)""", page)
    assert sources
    assert [url for url in sources if "//" in url] == []
    assert client.get("/api/schema").status_code == 200
