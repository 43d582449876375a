"""The example client of docs/, run as it is: what it answers by itself is what the service would answer."""

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.db import connection, transaction
from django.utils import timezone
from pytest_django.live_server_helper import LiveServer

from billing_site.api import keys, signing
from entitlements import features, slots
from entitlements.access import access
from entitlements.features import Entitlements
from entitlements.models import Feature, TierFeature
from entitlements.snapshots import Snapshot
from subscriptions import lifecycle
from subscriptions.models import Subscription
from tests.builders import ALICE, JAN_1, TenantFactory, subscription, tier
from tests.history import by, on, settle
from tests.test_api import FAR

committing = pytest.mark.django_db(transaction=True)
FILE = Path(__file__).resolve().parent.parent / "docs" / "edge_client.py"
GATEWAY: dict[str, Any] = {"actor": ALICE, "now": on(1, 10), "reason": "as agreed"}
DEVICES = ["d-1", "d-2", "d-3", "nobody"]


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("edge_client", FILE)
    assert spec
    assert spec.loader
    module = sys.modules["edge_client"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Clock:
    """The real one, so much later."""

    ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.fixture
def bought() -> Subscription:
    return subscription(tenant=TenantFactory.create(slug="acme"), slots={"basic": 3}, term=(JAN_1, FAR))


def gateway(example: Any, url: str, clock: Any = time.time) -> Any:
    _, secret = keys.make("gateway", ["changes:read", "snapshot:read"])
    return example.Edge(url, secret, ["acme"], clock)


def told(edge: Any) -> list[str]:
    """Whom the gateway serves, which is whom the service would serve: with the same features, too."""
    served = {name: edge.served("acme", name) for name in DEVICES}
    answers = {name: access("acme", name, timezone.now()) for name in DEVICES}
    assert served == {
        name: {"tier": its.tier, "features": dict(its.features)} if its.allowed else None
        for name, its in answers.items()
    }
    return [name for name, its in served.items() if its]


@committing
def test_a_gateway_answers_as_the_service_does_after_every_poll(
    example: Any, live_server: LiveServer, bought: Subscription
) -> None:
    edge, acme = gateway(example, live_server.url), bought.tenant_id

    def polled() -> list[str]:
        settle()
        edge.poll()
        return told(edge)

    assert polled() == []
    slots.assign(acme, "d-1", "basic", **GATEWAY)
    assert polled() == ["d-1"]
    slots.release(acme, "d-1", **GATEWAY)
    assert polled() == []
    slots.assign(acme, "d-1", "basic", **GATEWAY)
    slots.assign(acme, "d-2", "basic", **GATEWAY)
    lifecycle.suspend(bought.pk, **by(on(1, 11)))
    assert polled() == []
    lifecycle.renew(bought.pk, term_end=FAR.replace(year=2100), **by(on(1, 12)))
    assert polled() == ["d-1", "d-2"]
    feature = Feature.objects.create(code="ota", name="OTA", kind="SWITCH")
    TierFeature.objects.create(tier=tier("basic"), feature=feature, amount=1)
    assert polled() == ["d-1", "d-2"]
    slots.delete(acme, "d-1", **GATEWAY)  # it misses polls
    slots.assign(acme, "d-3", "basic", **GATEWAY)
    assert polled() == ["d-2", "d-3"]
    with still_open(lambda: slots.release(acme, "d-3", **GATEWAY)):  # begins first, and is committed last
        features.override(acme, "ota", 0, expires_at=None, **GATEWAY)
        edge.poll()
        assert told(edge) == ["d-2", "d-3"]
    assert polled() == ["d-2"]


@contextmanager
def still_open(do: Callable[[], object]) -> Iterator[None]:
    """Done by somebody else, who commits when the block ends."""
    done, go = Event(), Event()

    def slow() -> None:
        try:
            with transaction.atomic():
                do()
                done.set()
                go.wait(30)
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as pool:
        doing = pool.submit(slow)
        try:
            assert done.wait(30)
            assert not doing.done()
            yield
        finally:
            go.set()
            doing.result()


@committing
def test_a_gateway_that_cannot_ask_serves_until_its_snapshot_expires_and_then_nobody(
    example: Any, live_server: LiveServer, bought: Subscription
) -> None:
    clock = Clock()
    edge = gateway(example, live_server.url, clock)
    slots.assign(bought.tenant_id, "d-1", "basic", **GATEWAY)
    edge.poll()
    edge.url, token = "http://127.0.0.1:9", edge.held["acme"]  # nobody is there
    clock.ahead = 899
    edge.poll()
    assert edge.served("acme", "d-1") == {"tier": "basic", "features": {}}
    clock.ahead = 901
    edge.poll()
    assert edge.served("acme", "d-1") is None
    edge.url, clock.ahead = live_server.url, 451  # half of its life is over: it is read again, though nothing changed
    time_it_was_read = token["iat"]
    edge.poll()
    assert edge.held["acme"]["iat"] >= time_it_was_read
    assert edge.held["acme"] is not token


# --- what it believes ------------------------------------------------------------------------------------------------


@pytest.fixture
def offline(example: Any) -> Any:
    """A gateway that knows the keys, and asks nobody."""
    edge = example.Edge("http://127.0.0.1:9", "", ["acme"], Clock())
    edge.keys = {key.key_id: key for key in jwt.PyJWKSet.from_dict(signing.jwks()).keys}
    return edge


def made(version: int, tenant: str = "acme") -> str:
    snapshot = Snapshot(version, Entitlements(), {"d-1": "basic"}, {})
    return signing.signed(snapshot, tenant=tenant, now=timezone.now())


def test_it_refuses_an_older_version_unless_its_own_has_expired(example: Any, offline: Any) -> None:
    offline.held["acme"] = offline.believed("acme", made(7))
    assert [offline.believed("acme", made(version))["version"] for version in (7, 8)] == [7, 8]
    with pytest.raises(example.Refused, match="older"):
        offline.believed("acme", made(6))
    offline.held["acme"]["exp"] = time.time() - 1
    assert offline.believed("acme", made(6))["version"] == 6


def test_it_refuses_what_is_another_tenants_expired_or_of_another_kind(example: Any, offline: Any) -> None:
    good = made(7)
    head, claims = jwt.get_unverified_header(good), jwt.decode(good, options={"verify_signature": False})
    with pytest.raises(example.Refused, match="another tenant's"):
        offline.believed("acme", made(7, "other"))
    with pytest.raises(example.Refused, match="no snapshot"):
        offline.believed("acme", jwt.encode(claims, signing.keys()[0].private, "EdDSA", head | {"typ": "JWT"}))
    with pytest.raises(jwt.InvalidTokenError):
        offline.believed("acme", jwt.encode(claims, Ed25519PrivateKey.generate(), "EdDSA", head))
    offline.clock.ahead = 901
    with pytest.raises(example.Refused, match="expired"):
        offline.believed("acme", good)


def test_it_fits_a_glance() -> None:
    assert len(FILE.read_text().splitlines()) <= 160
