"""The platform API: what services ask with their keys, and what becomes of those who have none, or another's."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from tempfile import TemporaryFile
from typing import Any

import jsonschema
import pytest
from django.db import connection
from django.test import Client
from django.utils import timezone

from billing_site.api import keys
from billing_site.api.problems import problem_response
from billing_site.models import ApiKey
from entitlements import slots
from entitlements.models import Device, Feature, SlotAssignment, TierFeature
from subscriptions import lifecycle
from subscriptions.audit import Actor
from subscriptions.errors import IllegalTransition
from subscriptions.models import Subscription, Tenant
from tests import openapi
from tests.builders import JAN_1, TenantFactory, subscription, tier
from tests.history import by, nothing_changes
from tests.test_api import FAR, problem

pytestmark = pytest.mark.django_db

ACCESS = "/api/v1/platform/tenants/{tenant}/devices/{device_id}/access"
BATCH = "/api/v1/platform/access"
DEVICES = "/api/v1/platform/tenants/{tenant}/devices"
DEVICE = "/api/v1/platform/tenants/{tenant}/devices/{device_id}"


@pytest.fixture
def acme() -> Tenant:
    tenant: Tenant = TenantFactory.create(slug="acme")
    return tenant


@pytest.fixture
def bought(acme: Tenant) -> Subscription:
    """Acme's, until far from now: three basic slots, one premium; d-1 has one of the basic ones."""
    s = subscription(tenant=acme, slots={"basic": 3, "premium": 1}, term=(JAN_1, FAR))
    slots.assign(acme.pk, "d-1", "basic", actor=Actor.api_key(3), now=JAN_1)
    return s


def with_key(*scopes: str, tenant: Tenant | None = None, **more: Any) -> Client:
    key, secret = keys.make("gateway", scopes, tenant=tenant, **more)
    key.last_used_at = timezone.now()  # noted already: a request that notes it has one statement more
    key.save()
    return Client(headers={"Authorization": f"Bearer {secret}"})


def asked(client: Client, device_id: str = "d-1", tenant: str = "acme") -> Any:
    return client.get(ACCESS.format(tenant=tenant, device_id=device_id))


def asked_for(client: Client, *pairs: tuple[str, str]) -> Any:
    questions = [{"tenant": tenant, "device_id": device_id} for tenant, device_id in pairs]
    return client.post(BATCH, {"devices": questions}, content_type="application/json")


@contextmanager
def statements(expected: int) -> Iterator[None]:
    """How many reach the database, whatever cursor sends them: counted on the connection itself."""
    connection.ensure_connection()
    raw = connection.connection.pgconn
    with TemporaryFile() as log:
        raw.trace(log.fileno())
        try:
            yield
        finally:
            raw.untrace()
        log.seek(0)
        sent = re.findall(r"^[\d-]+ [\d:.]+\tF\t\d+\t(?:Query|Execute).*", log.read().decode(), re.MULTILINE)
    assert len(sent) == expected, sent


# --- access ----------------------------------------------------------------------------------------------------------


def test_a_gateway_is_told_whether_a_device_may_be_served_why_and_until_when(bought: Subscription) -> None:
    for code, kind, amount in [("ota", "SWITCH", 1), ("messages", "QUOTA", 500)]:
        feature = Feature.objects.create(code=code, name=code, kind=kind)
        TierFeature.objects.create(tier=tier("basic"), feature=feature, amount=amount)
    answer = asked(with_key("access:read"))
    assert (answer.status_code, answer["Content-Type"]) == (200, "application/json")
    assert answer.json() == {
        "tenant": "acme", "device_id": "d-1", "allowed": True, "reason": "ok", "tier": "basic",
        "features": {"ota": True, "messages": 500}, "subscription": bought.number,
        "valid_until": "2099-01-15T00:00:00Z",
    }  # fmt: skip
    assert answer["Cache-Control"] == "no-store"  # a suspension may end it at once


@pytest.mark.parametrize(
    ("tenant", "device_id", "reason"),
    [("acme", "d-2", "unknown_device"), ("other", "d-1", "wrong_tenant"), ("nobody", "d-1", "unknown_tenant"),
     ("acme", "%00", "unknown_device"), ("%00", "d-1", "unknown_tenant"), ("acme", "%ff", "unknown_device")],
)  # fmt: skip
def test_what_does_not_exist_is_an_answer(bought: Subscription, tenant: str, device_id: str, reason: str) -> None:
    TenantFactory.create(slug="other")
    answer = asked(with_key("access:read"), device_id, tenant)
    assert (answer.status_code, answer.json()["allowed"], answer.json()["reason"]) == (200, False, reason)
    assert answer.json()["features"] == {}


def test_a_suspension_is_seen_by_the_next_question(bought: Subscription) -> None:
    client = with_key("access:read")
    assert asked(client).json()["allowed"] is True
    lifecycle.suspend(bought.pk, hold=True, **by(timezone.now()))
    assert (asked(client).json()["allowed"], asked(client).json()["reason"]) == (False, "suspended")


def test_many_are_answered_in_the_order_they_were_asked_for(bought: Subscription) -> None:
    TenantFactory.create(slug="other")
    pairs = [("nobody", "d-1"), ("acme", "d-1"), ("acme", "d-9"), ("other", "d-1"), ("acme", "d-1"), ("", "\x00")]
    client = with_key("access:read")
    answer = asked_for(client, *pairs)
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [(one["tenant"], one["device_id"]) for one in results] == pairs
    assert [one["reason"] for one in results] == [
        "unknown_tenant", "ok", "unknown_device", "wrong_tenant", "ok", "unknown_tenant"]  # fmt: skip
    alone = [asked(client, device_id, tenant).json() for tenant, device_id in pairs[:-1]]
    assert results[:-1] == alone


def test_a_bare_list_is_asked_for_as_well(bought: Subscription) -> None:
    body = [{"tenant": "acme", "device_id": "d-1"}]
    answer = with_key("access:read").post(BATCH, body, content_type="application/json")
    assert [one["reason"] for one in answer.json()["results"]] == ["ok"]


@pytest.mark.parametrize("count", [1, 1000])
def test_one_statement_answers_them_all_key_included(bought: Subscription, count: int) -> None:
    client = with_key("access:read")
    with statements(1):
        assert len(asked_for(client, *[("acme", "d-1")] * count).json()["results"]) == count
    with statements(1):
        asked(client)


def test_more_than_a_thousand_are_refused(bought: Subscription) -> None:
    answer = asked_for(with_key("access:read"), *[("acme", "d-1")] * 1001)
    assert problem(answer) == (413, "too_many")
    large = with_key("access:read").post(BATCH, b" " * (1024 * 1024 + 1), content_type="application/json")
    assert problem(large) == (413, "too_many")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"null", b"1", b'"d-1"', b"{}", b"[]", b'{"devices": []}', b'{"devices": {}}', b'{"devices": [null]}',
     b"[[]]", b'[{"tenant": "acme"}]', b'[{"device_id": "d-1"}]', b'[{"tenant": "acme", "device_id": 1}]',
     b'[{"tenant": null, "device_id": "d-1"}]', b'[{"tenant": "acme", "device_id": "\xff"}]', b"[" * 100_000,
     '[{"tenant": "acme", "device_id": "d-1"}]'.encode("utf-16")],
)  # fmt: skip
def test_a_malformed_question_is_refused(bought: Subscription, body: bytes) -> None:
    status, code = problem(with_key("access:read").post(BATCH, body, content_type="application/json"))
    assert status == 400
    assert code in ("not_json", "invalid")
    assert problem(Client().post(BATCH, body, content_type="application/json")) == (401, "not_authenticated")
    assert problem(with_key().post(BATCH, body, content_type="application/json")) == (403, "permission_denied")


@pytest.mark.parametrize("method", ["post", "put", "patch", "delete"])
def test_access_is_only_asked_for(bought: Subscription, method: str) -> None:
    answer = getattr(with_key("access:read"), method)(ACCESS.format(tenant="acme", device_id="d-1"))
    assert problem(answer) == (405, "method_not_allowed")
    assert answer["Allow"] == "GET"


# --- whose key it is -------------------------------------------------------------------------------------------------

QUESTIONS = [asked, lambda client: asked_for(client, ("acme", "d-1"))]
provisioned = lambda client: client.post(  # noqa: E731
    DEVICES.format(tenant="acme"), {"device_id": "d-9", "tier": "basic"}, content_type="application/json"
)
deleted = lambda client: client.delete(DEVICE.format(tenant="acme", device_id="d-1"))  # noqa: E731
EVERY = [*[(ask, "access:read") for ask in QUESTIONS], (provisioned, "devices:write"), (deleted, "devices:write")]


@pytest.mark.parametrize(("ask", "scope"), EVERY)
def test_who_has_no_good_key_learns_and_changes_nothing(bought: Subscription, ask: Any, scope: str) -> None:
    hour = timedelta(hours=1)
    now = timezone.now()
    _, revoked = keys.make("old", [scope])
    ApiKey.objects.update(revoked_at=now)
    _, expired = keys.make("older", [scope], expires_at=now - hour)
    with nothing_changes():
        for secret in (revoked, expired, "tk_nobody_knows", "", "\xff"):
            answer = ask(Client(headers={"Authorization": f"Bearer {secret}"}))
            assert problem(answer) == (401, "invalid_api_key")
            assert answer["WWW-Authenticate"] == "Bearer"
        assert problem(ask(Client())) == (401, "not_authenticated")
        assert ask(Client())["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(("ask", "scope"), EVERY)
def test_a_key_does_what_its_scopes_say_and_nothing_else(bought: Subscription, ask: Any, scope: str) -> None:
    others = [name for name in keys.SCOPES if name != scope]
    with nothing_changes():
        answer = ask(with_key(*others, tenant=bought.tenant))
        assert problem(answer) == (403, "permission_denied")
        assert answer.json()["detail"] == f"This takes an API key with the scope {scope}."
    assert ask(with_key(scope, tenant=bought.tenant)).status_code < 300


@pytest.mark.parametrize(("ask", "scope"), [pair for pair in EVERY if pair[0] is not QUESTIONS[1]])
def test_for_a_tenants_key_there_is_no_other_tenant(bought: Subscription, ask: Any, scope: str) -> None:
    with nothing_changes():
        assert problem(ask(with_key(scope, tenant=TenantFactory.create()))) == (404, "not_found")


def test_for_a_tenants_key_other_tenants_are_unknown_in_a_batch_too(bought: Subscription) -> None:
    other = TenantFactory.create(slug="other")
    answer = asked_for(with_key("access:read", tenant=other), ("acme", "d-1"), ("other", "d-1"), ("nobody", "d-1"))
    reasons = [one["reason"] for one in answer.json()["results"]]
    assert reasons == ["unknown_tenant", "unknown_device", "unknown_tenant"]  # not: that another one has a d-1


def test_a_session_is_no_key(bought: Subscription, admin_client: Client) -> None:
    assert problem(asked(admin_client)) == (401, "not_authenticated")
    assert problem(provisioned(admin_client)) == (401, "not_authenticated")


def test_the_key_may_come_in_a_header_of_its_own(bought: Subscription) -> None:
    _, secret = keys.make("gateway", ["access:read"])
    assert asked(Client(headers={"X-API-Key": secret})).json()["allowed"] is True


# --- provisioning ----------------------------------------------------------------------------------------------------


def provision(client: Client, body: Any, tenant: str = "acme", **headers: str) -> Any:
    raw = body if isinstance(body, bytes) else json.dumps(body)
    return client.post(DEVICES.format(tenant=tenant), raw, content_type="application/json", headers=headers)


def test_a_device_that_is_provisioned_has_a_slot_and_says_whose_doing_it_was(bought: Subscription) -> None:
    answer = provision(
        with_key("devices:write"), {"device_id": "d-2", "tier": "premium"}, **{"Idempotency-Key": "job-7"}
    )
    assert answer.status_code == 201
    told = answer.json()
    assert told.pop("assigned_at") <= timezone.now().isoformat()
    assert told == {"device_id": "d-2", "tier": "premium", "subscription": bought.number, "is_new": True}
    key = ApiKey.objects.get()
    assignment = SlotAssignment.objects.get(device__device_id="d-2")
    assert (assignment.assigned_by, assignment.source_id) == (f"apikey:{key.pk}", "job-7")


def test_to_provision_it_again_is_safe(bought: Subscription) -> None:
    client = with_key("devices:write")
    with nothing_changes():
        answer = provision(client, {"device_id": "d-1", "tier": "basic"})
    assert (answer.status_code, answer.json()["is_new"]) == (200, False)


def test_a_subscription_may_be_named(bought: Subscription) -> None:
    client = with_key("devices:write")
    body = {"device_id": "d-2", "tier": "basic", "subscription": bought.number}
    assert provision(client, body).json()["subscription"] == bought.number
    foreign = subscription(slots={"basic": 1}, term=(JAN_1, FAR))
    with nothing_changes():
        answer = provision(client, body | {"device_id": "d-3", "subscription": foreign.number})
        assert problem(answer) == (404, "subscription_not_found")


def test_what_cannot_be_provisioned_is_refused_with_numbers(bought: Subscription) -> None:
    client = with_key("devices:write")
    slots.assign(bought.tenant_id, "p-1", "premium", actor=Actor.api_key(3), now=timezone.now())
    tier("gold")
    with nothing_changes():
        for wanted, refusal in [
            ({"device_id": "d-2", "tier": "premium"}, (409, "no_free_slot")),
            ({"device_id": "d-2", "tier": "gold"}, (402, "tier_not_sold")),
            ({"device_id": "d-1", "tier": "premium"}, (409, "tier_differs")),
            ({"device_id": "d-2", "tier": "none"}, (400, "no_such_tier")),
            ({"device_id": "d-2"}, (400, "no_such_tier")),  # none is the default one
            ({"device_id": "d 2", "tier": "basic"}, (400, "invalid_device_id")),
        ]:
            assert problem(provision(client, wanted)) == refusal
    full = provision(client, {"device_id": "d-2", "tier": "premium"}).json()
    assert [full[name] for name in ("tier", "limit", "used", "available")] == ["premium", 1, 1, 0]


def test_many_get_slots_or_none_of_them(bought: Subscription) -> None:
    client = with_key("devices:write")
    three = [{"device_id": f"d-{n}", "tier": "basic"} for n in (1, 2, 3)]
    answer = provision(client, {"devices": three})
    assert answer.status_code == 201
    assert [(one["device_id"], one["slot"]["is_new"], one["error"]) for one in answer.json()["results"]] == [
        ("d-1", False, None), ("d-2", True, None), ("d-3", True, None)]  # fmt: skip
    assert provision(client, {"devices": three}).status_code == 200
    with nothing_changes():
        refused = provision(client, {"devices": [*three, {"device_id": "d-4", "tier": "basic"}]})
        assert problem(refused) == (409, "no_free_slot")
        assert [one["device_id"] for one in refused.json()["errors"]] == ["d-4"]


def test_or_whoever_can_gets_one(bought: Subscription) -> None:
    wanted = [("d-2", "premium"), ("d-3", "premium"), ("d 4", "basic"), ("d-5", "none"), ("d-6", "basic")]
    body = {"mode": "per_item", "devices": [{"device_id": name, "tier": code} for name, code in wanted]}
    answer = provision(with_key("devices:write"), body)
    assert answer.status_code == 200
    told = [(one["device_id"], one["error"] and one["error"]["code"]) for one in answer.json()["results"]]
    assert told == [
        ("d-2", None), ("d-3", "no_free_slot"), ("d 4", "invalid_device_id"), ("d-5", "no_such_tier"), ("d-6", None)
    ]  # fmt: skip
    assert {*Device.objects.values_list("device_id", flat=True)} == {"d-1", "d-2", "d-6"}


ONE = {"device_id": "d-2", "tier": "basic"}


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"null", b"[]", b'"d-2"', b"1", b"\xff", b'{"device_id": "\xff"}', b"[" * 100_000, {}, [ONE],
     {"device_id": 1}, {"device_id": None}, {"device_id": True}, {"device_id": ["d-2"]}, ONE | {"device_id": "d\x00"},
     ONE | {"device_id": "\ud800"}, ONE | {"tier": 1}, ONE | {"tier": None}, ONE | {"tier": "ba sic"},
     ONE | {"tier": "basic\n"}, ONE | {"teir": "basic"}, ONE | {"mode": "per_item"}, ONE | {"subscription": 1},
     ONE | {"subscription": "\x00"}, ONE | {"devices": [ONE]}, {"devices": []}, {"devices": {}}, {"devices": None},
     {"devices": "d-2"}, {"devices": ["d-2"]}, {"devices": [None]}, {"devices": [{"device_id": None}]},
     {"devices": [ONE], "mode": "some"}, {"devices": [ONE], "mode": None}, {"devices": [ONE | {"x": 1}]}],
)  # fmt: skip
def test_a_malformed_order_is_refused_whole(bought: Subscription, body: Any) -> None:
    with nothing_changes():
        status, code = problem(provision(with_key("devices:write"), body))
        assert status == 400
        assert code in ("invalid", "parse_error")


def test_an_order_that_is_too_large_is_refused(bought: Subscription) -> None:
    client = with_key("devices:write")
    many = {"devices": [ONE | {"device_id": f"m-{n}"} for n in range(1001)]}
    with nothing_changes():
        assert problem(provision(client, many)) == (413, "too_many")
        assert problem(provision(client, b" " * (1024 * 1024 + 1))) == (413, "too_many")


def test_a_device_is_deleted_as_often_as_anybody_asks(bought: Subscription) -> None:
    client = with_key("devices:write")
    for device_id in ("d-1", "d-1", "never-there", "%00"):
        answer = client.delete(DEVICE.format(tenant="acme", device_id=device_id))
        assert (answer.status_code, answer.content) == (204, b"")
    assert asked(with_key("access:read")).json()["reason"] == "unknown_device"
    assert SlotAssignment.objects.get().ended == "deleted"


def test_the_number_of_statements_does_not_grow_with_the_devices(bought: Subscription) -> None:
    client = with_key("devices:write")
    with statements(11):
        provision(client, {"mode": "per_item", "devices": [{"device_id": "m-1", "tier": "basic"}]})
    with statements(11):
        body = {"mode": "per_item", "devices": [{"device_id": f"m-{n}", "tier": "basic"} for n in (1, 2)]}
        provision(client, body)


# --- strange callers -------------------------------------------------------------------------------------------------


def test_a_device_may_be_called_access(bought: Subscription) -> None:
    client = with_key("devices:write")
    slots.assign(bought.tenant_id, "access", "basic", actor=Actor.api_key(3), now=JAN_1)
    path = DEVICE.format(tenant="acme", device_id="access")
    assert client.delete(path).status_code == 204
    assert (Client().delete(path).status_code, client.get(path).status_code) == (401, 405)


@pytest.mark.parametrize("body", ['{"\\ud800": 1}', '{"devices": [{"device_id": "d-2"}], "mode": "\\ud800"}'])
def test_half_a_character_is_refused_as_it_came(bought: Subscription, body: str) -> None:
    with nothing_changes():
        answer = with_key("devices:write").post(DEVICES.format(tenant="acme"), body, content_type="application/json")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ("[" * 100_000, 400, "parse_error"),
        (" " * (1024 * 1024 + 1), 413, "too_many"),
        (" " * 3_000_000, 413, "too_many"),
    ],
)
@pytest.mark.parametrize("path", [DEVICES, "/api/v1/platform/tenants/{tenant}/quotas/messages/consume"])
def test_a_body_that_is_too_deep_or_too_large_is_a_problem(
    acme: Tenant, path: str, body: str, status: int, code: str
) -> None:
    client = with_key("devices:write", "quotas:write")
    answer = client.post(path.format(tenant="acme"), body, content_type="application/json")
    assert (answer.status_code, answer["Content-Type"]) == (status, "application/problem+json")
    assert answer.json()["code"] == code


def test_a_host_that_is_not_ours_is_a_problem() -> None:
    answer = with_key("entitlements:read").get("/api/v1/platform/tenants/acme/entitlements", headers={"Host": "evil"})
    assert (answer.status_code, answer["Content-Type"]) == (400, "application/problem+json")


def test_what_an_error_tells_does_not_hide_what_it_is() -> None:
    answer = problem_response(IllegalTransition("It is over.", status="EXPIRED", allowed=[]), {})
    assert answer is not None
    assert (answer.status_code, answer.data["status"], answer.data["allowed"]) == (409, 409, [])


# --- the description -------------------------------------------------------------------------------------------------


def test_the_description_names_every_path() -> None:
    paths = {
        path: [*methods]
        for path, methods in openapi.document()["paths"].items()
        if path in (ACCESS, BATCH, DEVICES, DEVICE)
    }
    assert paths == {ACCESS: ["get"], BATCH: ["post"], DEVICES: ["post"], DEVICE: ["delete"]}
    assert {str(openapi.document()["paths"][path][method]["security"]) for path, (method,) in paths.items()} == {
        "[{'apiKey': []}]"
    }


@pytest.mark.parametrize(
    ("path", "method", "scope", "body"),
    [
        (ACCESS, "get", "access:read", None),
        (BATCH, "post", "access:read", {"devices": [{"tenant": "acme", "device_id": "d-1"}]}),
        (DEVICES, "post", "devices:write", {"device_id": "d-2", "tier": "basic"}),
        (DEVICES, "post", "devices:write", {"devices": [{"device_id": "d 2"}], "mode": "per_item"}),
    ],
)
def test_questions_and_answers_are_what_the_description_says(
    bought: Subscription, path: str, method: str, scope: str, body: Any
) -> None:
    client, url = with_key(scope), path.format(tenant="acme", device_id="d-1")
    answer = client.get(url) if body is None else client.post(url, body, content_type="application/json")
    says = openapi.document()["paths"][path][method]
    told = says["responses"][str(answer.status_code)]["content"]["application/json"]["schema"]
    asked = says["requestBody"]["content"]["application/json"]["schema"] if body else {}
    for schema, value in [(told, answer.json()), (asked, body)]:
        jsonschema.Draft202012Validator(schema | {"components": openapi.document()["components"]}).validate(value)
