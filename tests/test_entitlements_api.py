"""Entitlements and quotas over HTTP: who may ask, what is answered, when nothing new is sent."""

import json
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client

from billing_site.api import keys
from entitlements import features, slots
from entitlements.models import Feature, QuotaOperation, QuotaUsage
from subscriptions.models import Tenant
from subscriptions.states import Type
from tests.builders import ALICE, JAN_1, TenantFactory, giving, subscription
from tests.history import by, on
from tests.test_api import FAR, member_of, problem

pytestmark = pytest.mark.django_db

OWN = "/api/v1/customer/billing/entitlements"
OF_ACME = "/api/v1/platform/tenants/acme/entitlements"
QUOTA = "/api/v1/platform/tenants/acme/quotas/api"
VERBS = ("consume", "release", "set")

SUMMARY = {
    "tenant": "acme",
    "slots": [{"tier": "basic", "name": "Basic", "limit": 3, "used": 1, "available": 2}],
    "features": {"sso": True, "beta": False},
    "quotas": [{"code": "api", "name": "API", "limit": 100, "used": 0, "available": 100}],
    "valid_until": "2099-01-15T00:00:00Z",
}


@pytest.fixture
def acme() -> Tenant:
    """With three slots, of which one is in use, one switch of two, and a hundred API calls."""
    tenant: Tenant = TenantFactory.create(slug="acme")
    subscription(tenant=tenant, plan=giving(slots={"basic": 3}, api=100, sso=True), term=(JAN_1, FAR))
    Feature.objects.create(code="beta", name="Beta", kind=Feature.Kind.SWITCH)
    slots.assign(tenant.pk, "d-1", "basic", **by(on(1, 10)))
    return tenant


class Service:
    """A service with an API key."""

    def __init__(self, scopes: Iterable[str] = ("entitlements:read", "quotas:write"), tenant: Tenant | None = None):
        _, secret = keys.make("a service", scopes, tenant=tenant)
        self.client = Client(headers={"Authorization": f"Bearer {secret}"})

    def get(self, url: str = OF_ACME, **headers: str) -> Any:
        return self.client.get(url, headers={name.replace("_", "-"): value for name, value in headers.items()})

    def post(self, verb: str, body: object, key: str = "", url: str = QUOTA) -> Any:
        headers = {"Idempotency-Key": key} if key else {}
        return self.client.post(f"{url}/{verb}", json.dumps(body), content_type="application/json", headers=headers)


# --- the summary -----------------------------------------------------------------------------------------------------


def test_a_service_and_the_tenant_itself_read_the_same_summary(acme: Tenant) -> None:
    answers = [
        Service().get(),
        Service(tenant=acme).get(),
        Service(["customer"], acme).get(OWN),
        member_of(acme).get(OWN),
    ]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert [answer.json() for answer in answers] == [SUMMARY] * 4
    assert len({answer["ETag"] for answer in answers}) == 1


def test_the_summary_costs_a_key_a_tenant_and_one_statement(acme: Tenant, django_assert_num_queries: Any) -> None:
    service, member = Service(), member_of(acme)
    with django_assert_num_queries(3):
        service.get()
    with django_assert_num_queries(5):  # session, user, member, tenant
        member.get(OWN)


def test_who_has_the_summary_already_is_not_sent_it_again(acme: Tenant) -> None:
    service = Service()
    first = service.get()
    etag = first["ETag"]
    assert (etag[0], etag[-1], first["Cache-Control"]) == ('"', '"', "private, no-cache")  # strong: no W/
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = service.get(If_None_Match=known)
        assert (again.status_code, again.content, again["ETag"]) == (304, b"", etag), known
        assert again["Cache-Control"] == "private, no-cache"
    for unknown in ('"other"', etag.strip('"'), 'W/"other", "another"', ""):
        assert service.get(If_None_Match=unknown).json() == SUMMARY, unknown


def test_the_tag_changes_with_everything_that_the_summary_says(acme: Tenant) -> None:
    service = Service()
    tags = [service.get()["ETag"]]
    for change in (
        lambda: slots.assign(acme.pk, "d-2", "basic", **by(on(1, 10))),
        lambda: service.post("consume", {"amount": 1}),
        lambda: features.override(acme.pk, "beta", 1, reason="asked", expires_at=None, actor=ALICE, now=JAN_1),
        lambda: subscription(Type.TEMPORARY, tenant=acme, term=(JAN_1, FAR - timedelta(days=1))),
    ):
        change()
        answer = service.get(If_None_Match=tags[-1])
        assert answer.status_code == 200
        tags.append(answer["ETag"])
    assert len({*tags}) == 5


# --- who may ask -----------------------------------------------------------------------------------------------------

SUMMARY_OR_QUOTA = [None, *VERBS]


def ask(service: Service, verb: str | None, tenant: str = "acme") -> Any:
    if verb is None:
        return service.get(OF_ACME.replace("acme", tenant))
    return service.post(verb, {"amount": 1}, url=QUOTA.replace("acme", tenant))


@pytest.mark.parametrize("verb", SUMMARY_OR_QUOTA)
def test_another_tenants_key_finds_no_such_tenant(verb: str | None, acme: Tenant) -> None:
    assert problem(ask(Service(tenant=TenantFactory.create()), verb)) == (404, "not_found")
    assert problem(ask(Service(), verb, "nobody")) == (404, "not_found")
    assert not QuotaUsage.objects.exists()


@pytest.mark.parametrize("verb", SUMMARY_OR_QUOTA)
def test_a_key_needs_the_scope(verb: str | None, acme: Tenant) -> None:
    needed = "quotas:write" if verb else "entitlements:read"
    answer = ask(Service(keys.SCOPES.keys() - {needed}, acme), verb)
    assert problem(answer) == (403, "permission_denied")
    assert answer.json()["detail"] == f"This takes an API key with the scope {needed}."
    assert not QuotaUsage.objects.exists()


@pytest.mark.parametrize("url", [OF_ACME, f"{QUOTA}/consume", OWN])
def test_who_shows_nothing_is_asked_to(url: str, acme: Tenant) -> None:
    assert problem(Client().generic("GET" if "quotas" not in url else "POST", url)) == (401, "not_authenticated")


@pytest.mark.parametrize("url", [OF_ACME, f"{QUOTA}/consume"])
def test_a_member_is_no_service(url: str, acme: Tenant) -> None:
    assert problem(member_of(acme).generic("GET" if "quotas" not in url else "POST", url)) == (401, "not_authenticated")


def test_a_tenants_key_without_the_scope_customer_is_no_customer(acme: Tenant) -> None:
    assert problem(Service(["entitlements:read"], acme).get(OWN)) == (403, "permission_denied")


# --- quotas ----------------------------------------------------------------------------------------------------------


def test_a_quota_is_consumed_released_and_set(acme: Tenant, django_assert_num_queries: Any) -> None:
    service = Service()
    for verb, amount, used, allowed in [
        ("consume", 60, 60, True), ("release", 10, 50, True), ("set", 120, 120, False), ("set", 0, 0, True),
    ]:  # fmt: skip
        with django_assert_num_queries(3 + 2):  # key, tenant, use; and a savepoint, in this test's transaction only
            answer = service.post(verb, {"amount": amount})
        assert answer.status_code == 200
        available = max(100 - used, 0)
        assert answer.json() == {"limit": 100, "used": used, "available": available, "allowed": allowed}


def test_what_does_not_fit_is_a_problem_with_numbers(acme: Tenant) -> None:
    answer = Service().post("consume", {"amount": 101}, key="k-1")
    assert problem(answer) == (409, "quota_exceeded")
    facts = {"feature": "api", "limit": 100, "used": 0, "available": 100, "requested": 101, "allowed": False}
    assert answer.json().items() >= facts.items()
    assert problem(Service().post("release", {"amount": 1})) == (409, "quota_not_in_use")
    assert not QuotaUsage.objects.exists()


def test_a_repeat_by_key_is_answered_the_same_and_something_else_under_it_is_refused(acme: Tenant) -> None:
    service = Service()
    answers = [service.post("consume", {"amount": 60}, key="k-1").json() for _ in range(3)]
    assert answers == [{"limit": 100, "used": 60, "available": 40, "allowed": True}] * 3
    assert problem(service.post("consume", {"amount": 61}, key="k-1")) == (422, "idempotency_key_reused")
    assert problem(service.post("release", {"amount": 60}, key="k-1")) == (422, "idempotency_key_reused")
    assert problem(service.post("consume", {"amount": 1}, key="k" * 256)) == (400, "invalid_idempotency_key")
    assert (QuotaUsage.objects.get().used, QuotaOperation.objects.count()) == (60, 1)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    "body", [{}, {"amount": "1"}, {"amount": 1.0}, {"amount": True}, {"amount": None}, [1], 1, None]
)
def test_an_amount_is_a_whole_number(body: object, verb: str, acme: Tenant) -> None:
    assert problem(Service().post(verb, body)) == (400, "invalid_amount")
    assert not QuotaUsage.objects.exists()


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("feature", ["nonsense", "sso"])
def test_what_is_no_quota_is_not_found(feature: str, verb: str, acme: Tenant) -> None:
    answer = Service().post(verb, {"amount": 1}, url=QUOTA.removesuffix("api") + feature)
    assert problem(answer) == (404, "no_such_quota")


def test_what_is_no_json_is_a_problem(acme: Tenant) -> None:
    client = Service().client
    for body, kind, found in [
        ("{", "application/json", (400, "parse_error")),
        ('{"amount": ' + "9" * 5000 + "}", "application/json", (400, "parse_error")),
        ("amount=1", "application/x-www-form-urlencoded", (415, "unsupported_media_type")),
    ]:
        assert problem(client.post(f"{QUOTA}/consume", body, content_type=kind)) == found
    assert problem(client.get(f"{QUOTA}/consume")) == (405, "method_not_allowed")
