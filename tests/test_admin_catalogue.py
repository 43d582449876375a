"""The back office of tiers, features, devices and slots: edited, looked at, resized, synced."""

import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.db.models import Model
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from entitlements import limits, slots, sold
from entitlements.limits import Park
from entitlements.models import (
    CatalogueChange,
    Device,
    DeviceTier,
    Feature,
    FeatureOverride,
    PlanSlots,
    SlotAssignment,
    SlotPack,
    TierFeature,
)
from entitlements.sold import ChangedMeanwhile
from subscriptions import lifecycle
from subscriptions.models import Plan, Subscription
from subscriptions.states import Action, EndReason, Type
from tests.builders import ALICE, TenantFactory, selling, subscription, tier
from tests.history import entries, nothing_changes, refused
from tests.test_slots import used

pytestmark = pytest.mark.django_db

TODAY = timezone.now().replace(hour=0, minute=0, second=0, microsecond=0)  # the forms act now
TERM = (TODAY - timedelta(days=10), TODAY + timedelta(days=20))
BY: dict[str, Any] = {"actor": ALICE, "now": TERM[0], "reason": "as agreed"}


def url(model: type[Model], page: str, *args: object) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{page}", args=args)


def client(*permissions: str, **flags: bool) -> Client:
    user = User.objects.create(username=f"staff-{User.objects.count()}", is_staff=True, **flags)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    signed_in = Client()
    signed_in.force_login(user)
    return signed_in


@pytest.fixture
def alice() -> Client:
    return client(is_superuser=True)


def fleet(devices: int = 0, plan: Plan | None = None, type: Type = Type.MAIN, **more: Any) -> Subscription:
    """A subscription of three slots of the tier basic, with devices d-1, d-2, … of its own tenant."""
    s = subscription(type, plan=plan or selling({"basic": 3}, type), term=TERM, now=TERM[0], **more)
    for number in range(1, devices + 1):
        slots.assign(s.tenant_id, f"d-{number}", "basic", **BY)
    return s


def rows(prefix: str, *given: dict[str, Any], initial: int = 0) -> dict[str, Any]:
    """Rows under a form, as a browser sends them."""
    sent: dict[str, Any] = {f"{prefix}-TOTAL_FORMS": len(given), f"{prefix}-INITIAL_FORMS": initial}
    for number, row in enumerate(given):
        sent |= {f"{prefix}-{number}-{name}": value for name, value in row.items()}
    return sent


# --- catalogue -------------------------------------------------------------------------------------------------------


def test_a_tier_is_made_with_what_its_devices_may_do_and_keeps_its_code(alice: Client) -> None:
    alerts = Feature.objects.create(code="alerts", name="Alerts", kind="SWITCH")
    sent = {"name": "Basic", "code": "basic", "position": 1, "is_default": "on"}
    alice.post(url(DeviceTier, "add"), sent | rows("features", {"feature": alerts.pk, "amount": 1}))
    made = DeviceTier.objects.get()
    assert (made.code, made.is_default, made.features.get().feature) == ("basic", True, alerts)
    renamed = {"name": "Standard", "code": "other", "position": 1} | rows("features")
    alice.post(url(DeviceTier, "change", made.pk), renamed)
    made.refresh_from_db()
    assert (made.code, made.name, made.is_default) == ("basic", "Standard", False)


def test_only_one_tier_is_the_default(alice: Client) -> None:
    tier("basic")
    DeviceTier.objects.update(is_default=True)
    sent = {"name": "Gold", "code": "gold", "position": 1, "is_default": "on"} | rows("features")
    page = alice.post(url(DeviceTier, "add"), sent).content.decode()
    assert "Basic is the default tier: take that from it first." in page
    assert not DeviceTier.objects.filter(code="gold").exists()


def test_what_changes_of_a_tier_or_of_its_features_alone_is_seen_by_readers_of_changes(alice: Client) -> None:
    alerts = Feature.objects.create(code="alerts", name="Alerts", kind="SWITCH")
    basic = tier("basic")
    its = TierFeature.objects.create(tier=basic, feature=alerts, amount=1)
    CatalogueChange.objects.all().delete()
    sent = {"name": "Basic", "position": 0}
    row = {"id": its.pk, "tier": basic.pk, "feature": alerts.pk, "amount": 0}
    alice.post(url(DeviceTier, "change", basic.pk), sent | rows("features", row, initial=1))
    its.refresh_from_db()
    assert its.amount == 0
    assert {change.table for change in CatalogueChange.objects.all()} >= {"tier_features"}


@pytest.mark.parametrize("model", [DeviceTier, Feature, FeatureOverride, Device])
def test_what_may_have_been_sold_is_never_deleted(model: type[Model], alice: Client) -> None:
    one_of_everything()
    found = model._default_manager.first()
    assert found is not None
    assert alice.post(url(model, "delete", found.pk), {"post": "yes"}).status_code == 403
    assert model._default_manager.filter(pk=found.pk).exists()


def test_a_plans_slots_and_features_are_edited_on_its_page_and_nothing_that_was_sold_changes(alice: Client) -> None:
    s = fleet(devices=3)
    plan, row = s.plan, s.plan.slots.get()
    api = Feature.objects.create(code="api", name="API calls", kind="QUOTA")
    sent = {"name": plan.name, "terms_in": "utc", "is_sold": "on"} | rows("prices")
    sent |= rows("slots", {"id": row.pk, "plan": plan.pk, "tier": row.tier_id, "slots": 1}, initial=1)
    sent |= rows("features", {"feature": api.pk, "amount": 1000})
    with nothing_changes():
        assert alice.post(url(Plan, "change", plan.pk), sent).status_code == 302
    row.refresh_from_db()
    assert (row.slots, plan.features.get().amount, used(s)) == (1, 1000, {"basic": (3, 3)})


# --- a tenant's exceptions -------------------------------------------------------------------------------------------


def test_an_exception_is_given_with_a_reason_replaced_and_ended_and_never_edited(alice: Client) -> None:
    api = Feature.objects.create(code="api", name="API calls", kind="QUOTA")
    tenant = TenantFactory.create()
    sent = {"tenant": tenant.pk, "feature": api.pk, "amount": 500, "reason": "pilot until May"}
    alice.post(url(FeatureOverride, "add"), sent | {"reason": ""})
    assert not FeatureOverride.objects.exists()
    for amount in (500, 700):
        assert alice.post(url(FeatureOverride, "add"), sent | {"amount": amount}).status_code == 302
    one = FeatureOverride.objects.get()
    assert (one.amount, one.reason, one.expires_at) == (700, "pilot until May", None)
    assert alice.post(url(FeatureOverride, "change", one.pk), sent).status_code == 403
    told = alice.post(url(FeatureOverride, "changelist"), {"action": "end", "_selected_action": one.pk}, follow=True)
    assert "1 override ended" in told.content.decode()
    one.refresh_from_db()
    assert one.expires_at is not None
    assert one.expires_at <= timezone.now()


@pytest.mark.parametrize("more", [{"amount": 10**15 + 1}, {"expires_at_0": "9999-12-31", "expires_at_1": "23:59"}])
def test_an_exception_beyond_all_bounds_is_asked_for_again(alice: Client, more: dict[str, Any]) -> None:
    api = Feature.objects.create(code="api", name="API calls", kind="QUOTA")
    sent = {"tenant": TenantFactory.create().pk, "feature": api.pk, "amount": 500, "reason": "pilot"}
    with nothing_changes():
        assert alice.post(url(FeatureOverride, "add"), sent | more).status_code == 200


def test_a_switch_is_on_or_off_and_an_exception_ends_later(alice: Client) -> None:
    alerts = Feature.objects.create(code="alerts", name="Alerts", kind="SWITCH")
    sent = {"tenant": TenantFactory.create().pk, "feature": alerts.pk, "amount": 2, "reason": "pilot",
            "expires_at_0": "2020-01-01", "expires_at_1": "00:00"}  # fmt: skip
    page = alice.post(url(FeatureOverride, "add"), sent).content.decode()
    assert "It is a switch: 1 is on, 0 is off." in page
    assert "This has passed." in page
    assert not FeatureOverride.objects.exists()


# --- looking ---------------------------------------------------------------------------------------------------------


def one_of_everything() -> Subscription:
    s = fleet(devices=2)
    api = Feature.objects.get_or_create(code="api", name="API calls", kind="QUOTA")[0]
    FeatureOverride.objects.create(tenant=s.tenant, feature=api, amount=1, reason="pilot")
    slots.release(s.tenant_id, "d-2", **BY)
    return s


def queries(staff: Client, address: str) -> int:
    staff.get(address)  # what Django remembers for good is asked only once
    with CaptureQueriesContext(connection) as found:
        assert staff.get(address).status_code == 200
    return len(found)


def test_lists_and_pages_take_as_many_queries_for_one_row_as_for_many(alice: Client) -> None:
    s = one_of_everything()
    addresses = [url(model, "changelist") for model in (Device, DeviceTier, Feature, FeatureOverride)]
    addresses += [url(Device, "change", Device.objects.earliest("pk").pk), url(Subscription, "change", s.pk)]
    first = [queries(alice, address) for address in addresses]
    for _ in range(5):
        one_of_everything()
        slots.release(s.tenant_id, "d-1", **BY)
        slots.assign(s.tenant_id, "d-1", "basic", **BY)
    assert [queries(alice, address) for address in addresses] == first


def listed(staff: Client, **query: str) -> set[str]:
    page = staff.get(url(Device, "changelist"), query).content.decode()
    return set(re.findall(r">\s*(m-[\w-]+)\s*</a>", page))


def test_devices_are_found_by_the_beginning_of_their_ids_by_tenant_state_and_subscription(alice: Client) -> None:
    s = fleet(tenant=TenantFactory.create(name="Acme Robotics", slug="acme"))
    for name in ("m-in", "m-out", "m-gone", "m-parked"):
        slots.assign(s.tenant_id, name, "basic", **BY) if name != "m-parked" else None
    slots.release(s.tenant_id, "m-out", **BY)
    slots.delete(s.tenant_id, "m-gone", **BY)
    Device.objects.create(tenant=s.tenant, device_id="m-parked", parked_at=TODAY, parked_tier=tier("basic"))
    other = fleet()
    slots.assign(other.tenant_id, "m-other", "basic", **BY)
    assert listed(alice) == {"m-in", "m-out", "m-gone", "m-parked", "m-other"}
    assert listed(alice, q="m-o") == {"m-out", "m-other"}
    assert listed(alice, q="robotics") == {"m-in", "m-out", "m-gone", "m-parked"}
    states = {state: listed(alice, state=state, q="acme") for state in ("assigned", "without", "deleted", "parked")}
    assert states == {"assigned": {"m-in"}, "without": {"m-out"}, "deleted": {"m-gone"}, "parked": {"m-parked"}}
    assert listed(alice, subscription=s.number) == {"m-in"}


def test_a_devices_page_tells_its_slots_and_has_no_form(alice: Client) -> None:
    s = fleet(devices=1)
    slots.release(s.tenant_id, "d-1", **BY)
    page = alice.get(url(Device, "change", Device.objects.get().pk)).content.decode()
    for said in (s.number, "Released by staff:1", "as agreed", "WITHOUT A SLOT"):
        assert said in page
    assert alice.post(url(Device, "change", Device.objects.get().pk), {"device_id": "x"}).status_code == 403


def test_a_subscriptions_page_tells_its_slots_and_leads_to_their_devices(alice: Client) -> None:
    s = fleet(devices=2)
    page = alice.get(url(Subscription, "change", s.pk)).content.decode()
    for said in ("2 of 3", f"{url(Device, 'changelist')}?subscription={s.number}", reverse(
            "admin:subscriptions_resize", args=[s.pk])):  # fmt: skip
        assert said in page
    looking = client("view_subscription", "view_tierallocation").get(url(Subscription, "change", s.pk))
    assert "2 of 3" in looking.content.decode()
    assert "Resize" not in looking.content.decode()


# --- resize ----------------------------------------------------------------------------------------------------------


def resizing(staff: Client, s: Subscription, slots_: int, **said: Any) -> dict[str, Any]:
    """The form as it was fetched and filled in."""
    page = staff.get(reverse("admin:subscriptions_resize", args=[s.pk]), {"tier": "basic"})
    return {"source": page.context["source"], "tier": "basic", "slots": slots_, "park": "nobody",
            "reason": "ticket 7"} | said  # fmt: skip


def send(staff: Client, s: Subscription, said: dict[str, Any], button: str) -> Any:
    return staff.post(reverse("admin:subscriptions_resize", args=[s.pk]), said | {button: "1"})


def test_slots_are_resized_as_previewed_once_with_evidence(alice: Client) -> None:
    s = fleet(devices=3)
    said = resizing(alice, s, 1, park="newest")
    with nothing_changes():
        preview = send(alice, s, said, "preview")
    assert [row[:2] for row in preview.context["preview"][1:]] == [
        ("d-2", "Loses its slot and parks"), ("d-3", "Loses its slot and parks")]  # fmt: skip
    said["seen"] = preview.context["seen"]
    assert send(alice, s, said, "do").status_code == 302
    assert (used(s), entries(s)[-1].reason) == ({"basic": (1, 1)}, "ticket 7")
    assert entries(s)[-1].changes == {"slots.basic": [3, 1], "parked.basic": [0, 2]}
    assert entries(s)[-1].actor.startswith("staff:")
    with nothing_changes():
        send(alice, s, said, "do")


def test_nobody_is_parked_who_was_not_named(alice: Client) -> None:
    s = fleet(devices=3)
    with nothing_changes():
        page = send(alice, s, resizing(alice, s, 1), "preview").content.decode()
        assert "3 devices of the tier basic are in use, 1 slots would be left." in page
        page = send(alice, s, resizing(alice, s, 1, park="named"), "preview").content.decode()
        assert "Name the devices, or park somebody else." in page
        page = send(alice, s, resizing(alice, s, 1, devices="d-1"), "preview").content.decode()
        assert "Devices are named, and somebody else would be parked" in page
    said = resizing(alice, s, 1, park="named", devices="d-1 d-3")
    said["seen"] = send(alice, s, said, "preview").context["seen"]
    send(alice, s, said, "do")
    parked = Device.objects.filter(parked_at__isnull=False).order_by("device_id").values_list("device_id", flat=True)
    assert [*parked] == ["d-1", "d-3"]


@pytest.mark.parametrize("what", ["other words", "another device", "nothing seen"])
def test_what_was_not_previewed_is_not_done(what: str, alice: Client) -> None:
    s = fleet(devices=2)
    said = resizing(alice, s, 1, park="newest")
    said["seen"] = send(alice, s, said, "preview").context["seen"]
    if what == "other words":
        said["slots"] = 0
    elif what == "another device":
        slots.assign(s.tenant_id, "d-3", "basic", **BY)
    else:
        said["seen"] = ""
    with nothing_changes():
        assert "has changed it since the preview" in send(alice, s, said, "do").content.decode()


# --- sync ------------------------------------------------------------------------------------------------------------


def now_sells(plan: Plan, **slots_: int) -> None:
    PlanSlots.objects.filter(plan=plan).delete()
    PlanSlots.objects.bulk_create(PlanSlots(plan=plan, tier=tier(code), slots=n) for code, n in slots_.items())


def test_a_plan_that_is_edited_lists_what_it_sold_and_would_change(alice: Client) -> None:
    s = fleet(devices=3)
    same, over = fleet(plan=s.plan), fleet(plan=s.plan)
    now_sells(s.plan, basic=1, gold=2)
    limits.sync_from_plan(same.pk, **BY)
    lifecycle.expire(over.pk, why=EndReason.CANCELLED, **BY)
    page = alice.get(reverse("admin:subscriptions_sync", args=[s.plan_id]))
    ((found, _),) = page.context["rows"]
    assert (found.number, found.losing) == (s.number, 2)
    assert {(one.what, one.sold, one.would_be) for one in found.amounts} == {("basic", 3, 1), ("gold", 0, 2)}
    assert used(s) == {"basic": (3, 3)}


def syncing(staff: Client, plan: Plan, *chosen: Subscription, **said: Any) -> dict[str, Any]:
    page = staff.get(reverse("admin:subscriptions_sync", args=[plan.pk]))
    shown = {one.pk: f"{one.pk}:{one.fingerprint}" for one, _ in page.context["rows"]}
    return {"source": page.context["source"], "park": "nobody", "reason": "list of May", "shown": [*shown.values()],
            "of": [shown[s.pk] for s in chosen]} | said  # fmt: skip


def sync(staff: Client, plan: Plan, said: dict[str, Any], button: str = "chosen") -> str:
    address = reverse("admin:subscriptions_sync", args=[plan.pk])
    told: str = staff.post(address, said | {button: "1"}, follow=True).content.decode()
    return told


def test_those_that_were_chosen_are_synced_and_each_result_is_told(alice: Client) -> None:
    s = fleet()
    full, other = fleet(devices=3, plan=s.plan), fleet(plan=s.plan)
    now_sells(s.plan, basic=2)
    told = sync(alice, s.plan, syncing(alice, s.plan, s, full))
    assert f"{s.number}: basic 3 → 2." in told
    assert f"{full.number}: 3 devices of the tier basic are in use, 2 slots would be left." in told
    assert [used(one)["basic"] for one in (s, full, other)] == [(0, 2), (3, 3), (0, 3)]
    assert (entries(s)[-1].action, entries(s)[-1].reason) == (Action.SLOTS_CHANGED, "list of May")
    told = sync(alice, s.plan, syncing(alice, s.plan, park="newest"), "all")
    assert f"{full.number}: basic 3 → 2; parked: 1 × basic." in told
    assert [used(one)["basic"] for one in (s, full, other)] == [(0, 2), (2, 2), (0, 2)]


def test_what_changed_since_it_was_shown_is_not_synced(alice: Client) -> None:
    s = fleet(devices=3)
    other = fleet(plan=s.plan)
    now_sells(s.plan, basic=2)
    said = syncing(alice, s.plan, s, other, park="newest")
    slots.release(s.tenant_id, "d-1", **BY)
    told = sync(alice, s.plan, said)
    assert f"{s.number}: Nothing was done: its slots" in told
    assert f"{other.number}: basic 3 → 2." in told
    assert used(s) == {"basic": (2, 3)}
    with nothing_changes():
        assert f"{other.number}: nothing to change" in sync(alice, s.plan, said)


def test_a_subscription_that_left_the_plan_since_is_not_synced() -> None:
    s = fleet()
    now_sells(s.plan, basic=2)
    (seen,) = sold.differing(s.plan_id, most=9)
    plan = s.plan
    lifecycle.change_plan(s.pk, plan=selling({"basic": 9}), price=None, **BY)
    with refused(ChangedMeanwhile):
        sold.sync(plan.pk, s.pk, seen=seen.fingerprint, park=Park.NOBODY, **BY)


def test_nothing_is_synced_without_a_reason_or_without_a_choice(alice: Client) -> None:
    s = fleet()
    now_sells(s.plan, basic=2)
    with nothing_changes():
        sync(alice, s.plan, syncing(alice, s.plan, s, reason=""))
        assert "choose subscriptions" in sync(alice, s.plan, syncing(alice, s.plan))


def test_what_differs_is_read_in_one_statement_and_a_page_is_bounded(django_assert_num_queries: Any) -> None:
    s = fleet()
    others = [fleet(plan=s.plan).pk for _ in range(3)]
    now_sells(s.plan, basic=2)
    with django_assert_num_queries(1):
        first = sold.differing(s.plan_id, most=2)
    assert [one.pk for one in first] == [s.pk, others[0]]
    assert [one.pk for one in sold.differing(s.plan_id, most=9, after=others[0])] == others[1:]


# --- who may ---------------------------------------------------------------------------------------------------------

MAY_LOOK = ("view_subscription", "view_plan", "view_device", "view_devicetier", "view_feature", "view_featureoverride")


def test_staff_who_may_only_look_change_nothing() -> None:
    s = one_of_everything()
    bob, basic = client(*MAY_LOOK), tier("basic")
    one = FeatureOverride.objects.get()
    with nothing_changes():
        for name, pk in (("resize", s.pk), ("sync", s.plan_id)):
            assert bob.get(reverse(f"admin:subscriptions_{name}", args=[pk])).status_code == 403
            assert bob.post(reverse(f"admin:subscriptions_{name}", args=[pk]), {"do": "1"}).status_code == 403
        assert bob.post(url(DeviceTier, "add"), {"name": "x"}).status_code == 403
        assert bob.post(url(DeviceTier, "change", basic.pk), {"name": "x"}).status_code == 403
        assert bob.post(url(FeatureOverride, "add"), {"amount": 1}).status_code == 403
    bob.post(url(FeatureOverride, "changelist"), {"action": "end", "_selected_action": one.pk})
    one.refresh_from_db()
    assert one.expires_at is None
    assert "Sync sold" not in bob.get(url(Plan, "change", s.plan_id)).content.decode()


def test_staff_without_any_permission_see_nothing() -> None:
    s = one_of_everything()
    nobody = client()
    for model in (Device, DeviceTier, Feature, FeatureOverride):
        assert nobody.get(url(model, "changelist")).status_code == 403
    assert nobody.get(url(Device, "change", Device.objects.earliest("pk").pk)).status_code == 403
    assert SlotAssignment.objects.filter(allocation__subscription=s).count() == 2


def test_a_slot_pack_is_added_and_then_only_its_name_and_whether_it_is_sold_can_change(alice: Client) -> None:
    asked = {
        "name": "Ten more", "code": "ten", "tier": tier("basic").pk, "slots": 10, "currency": "EUR",
        "amount_minor": 900, "interval": "month", "interval_count": 1, "is_sold": "on",
    }  # fmt: skip
    assert alice.post(url(SlotPack, "add"), asked).status_code == 302
    pack = SlotPack.objects.get()
    assert (pack.slots, pack.money, pack.is_sold) == (10, "9.00 EUR", True)
    changed = {"name": "Ten slots", "slots": 1000, "amount_minor": 1}
    assert alice.post(url(SlotPack, "change", pack.pk), changed).status_code == 302
    pack.refresh_from_db()
    assert (pack.name, pack.slots, pack.amount_minor, pack.is_sold) == ("Ten slots", 10, 900, False)
    assert alice.post(url(SlotPack, "delete", pack.pk), {"post": "yes"}).status_code == 403
