"""One change, four doors: our API, Stripe's dashboard and portal, staff. They end in one state, which is Stripe's."""

from collections.abc import Callable
from typing import Any

import pytest
from django.utils import timezone

from billing_site.verbs import carry_out
from entitlements.limits import Park
from subscriptions.management.verbs import By
from subscriptions.models import PlanPrice, Subscription
from tests.builders import ALICE
from tests.changing_cast import Shop, at_stripe, edit, fill, item_of, link_of, owner_of
from tests.stripe_cast import rings
from tests.stripe_equal import assert_equal_to_stripe
from tests.stripe_sandbox.client import Sandbox
from tests.test_changing import ask, done
from tests.test_limits import held_by, parked
from tests.test_slots import used
from tests.test_stripe_pages import visit
from webhooks import inbox
from webhooks.catalogue import price_at_stripe
from webhooks.outgoing import outbound

pytestmark = pytest.mark.django_db

Door = Callable[[Shop, Subscription], Any]


def ring(s: Subscription) -> None:
    """The event about what was done at Stripe comes in."""
    assert "parked" not in str(inbox.apply(rings(link_of(s)).pk, now=timezone.now()))


def by_api(verb: str, **said: Any) -> Door:
    return lambda shop, s: done(ask(owner_of(s.tenant), s, verb, **said))


def in_dashboard(does: Callable[[Shop, Subscription], Any]) -> Door:
    def door(shop: Shop, s: Subscription) -> None:
        does(shop, s)
        ring(s)

    return door


def in_portal(button: str, price: str = "big", quantity: int = 1, when: str = "now") -> Door:
    def door(shop: Shop, s: Subscription) -> None:
        customer = at_stripe(shop.stripe, s)["customer"]
        session = shop.stripe.api("POST", "/v1/billing_portal/sessions", customer=customer, return_url=shop.stripe.url)
        form = {"do": button, "subscription": link_of(s)}
        if button == "change":
            price_id = price_at_stripe(getattr(shop, price))
            form |= {"item": item_of(shop.stripe, s), "price": price_id, "quantity": str(quantity), "when": when}
        assert visit(f"{shop.stripe.url}/portal/{session['id']}", form)[0] in (302, 303)
        ring(s)

    return door


def by_staff(verb: str, price: str = "", **options: Any) -> Door:
    def door(shop: Shop, s: Subscription) -> None:
        if price:
            sold: PlanPrice = getattr(shop, price)
            options.update(plan=sold.plan, price=sold, park=Park.NEWEST)
        carry_out(verb, s.number, options, By(ALICE, timezone.now(), "as agreed"))
        assert [outcome for _, outcome in outbound.deliver(now=timezone.now)] == ["told"]

    return door


def items(price: str, quantity: int = 1) -> Door:
    """Another price or quantity in the dashboard."""

    def does(shop: Shop, s: Subscription) -> None:
        position = {"id": item_of(shop.stripe, s), **shop.sells(getattr(shop, price), quantity)}
        edit(shop.stripe, s, items=[position], proration_behavior="always_invoice")

    return in_dashboard(does)


def scheduled(price: str) -> Door:
    """A schedule made in the dashboard."""

    def does(shop: Shop, s: Subscription) -> None:
        path = "/v1/subscription_schedules"
        made = shop.stripe.api("POST", path, from_subscription=link_of(s))
        first = made["phases"][0]
        present = [{"price": item["price"], "quantity": item["quantity"]} for item in first["items"]]
        now = {"items": present, "start_date": first["start_date"], "end_date": first["end_date"]}
        then = {"items": [shop.sells(getattr(shop, price))]}
        shop.stripe.api("POST", f"{path}/{made['id']}", phases=[now, then], end_behavior="release")

    return in_dashboard(does)


def ended(shop: Shop, s: Subscription) -> None:
    shop.stripe.api("DELETE", f"/v1/subscriptions/{link_of(s)}")


END = {"cancel_at_period_end": True}
PAUSED = {"pause_collection": {"behavior": "void"}}
BIG, SMALL = ("big", "month"), ("small", "month")
# What is changed, from (price, quantity) with three devices, by which doors; what it is then: status, plan and
# interval, quantity, whether it ends with its term, slots, who is served, who is parked.
CHANGES: dict[str, tuple[dict[str, Door], tuple[Any, ...]]] = {
    "cancel at term end": (
        {
            "api": by_api("cancel"),
            "dashboard": in_dashboard(lambda shop, s: edit(shop.stripe, s, **END)),
            "portal": in_portal("end"),
            "staff": by_staff("cancel", at="term-end"),
        },
        ("ACTIVE", BIG, 1, True, 3, "abc", ""),
    ),
    "cancel now": (
        {
            "api": by_api("cancel", at="now"),
            "dashboard": in_dashboard(ended),
            "portal": in_portal("end_now"),
            "staff": by_staff("cancel", at="now"),
        },
        ("EXPIRED", BIG, 1, False, 0, "", "abc"),
    ),
    "a smaller plan": (
        {
            "api": by_api("change", plan="small", confirm_parking=True),
            "dashboard": items("small"),
            "portal": in_portal("change", "small"),
            "staff": by_staff("change-plan", "small"),
        },
        ("ACTIVE", SMALL, 1, False, 1, "a", "bc"),
    ),
    "more of a smaller plan": (
        {
            "api": by_api("change", plan="small", quantity=2, confirm_parking=True),
            "dashboard": items("small", 2),
            "portal": in_portal("change", "small", 2),
            "staff": by_staff("change-plan", "small", quantity=2),
        },
        ("ACTIVE", SMALL, 2, False, 2, "ab", "c"),
    ),
    "another quantity": (
        {
            "api": by_api("change", quantity=5),
            "dashboard": items("big", 5),
            "portal": in_portal("change", "big", 5),
            "staff": by_staff("change-plan", "big", quantity=5),
        },
        ("ACTIVE", BIG, 5, False, 15, "abc", ""),
    ),
    "a year instead of a month": (
        {
            "api": by_api("change", interval="year"),
            "dashboard": items("big_yearly"),
            "portal": in_portal("change", "big_yearly"),
            "staff": by_staff("change-plan", "big_yearly"),
        },
        ("ACTIVE", ("big", "year"), 1, False, 3, "abc", ""),
    ),
    "a smaller plan at term end": (
        {
            "api": by_api("change", plan="small", when="term_end", confirm_parking=True),
            "dashboard": scheduled("small"),
            "portal": in_portal("change", "small", when="period_end"),
        },
        ("ACTIVE", BIG, 1, False, 3, "abc", ""),
    ),
    "pause": (
        {
            "api": by_api("pause"),
            "dashboard": in_dashboard(lambda shop, s: edit(shop.stripe, s, **PAUSED)),
        },
        ("SUSPENDED", BIG, 1, False, 3, "abc", ""),
    ),
}
UNDONE: dict[str, tuple[dict[str, Any], dict[str, Door]]] = {
    "a cancellation": (
        END,
        {
            "api": by_api("resume"),
            "dashboard": in_dashboard(lambda shop, s: edit(shop.stripe, s, cancel_at_period_end=False)),
            "portal": in_portal("keep"),
            "staff": by_staff("resume"),
        },
    ),
    "a pause": (
        PAUSED,
        {
            "api": by_api("resume"),
            "dashboard": in_dashboard(lambda shop, s: edit(shop.stripe, s, pause_collection="")),
        },
    ),
}


@pytest.fixture
def shop(stripe: Sandbox) -> Shop:
    return Shop.open(stripe)


def seen(s: Subscription) -> tuple[Any, ...]:
    s = Subscription.objects.select_related("plan", "price").get(pk=s.pk)
    sold = (s.plan.code, s.price.interval if s.price else "")
    slots = used(s)["basic"][1] if s.status != "EXPIRED" else 0
    return s.status, sold, s.quantity, s.cancel_at_term_end, slots, "".join(held_by(s)), "".join(parked())


@pytest.mark.parametrize(
    ("change", "door"), [(change, door) for change, (doors, _) in CHANGES.items() for door in doors]
)
def test_a_change_ends_in_the_same_state_through_every_door(change: str, door: str, shop: Shop) -> None:
    doors, then = CHANGES[change]
    s = shop.buys()
    fill(s, "a", "b", "c")
    doors[door](shop, s)
    assert seen(s) == then
    assert_equal_to_stripe(shop.stripe, s)
    ring(s)  # and the event about it changes nothing more
    assert seen(s) == then


@pytest.mark.parametrize(("what", "door"), [(what, door) for what, (_, doors) in UNDONE.items() for door in doors])
def test_what_is_undone_is_as_before_through_every_door(what: str, door: str, shop: Shop) -> None:
    before, doors = UNDONE[what]
    s = shop.buys()
    edit(shop.stripe, s, **before)
    ring(s)
    assert_equal_to_stripe(shop.stripe, s)
    doors[door](shop, s)
    assert seen(s) == ("ACTIVE", BIG, 1, False, 3, "", "")
    assert_equal_to_stripe(shop.stripe, s)


@pytest.mark.parametrize("change", ["cancel at term end", "another quantity"])
def test_what_staff_change_takes_the_place_of_what_is_scheduled(change: str, shop: Shop) -> None:
    s = shop.buys()
    scheduled("small")(shop, s)
    CHANGES[change][0]["staff"](shop, s)
    assert at_stripe(shop.stripe, s)["schedule"] is None
    assert_equal_to_stripe(shop.stripe, s)
