"""The cast of the sandbox's own tests: one process for all of them, and a caller that holds every answer to the spec.

Every answer and every event that appears in these tests is held to Stripe's own OpenAPI document.
"""

import hashlib
import hmac
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests import stripe_spec
from tests.stripe_sandbox.api import ROUTES
from tests.stripe_sandbox.client import Sandbox, SandboxError
from tests.stripe_sandbox.receiver import Receiver

SECRET = "whsec_of_the_tests"
DAY = 86_400


class Stripe:
    """The API and the side door, with every answer checked against the published schema."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.called: set[tuple[str, str]] = set()

    def __call__(self, method: str, path: str, *, headers: dict[str, str] | None = None, **params: Any) -> Any:
        self.called |= {
            (route.method, route.path) for route in ROUTES if route.pattern.match(path) and route.method == method
        }
        try:
            body = self.sandbox.api(method, path, headers=headers, **params)
        except SandboxError as error:
            stripe_spec.validate_response(method, path, error.status, error.body)
            raise
        stripe_spec.validate_request(
            method, path, {key: "" if value is None else value for key, value in params.items()}
        )
        stripe_spec.validate_response(method, path, 200, body)
        return body

    def refused(self, method: str, path: str, **params: Any) -> tuple[int, dict[str, Any]]:
        with pytest.raises(SandboxError) as caught:
            self(method, path, **params)
        return caught.value.status, caught.value.body["error"]

    # the cast

    def customer(self, **given: Any) -> Any:
        return self("POST", "/v1/customers", email="anna@acme.test", name="Acme GmbH", **given)

    def price(self, amount: int = 1000, interval: str = "month", **given: Any) -> Any:
        product = self("POST", "/v1/products", name="Termkeeper Standard")
        recurring = {"interval": interval}
        return self(
            "POST",
            "/v1/prices",
            product=product["id"],
            currency="eur",
            unit_amount=amount,
            recurring=recurring,
            **given,
        )

    def subscription(self, customer: str | None = None, **given: Any) -> Any:
        items = given.pop("items", None) or [{"price": self.price()["id"], "quantity": 3}]
        return self("POST", "/v1/subscriptions", customer=customer or self.customer()["id"], items=items, **given)

    def retrieve(self, subscription: Any) -> Any:
        return self("GET", f"/v1/subscriptions/{subscription['id']}")

    def event_types(self) -> list[str]:
        return [event["type"] for event in self("GET", "/v1/events", limit=100)["data"]][::-1]


def routes_of(*families: str) -> set[tuple[str, str]]:
    """What a family of routes answers, to be compared with what a test has called."""
    found = {(route.method, route.path) for route in ROUTES if route.answer.__module__.rsplit(".", 1)[1] in families}
    assert found, families
    return found


def period(subscription: Any) -> tuple[int, int]:
    item = subscription["items"]["data"][0]
    return item["current_period_start"], item["current_period_end"]


def good(headers: dict[str, str], body: bytes, secret: str = SECRET) -> bool:
    parts = dict(part.split("=", 1) for part in headers["stripe-signature"].split(","))
    expected = hmac.new(secret.encode(), f"{parts['t']}.".encode() + body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected, parts["v1"])


def until(condition: Callable[[], bool], *, timeout_seconds: float = 5) -> None:
    deadline = time.monotonic() + timeout_seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        pause.wait(0.01)


# fixtures, taken up by conftest


@pytest.fixture(scope="session")
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.stop()


@pytest.fixture(scope="session")
def running(receiver: Receiver) -> Iterator[Sandbox]:
    with Sandbox.start(webhook_url=receiver.url, webhook_secret=SECRET) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(running: Sandbox, receiver: Receiver) -> Iterator[Sandbox]:
    running.reset()
    receiver.forget()
    yield running
    receiver.answer_after.set()
    for event in running.api("GET", "/v1/events", limit=100)["data"]:
        if event["api_version"] == stripe_spec.document()["version"] and event["livemode"] is False:
            stripe_spec.validate_event(event)


@pytest.fixture
def api(sandbox: Sandbox) -> Stripe:
    return Stripe(sandbox)
