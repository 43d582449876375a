"""API keys: made in the back office or at a terminal, shown once, kept as a hash, good until they expire or end."""

import hashlib
import logging
from datetime import datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from billing_site.api import keys
from billing_site.models import ApiKey
from subscriptions.models import Tenant
from tests.builders import TenantFactory
from tests.history import on
from tests.test_admin import staff, url
from tests.test_api import problem

pytestmark = pytest.mark.django_db
NOW = on(1, 10)
GIVEN: dict[str, Any] = {"name": "gateway", "scopes": ["access:read"], "now": NOW}
SECOND = timedelta(seconds=1)
ASK = "/api/v1/platform/tenants/acme/devices/d-1/access"
DELETE = "/api/v1/platform/tenants/acme/devices/d-1"


@pytest.fixture
def acme() -> Tenant:
    tenant: Tenant = TenantFactory.create(slug="acme")
    return tenant


@pytest.fixture
def alice() -> Client:
    return staff(is_superuser=True)


def made(*scopes: str, **more: Any) -> tuple[ApiKey, Client]:
    key, secret = keys.make("gateway", scopes or ["access:read"], **more)
    return key, Client(headers={"Authorization": f"Bearer {secret}"})


# --- a key -----------------------------------------------------------------------------------------------------------


def test_only_the_hash_is_kept() -> None:
    key, secret = keys.issue("gateway", ["access:read"], now=NOW)
    assert key.sha256 == hashlib.sha256(secret.encode()).hexdigest()
    assert secret.startswith(f"tk_{key.prefix}_")
    assert secret.removeprefix(f"tk_{key.prefix}_") not in str(ApiKey.objects.values().get())
    assert len({keys.make("gateway", [])[1] for _ in range(20)}) == 20


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ({"name": " "}, "A key has a name"),
        ({"name": "x" * 201}, "A key has a name"),
        ({"scopes": []}, "A key without a scope opens nothing"),
        ({"scopes": ["access:read", "root"]}, "There is no scope root. There are: access:read, "),
        ({"scopes": ["customer"]}, "The scope customer is for a tenant"),
        ({"expires_at": NOW}, "2026-01-10T00:00:00\\+00:00 has passed"),
    ],
)
def test_a_key_that_makes_no_sense_is_not_made(wanted: dict[str, Any], why: str) -> None:
    with pytest.raises(keys.InvalidKey, match=why):
        keys.issue(**GIVEN | wanted)
    assert not ApiKey.objects.exists()


def test_a_key_is_good_until_the_instant_it_expires() -> None:
    key, secret = keys.issue("gateway", ["access:read"], now=NOW, expires_at=NOW + SECOND)
    assert keys.find(secret, now=NOW) == key
    assert keys.find(secret, now=NOW + SECOND) is None
    assert [keys.state(key, now=at) for at in (NOW, NOW + SECOND)] == ["good", "expired"]


def test_a_key_ends_when_it_is_revoked_and_the_first_time_counts() -> None:
    key, secret = keys.issue("gateway", ["access:read"], now=NOW)
    assert [keys.revoke(key.pk, now=NOW), keys.revoke(key.pk, now=NOW + SECOND)] == [True, False]
    key.refresh_from_db()
    assert (key.revoked_at, keys.find(secret, now=NOW), keys.state(key, now=NOW)) == (NOW, None, "revoked")


@pytest.mark.parametrize("ask", [lambda client: client.get(ASK), lambda client: client.delete(DELETE)])
def test_a_key_that_ends_is_refused_by_the_very_next_request(acme: Tenant, ask: Any) -> None:
    key, client = made("access:read", "devices:write")
    assert ask(client).status_code in (200, 204)
    keys.revoke(key.pk, now=timezone.now())
    assert problem(ask(client)) == (401, "invalid_api_key")
    key, client = made("access:read", "devices:write", expires_at=timezone.now() - SECOND)
    assert problem(ask(client)) == (401, "invalid_api_key")


# --- when it was last used -------------------------------------------------------------------------------------------


def last_used(key: ApiKey) -> datetime | None:
    key.refresh_from_db()
    return key.last_used_at


@pytest.mark.parametrize("ask", [lambda client: client.get(ASK), lambda client: client.delete(DELETE)])
def test_a_use_is_noted_once_a_minute(acme: Tenant, ask: Any) -> None:
    key, client = made("access:read", "devices:write")
    before = timezone.now()
    ask(client)
    first = last_used(key)
    assert first is not None
    assert before <= first <= timezone.now()
    with CaptureQueriesContext(connection) as asked:
        ask(client)
    assert last_used(key) == first
    assert not [query for query in asked if "last_used_at =" in query["sql"]]
    ApiKey.objects.update(last_used_at=first - timedelta(minutes=1))
    ask(client)
    assert (last_used(key) or before) > first


def test_of_many_who_note_it_at_once_one_does() -> None:
    key, _ = made()
    keys.note_use(key.pk, now=NOW)
    keys.note_use(key.pk, now=NOW + 59 * SECOND)
    assert last_used(key) == NOW
    keys.note_use(key.pk, now=NOW + 60 * SECOND)
    assert last_used(key) == NOW + 60 * SECOND


def test_who_is_refused_has_not_used_it(acme: Tenant) -> None:
    key, client = made(expires_at=timezone.now() - SECOND)
    assert client.get(ASK).status_code == 401
    assert last_used(key) is None


# --- in the back office ----------------------------------------------------------------------------------------------

ADD = reverse("admin:billing_site_apikey_add")


def wanted(**more: Any) -> dict[str, Any]:
    return {"name": "gateway", "scopes": ["access:read", "changes:read"], "tenant": "", "expires_at": ""} | more


def revoke_page(key: ApiKey) -> str:
    return reverse("admin:billing_site_apikey_revoke", args=[key.pk])


def test_the_form_says_what_each_scope_opens(alice: Client) -> None:
    page = alice.get(ADD).content.decode()
    assert all(scope in page and meaning.split("'")[0] in page for scope, meaning in keys.SCOPES.items())


def test_a_new_key_is_shown_once_and_then_nowhere(alice: Client, acme: Tenant, caplog: Any) -> None:
    caplog.set_level(logging.DEBUG)
    answer = alice.post(ADD, wanted(tenant=acme.pk, expires_at="2099-01-01"))
    key = ApiKey.objects.get()
    assert (key.name, key.tenant, key.scopes) == ("gateway", acme, ["access:read", "changes:read"])
    assert (key.expires_at, answer.status_code) == (on(1, 1).replace(year=2099), 200)
    assert "no-store" in answer["Cache-Control"]
    secret = next(word for word in answer.content.decode().replace("<", " ").replace(">", " ").split() if "tk_" in word)
    assert keys.find(secret, now=timezone.now()) == key
    shown = [alice.get(url(ApiKey, "change", key.pk)), alice.get(url(ApiKey, "changelist")), alice.get(ADD)]
    kept = [*(page.content.decode() for page in shown), str(dict(alice.session)), str(alice.cookies), caplog.text,
            *LogEntry.objects.values_list("change_message", flat=True)]  # fmt: skip
    assert not [where for where in kept if secret.rpartition("_")[2] in where]


@pytest.mark.parametrize(
    "mistake",
    [{"name": ""}, {"scopes": []}, {"scopes": ["root"]}, {"scopes": ["customer"]}, {"expires_at": "2020-01-01"},
     {"expires_at": "soon"}, {"tenant": "999999"}],
)  # fmt: skip
def test_a_form_that_makes_no_sense_makes_no_key(alice: Client, mistake: dict[str, Any]) -> None:
    answer = alice.post(ADD, wanted(**mistake))
    assert (answer.status_code, ApiKey.objects.exists()) == (200, False)
    assert b"tk_" not in answer.content


def test_a_key_is_looked_at_and_never_edited_or_deleted(alice: Client) -> None:
    key, _ = made()
    before = ApiKey.objects.values().get()
    alice.post(url(ApiKey, "change", key.pk), wanted(name="mine"))
    assert alice.post(url(ApiKey, "delete", key.pk), {"post": "yes"}).status_code == 403
    assert ApiKey.objects.values().get() == before


def test_to_revoke_is_asked_twice_and_done_once(alice: Client) -> None:
    key, client = made()
    assert b"nobody can take that back" in alice.get(revoke_page(key)).content
    assert keys.state(ApiKey.objects.get(), now=timezone.now()) == "good"
    for _ in range(2):
        assert alice.post(revoke_page(key)).status_code == 302
    assert client.get(ASK).status_code == 401
    assert [entry.change_message for entry in LogEntry.objects.all()] == ["Revoked."]


def test_each_needs_its_permission() -> None:
    key, _ = made()
    viewer, maker, nobody = staff("view_apikey"), staff("add_apikey"), staff()
    assert viewer.get(url(ApiKey, "change", key.pk)).status_code == 200
    for client in (viewer, nobody):
        assert client.post(ADD, wanted()).status_code == 403
    for client in (viewer, maker, nobody):
        assert client.post(revoke_page(key)).status_code == 403
    assert maker.post(ADD, wanted(name="another")).status_code == 200
    assert (ApiKey.objects.count(), ApiKey.objects.filter(revoked_at=None).count()) == (2, 2)
    assert nobody.get(url(ApiKey, "changelist")).status_code == 403


def test_a_form_that_is_sent_again_makes_no_second_key(alice: Client) -> None:
    alice.post(ADD, wanted())
    again = alice.post(ADD, wanted())
    assert "A key of this name is there already" in again.content.decode()
    assert ApiKey.objects.count() == 1


def test_the_list_takes_as_many_queries_for_one_key_as_for_many(alice: Client) -> None:
    def count() -> int:
        with CaptureQueriesContext(connection) as found:
            assert alice.get(url(ApiKey, "changelist")).status_code == 200
        return len(found)

    made(tenant=TenantFactory.create())
    count()
    first = count()
    for _ in range(5):
        made(tenant=TenantFactory.create())
    assert count() == first


# --- at a terminal ---------------------------------------------------------------------------------------------------


def api_key(*arguments: str) -> tuple[str, str]:
    out, err = StringIO(), StringIO()
    call_command("api_key", *arguments, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


def test_a_key_is_printed_alone_so_that_a_script_can_take_it(acme: Tenant) -> None:
    out, err = api_key("create", "factory", "--scope", "customer", "--tenant", "acme", "--expires", "2099-01-01")
    key = keys.find(out.strip(), now=timezone.now())
    assert key is not None
    assert (key.name, key.tenant, key.scopes) == ("factory", acme, ["customer"])
    assert err == f"factory ({key.prefix}): shown once, and kept nowhere.\n"


def test_the_list_names_every_key_and_shows_none(acme: Tenant) -> None:
    key, secret = keys.make("factory", ["customer"], tenant=acme, expires_at=on(1, 10))
    out, _ = api_key("list")
    assert out.splitlines() == [
        f"{key.prefix}  expired   factory  acme  customer  expires 2026-01-10T00:00:00Z  last used never", "1 keys"
    ]  # fmt: skip
    assert secret.split("_", 2)[2] not in out


def test_a_key_is_revoked_by_its_prefix() -> None:
    key, _ = made()
    assert api_key("revoke", key.prefix)[0] == f"gateway ({key.prefix}) is revoked.\n"
    assert api_key("revoke", key.prefix)[0] == f"gateway ({key.prefix}) was revoked before.\n"
    assert keys.state(ApiKey.objects.get(), now=timezone.now()) == "revoked"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["create", "x"], "A key without a scope opens nothing"),
        (["create", "x", "--scope", "root"], "There is no scope root"),
        (["create", "x", "--scope", "customer"], "The scope customer is for a tenant"),
        (["create", "x", "--scope", "access:read", "--tenant", "nobody"], "There is no tenant nobody"),
        (["create", "x", "--scope", "access:read", "--expires", "2020-01-01"], "has passed"),
        (["create", "x", "--scope", "access:read", "--expires", "soon"], "is not an ISO 8601 instant"),
        (["create", " ", "--scope", "access:read"], "it must not be blank"),
        (["revoke", "nobody"], "There is no key nobody"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(arguments: list[str], why: str) -> None:
    with pytest.raises(CommandError, match=why):
        api_key(*arguments)
    assert not ApiKey.objects.exists()
