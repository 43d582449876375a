"""The page that customers come back to: before, while and after the webhook says the same."""

from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from subscriptions.models import AuditEntry, Subscription
from subscriptions.states import Status
from tests.builders import TenantFactory
from tests.buying import RETURN, buys, returns, session_of, signs_in, sold
from tests.stripe_cast import rings
from tests.stripe_sandbox.client import Sandbox
from webhooks import inbox
from webhooks.models import Checkout

pytestmark = pytest.mark.django_db
THANKS = "http://localhost/thanks?s={CHECKOUT_SESSION_ID}&again={CHECKOUT_SESSION_ID}"


@pytest.fixture
def session_id(stripe: Sandbox) -> str:
    """Of a checkout that ends on our own page."""
    sold("fleet")
    return session_of(buys(signs_in(TenantFactory.create())))


def page(session_id: str) -> str:
    answer = returns(session_id)
    assert answer.status_code == 200
    assert "no-store" in answer["Cache-Control"]
    return str(answer.content.decode())


def webhook(session_id: str, stripe_id: str) -> str | None:
    event = rings(stripe_id, "checkout.session.completed", object_id=session_id)
    return inbox.apply(event.pk, now=timezone.now())


def test_the_page_brings_what_was_bought_before_any_webhook(session_id: str, stripe: Sandbox) -> None:
    stripe_id = stripe.complete(session_id)["subscription"]
    assert "Your payment arrived" in page(session_id)
    entry = AuditEntry.objects.get()
    assert (entry.actor, entry.source_id.partition("~")[0]) == ("stripe", session_id)
    assert Checkout.objects.get().state == Checkout.State.COMPLETE
    assert webhook(session_id, stripe_id) == "nothing new"
    assert AuditEntry.objects.count() == 1


def test_the_page_after_the_webhook_changes_nothing(session_id: str, stripe: Sandbox) -> None:
    stripe_id = stripe.complete(session_id)["subscription"]
    assert webhook(session_id, stripe_id) == "started"
    assert Checkout.objects.get().state == Checkout.State.COMPLETE
    for _ in range(2):
        assert "Your payment arrived" in page(session_id)
    assert AuditEntry.objects.count() == 1


def test_who_wanted_to_go_on_elsewhere_is_sent_there(stripe: Sandbox) -> None:
    sold("fleet")
    session_id = session_of(buys(signs_in(TenantFactory.create()), success_url=THANKS))
    before = returns(session_id)
    assert (before.status_code, "Not paid yet" in before.content.decode()) == (200, True)
    stripe.complete(session_id)
    answer = returns(session_id)
    assert (answer.status_code, answer["Location"]) == (
        303, f"http://localhost/thanks?s={session_id}&again={session_id}",
    )  # fmt: skip


def test_before_anything_is_paid_the_page_leads_back_to_the_payment(session_id: str, stripe: Sandbox) -> None:
    said = page(session_id)
    assert "Not paid yet" in said
    assert f"{stripe.url}/checkout/{session_id}" in said
    assert Checkout.objects.get().state == Checkout.State.OPEN


def test_money_on_its_way_begins_nothing_until_it_arrives(session_id: str, stripe: Sandbox) -> None:
    stripe.complete(session_id, settled=False)
    assert "on its way" in page(session_id)
    assert not Subscription.objects.exists()
    stripe.arrive(session_id)
    assert "Your payment arrived" in page(session_id)
    assert Subscription.objects.get().status == Status.ACTIVE


def test_a_checkout_that_nobody_paid_is_over(session_id: str, stripe: Sandbox) -> None:
    stripe.clock(24 * 3600)
    assert "is over" in page(session_id)
    assert Checkout.objects.get().state == Checkout.State.EXPIRED


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 401}, {"close": True}, {"status": 200, "body": "empty"}])
def test_while_stripe_does_not_answer_the_page_promises_what_will_come(
    fault: dict[str, Any], session_id: str, stripe: Sandbox
) -> None:
    stripe_id = stripe.complete(session_id)["subscription"]
    stripe.knobs(errors=[fault | {"path_prefix": "/v1/checkout/sessions/"}])
    assert "begins by itself" in page(session_id)
    stripe.knobs(errors=[fault | {"path_prefix": "/v1/subscriptions/"}])
    assert "begins by itself" in page(session_id)
    assert not Subscription.objects.exists()
    assert webhook(session_id, stripe_id) == "started"


@pytest.mark.parametrize(
    "unknown", ["", "cs_test_nobody", "../../v1/customers", "cs_test_1?expand[]=customer", "é", "a" * 300, "cs\x00"]
)
def test_other_ids_get_one_answer_that_tells_nothing_and_stripe_is_not_asked(unknown: str, stripe: Sandbox) -> None:
    session = stripe.api("POST", "/v1/customers")  # something that is there, and not ours to show
    stripe.control("DELETE", "/requests")
    answers = [Client().get(RETURN, {"session_id": said}) for said in (unknown, session["id"])]
    answers.append(Client().get(RETURN))
    assert {(answer.status_code, answer.content) for answer in answers} == {(404, answers[0].content)}
    assert stripe.requests() == []


def test_the_page_is_looked_at_only(session_id: str) -> None:
    assert Client().post(RETURN, {"session_id": session_id}).status_code == 405
