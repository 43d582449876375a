"""Devices and tiers in the customer API: what a tenant sees and does, and how everything else is refused."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from billing_site.api import keys
from entitlements import limits, slots
from entitlements.limits import Park
from entitlements.models import Device, DeviceTier, Feature, SlotAssignment
from subscriptions import lifecycle
from subscriptions.audit import Actor
from subscriptions.models import Subscription, Tenant
from subscriptions.states import Type
from tests import openapi
from tests.builders import JAN_1, TenantFactory, subscription, tier
from tests.history import by, nothing_changes, on
from tests.test_api import DEVICE, FAR, ONE, member_of, problem

pytestmark = pytest.mark.django_db

DEVICES, TIERS = "/api/v1/customer/devices", "/api/v1/customer/device-tiers"
TIER, ACCESS, EXPLAIN, IN_SLOTS = f"{DEVICE}/tier", f"{DEVICE}/access", f"{DEVICE}/explain", f"{ONE}/devices"
D1 = DEVICE.format(device_id="d-1")
GATEWAY = Actor.api_key(3)
SIGNED_IN = 4  # queries: session, user, member, tenant


@pytest.fixture
def acme() -> Tenant:
    tenant: Tenant = TenantFactory.create(slug="acme")
    return tenant


@pytest.fixture
def main(acme: Tenant) -> Subscription:
    return subscription(slots={"basic": 3, "premium": 1}, tenant=acme, term=(JAN_1, FAR))


@pytest.fixture
def client(acme: Tenant) -> Client:
    return member_of(acme)


def assigned(s: Subscription, *device_ids: str, tier: str = "basic") -> None:
    for device_id in device_ids:
        slots.assign(s.tenant_id, device_id, tier, actor=GATEWAY, now=on(1, 5))


def sent(client: Client, method: str, url: str, body: object = None, **headers: str) -> Any:
    text = "" if body is None else json.dumps(body)
    return client.generic(method, url, text, "application/json", headers=headers)


def ids(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.content
    return [device["device_id"] for device in answer.json()["results"]]


# --- the list --------------------------------------------------------------------------------------------------------


def registered_at(device_id: str) -> str:
    return Device.objects.get(device_id=device_id).created_at.isoformat().replace("+00:00", "Z")


def test_the_list_says_of_each_device_where_it_is(client: Client, main: Subscription) -> None:
    assigned(main, "d-1", "d-2", "d-3")
    slots.release(main.tenant_id, "d-2", actor=GATEWAY, now=on(1, 6))
    limits.resize(main.pk, "basic", 1, park=Park.NEWEST, **by(on(1, 7)))
    nowhere = {"subscription": None, "assigned_at": None, "parked_at": None, "tier": None}
    assert client.get(DEVICES).json()["results"] == [
        nowhere | {"device_id": "d-3", "state": "parked", "tier": "basic", "parked_at": "2026-01-07T00:00:00Z",
                   "registered_at": registered_at("d-3")},
        nowhere | {"device_id": "d-2", "state": "unassigned", "registered_at": registered_at("d-2")},
        nowhere | {"device_id": "d-1", "state": "assigned", "tier": "basic", "subscription": main.number,
                   "assigned_at": "2026-01-05T00:00:00Z", "registered_at": registered_at("d-1")},
    ]  # fmt: skip


def test_the_list_has_nobody_elses_devices_and_none_that_were_deleted(client: Client, main: Subscription) -> None:
    assigned(subscription(slots={"basic": 2}), "theirs", "d-1")
    assigned(main, "d-1", "d-2")
    slots.delete(main.tenant_id, "d-2", actor=GATEWAY, now=on(1, 6))
    assert ids(client.get(DEVICES)) == ["d-1"]
    assert ids(client.get(f"{DEVICES}?search=th")) == []


def test_the_list_is_filtered_by_tier_by_state_and_by_how_an_id_begins(client: Client, main: Subscription) -> None:
    assigned(main, "a_1", "a-2", "B-3")
    assigned(main, "a_4", tier="premium")
    limits.resize(main.pk, "premium", 0, park=Park.NEWEST, **by(on(1, 7)))
    slots.release(main.tenant_id, "a-2", actor=GATEWAY, now=on(1, 8))
    for asked, expected in {
        "tier=basic": ["B-3", "a_1"],
        "tier=premium": ["a_4"],
        "tier=gold": [],
        "state=assigned": ["B-3", "a_1"],
        "state=parked": ["a_4"],
        "state=unassigned": ["a-2"],
        "search=a": ["a_4", "a-2", "a_1"],
        "search=a_": ["a_4", "a_1"],
        "search=%25": [],
        "search=%5C": [],
        "search=b": [],
        "search=a&state=assigned&tier=basic": ["a_1"],
    }.items():
        assert ids(client.get(f"{DEVICES}?{asked}")) == expected, asked


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("state=lost", "state"),
        ("state=%00", "state"),
        ("tier=%00", "tier"),
        ("tier=a%20b", "tier"),
        ("search=%00", "search"),
        ("search=" + "a" * 129, "search"),
        ("cursor=nonsense", "cursor"),
    ],
)
def test_a_parameter_that_is_not_valid_is_named(query: str, parameter: str, client: Client, main: Subscription) -> None:
    answer = client.get(f"{DEVICES}?{query}")
    assert problem(answer) == (400, "invalid")
    assert list(answer.json()["errors"]) == [parameter]


@pytest.mark.parametrize("url", [DEVICES, IN_SLOTS])
def test_no_page_skips_or_repeats_a_device_while_others_come(url: str, client: Client, acme: Tenant) -> None:
    s = subscription(slots={"basic": 20}, tenant=acme, term=(JAN_1, FAR))
    assigned(s, *"12345")
    seen, page = [], f"{url.format(number=s.number)}?page_size=2"
    while page:
        answer = client.get(page)
        seen += ids(answer)
        assigned(s, f"new-{len(seen)}")
        page = answer.json()["next"]
    assert seen == [*"54321"]


def test_the_list_of_a_subscription_has_who_is_in_its_slots(client: Client, main: Subscription) -> None:
    other = subscription(Type.TEMPORARY, slots={"basic": 1}, tenant=main.tenant, term=(JAN_1, FAR))
    assigned(main, "d-1", "d-2")
    assigned(main, "d-3", tier="premium")
    slots.move(main.tenant_id, "d-2", other.pk, actor=GATEWAY, now=on(1, 6))
    assert ids(client.get(IN_SLOTS.format(number=main.number))) == ["d-3", "d-1"]
    (theirs,) = client.get(IN_SLOTS.format(number=other.number)).json()["results"]
    assert theirs == client.get(DEVICE.format(device_id="d-2")).json()


def test_the_number_of_queries_does_not_grow_with_the_devices(
    client: Client, main: Subscription, django_assert_num_queries: Any
) -> None:
    limits.resize(main.pk, "basic", 50, **by(on(1, 2)))
    for few_or_many in (["d-1"], [f"e-{n}" for n in range(20)]):
        assigned(main, *few_or_many)
        for url, its_own in {
            DEVICES: 1,
            f"{DEVICES}?search=e&state=assigned&tier=basic": 1,
            D1: 1,
            IN_SLOTS.format(number=main.number): 3,  # the subscription, its allocations, who is in them
            TIERS: 3,  # the tiers, their slots, their features
            f"{D1}/access": 1,
            f"{D1}/explain": 3,
        }.items():
            with django_assert_num_queries(SIGNED_IN + its_own):
                assert client.get(url).status_code == 200


# --- registered and deleted ------------------------------------------------------------------------------------------


def test_one_device_is_registered_with_a_slot_and_a_repeat_is_told_the_same(client: Client, main: Subscription) -> None:
    body = {"device_id": "d-1", "tier": "basic"}
    first = sent(client, "POST", DEVICES, body, **{"Idempotency-Key": "k-1"})
    assert (first.status_code, first.json()["subscription"], first.json()["is_new"]) == (201, main.number, True)
    with nothing_changes():
        again = sent(client, "POST", DEVICES, body, **{"Idempotency-Key": "k-1"})
    assert (again.status_code, again.json()) == (200, first.json() | {"is_new": False})
    assignment = SlotAssignment.objects.get()
    assert (assignment.assigned_by.partition(":")[0], assignment.source_id) == ("member", "k-1")


def test_a_tenants_own_key_does_what_its_members_do(acme: Tenant, main: Subscription) -> None:
    key, secret = keys.make("fleet tool", ["customer"], tenant=acme)
    service = Client(headers={"Authorization": f"Bearer {secret}"})
    assert sent(service, "POST", DEVICES, {"device_id": "d-1", "tier": "basic"}).status_code == 201
    assert SlotAssignment.objects.get().assigned_by == f"apikey:{key.pk}"
    assert ids(service.get(DEVICES)) == ["d-1"]


def test_many_devices_are_registered_all_or_none_or_whoever_can(client: Client, main: Subscription) -> None:
    wanted = {"devices": [{"device_id": f"d-{n}", "tier": "basic"} for n in range(4)]}
    with nothing_changes():
        refused = sent(client, "POST", DEVICES, wanted)
    assert problem(refused) == (409, "no_free_slot")
    assert (refused.json()["limit"], refused.json()["used"]) == (3, 0)
    assert refused.json()["detail"] == "0 of 3 slots of the tier basic are in use, 4 more are wanted."
    answer = sent(client, "POST", DEVICES, wanted | {"mode": "per_item"})
    assert answer.status_code == 200
    assert [(r["device_id"], bool(r["slot"])) for r in answer.json()["results"]].count(("d-3", False)) == 1
    openapi.validate(DEVICES, "post", 200, answer.json())


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ({"device_id": "d 1"}, (400, "invalid_device_id")),
        ({"device_id": "d-1", "tier": "gold"}, (400, "no_such_tier")),
        ({"device_id": "d-1", "teir": "basic"}, (400, "invalid")),
        ([], (400, "invalid")),
        ({"device_id": "d-1", "tier": "standard"}, (402, "tier_not_sold")),
        ({"device_id": "d-1", "tier": "basic", "subscription": "SUB-0"}, (404, "subscription_not_found")),
        ({"device_id": "in-slot", "tier": "basic"}, (409, "tier_differs")),
        ({"device_id": "d-1", "tier": "premium"}, (409, "no_free_slot")),
        ({"devices": [{"device_id": str(n)} for n in range(1001)]}, (413, "too_many")),
    ],
)
def test_what_cannot_be_registered_is_refused_with_its_code(
    body: object, found: tuple[int, str], client: Client, main: Subscription
) -> None:
    tier("standard")
    assigned(main, "in-slot", tier="premium")
    with nothing_changes():
        assert problem(sent(client, "POST", DEVICES, body)) == found


def test_anothers_subscription_cannot_be_named(client: Client, main: Subscription) -> None:
    theirs = subscription(slots={"basic": 1}, term=(JAN_1, FAR))
    assigned(main, "d-1")
    with nothing_changes():
        wish = {"tier": "basic", "subscription": theirs.number}
        posted = sent(client, "POST", DEVICES, wish | {"device_id": "d-2"})
        put = sent(client, "PUT", TIER.format(device_id="d-1"), wish)
    assert [problem(posted), problem(put)] == [(404, "subscription_not_found")] * 2


def test_a_deleted_device_is_gone_and_can_be_registered_again(client: Client, main: Subscription) -> None:
    assigned(main, "d-1")
    assert sent(client, "DELETE", D1).status_code == 204
    for method, url, body in (
        ("GET", D1, None), ("DELETE", D1, None), ("GET", f"{D1}/access", None),
        ("PUT", f"{D1}/tier", {"tier": "basic"}), ("DELETE", f"{D1}/tier", None),
    ):  # fmt: skip
        with nothing_changes():
            assert problem(sent(client, method, url, body)) == (404, "device_not_found")
    assert client.get(f"{D1}/explain").json()["reason"] == "unknown_device"
    assert sent(client, "POST", DEVICES, {"device_id": "d-1", "tier": "basic"}).status_code == 201
    assert client.get(D1).json()["state"] == "assigned"


# --- its slot --------------------------------------------------------------------------------------------------------


def where(answer: Any) -> tuple[int, str, str | None, str | None]:
    body = answer.json()
    return answer.status_code, body["state"], body["tier"], body["subscription"]


def test_a_device_changes_its_tier_and_its_subscription_and_keeps_what_it_has(
    client: Client, main: Subscription
) -> None:
    addon = subscription(Type.ADDON, slots={"premium": 1}, parent=main, term=(JAN_1, FAR))
    assigned(main, "d-1")
    url = f"{D1}/tier"
    for wish, whose in (
        ({"tier": "premium"}, main),
        ({"tier": "premium", "subscription": addon.number}, addon),
        ({"tier": "premium"}, addon),
    ):
        assert where(sent(client, "PUT", url, wish)) == (200, "assigned", "premium", whose.number)
    with nothing_changes():
        sent(client, "PUT", url, {"tier": "premium", "subscription": addon.number})


def test_a_released_device_stays_registered_and_gets_a_slot_again(client: Client, main: Subscription) -> None:
    assigned(main, "d-1")
    assert sent(client, "DELETE", f"{D1}/tier").status_code == 204
    assert where(client.get(D1)) == (200, "unassigned", None, None)
    assert sent(client, "DELETE", f"{D1}/tier").status_code == 204  # a repeat
    assert where(sent(client, "PUT", f"{D1}/tier", {"tier": "basic"})) == (200, "assigned", "basic", main.number)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ({}, (400, "invalid")),
        ({"tier": ""}, (400, "invalid")),
        ({"tier": 1}, (400, "invalid")),
        ({"tier": "a\0"}, (400, "invalid")),
        ({"tier": "basic", "more": 1}, (400, "invalid")),
        ({"tier": "gold"}, (400, "no_such_tier")),
        ({"tier": "standard"}, (402, "tier_not_sold")),
        ({"tier": "premium"}, (409, "no_free_slot")),
        ({"tier": "basic", "subscription": "SUB-0"}, (404, "subscription_not_found")),
    ],
)
def test_a_tier_that_cannot_be_had_is_refused_and_the_device_keeps_its_slot(
    body: object, found: tuple[int, str], client: Client, main: Subscription
) -> None:
    tier("standard")
    assigned(main, "other", tier="premium")
    assigned(main, "d-1")
    with nothing_changes():
        assert problem(sent(client, "PUT", f"{D1}/tier", body)) == found


# --- whose it is -----------------------------------------------------------------------------------------------------

ON_ONE = [
    ("GET", DEVICE), ("DELETE", DEVICE), ("PUT", TIER), ("DELETE", TIER), ("GET", ACCESS), ("GET", EXPLAIN),
]  # fmt: skip


@pytest.mark.parametrize(("method", "url"), ON_ONE)
def test_another_tenants_device_is_as_unknown_as_one_that_is_nobodys(
    method: str, url: str, client: Client, main: Subscription
) -> None:
    assigned(subscription(slots={"basic": 1}), "theirs")
    body = {"tier": "basic"} if method == "PUT" else None
    with nothing_changes():
        theirs, nobodys = (sent(client, method, url.format(device_id=name), body) for name in ("theirs", "nobodys"))
    assert problem(theirs) == (404, "device_not_found")
    assert theirs.json() == nobodys.json()


@pytest.mark.parametrize(("method", "url"), ON_ONE)
@pytest.mark.parametrize(
    "name", ["%00", "%ff", "a%2Fb", "a%20b", "%2540", "-a", "a%0A", ".", "%C3%A9", "a" * 129, "'", "a%25"]
)
def test_what_is_no_device_id_is_not_there(method: str, url: str, name: str, client: Client) -> None:
    body = {"tier": "basic"} if method == "PUT" else None
    status, code = problem(sent(client, method, url.format(device_id=name), body))
    assert (status, code in ("not_found", "device_not_found")) == (404, True)


@pytest.mark.parametrize("name", ["a.b", "urn:dev:mac:0024", "d@site+1", "d=~1_-", "A" * 128])
def test_every_well_formed_id_stands_in_a_url_as_it_is(name: str, client: Client, main: Subscription) -> None:
    assigned(main, name)
    for url in (DEVICE, EXPLAIN):
        assert client.get(url.format(device_id=name)).json()["device_id"] == name


@pytest.mark.parametrize(("method", "url"), [*ON_ONE, ("GET", DEVICES), ("POST", DEVICES), ("GET", TIERS)])
def test_who_is_not_signed_in_is_asked_to(method: str, url: str) -> None:
    assert problem(sent(Client(), method, url.format(device_id="d-1"))) == (401, "not_authenticated")


# --- why -------------------------------------------------------------------------------------------------------------


def test_access_is_what_the_platform_is_told(client: Client, main: Subscription) -> None:
    feature = Feature.objects.create(code="ota", name="Updates", kind="SWITCH")
    DeviceTier.objects.get(code="basic").features.create(feature=feature)
    assigned(main, "d-1", "d-2")
    slots.release(main.tenant_id, "d-2", actor=GATEWAY, now=on(1, 6))
    assert client.get(f"{D1}/access").json() == {
        "device_id": "d-1", "allowed": True, "reason": "ok", "tier": "basic", "subscription": main.number,
        "features": {"ota": True}, "valid_until": "2099-01-15T00:00:00Z",
    }  # fmt: skip
    denied = client.get(ACCESS.format(device_id="d-2")).json()
    assert (denied["allowed"], denied["reason"], denied["features"]) == (False, "no_slot", {})


def test_the_explanation_says_why_and_what_would_help(client: Client, main: Subscription) -> None:
    assigned(main, "d-1")
    lifecycle.suspend(main.pk, **by(on(1, 10)))
    at = (timezone.now() - timedelta(minutes=1)).isoformat().replace("+00:00", "Z")
    suspended = client.get(f"{D1}/explain", {"at": "2026-01-12T01:00:00+01:00"}).json()
    assert suspended == {
        "device_id": "d-1", "at": "2026-01-12T00:00:00Z", "served": False, "reason": "suspended", "tier": "basic",
        "subscription": main.number,
        "facts": [
            {"at": "2026-01-01T00:00:00Z", "what": "started", "by": "staff", "subscription": main.number, "tier": ""},
            {"at": "2026-01-05T00:00:00Z", "what": "assigned", "by": "apikey", "subscription": main.number,
             "tier": "basic"},
            {"at": "2026-01-10T00:00:00Z", "what": "suspended", "by": "staff", "subscription": main.number, "tier": ""},
        ],
        "would_help": suspended["would_help"],
    }  # fmt: skip
    assert client.get(f"{D1}/explain", {"at": at}).json()["reason"] in ("suspended", "expired")
    assert client.get(f"{D1}/explain", {"at": "2026-01-07T00:00:00Z"}).json()["served"] is True


@pytest.mark.parametrize(
    ("at", "code"),
    [
        ("2026-01-12T00:00:00", "invalid"),
        ("2026-01-12", "invalid"),
        ("", "invalid"),
        ("soon", "invalid"),
        ("2026-02-29T00:00:00Z", "invalid"),
        ("2999-01-01T00:00:00Z", "not_yet"),
        ("1815-01-01T00:00:00Z", "invalid_term"),
    ],
)
def test_an_instant_that_is_none_or_is_yet_to_come_is_refused(
    at: str, code: str, client: Client, main: Subscription
) -> None:
    assigned(main, "d-1")
    assert problem(client.get(f"{D1}/explain", {"at": at})) == (400, code)


# --- tiers -----------------------------------------------------------------------------------------------------------


def test_the_tiers_say_what_they_give_and_how_many_slots_the_tenant_has(client: Client, main: Subscription) -> None:
    DeviceTier.objects.filter(code="basic").update(is_default=True, position=0)
    DeviceTier.objects.filter(code="premium").update(position=1)
    tier("standard")
    for code, kind, amount in (("ota", "SWITCH", 1), ("video", "SWITCH", 0), ("messages", "QUOTA", 500)):
        feature = Feature.objects.create(code=code, name=code, kind=kind)
        DeviceTier.objects.get(code="premium").features.create(feature=feature, amount=amount)
    assigned(main, "d-1", "d-2")
    assigned(subscription(slots={"premium": 7}, term=(JAN_1, FAR)), "theirs", tier="premium")
    told = {row.pop("code"): row for row in client.get(TIERS).json()["results"]}
    assert [*told] == ["basic", "standard", "premium"]
    assert told["basic"] == {
        "name": "Basic", "is_default": True, "features": {}, "limit": 3, "used": 2, "available": 1,
    }  # fmt: skip
    assert told["premium"]["features"] == {"ota": True, "video": False, "messages": 500}
    assert (told["premium"]["limit"], told["standard"]["limit"]) == (1, 0)


# --- the description -------------------------------------------------------------------------------------------------


def test_real_answers_are_what_the_description_says(client: Client, main: Subscription) -> None:
    posted = sent(client, "POST", DEVICES, {"device_id": "d-1", "tier": "basic"})
    openapi.validate(DEVICES, "post", 201, posted.json())
    many = sent(client, "POST", DEVICES, {"devices": [{"device_id": "d-2", "tier": "basic"}]})
    openapi.validate(DEVICES, "post", 201, many.json())
    openapi.validate(TIER, "put", 200, sent(client, "PUT", f"{D1}/tier", {"tier": "premium"}).json())
    slots.release(main.tenant_id, "d-2", actor=GATEWAY, now=datetime.now(UTC))
    for url in (DEVICES, DEVICE, ACCESS, EXPLAIN, TIERS, IN_SLOTS):
        answer = client.get(url.format(device_id="d-1", number=main.number))
        openapi.validate(url, "get", 200, answer.json())
    for url in (ACCESS, EXPLAIN):
        openapi.validate(url, "get", 200, client.get(url.format(device_id="d-2")).json())
