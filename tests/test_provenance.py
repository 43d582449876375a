"""By which request a change came, and from where: the header, the actor, the audit, and who gets to see it."""

import re
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.core.exceptions import PermissionDenied
from django.db import connection
from django.http import HttpResponse
from django.test import Client, RequestFactory
from django.urls import reverse

from billing_site import doorbell
from billing_site.provenance import actor_of, provenance
from subscriptions import lifecycle
from subscriptions.audit import CLOCK, STRIPE, Actor
from subscriptions.lifecycle import Purchase
from subscriptions.models import AuditEntry, Member
from tests.builders import FEB_1, JAN_1, MAR_1, PlanFactory, TenantFactory, subscription
from tests.history import advance, on

pytestmark = pytest.mark.django_db

NEW = re.compile(r"[0-9a-f]{32}")
FROM_ALICE = Actor.staff(1, request_id="req-1", address="2001:db8::1")


def answered(**headers: str) -> str:
    return str(Client().get("/healthz", headers=headers).headers["X-Request-ID"])


# --- the header ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["a", "req-1", "A.b_c-9", "0" * 64])
def test_a_well_formed_request_id_is_taken_and_answered(given: str) -> None:
    assert answered(**{"X-Request-ID": given}) == given


@pytest.mark.parametrize(
    "given",
    ["", " ", "0" * 65, "a b", "a\n", "a\r\nSet-Cookie: x=1", "a;b", "<script>", "'--", "ä", "１", "a,a", "%0a", "/"],
)  # fmt: skip
def test_a_hostile_request_id_is_replaced_by_a_new_one(given: str) -> None:
    assert NEW.fullmatch(answered(**{"X-Request-ID": given}))


def test_a_request_without_an_id_gets_one_of_its_own() -> None:
    one, other = answered(), answered()
    assert (bool(NEW.fullmatch(one)), bool(NEW.fullmatch(other)), one == other) == (True, True, False)


def test_also_errors_say_which_request_it_was() -> None:
    assert Client().get("/nowhere", headers={"X-Request-ID": "r1"}).headers["X-Request-ID"] == "r1"


def test_deliveries_are_answered_before(settings: Any) -> None:
    assert settings.MIDDLEWARE[:2] == ["billing_site.doorbell.doorbell", "billing_site.provenance.provenance"]
    answer = Client().post(
        doorbell.STRAIGHT[0].begins, b"{}", content_type="application/json", headers={"X-Request-ID": "r1"}
    )
    assert (answer.status_code, "X-Request-ID" in answer.headers) == (400, False)


# --- the actor -------------------------------------------------------------------------------------------------------


def actor(user: Any, **environ: Any) -> Actor:
    """Of a request that went through the middleware."""
    found: list[Actor] = []
    request = RequestFactory().get("/", headers={"X-Request-ID": "req-1"}, **environ)
    request.user = user

    def view(request: Any) -> HttpResponse:
        found.append(actor_of(request))
        return HttpResponse()

    provenance(view)(request)
    return found[0]


@pytest.mark.parametrize(
    ("remote", "address"),
    [
        ("10.0.0.7", "10.0.0.7"), ("2001:DB8::1", "2001:db8::1"), ("fe80::1%eth0", "fe80::1"), ("", None),
        ("10.0.0.7, 10.0.0.8", None), ("unix:", None), ("999.1.1.1", None),
    ],
)  # fmt: skip
def test_staff_act_by_a_request_from_an_address(remote: str, address: str | None) -> None:
    user = User.objects.create(username="alice", is_staff=True)
    alice = actor(user, REMOTE_ADDR=remote)
    assert (alice, alice.request_id, alice.address) == (f"staff:{user.pk}", "req-1", address)
    assert alice.must_say_why
    s = subscription()
    lifecycle.enter_grace(s.pk, actor=alice, now=on(1, 5), reason="as agreed")
    assert s.audit.values_list("request_id", "address").latest("id") == ("req-1", address)


@pytest.mark.parametrize("flags", [{}, {"is_staff": True, "is_active": False}])
def test_nobody_else_acts_as_staff(flags: dict[str, bool]) -> None:
    with pytest.raises(PermissionDenied):
        actor(User.objects.create(username="mallory", **flags))
    with pytest.raises(PermissionDenied):
        actor(AnonymousUser())


# --- the audit -------------------------------------------------------------------------------------------------------


def test_the_request_and_the_address_are_written_with_the_entry_and_answered() -> None:
    purchase = Purchase(PlanFactory.create(), JAN_1, FEB_1)
    first = lifecycle.start(TenantFactory.create().pk, purchase, actor=FROM_ALICE, now=JAN_1, reason="by phone")
    assert first
    more = lifecycle.renew(first.subscription_id, term_end=MAR_1, actor=FROM_ALICE, now=on(1, 5), reason="paid")
    assert more
    for entry in (first, more):
        assert (entry.actor, entry.request_id, entry.address) == ("staff:1", "req-1", "2001:db8::1")
        entry.refresh_from_db()
        assert (entry.actor, entry.request_id, entry.address) == ("staff:1", "req-1", "2001:db8::1")


def test_the_clock_and_stripe_come_by_no_request() -> None:
    s = subscription()
    lifecycle.enter_grace(s.pk, actor=STRIPE, now=on(1, 5))
    advance(MAR_1)
    assert [(entry.actor, entry.request_id, entry.address) for entry in s.audit.order_by("id")[1:]] == [
        ("stripe", "", None),
        ("clock", "", None),
    ]
    assert (CLOCK.request_id, CLOCK.address, Actor.member(7, request_id="r").request_id) == ("", None, "r")


def test_what_a_source_did_is_found_by_an_index() -> None:
    subscription()
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        plan = AuditEntry.objects.filter(source_id__in=["evt_1", "evt_1~1"]).order_by().explain()
    assert "audit_by_source" in plan


# --- who sees it -----------------------------------------------------------------------------------------------------


def test_staff_see_the_request_and_the_address_on_the_entrys_page_and_members_do_not() -> None:
    s = subscription()
    entry = lifecycle.enter_grace(s.pk, actor=FROM_ALICE, now=on(1, 5), reason="as agreed")
    assert entry
    staff, member = Client(), Client()
    staff.force_login(User.objects.create(username="root", is_staff=True, is_superuser=True))
    page = staff.get(reverse("admin:subscriptions_auditentry_change", args=[entry.pk])).content.decode()
    assert "req-1" in page
    assert "2001:db8::1" in page
    listed = staff.get(reverse("admin:subscriptions_auditentry_changelist"), {"q": "req-1"}).content.decode()
    assert s.number in listed
    user = User.objects.create(username="member")
    Member.objects.create(user=user, tenant=s.tenant)
    member.force_login(user)
    for url in ("/api/v1/customer/subscriptions", "/api/v1/customer/billing/status"):
        answer = member.get(url)
        assert s.number in answer.content.decode()
        assert "2001:db8::1" not in answer.content.decode()
        assert "req-1" not in answer.content.decode()
