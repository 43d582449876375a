"""The feed of changes: everything that a copy must read again, in the order of commits, none of them skipped."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jsonschema
import pytest
from django.db import connection
from django.db.backends.utils import CursorWrapper

from entitlements import bulk, changes, features, limits, slots
from entitlements.bulk import Wish
from entitlements.changes import Change
from entitlements.errors import CursorExpired
from entitlements.limits import Park
from entitlements.models import Device, Feature, FeatureOverride, PlanFeature, TierFeature
from subscriptions import lifecycle
from subscriptions.models import Plan, Subscription, Tenant
from subscriptions.states import Type
from tests import openapi
from tests.builders import ALICE, FEB_1, TenantFactory, giving, subscription, tier
from tests.history import by, on, settle
from tests.test_api import problem
from tests.test_platform_api import statements, with_key

URL = "/api/v1/platform/changes"
committing = pytest.mark.django_db(transaction=True)
GATEWAY: dict[str, Any] = {"actor": ALICE, "now": on(1, 10), "reason": "as agreed"}


def asked(statement: str) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return list(cursor.fetchall())


def begun() -> str:
    settle()
    return changes.beginning().cursor


def since(cursor: str, **asked: Any) -> list[Change]:
    settle()
    return changes.changes(cursor, **asked).changes


def devices(found: list[Change]) -> list[str | None]:
    return [change.device_id for change in found if change.kind == "device"]


@contextmanager
def another_connection() -> Iterator[CursorWrapper]:
    """In a transaction of its own, which is open until the block ends."""
    other = connection.copy()
    try:
        other.set_autocommit(False)
        with other.cursor() as cursor:
            yield cursor
        other.commit()
    finally:
        other.close()


@pytest.fixture
def acme() -> Tenant:
    tenant: Tenant = TenantFactory.create(slug="acme")
    return tenant


@pytest.fixture
def bought(acme: Tenant) -> Subscription:
    return subscription(tenant=acme, plan=giving(slots={"basic": 3}, api=100))


# --- never skips a commit --------------------------------------------------------------------------------------------

TOUCH = "UPDATE devices SET transaction_id = pg_current_xact_id()::text::bigint WHERE device_id = %s"


@committing
def test_a_transaction_that_was_open_when_the_feed_was_read_is_told_later(bought: Subscription) -> None:
    for name in ("d-1", "d-2"):
        slots.assign(bought.tenant_id, name, **GATEWAY | {"tier": "basic"})
    before, naive = begun(), NaiveReader()
    with another_connection() as slow:
        slow.execute(TOUCH, ["d-1"])  # writes first…
        slots.release(bought.tenant_id, "d-2", **GATEWAY)  # …and this is committed before it
        page = changes.changes(before)
        assert page.changes == []
        assert naive.read() == ["d-2"]
    assert devices(since(page.cursor)) == ["d-1", "d-2"]
    assert naive.read() == []  # who goes by numbers alone never hears of d-1


class NaiveReader:
    """What the feed would be without its horizon: everything after the greatest number that was seen."""

    def __init__(self) -> None:
        self.seen = 0
        self.read()

    def read(self) -> list[str]:
        rows = Device.objects.filter(transaction_id__gt=self.seen).order_by("transaction_id")
        self.seen = max([self.seen, *(row.transaction_id for row in rows)])
        return [row.device_id for row in rows]


@committing
def test_who_takes_the_cursor_first_misses_nothing_that_it_did_not_read(bought: Subscription) -> None:
    settle()
    with another_connection() as slow:
        slow.execute("INSERT INTO devices (tenant_id, device_id) VALUES (%s, 'd-1')", [bought.tenant_id])
        cursor = changes.beginning().cursor
        assert not Device.objects.exists()  # what it reads then: not there yet
    assert devices(since(cursor)) == ["d-1"]


@committing
def test_a_device_that_changed_twice_appears_once_at_its_later_place(bought: Subscription) -> None:
    before = begun()
    for name in ("d-1", "d-2"):
        slots.assign(bought.tenant_id, name, "basic", **GATEWAY)
    slots.release(bought.tenant_id, "d-1", **GATEWAY)
    assert devices(since(before)) == ["d-2", "d-1"]


@committing
def test_pages_of_any_size_tell_the_same_in_the_same_order(bought: Subscription) -> None:
    before = begun()
    bulk.assign_many(bought.tenant_id, [Wish(name, "basic") for name in ("d-1", "d-2", "d-3")], **GATEWAY)
    lifecycle.suspend(bought.pk, **by(on(1, 11)))
    limits.resize(bought.pk, "basic", 1, park=Park.NEWEST, **by(on(1, 12)))  # an entry and two devices
    features.override(bought.tenant_id, "api", 7, expires_at=None, **GATEWAY)
    whole = since(before)
    assert [(c.kind, c.action or c.device_id or c.feature) for c in whole] == [
        ("device", "d-1"), ("subscription", "suspended"), ("subscription", "devices_parked"), ("device", "d-2"),
        ("device", "d-3"), ("override", "api"),
    ]  # fmt: skip
    for size in (1, 2, 3, 4, 5, 6):
        assert [*paged(before, size)] == whole, size


def paged(cursor: str, size: int) -> Iterator[Change]:
    more = True
    while more:
        page = changes.changes(cursor, limit=size)
        assert len(page.changes) <= size
        yield from page.changes
        cursor, more = page.cursor, page.more


# --- what shows up ---------------------------------------------------------------------------------------------------

Deed = Callable[[Subscription], object]


def release(s: Subscription) -> None:
    slots.release(s.tenant_id, "d-1", **GATEWAY)


def delete(s: Subscription) -> None:
    slots.delete(s.tenant_id, "d-1", **GATEWAY)


def move(s: Subscription) -> None:
    slots.move(s.tenant_id, "d-1", s.addons.get().pk, **GATEWAY)


def fill(s: Subscription) -> None:
    slots.assign(s.tenant_id, "d-2", "basic", subscription_id=s.addons.get().pk, **GATEWAY)


def park(s: Subscription) -> None:
    limits.resize(s.pk, "basic", 0, park=["d-1"], **by(on(1, 12)))


D1, ITS = Change("device", "acme", device_id="d-1"), {"kind": "subscription", "tenant": "acme", "subscription": "SUB"}
OVERRIDE, CATALOGUE = Change("override", "acme", feature="api"), Change("catalogue", None)
DEEDS: list[tuple[str, Deed, list[Change]]] = [
    ("assign", lambda s: slots.assign(s.tenant_id, "d-1", "basic", **GATEWAY), [D1]),
    ("move", move, [D1]),
    ("release", release, [D1]),
    ("assign again", lambda s: slots.assign(s.tenant_id, "d-1", "basic", subscription_id=s.pk, **GATEWAY), [D1]),
    ("renew", lambda s: lifecycle.renew(s.pk, term_end=on(3, 1), **by(on(1, 11))),
     [Change(**ITS, action="renewed"), Change(**ITS | {"subscription": "ADD"}, action="renewed")]),
    ("delete", delete, [D1]),
    ("assign a third time", lambda s: slots.assign(s.tenant_id, "d-1", "basic", subscription_id=s.pk, **GATEWAY), [D1]),
    ("override", lambda s: features.override(s.tenant_id, "api", 7, expires_at=None, **GATEWAY), [OVERRIDE]),
    ("end it", lambda s: features.end_override(s.tenant_id, "api", reason="over", actor=ALICE, now=FEB_1), [OVERRIDE]),
    ("an exception by hand", lambda s: FeatureOverride.objects.update(amount=8), [OVERRIDE]),
    ("delete it by hand", lambda s: FeatureOverride.objects.all().delete(), [CATALOGUE]),
    ("a feature", lambda s: Feature.objects.create(code="ota", name="OTA", kind="SWITCH"), [CATALOGUE]),
    ("a feature's kind", lambda s: Feature.objects.filter(code="ota").update(kind="QUOTA"), [CATALOGUE]),
    ("a feature no more", lambda s: Feature.objects.filter(code="ota").delete(), [CATALOGUE]),
    ("a tier's feature", lambda s: TierFeature.objects.create(tier=tier("basic"), feature=Feature.objects.get()),
     [CATALOGUE]),
    ("its amount", lambda s: TierFeature.objects.update(amount=0), [CATALOGUE]),
    ("a tier's feature no more", lambda s: TierFeature.objects.all().delete(), [CATALOGUE]),
    ("a tier", lambda s: tier("premium"), [CATALOGUE]),
    ("a plan's feature", lambda s: PlanFeature.objects.update(amount=50), [CATALOGUE]),
    ("a plan's grace period", lambda s: Plan.objects.filter(pk=s.plan_id).update(grace_days=3), [CATALOGUE]),
    ("a plan's name", lambda s: Plan.objects.update(name="Fleet"), []),
    ("fill the add-on", fill, [Change("device", "acme", device_id="d-2")]),
    ("park", park, [Change(**ITS, action="devices_parked"), D1]),
    ("suspend", lambda s: lifecycle.suspend(s.pk, **by(on(1, 13))),
     [Change(**ITS, action="suspended"), Change(**ITS | {"subscription": "ADD"}, action="suspended")]),
]  # fmt: skip


@committing
def test_whatever_changes_what_a_device_or_a_tenant_gets_shows_up(bought: Subscription) -> None:
    addon = subscription(Type.ADDON, parent=bought, slots={"basic": 1})
    names = {bought.number: "SUB", addon.number: "ADD"}
    cursor = begun()
    for name, do, expected in DEEDS:
        do(bought)
        settle()
        page = changes.changes(cursor)
        cursor = page.cursor
        found = [
            Change(c.kind, c.tenant, c.device_id, names.get(c.subscription or ""), c.action, c.feature)
            for c in page.changes
        ]
        assert found == expected, name


# --- over HTTP -------------------------------------------------------------------------------------------------------


@committing
def test_a_service_follows_changes_with_a_key(bought: Subscription) -> None:
    client = with_key("changes:read")
    settle()
    first = client.get(URL).json()
    slots.assign(bought.tenant_id, "d-1", "basic", **GATEWAY)
    settle()
    with statements(2):  # the key, and the feed
        answer = client.get(URL, {"after": first["cursor"]})
    assert (answer.status_code, answer["Cache-Control"]) == (200, "no-store")
    its = {"kind": "device", "tenant": "acme", "device_id": "d-1"}
    assert answer.json()["changes"] == [its | {"subscription": None, "action": None, "feature": None}]
    assert (answer.json()["more"], first["changes"]) == (False, [])
    assert client.get(URL, {"after": answer.json()["cursor"]}).json()["changes"] == []


@committing
def test_a_tenants_key_sees_its_own_changes_and_the_catalogues(bought: Subscription) -> None:
    other = subscription(slots={"basic": 3})
    client = with_key("changes:read", tenant=other.tenant)
    settle()
    cursor = client.get(URL).json()["cursor"]
    slots.assign(bought.tenant_id, "d-1", "basic", **GATEWAY)
    slots.assign(other.tenant_id, "d-2", "basic", **GATEWAY)
    tier("premium")
    settle()
    page = client.get(URL, {"after": cursor, "limit": 1}).json()
    assert (page["changes"], page["more"]) == ([], True)  # acme's is passed over, and the cursor goes on
    page = client.get(URL, {"after": page["cursor"]}).json()
    assert [change["device_id"] or change["kind"] for change in page["changes"]] == ["d-2", "catalogue"]


@pytest.mark.django_db
@pytest.mark.parametrize(
    "changed",
    [{"database": "0" * 32}, {"transaction_id": 10**17}],
    ids=["of another database", "from the future"],
)
def test_a_cursor_of_another_history_is_gone(changed: dict[str, Any]) -> None:
    place = changes._read(changes.beginning().cursor)
    cursor = changes._written(changes.Place(**{**vars(place), **changed}))
    with pytest.raises(CursorExpired):
        changes.changes(cursor)
    assert problem(with_key("changes:read").get(URL, {"after": cursor})) == (410, "cursor_expired")


@pytest.mark.django_db
def test_what_is_no_cursor_is_refused() -> None:
    client, good = with_key("changes:read"), changes.beginning().cursor
    for after in ("x", "%%%", "é", good[:-6], good + "AAAA", good + "=", "MTo6OjA6MA", f" {good}", good[1:]):
        assert problem(client.get(URL, {"after": after})) == (400, "invalid_cursor"), after
    for wrong in ({"limit": 0}, {"limit": 1001}, {"limit": "x"}, {"after": "x" * 201}, {"after": "\0"}):
        assert problem(client.get(URL, wrong)) == (400, "invalid"), wrong


@pytest.mark.django_db
def test_the_feed_takes_its_scope() -> None:
    assert problem(with_key("access:read").get(URL)) == (403, "permission_denied")


@pytest.mark.django_db
def test_a_page_reads_ranges_of_indexes_however_many_rows_there_are(acme: Tenant) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO devices (tenant_id, device_id, transaction_id) SELECT %s, 'd-' || n, n / 2"
            "  FROM generate_series(1, 20000) AS n",
            [acme.pk],
        )
        cursor.execute("ANALYZE devices")
        said = {"transaction": 7, "source": 3, "id": 7, "limit": 101}
        cursor.execute(f"EXPLAIN {changes._PAGE}", said)
        plan = "\n".join(row[0] for row in cursor.fetchall())
    assert "Index Scan using devices_by_change" in plan
    assert "Index Cond: ((ROW(transaction_id, id) > ROW(7, '7'::bigint)) AND (transaction_id < " in plan


# --- the description -------------------------------------------------------------------------------------------------


@committing
def test_an_answer_is_what_the_description_says(bought: Subscription) -> None:
    client, before = with_key("changes:read"), begun()
    slots.assign(bought.tenant_id, "d-1", "basic", **GATEWAY)
    lifecycle.suspend(bought.pk, **by(on(1, 11)))
    tier("premium")
    settle()
    answer = client.get(URL, {"after": before}).json()
    assert [change["kind"] for change in answer["changes"]] == ["device", "subscription", "catalogue"]
    openapi.validate(URL, "get", 200, answer)
    with pytest.raises(jsonschema.ValidationError):
        openapi.validate(URL, "get", 200, answer | {"changes": [answer["changes"][0] | {"kind": "nonsense"}]})
    assert openapi.document()["paths"][URL]["get"]["security"] == [{"apiKey": []}]
