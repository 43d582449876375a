"""A device between tenants: to the platform an id is one device, which is released before it goes elsewhere."""

import json
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from django.db import connection, transaction
from django.test import Client

from entitlements import limits, provisioning, slots
from entitlements.bulk import Wish
from entitlements.errors import InvalidDeviceId, StillAssigned, TooMany
from entitlements.limits import Park
from entitlements.models import SlotAssignment
from entitlements.slots import Slot
from subscriptions.audit import Actor
from subscriptions.models import Subscription
from tests.builders import JAN_1, TenantFactory, subscription
from tests.history import at_once, by, nothing_changes, on, refused
from tests.test_api import FAR, member_of, problem
from tests.test_platform_api import DEVICE, provision, statements, with_key

pytestmark = pytest.mark.django_db
NOW = on(1, 10)
BY: dict[str, Any] = {"actor": Actor.api_key(3), "now": NOW}


def bought(slug: str, basic: int = 3) -> Subscription:
    return subscription(tenant=TenantFactory.create(slug=slug), slots={"basic": basic, "premium": 1}, term=(JAN_1, FAR))


@pytest.fixture
def acme() -> Subscription:
    return bought("acme")


@pytest.fixture
def other() -> Subscription:
    """Another tenant's; d-1 has one of its slots."""
    s = bought("other")
    slots.assign(s.tenant_id, "d-1", "basic", **BY)
    return s


def claim(s: Subscription, device_id: str = "d-1", tier: str = "basic") -> Slot:
    return provisioning.claim(s.tenant_id, device_id, tier, **BY)


D1 = {"device_id": "d-1", "tier": "basic"}
MANY = {"devices": [{"device_id": name, "tier": "basic"} for name in ("d-2", "d-1", "d 3")]}


# --- over HTTP -------------------------------------------------------------------------------------------------------


def test_a_service_of_the_platform_is_told_that_another_tenant_has_the_device(
    acme: Subscription, other: Subscription
) -> None:
    with nothing_changes():
        answer = provision(with_key("devices:write"), D1)
    assert problem(answer) == (409, "still_assigned")
    assert answer.json()["detail"] == "d-1 has a slot at the tenant other: release it there first."
    assert answer.json()["tenant"] == "other"


def test_once_it_is_deleted_there_it_is_taken_here(acme: Subscription, other: Subscription) -> None:
    client = with_key("devices:write")
    client.delete(DEVICE.format(tenant="other", device_id="d-1"))
    assert provision(client, D1).status_code == 201
    assert problem(provision(client, D1, tenant="other")) == (409, "still_assigned")


def test_of_many_all_who_cannot_are_told_and_none_is_taken(acme: Subscription, other: Subscription) -> None:
    with nothing_changes():
        answer = provision(with_key("devices:write"), MANY)
    assert problem(answer) == (409, "still_assigned")
    told = {error["device_id"]: error["code"] for error in answer.json()["errors"]}
    assert told == {"d-1": "still_assigned", "d 3": "invalid_device_id"}


def test_or_each_is_told_for_itself(acme: Subscription, other: Subscription) -> None:
    results = provision(with_key("devices:write"), MANY | {"mode": "per_item"}).json()["results"]
    assert [one["error"] and one["error"]["code"] for one in results] == [None, "still_assigned", "invalid_device_id"]
    assert results[1]["error"]["tenant"] == "other"


def of_acme(s: Subscription) -> Callable[[object], Any]:
    return partial(provision, with_key("devices:write", tenant=s.tenant))


def member(s: Subscription) -> Callable[[object], Any]:
    client: Client = member_of(s.tenant)
    return lambda body: client.post("/api/v1/customer/devices", json.dumps(body), content_type="application/json")


@pytest.mark.parametrize("whose", [of_acme, member])
@pytest.mark.parametrize("body", [D1, {"devices": [D1]}])
def test_who_speaks_for_one_tenant_has_ids_of_its_own(
    acme: Subscription, other: Subscription, whose: Callable[[Subscription], Any], body: object
) -> None:
    assert whose(acme)(body).status_code == 201
    assert SlotAssignment.objects.filter(device__device_id="d-1", released_at=None).count() == 2


# --- the verbs -------------------------------------------------------------------------------------------------------


def test_a_device_that_was_released_may_go_elsewhere_though_it_stays_registered(
    acme: Subscription, other: Subscription
) -> None:
    with refused(StillAssigned):
        claim(acme)
    slots.release(other.tenant_id, "d-1", **BY)
    assert claim(acme).is_new


def test_one_that_waits_for_a_slot_elsewhere_has_none(acme: Subscription, other: Subscription) -> None:
    limits.resize(other.pk, "basic", 0, park=Park.NEWEST, **by(NOW))
    assert claim(acme).is_new


def test_one_that_has_its_slot_here_keeps_it_though_another_tenant_has_one_of_that_id(
    acme: Subscription, other: Subscription
) -> None:
    slots.assign(acme.tenant_id, "d-1", "basic", **BY)
    with nothing_changes():
        assert not claim(acme).is_new
        (outcome,) = provisioning.claim_many(acme.tenant_id, [Wish("d-1", "basic")], **BY)
        assert outcome.slot


def test_what_cannot_be_asked_is_refused_before_anything_is_locked(acme: Subscription) -> None:
    with statements(0), pytest.raises(InvalidDeviceId):
        claim(acme, "d\x00")
    with statements(0), pytest.raises(TooMany):
        provisioning.claim_many(acme.tenant_id, [Wish("d-1")] * 1_001, **BY)


def test_ids_that_are_none_are_an_outcome(acme: Subscription) -> None:
    wishes = [Wish(name, "basic") for name in ("d\x00", "\ud800", "d-1")]
    outcomes = provisioning.claim_many(acme.tenant_id, wishes, all_or_nothing=False, **BY)
    assert [outcome.error and outcome.error.code for outcome in outcomes] == ["invalid_device_id"] * 2 + [None]


@pytest.mark.parametrize("count", [1, 1_000])
def test_a_thousand_devices_take_as_many_statements_as_one(count: int, django_assert_num_queries: Any) -> None:
    s = bought("big", 1_000)
    wishes = [Wish(f"d-{n}", "basic") for n in range(count)]
    with django_assert_num_queries(9):  # two savepoints, the locks of ids, who has them, two locks, the slots
        provisioning.claim_many(s.tenant_id, wishes, **BY)


# --- two at once -----------------------------------------------------------------------------------------------------


def race(*claims: Callable[[], Any]) -> list[Any]:
    """What they got, where all have looked before any has a slot, or wait for who has."""
    held = threading.Event()

    def hold() -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT FROM tier_allocations ORDER BY id FOR UPDATE")
            held.set()
            for _ in range(3_000):
                cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
                if cursor.fetchone()[0] >= len(claims):
                    return
                cursor.execute("SELECT pg_sleep(0.01)")
            raise AssertionError("They did not all come to a lock.")

    def when_held(does: Callable[[], Any]) -> Any:
        assert held.wait(30)
        return does()

    nothing, *outcomes = at_once(hold, *(partial(when_held, does) for does in claims))
    assert nothing is None
    return outcomes


def many(s: Subscription, *device_ids: str) -> Any:
    return provisioning.claim_many(s.tenant_id, [Wish(device_id, "basic") for device_id in device_ids], **BY)


CLAIMS = [
    lambda a, b: (partial(claim, a), partial(claim, b)),
    lambda a, b: (partial(many, a, "d-1", "d-2"), partial(many, b, "d-2", "d-1")),
]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("claims", CLAIMS)
def test_of_two_tenants_that_claim_an_id_at_once_one_gets_it(claims: Any) -> None:
    outcomes = race(*claims(bought("acme"), bought("other")))
    assert [type(outcome) for outcome in outcomes].count(StillAssigned) == 1, outcomes
    assert SlotAssignment.objects.filter(device__device_id="d-1").count() == 1


@pytest.mark.django_db(transaction=True)
def test_without_the_locks_both_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provisioning, "locks", lambda device_ids: [])
    outcomes = race(*CLAIMS[0](bought("acme"), bought("other")))
    assert [outcome.is_new for outcome in outcomes] == [True, True]
    assert SlotAssignment.objects.filter(device__device_id="d-1", released_at=None).count() == 2


def test_locks_are_taken_in_one_order_and_there_are_not_many() -> None:
    for first in range(0, 10_000, 10):
        taken = provisioning.locks([f"d-{n}" for n in range(first, first + 10)])
        assert taken == sorted({*taken})
        assert 0 <= taken[0] <= taken[-1] < 1_024
