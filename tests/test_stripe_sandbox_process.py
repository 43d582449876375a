"""The sandbox as a process: faults of its API, its pages, being killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.stripe_sandbox.client import Sandbox, SandboxError
from tests.stripe_sandbox.receiver import Receiver
from tests.stripe_sandbox_cast import SECRET, Stripe, until

# API faults


def test_faults_answer_as_told_and_then_end(api: Stripe, sandbox: Sandbox) -> None:
    sandbox.knobs(
        errors=[
            {"path_prefix": "/v1/customers", "status": 429, "times": 1, "retry_after": 1},
            {"path_prefix": "/v1/customers", "method": "GET", "status": 503, "times": 1, "body": "garbage"},
            {"path_prefix": "/v1/customers", "status": 500, "times": 1, "body": "empty"},
        ]
    )
    assert api("GET", "/v1/account")["object"] == "account"
    status, error = api.refused("GET", "/v1/customers")
    assert (status, error["code"]) == (429, "rate_limit")
    for expected in (503, 500):
        with pytest.raises(SandboxError) as caught:
            sandbox.api("GET", "/v1/customers")
        assert (caught.value.status, type(caught.value.body)) == (expected, bytes)
    assert api("GET", "/v1/customers")["data"] == []


@pytest.mark.parametrize(
    ("name", "status", "kind", "code"),
    [
        ("declined", 402, "card_error", "card_declined"),
        ("insufficient_funds", 402, "card_error", "card_declined"),
        ("expired_card", 402, "card_error", "expired_card"),
        ("bad_request", 400, "invalid_request_error", "parameter_invalid_empty"),
        ("authentication", 401, "invalid_request_error", None),
        ("more_permissions_required", 403, "invalid_request_error", "more_permissions_required"),
        ("resource_missing", 404, "invalid_request_error", "resource_missing"),
        ("idempotency_key_in_use", 409, "invalid_request_error", "idempotency_key_in_use"),
        ("external_dependency_failed", 424, "api_error", None),
        ("rate_limit", 429, "invalid_request_error", "rate_limit"),
        ("lock_timeout", 429, "invalid_request_error", "lock_timeout"),
        ("api_error", 500, "api_error", None),
        ("bad_gateway", 502, "api_error", None),
        ("unavailable", 503, "api_error", None),
        ("gateway_timeout", 504, "api_error", None),
    ],
)
def test_every_documented_error_can_be_asked_for_by_name(
    api: Stripe, sandbox: Sandbox, name: str, status: int, kind: str, code: str | None
) -> None:
    sandbox.knobs(errors=[{"error": name}])
    answered, error = api.refused("GET", "/v1/customers")
    assert (answered, error["type"], error.get("code")) == (status, kind, code)
    assert api("GET", "/v1/customers")["data"] == []


def test_reads_and_writes_have_a_rate_of_their_own(api: Stripe, sandbox: Sandbox) -> None:
    def refused(path: str, body: bytes | None) -> bool:
        request = urllib.request.Request(sandbox.url + path, body, {"Authorization": f"Bearer {sandbox.api_key}"})
        try:
            with urllib.request.urlopen(request):
                return False
        except urllib.error.HTTPError as error:
            with error:
                return (error.code, error.headers["Stripe-Rate-Limited-Reason"]) == (429, "global-rate")

    sandbox.knobs(rate_limit_writes=1)
    assert any(refused("/v1/customers", b"name=Acme") for _ in range(50))
    assert not any(refused("/v1/account", None) for _ in range(20))
    sandbox.knobs(rate_limit_reads=1)
    assert any(refused("/v1/account", None) for _ in range(50))
    assert not any(refused("/v1/customers", b"name=Acme") for _ in range(20))
    sandbox.knobs()


def test_a_key_in_use_is_a_conflict_until_its_request_is_answered(api: Stripe, sandbox: Sandbox) -> None:
    sandbox.knobs(errors=[{"method": "POST", "hang_seconds": 1.2, "after": True}])
    key = {"Idempotency-Key": "twice"}
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(sandbox.api, "POST", "/v1/customers", headers=key, email="a@acme.test")
        until(lambda: sandbox.control("GET", "/knobs")["errors"] == [])
        status, error = api.refused("POST", "/v1/customers", headers=key, email="a@acme.test")
        assert (status, error["code"]) == (409, "idempotency_key_in_use")
        made = first.result()
    assert api("POST", "/v1/customers", headers=key, email="a@acme.test") == made


def test_a_hanging_answer_outlasts_the_callers_timeout(api: Stripe, sandbox: Sandbox) -> None:
    sandbox.knobs(errors=[{"path_prefix": "/v1/account", "hang_seconds": 30}])
    request = urllib.request.Request(
        f"{sandbox.url}/v1/account", headers={"Authorization": f"Bearer {sandbox.api_key}"}
    )
    with pytest.raises(TimeoutError):
        urllib.request.urlopen(request, timeout=0.2)
    assert api("GET", "/v1/account")["object"] == "account"


def test_a_dropped_connection_is_no_answer_at_all(api: Stripe, sandbox: Sandbox) -> None:
    sandbox.knobs(errors=[{"close": True, "times": 1}])
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        sandbox.api("GET", "/v1/account")
    assert api("GET", "/v1/account")["object"] == "account"


def test_requests_are_remembered_with_what_identifies_them(api: Stripe, sandbox: Sandbox) -> None:
    headers = {"Idempotency-Key": "k-1", "Stripe-Version": "2026-05-27.dahlia"}
    api("POST", "/v1/customers", headers=headers, email="a@acme.test", metadata={"tenant": "7"})
    asked = sandbox.requests()[-1]
    assert (asked["method"], asked["path"], asked["status"]) == ("POST", "/v1/customers", 200)
    assert asked["params"] == {"email": "a@acme.test", "metadata": {"tenant": "7"}}
    assert (asked["idempotency_key"], asked["stripe_version"]) == ("k-1", "2026-05-27.dahlia")
    assert sandbox.api_key not in json.dumps(sandbox.requests())


# the page


def test_the_page_shows_subscriptions_and_its_buttons_work(api: Stripe, sandbox: Sandbox) -> None:
    customer = api.customer()
    api("POST", f"/v1/customers/{customer['id']}", name="<Robert> & Söhne")
    subscription = api.subscription(customer["id"])
    with urllib.request.urlopen(sandbox.url) as answer:
        shown = answer.read().decode()
    assert subscription["id"] in shown
    assert "&lt;Robert&gt; &amp; Söhne" in shown
    action = f"{sandbox.url}/_sandbox/subscriptions/{subscription['id']}/fail"
    with urllib.request.urlopen(action, data=b"back=%2F") as answer:
        assert answer.url == f"{sandbox.url}/"
    assert api.retrieve(subscription)["status"] == "past_due"
    knobs = b"deliver=false&latency_seconds=0.0&reorder=3&card=declined"
    with urllib.request.urlopen(f"{sandbox.url}/_sandbox/knobs", data=knobs) as answer:
        assert answer.status == 200
    turned = sandbox.control("GET", "/knobs")
    assert (turned["deliver"], turned["reorder"], turned["card"]) == (False, 3, "declined")


def test_the_hosted_pages_show_what_is_bought(api: Stripe, sandbox: Sandbox) -> None:
    subscription = api.subscription(expand=["latest_invoice"])
    session = api(
        "POST",
        "/v1/checkout/sessions",
        mode="subscription",
        customer=subscription["customer"],
        line_items=[{"price": api.price(4990)["id"], "quantity": 2}],
        success_url=f"{sandbox.url}/?done={{CHECKOUT_SESSION_ID}}",
        cancel_url="javascript:alert(1)",
    )
    with urllib.request.urlopen(session["url"]) as answer:
        shown = answer.read().decode()
    assert "99.80 EUR" in shown
    assert "javascript:" not in shown
    with urllib.request.urlopen(f"{sandbox.url}/_sandbox/checkout/{session['id']}/complete", data=b"back=/") as answer:
        assert answer.url.endswith(f"?done={session['id']}")
    portal = api("POST", "/v1/billing_portal/sessions", customer=subscription["customer"])
    for url in (portal["url"], subscription["latest_invoice"]["hosted_invoice_url"]):
        with urllib.request.urlopen(url) as answer:
            assert answer.status == 200


def test_a_page_elsewhere_cannot_steer_the_sandbox(sandbox: Sandbox) -> None:
    for headers in ({"Origin": "https://evil.test"}, {"Host": "evil.test"}):
        request = urllib.request.Request(f"{sandbox.url}/_sandbox/reset", data=b"{}", headers=headers)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request)
        assert caught.value.code == 403


# the process


def test_a_kill_loses_nothing_and_undelivered_events_go_out_after_the_restart(
    tmp_path: Path, receiver: Receiver
) -> None:
    receiver.forget()
    state = tmp_path / "stripe.json"
    first = Sandbox.spawn(webhook_url=receiver.url, webhook_secret=SECRET, state=state)
    api = Stripe(first)
    first.knobs(deliver=False)
    made = [api.subscription() for _ in range(3)]
    key = {"Idempotency-Key": "before"}
    customer = api("POST", "/v1/customers", headers=key, email="z@acme.test")
    first.clock(3600)
    first.kill()
    with state.open("ab") as file:
        file.write(b'[["customer","cus_torn",{"id"')  # a change that was cut off has no effect

    with Sandbox.start(webhook_url=receiver.url, webhook_secret=SECRET, state=state) as second:
        api = Stripe(second)
        assert [api.retrieve(subscription) for subscription in made] == made
        assert api("POST", "/v1/customers", headers=key, email="z@acme.test") == customer
        assert second.health()["objects"]["customer"] == 4
        assert second.control("GET", "/clock")["offset_seconds"] == 3600
        assert receiver.got == []
        second.knobs()
        second.wait_quiet()
        assert len({json.loads(body)["id"] for _, body in receiver.got}) == 12  # at least once, each of them


def test_a_taken_port_is_one_line_and_exit_1() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "tests.stripe_sandbox", "--port", str(port)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=Path(__file__).parents[1])
    assert ended.returncode == 1
    assert ended.stderr.strip() == f"stripe_sandbox: cannot listen on 127.0.0.1:{port}: it is taken"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_promptly_and_cleanly_even_while_an_answer_hangs(how: signal.Signals) -> None:
    sandbox = Sandbox.spawn()
    assert sandbox.process is not None
    sandbox.knobs(errors=[{"path_prefix": "/v1/account", "hang_seconds": 60}])
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(sandbox.api, "GET", "/v1/account")
        until(lambda: sandbox.control("GET", "/knobs")["errors"] == [])
        os.kill(sandbox.process.pid, how)
        assert sandbox.process.wait(timeout=3) == 0
        assert isinstance(asked.exception(timeout=3), OSError)
    sandbox.stop()


def test_it_ends_when_its_parent_does() -> None:
    sandbox = Sandbox.spawn()
    assert sandbox.process is not None
    assert sandbox.process.stdin is not None
    sandbox.process.stdin.close()
    assert sandbox.process.wait(timeout=3) == 0
