"""What a forecast says of devices is what becomes of them; and the letter about those that are parked."""

from typing import Any

import pytest

from billing_site import timeline
from entitlements.follow import follow
from notifications.models import Notice
from notifications.schedule import make_notices
from subscriptions import lifecycle
from subscriptions.audit import STRIPE
from subscriptions.lifecycle import CancelAt
from subscriptions.models import Subscription
from subscriptions.states import Type
from tests.builders import FEB_1, JAN_1, MAR_1, subscription
from tests.history import advance, by, on, settle
from tests.test_limits import fill, parked

pytestmark = pytest.mark.django_db


def of_devices(s: Subscription, **asked: Any) -> list[tuple[str, Any, str]]:
    lines = timeline.of_subscription(s, now=on(1, 20), **asked)
    return [(line.what, line.at, line.why.partition(" of")[0]) for line in lines if line.source == "slot"]


def test_a_term_that_nobody_renews_withholds_service_at_the_suspension_and_parks_the_devices_at_the_end() -> None:
    s = subscription(slots={"basic": 3})
    fill(s, "a", "b")
    assert of_devices(s) == [
        ("devices_withheld", on(2, 15), "2 devices"),
        ("devices_parked", on(4, 16), "2 devices"),
    ]


def test_devices_of_an_addon_that_ends_move_where_there_is_room_and_the_others_park() -> None:
    main = subscription(slots={"basic": 2})
    addon = subscription(Type.ADDON, parent=main, slots={"basic": 3})
    fill(main, "m")
    fill(addon, "a", "b", "c")
    lifecycle.cancel(addon.pk, at=CancelAt.TERM_END, **by(on(1, 10)))
    lifecycle.renew(main.pk, term_end=MAR_1, **by(on(1, 10)))
    assert of_devices(addon) == [("devices_moved", FEB_1, "1 device"), ("devices_parked", FEB_1, "2 devices")]
    follow(advance(FEB_1), actor=STRIPE, now=FEB_1)
    assert parked() == ["b", "c"]


def test_a_forecast_takes_three_queries_however_many_devices_there_are(django_assert_num_queries: Any) -> None:
    s = subscription(slots={"basic": 30})
    fill(s, *(f"d-{n}" for n in range(30)))
    s = Subscription.objects.get(pk=s.pk)
    with django_assert_num_queries(3):
        timeline.of_subscription(s, now=on(1, 20))


@pytest.mark.django_db(transaction=True)
def test_a_tenant_is_told_that_devices_were_parked_beside_what_else_it_is_told() -> None:
    event = subscription(Type.TEMPORARY, slots={"basic": 1}, term=(JAN_1, on(1, 12)))
    fill(event, "a")
    make_notices(now=on(1, 11))
    entries = advance(on(1, 12))
    follow(entries, actor=STRIPE, now=on(1, 12))
    settle()
    make_notices(now=on(1, 12))
    told = Notice.objects.filter(subscription=event, state=Notice.State.PENDING).order_by("kind")
    assert [*told.values_list("kind", flat=True)] == ["devices_parked", "expired"]
