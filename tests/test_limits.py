"""Fewer slots, more slots, and who is parked."""

import pytest

from entitlements import bulk, limits, slots
from entitlements.bulk import Wish
from entitlements.errors import SlotsInUse
from entitlements.follow import catch_up
from entitlements.limits import Park
from entitlements.models import Device
from subscriptions import lifecycle
from subscriptions.states import Type
from tests.builders import subscription
from tests.history import by, on, refused
from tests.test_slots import GATEWAY, used

pytestmark = pytest.mark.django_db
NOW = on(1, 10)


def parked() -> list[str]:
    return [
        *Device.objects.filter(parked_at__isnull=False).order_by("parked_at", "pk").values_list("device_id", flat=True)
    ]


def test_thin_line() -> None:
    s = subscription(slots={"basic": 4})
    out = bulk.assign_many(s.tenant_id, [Wish(f"d-{n}", "basic") for n in range(4)], **GATEWAY)
    assert [o.slot.subscription for o in out] == [s.number] * 4
    with refused(SlotsInUse):
        limits.resize(s.pk, "basic", 2, **by(NOW))
    done = limits.resize(s.pk, "basic", 2, park=Park.NEWEST, **by(NOW))
    assert done.parked == {"basic": 2}
    assert (used(s), parked()) == ({"basic": (2, 2)}, ["d-2", "d-3"])
    slots.release(s.tenant_id, "d-0", **GATEWAY)
    assert (used(s), parked()) == ({"basic": (2, 2)}, ["d-3"])
    addon = subscription(Type.ADDON, parent=s, slots={"basic": 3})
    assert (used(addon), parked()) == ({"basic": (1, 3)}, [])
    lifecycle.cancel(addon.pk, at=lifecycle.CancelAt.NOW, **by(NOW))
    catch_up(now=NOW)
    assert parked() == []
