"""Signed snapshots: verified with the published keys alone, short-lived, under a version that never falls."""

import base64
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from io import StringIO
from threading import Event
from typing import Any

import jsonschema
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.utils import timezone

from billing_site.api import signing
from billing_site.settings import ed25519_seeds
from entitlements import features, limits, slots
from entitlements.access import access_many
from entitlements.limits import Park
from entitlements.models import Device, DeviceTier, Feature, TierFeature
from entitlements.snapshots import VERSION, snapshot_of
from subscriptions import lifecycle
from subscriptions.models import Subscription, Tenant
from subscriptions.states import Type
from tests import openapi
from tests.builders import ALICE, FEB_1, JAN_1, TenantFactory, giving, subscription, tier
from tests.history import by, on
from tests.test_api import FAR, problem
from tests.test_platform_api import statements, with_key

pytestmark = pytest.mark.django_db

URL, KEYS = "/api/v1/platform/tenants/{tenant}/snapshot", "/.well-known/jwks.json"
GATEWAY: dict[str, Any] = {"actor": ALICE, "now": on(1, 10), "reason": "as agreed"}
OLD, NEW = b"o" * 32, b"n" * 32


@pytest.fixture
def acme() -> Tenant:
    tenant: Tenant = TenantFactory.create(slug="acme")
    return tenant


@pytest.fixture
def bought(acme: Tenant) -> Subscription:
    """Acme's, until far from now: two basic slots, of which d-1 has one, and 100 API calls."""
    s = subscription(tenant=acme, plan=giving(slots={"basic": 2}, api=100), term=(JAN_1, FAR))
    slots.assign(acme.pk, "d-1", "basic", **GATEWAY)
    return s


def token(client: Client | None = None, tenant: str = "acme") -> str:
    answer = (client or with_key("snapshot:read")).get(URL.format(tenant=tenant))
    assert (answer.status_code, answer["Content-Type"]) == (200, "application/jose")
    return str(answer.content.decode())


def published() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(Client().get(KEYS).content)
    return document


def verified(snapshot: str, jwks: dict[str, Any] | None = None) -> dict[str, Any]:
    """As a gateway does it: with what is published, and nothing else of ours."""
    known = {key.key_id: key for key in jwt.PyJWKSet.from_dict(jwks or published()).keys}
    key = known[jwt.get_unverified_header(snapshot)["kid"]]
    required = {"require": ["iss", "sub", "iat", "exp", "version"]}
    claims: dict[str, Any] = jwt.decode(
        snapshot,
        key,
        algorithms=["EdDSA"],
        issuer="termkeeper",
        options=required,  # type: ignore[arg-type]
    )
    return claims


# --- what it says ----------------------------------------------------------------------------------------------------


def test_a_snapshot_says_what_a_tenant_may_use_and_which_devices_are_served(bought: Subscription) -> None:
    for code, kind, amount in [("ota", "SWITCH", 1), ("messages", "QUOTA", 500)]:
        feature = Feature.objects.create(code=code, name=code, kind=kind)
        TierFeature.objects.create(tier=tier("basic"), feature=feature, amount=amount)
    tier("premium")
    snapshot = token()
    header, claims = jwt.get_unverified_header(snapshot), verified(snapshot)
    assert header == {"alg": "EdDSA", "typ": "termkeeper-snapshot+jwt", "kid": signing.keys()[0].kid}
    assert (claims.pop("exp"), claims.pop("version") > 0) == (claims.pop("iat") + 900, True)
    summary = with_key("entitlements:read").get("/api/v1/platform/tenants/acme/entitlements").json()
    assert claims == {
        "iss": "termkeeper", "sub": "acme", "entitlements": summary, "devices": {"d-1": {"tier": "basic"}},
        "tiers": {"basic": {"ota": True, "messages": 500}, "premium": {}},
    }  # fmt: skip


def test_a_snapshot_costs_a_key_a_tenant_and_one_statement(bought: Subscription) -> None:
    client = with_key("snapshot:read")
    with statements(3):
        token(client)
    slots.assign(bought.tenant_id, "d-2", "basic", **GATEWAY)
    with statements(3):
        token(client)


def test_who_is_not_served_is_not_in_it(acme: Tenant) -> None:
    """Nor is anybody else: it says the same as access does, at any instant."""
    main = subscription(tenant=acme, slots={"basic": 5})
    ahead = subscription(Type.TEMPORARY, tenant=acme, slots={"basic": 1}, term=(on(1, 20), on(3, 1)))
    names = [f"d-{n}" for n in range(1, 8)]
    for name in names[:5]:
        slots.assign(acme.pk, name, "basic", subscription_id=main.pk, **GATEWAY)
    slots.release(acme.pk, "d-2", **GATEWAY)
    slots.delete(acme.pk, "d-3", **GATEWAY)
    limits.resize(main.pk, "basic", 2, park=Park.NEWEST, **by(on(1, 11)))  # d-5 is parked
    slots.assign(acme.pk, "d-6", "basic", subscription_id=ahead.pk, **GATEWAY | {"now": on(1, 21)})
    served = {at: set(snapshot_of(acme.pk, at).devices) for at in (on(1, 12), on(1, 25), on(2, 20), on(4, 1))}
    assert [*served.values()] == [{"d-1", "d-4"}, {"d-1", "d-4", "d-6"}, {"d-6"}, set()]
    for at, devices in served.items():
        answers = access_many([("acme", name) for name in names], at)
        assert devices == {name for name, answer in zip(names, answers, strict=True) if answer.allowed}
    lifecycle.suspend(main.pk, **by(on(1, 25)))
    assert set(snapshot_of(acme.pk, on(1, 25)).devices) == {"d-6"}


def test_it_expires_when_anything_in_it_may_change_by_the_clock(bought: Subscription) -> None:
    soon = (timezone.now() + timedelta(seconds=100)).replace(microsecond=700_000)
    features.override(bought.tenant_id, "api", 7, expires_at=soon, **GATEWAY)
    assert verified(token())["exp"] == int(soon.timestamp())


def test_a_tenant_that_bought_nothing_has_a_snapshot_of_nothing(acme: Tenant) -> None:
    claims = verified(token())
    assert (claims["devices"], claims["entitlements"]["slots"]) == ({}, [])


def test_the_tiers_come_in_their_order(acme: Tenant) -> None:
    subscription(tenant=acme, slots={"basic": 1, "premium": 2, "alpha": 1}, term=(JAN_1, FAR))
    for place, code in enumerate(["premium", "basic"]):
        DeviceTier.objects.filter(code=code).update(position=place)
    assert [row["tier"] for row in verified(token())["entitlements"]["slots"]] == ["alpha", "premium", "basic"]


# --- who may have it -------------------------------------------------------------------------------------------------


def test_a_snapshot_takes_its_scope_and_ones_own_tenant(bought: Subscription) -> None:
    other = TenantFactory.create(slug="other")
    url = URL.format(tenant="acme")
    assert problem(Client().get(url)) == (401, "not_authenticated")
    assert problem(with_key("access:read").get(url)) == (403, "permission_denied")
    assert problem(with_key("snapshot:read", tenant=other).get(url)) == (404, "not_found")
    assert problem(with_key("snapshot:read").get(URL.format(tenant="nobody"))) == (404, "not_found")
    assert verified(token(with_key("snapshot:read", tenant=bought.tenant)))["sub"] == "acme"


# --- what does not verify --------------------------------------------------------------------------------------------


def encoded(part: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")


def forged(good: str) -> Iterator[tuple[str, str]]:
    header, payload, signature = good.split(".")
    head, claims = jwt.get_unverified_header(good), jwt.decode(good, options={"verify_signature": False})
    more = encoded(claims | {"devices": {"d-2": {"tier": "basic"}}})
    yield "another payload", f"{header}.{more}.{signature}"
    yield "another signature", f"{header}.{payload}.{'A' * len(signature)}"
    yield "none", f"{encoded(head | {'alg': 'none'})}.{more}."
    public = base64.urlsafe_b64decode(published()["keys"][0]["x"] + "=")
    yield "the public key as a secret", jwt.encode(claims, public, "HS256", head | {"alg": "HS256"})
    another = Ed25519PrivateKey.generate()
    yield "another key under our name", jwt.encode(claims, another, "EdDSA", head)
    yield "another key", jwt.encode(claims, another, "EdDSA", head | {"kid": "theirs"})
    yield "expired", jwt.encode(claims | {"exp": claims["iat"] - 60}, signing.keys()[0].private, "EdDSA", head)


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
def test_what_we_did_not_sign_or_not_lately_does_not_verify(bought: Subscription) -> None:
    good = token()
    assert verified(good)["devices"] == {"d-1": {"tier": "basic"}}
    for name, bad in forged(good):
        with pytest.raises((jwt.InvalidTokenError, KeyError)):
            pytest.fail(f"{name}: {verified(bad)}")


# --- keys ------------------------------------------------------------------------------------------------------------


def test_the_published_keys_are_public_and_may_be_cached() -> None:
    answer = Client().get(KEYS)
    assert (answer["Content-Type"], answer["Cache-Control"]) == ("application/jwk-set+json", "public, max-age=300")
    (key,) = answer.json()["keys"]
    assert key.keys() == {"kty", "crv", "use", "alg", "kid", "x"}  # no d


def test_a_key_is_named_by_its_thumbprint(settings: Any) -> None:
    """The example of RFC 8037, appendix A."""
    d = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"
    settings.SNAPSHOT_KEYS = [base64.urlsafe_b64decode(d + "=")]
    (key,) = published()["keys"]
    assert (key["x"], key["kid"]) == (
        "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo", "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
    )  # fmt: skip


def test_unset_there_is_a_key_that_follows_from_the_secret_key(settings: Any) -> None:
    first = published()
    assert published() == first
    settings.SECRET_KEY = "another secret, which is long enough"
    assert published() != first


def test_a_key_is_replaced_without_a_snapshot_that_does_not_verify(bought: Subscription, settings: Any) -> None:
    settings.SNAPSHOT_KEYS = [OLD]
    by_old, cached = token(), published()
    settings.SNAPSHOT_KEYS = [OLD, NEW]  # published, and not used yet
    assert verified(token(), cached)["sub"] == "acme"
    cached = published()
    settings.SNAPSHOT_KEYS = [NEW, OLD]  # used; what the old one signed is still good
    by_new = token()
    assert jwt.get_unverified_header(by_new)["kid"] != jwt.get_unverified_header(by_old)["kid"]
    assert verified(by_new, cached)["sub"] == verified(by_old)["sub"] == "acme"
    settings.SNAPSHOT_KEYS = [NEW]
    assert verified(token())["sub"] == "acme"
    with pytest.raises(KeyError):
        verified(by_old)


def test_the_command_prints_a_key_that_the_settings_take(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    out = StringIO()
    call_command("snapshot_key", stdout=out)
    assert re.fullmatch(r"[\w-]{43}\n", out.getvalue())
    monkeypatch.setenv("SNAPSHOT_KEYS", out.getvalue())
    (seed,) = ed25519_seeds("SNAPSHOT_KEYS")
    assert len(seed) == 32


# --- the version -----------------------------------------------------------------------------------------------------


def version(tenant: Tenant) -> int:
    return snapshot_of(tenant.pk, datetime(2026, 1, 12, tzinfo=UTC)).version


@pytest.mark.django_db(transaction=True)
def test_the_version_grows_with_every_commit_and_never_falls(bought: Subscription) -> None:
    """Read again and again while three others commit, also out of the order in which they began."""
    done = Event()

    def writer(name: str) -> None:
        try:
            for _ in range(20):
                slots.assign(bought.tenant_id, name, "basic", **GATEWAY)
                slots.release(bought.tenant_id, name, **GATEWAY)
        finally:
            connection.close()

    def reader() -> list[tuple[int, int]]:
        """Versions, and how many assignments there were: what is seen more of has a greater version."""
        seen = []
        try:
            while not done.is_set():
                with connection.cursor() as cursor:
                    cursor.execute(f"SELECT {VERSION}, (SELECT count(*) FROM slot_assignments)")
                    seen.append(cursor.fetchone())
        finally:
            connection.close()
        return seen

    limits.resize(bought.pk, "basic", 4, **by(on(1, 11)))
    before = version(bought.tenant)
    with ThreadPoolExecutor(5) as pool:
        readers = [pool.submit(reader) for _ in range(2)]
        for writing in [pool.submit(writer, f"w-{n}") for n in range(3)]:
            writing.result()
        done.set()
        for reading in readers:
            seen = reading.result()
            assert seen == sorted(seen)
            counts: dict[int, int] = {}
            for number, count in seen:
                assert counts.setdefault(number, count) == count, "one version, two contents"
    assert version(bought.tenant) >= before + 120
    assert not Device.objects.filter(device_id__startswith="w-", assignments__released_at=None).exists()


@pytest.mark.django_db(transaction=True)
def test_a_commit_that_comes_late_makes_the_version_grow(bought: Subscription) -> None:
    other = connection.copy()
    other.set_autocommit(False)
    with other.cursor() as slow:
        slow.execute("UPDATE devices SET parked_at = NULL WHERE device_id = 'd-1'")
        slots.assign(bought.tenant_id, "d-2", "basic", **GATEWAY)
        before = version(bought.tenant)
        other.commit()
    other.close()
    assert version(bought.tenant) > before


def test_the_end_of_the_term_ends_the_snapshot_of_its_devices(acme: Tenant) -> None:
    s = subscription(tenant=acme, slots={"basic": 1})
    lifecycle.cancel(s.pk, at=lifecycle.CancelAt.TERM_END, **by(on(1, 5)))
    slots.assign(acme.pk, "d-1", "basic", **GATEWAY)
    just_before = snapshot_of(acme.pk, FEB_1 - timedelta(microseconds=1))
    assert (just_before.devices, just_before.entitlements.valid_until) == ({"d-1": "basic"}, FEB_1)
    assert snapshot_of(acme.pk, FEB_1).devices == {}


# --- the description -------------------------------------------------------------------------------------------------


def test_the_description_says_what_is_answered_and_to_whom() -> None:
    snapshot, keys = openapi.document()["paths"][URL]["get"], openapi.document()["paths"][KEYS]["get"]
    assert snapshot["responses"]["200"]["content"] == {"application/jose": {"schema": {"type": "string"}}}
    assert (snapshot["security"], keys.get("security")) == ([{"apiKey": []}], None)  # everybody
    schema = keys["responses"]["200"]["content"]["application/jwk-set+json"]["schema"]
    jsonschema.validate(published(), schema | {"components": openapi.document()["components"]})
