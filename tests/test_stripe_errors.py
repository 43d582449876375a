"""What callers of our API see of every error that Stripe documents; and that after each the next try succeeds, with one
customer, one session, one row.
"""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from django.test import Client
from djstripe.models import Customer

from billing_site.local.process import wait_until
from subscriptions.models import Tenant
from tests.builders import TenantFactory
from tests.buying import BUY, PORTAL, RENEW, asks, buys, customers, open_sessions, session_of, signs_in, sold
from tests.stripe_sandbox.client import Sandbox
from tests.stripe_sandbox.errors import DECLINES, FAULTS
from tests.test_api import problem
from webhooks import stripe_api
from webhooks.catalogue import customer_of
from webhooks.errors import RULES
from webhooks.models import Checkout

pytestmark = pytest.mark.django_db

BUSY, SILENT, KEY = (503, "stripe_busy"), (502, "stripe_unavailable"), (502, "stripe_refused_key")
REFUSED, CONFLICT = (502, "stripe_refused"), (409, "stripe_conflict")
ON_THE_WIRE: dict[str, tuple[dict[str, Any], tuple[int, str]]] = {
    "an empty answer": ({"status": 200, "body": "empty"}, SILENT),
    "garbage": ({"status": 200, "body": "garbage"}, SILENT),
    "garbage from a proxy": ({"status": 502, "body": "garbage"}, SILENT),
    "a closed connection": ({"close": True}, SILENT),
    "a lost answer": ({"close": True, "after": True}, SILENT),
    "an error after the work": ({"status": 500, "after": True}, SILENT),
}
DOCUMENTED: dict[str, tuple[int, str]] = {
    "bad_request": REFUSED,
    "idempotency_error": CONFLICT,
    "authentication": KEY,
    "api_key_expired": KEY,
    "more_permissions_required": KEY,
    "resource_missing": REFUSED,
    "no_payment_source": (402, "no_payment_method"),
    "idempotency_key_in_use": CONFLICT,
    "external_dependency_failed": SILENT,
    "rate_limit": BUSY,
    "lock_timeout": BUSY,
    "api_error": SILENT,
    "bad_gateway": SILENT,
    "unavailable": SILENT,
    "gateway_timeout": SILENT,
    **{name: (402, code) for name, (code, *_) in DECLINES.items()},
    "requires_action": (402, "payment_needs_confirmation"),
}
PLACES = ("/v1/prices", "/v1/customers", "/v1/customers/", "/v1/checkout/sessions")  # in the order that they are asked
TRIED_AGAIN = {"idempotency_key_in_use"}  # by us, once
CASES = ON_THE_WIRE | {name: ({"error": name}, answer) for name, answer in DOCUMENTED.items()}


@pytest.fixture
def hasty(settings: Any) -> Iterator[None]:
    """Stripe has a moment to answer."""
    settings.STRIPE_TIMEOUT_SECONDS = 0.3
    stripe_api._client.cache_clear()
    yield
    stripe_api._client.cache_clear()


@pytest.fixture
def acme() -> Tenant:
    sold("fleet")
    tenant: Tenant = TenantFactory.create(slug="acme")
    return tenant


@pytest.fixture
def owner(acme: Tenant) -> Client:
    return signs_in(acme)


def test_every_error_that_the_sandbox_knows_has_its_answer_here() -> None:
    assert DOCUMENTED.keys() == FAULTS.keys() | DECLINES.keys()


@pytest.mark.parametrize("case", CASES)
def test_wherever_stripe_fails_the_answer_says_so_and_the_next_try_succeeds(
    case: str, owner: Client, stripe: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    fault, expected = CASES[case]
    for place in PLACES:
        times = 2 if case in TRIED_AGAIN and place == "/v1/checkout/sessions" else 1
        stripe.knobs(errors=[fault | {"path_prefix": place, "method": "POST", "times": times}])
        with caplog.at_level(logging.INFO):
            answer = buys(owner)
        assert problem(answer) == expected
        for word in (
            "sk_test",
            "rk_test",
            "Your card",
            "unknown error",
            "upstream",
            "No such",
            "empty string",
            "Keys for",
        ):
            assert word not in answer.content.decode() + caplog.text
    stripe.knobs()
    page = session_of(buys(owner))
    assert open_sessions(stripe) == [page]
    assert Checkout.objects.get(state=Checkout.State.OPEN).session_id == page
    assert (customers(stripe), Customer.objects.count()) == (1, 1)
    assert stripe.health()["objects"]["price"] == 1


def test_whoever_asks_again_while_stripe_still_works_on_it_gets_what_it_made(
    owner: Client, stripe: Sandbox, hasty: None
) -> None:
    stripe.knobs(errors=[{"hang_seconds": 0.6, "path_prefix": "/v1/checkout/sessions", "method": "POST"}])
    assert problem(buys(owner)) == (502, "stripe_unavailable")
    answers: list[Any] = []

    def is_made() -> bool:
        answers.append(buys(owner))
        return bool(answers[-1].status_code == 200)

    assert wait_until(is_made, seconds=10)
    assert {answer.json()["code"] for answer in answers[:-1]} <= {"stripe_conflict", "stripe_unavailable"}
    assert open_sessions(stripe) == [session_of(answers[-1])]
    assert Checkout.objects.count() == 1


def test_a_request_that_stripe_is_still_at_work_on_is_asked_for_once_more(owner: Client, stripe: Sandbox) -> None:
    busy = {"error": "idempotency_key_in_use", "path_prefix": "/v1/checkout/sessions", "method": "POST"}
    stripe.knobs(errors=[busy])
    assert open_sessions(stripe) == [] != [session_of(buys(owner))]


def test_a_busy_stripe_says_when_to_come_back(owner: Client, stripe: Sandbox) -> None:
    for said, waits in ((30, "30"), (0, "5")):
        stripe.knobs(errors=[{"error": "rate_limit", "retry_after": said}])
        answer = buys(owner)
        assert (problem(answer), answer["Retry-After"]) == ((503, "stripe_busy"), waits)


@pytest.mark.parametrize("word", sorted(DECLINES.keys() - {"requires_action"}))
def test_a_refused_card_says_why_in_stripes_vocabulary(word: str, owner: Client, stripe: Sandbox) -> None:
    stripe.knobs(errors=[{"error": word}])
    code, decline_code, _ = DECLINES[word]
    body = buys(owner).json()
    assert (body["status"], body["code"], body["decline_code"]) == (402, code, decline_code)


def test_a_customer_that_was_deleted_at_stripe_is_said_to_be(acme: Tenant, owner: Client, stripe: Sandbox) -> None:
    gone = customer_of(acme)
    stripe.api("DELETE", f"/v1/customers/{gone}")
    for url, body in ((BUY, {"plan": "fleet", "interval": "month"}), (PORTAL, {})):
        assert problem(asks(owner, url, **body)) == (409, "stripe_customer_gone")
    assert not Checkout.objects.filter(state=Checkout.State.OPEN).exists()


def test_while_stripe_is_not_configured_nothing_is_begun(owner: Client, settings: Any) -> None:
    settings.STRIPE_SECRET_KEY = ""
    for url, body in ((BUY, {"plan": "fleet", "interval": "month"}), (PORTAL, {})):
        assert problem(asks(owner, url, **body)) == (503, "stripe_not_configured")
    assert problem(asks(owner, RENEW.format(number="SUB-1"))) == (404, "subscription_not_found")
    assert not Checkout.objects.exists()
    assert not Customer.objects.exists()


@pytest.mark.parametrize(
    ("error", "is_logged"), [("authentication", True), ("bad_request", True), ("api_error", False)]
)
def test_what_operators_have_to_look_at_is_an_error_in_the_log(
    error: str, is_logged: bool, owner: Client, stripe: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    stripe.knobs(errors=[{"error": error}])
    buys(owner)
    said = [record.levelname for record in caplog.records if record.name == "webhooks.errors"]
    assert said == ["ERROR" if is_logged else "WARNING"]


def test_words_that_are_not_stripes_vocabulary_are_not_passed_on() -> None:
    said = stripe_api._word
    assert (said("card_declined"), said("Your card 4242"), said({"a": 1}), said("x" * 65)) == (
        "card_declined",
        "",
        "",
        "",
    )


def test_the_table_ends_with_what_is_true_of_every_error() -> None:
    anything = stripe_api.StripeUnavailable("new", "")
    assert RULES[-1][1](anything, anything.said)
