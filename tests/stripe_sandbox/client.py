"""Start and steer the sandbox from tests and from the demo. Standard library only.

with Sandbox.start(webhook_url="http://127.0.0.1:8000/webhook/stripe", webhook_secret="whsec_x") as stripe:
    customer = stripe.api("POST", "/v1/customers", email="anna@acme.test")
    stripe.pay(subscription_id)
    stripe.wait_quiet()
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .forms import encode

_ROOT = Path(__file__).resolve().parents[2]
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class SandboxError(Exception):
    """The sandbox answered something other than 2xx."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(f"{status}: {body}")
        self.status, self.body = status, body


class Sandbox:
    """A running sandbox. Every method answers the decoded JSON and raises SandboxError for a refusal."""

    def __init__(
        self, url: str, *, api_key: str = "sk_test_sandbox", process: subprocess.Popen[str] | None = None
    ) -> None:
        self.url, self.api_key, self.process = url.rstrip("/"), api_key, process

    @classmethod
    @contextmanager
    def start(
        cls,
        *,
        webhook_url: str = "",
        webhook_secret: str = "whsec_sandbox",
        api_key: str = "sk_test_sandbox",
        state: str | Path | None = None,
        port: int = 0,
    ) -> Iterator[Sandbox]:
        """A sandbox of one's own; it ends with the block, and with this process however that ends."""
        sandbox = cls.spawn(
            webhook_url=webhook_url, webhook_secret=webhook_secret, api_key=api_key, state=state, port=port
        )
        try:
            yield sandbox
        finally:
            sandbox.stop()

    @classmethod
    def spawn(
        cls,
        *,
        webhook_url: str = "",
        webhook_secret: str = "whsec_sandbox",
        api_key: str = "sk_test_sandbox",
        state: str | Path | None = None,
        port: int = 0,
    ) -> Sandbox:
        """Like ``start``, for callers that call ``stop`` themselves. Raises RuntimeError if it does not come up."""
        command = [
            sys.executable,
            "-m",
            __package__ or "tests.stripe_sandbox",
            "--port",
            str(port),
            "--exit-with-stdin",
        ]
        command += ["--state", str(state or "none"), "--webhook-url", webhook_url]
        command += ["--webhook-secret", webhook_secret, "--api-key", api_key]
        process = subprocess.Popen(
            command,
            cwd=_ROOT,
            env=os.environ | {"PYTHONPATH": str(_ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        line = _first_line(process, timeout_seconds=20)
        if " listening on " not in line:
            process.kill()
            process.wait()
            raise RuntimeError(f"the Stripe sandbox did not start: {line.strip() or 'see its message above'}")
        return cls(line.rsplit(" ", 1)[1].strip(), api_key=api_key, process=process)

    def stop(self) -> None:
        """End the process we started; safe to repeat."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()

    def kill(self) -> None:
        """SIGKILL, to see what survives."""
        assert self.process is not None
        self.process.kill()
        self.stop()

    # the API, as a caller of Stripe uses it

    def api(self, method: str, path: str, *, headers: dict[str, str] | None = None, **params: Any) -> Any:
        """Call ``/v1``; nested dicts and lists become Stripe's brackets."""
        form = encode(params)
        url = f"{path}?{form}" if method == "GET" and form else path
        sent = {"Authorization": f"Bearer {self.api_key}", "Content-Type": "application/x-www-form-urlencoded"}
        return self._call(method, url, b"" if method == "GET" else form.encode(), sent | (headers or {}))

    # the side door

    def control(self, method: str, path: str, body: Any = None) -> Any:
        """Call ``/_sandbox`` + path with a JSON body."""
        data = json.dumps(body).encode() if body is not None else b""
        return self._call(method, f"/_sandbox{path}", data, {"Content-Type": "application/json"})

    def pay(self, subscription_id: str) -> Any:
        """The customer pays what comes next: the subscription is active after, in a new period if it was before."""
        return self._verb(subscription_id, "pay")

    def fail(self, subscription_id: str, *, action_required: bool = False) -> Any:
        return self._verb(subscription_id, "fail", action_required=action_required)

    def unpaid(self, subscription_id: str) -> Any:
        return self._verb(subscription_id, "unpaid")

    def pause(self, subscription_id: str) -> Any:
        return self._verb(subscription_id, "pause")

    def cancel(self, subscription_id: str, *, at_period_end: bool = False) -> Any:
        return self._verb(subscription_id, "cancel", at_period_end=at_period_end)

    def status(self, subscription_id: str, status: str) -> Any:
        """Set any status, known or not, without its consequences."""
        return self._verb(subscription_id, "status", status=status)

    def override(self, object_id: str, changes: dict[str, Any]) -> Any:
        """Make answers about the object look so; ``{}`` ends it. ``$remove`` and ``$generation`` are understood."""
        return self.control("PATCH", f"/objects/{object_id}", changes)

    def complete(self, session_id: str, *, settled: bool | None = None) -> Any:
        """The customer pays. ``settled`` False: the money is on its way; None: as the ways of paying have it."""
        given = {} if settled is None else {"settled": settled}
        return self.control("POST", f"/checkout/{session_id}/complete", given)

    def bought_by_link(self, price: str, **given: Any) -> Any:
        """A completed session of a payment link, made by nobody's program; answers the session.

        ``quantity``, ``email``, ``name``, ``metadata``, ``client_reference_id``, ``settled``, ``pricing_table=True``.
        """
        return self.control("POST", "/payment_link", {"price": price} | given)

    def arrive(self, session_id: str, *, succeeded: bool = True) -> Any:
        """The delayed money of a session completed with ``settled=False``."""
        return self.control("POST", f"/checkout/{session_id}/arrive", {"succeeded": succeeded})

    def dispute(self, invoice_id: str, *, reason: str = "fraudulent") -> Any:
        """The bank of who paid the invoice takes the money back for now; answers the dispute."""
        return self.control("POST", f"/invoices/{invoice_id}/dispute", {"reason": reason})

    def close_dispute(self, dispute_id: str, *, status: str = "lost") -> Any:
        """``status``: won, lost, warning_closed or prevented."""
        return self.control("POST", f"/disputes/{dispute_id}/close", {"status": status})

    def emit(
        self, type: str, object_id: str, *, generation: str = "2026", overrides: dict[str, Any] | None = None
    ) -> Any:
        """Send an event about a present object; answers the event. ``overrides`` change the event itself."""
        given = {"type": type, "object": object_id, "generation": generation, "overrides": overrides or {}}
        return self.control("POST", "/events", given)

    def seed(self, subscriptions: int, price: str, **given: Any) -> Any:
        """So many customers with a paid subscription each, quickly and untold; answers the ids of both.

        ``quantity``, ``items``, ``metadata``, ``customer_metadata`` (``{n}`` in a value is the customer's number) and
        ``events=True``, which tells the webhooks.
        """
        return self.control("POST", "/seed", {"subscriptions": subscriptions, "price": price} | given)

    def knobs(self, **knobs: Any) -> Any:
        """Exactly these knobs, the others at rest; ``knobs()`` puts all at rest."""
        return self.control("PUT", "/knobs", knobs)

    def turn(self, **knobs: Any) -> Any:
        """These knobs, the others as they are."""
        return self.control("PATCH", "/knobs", knobs)

    def clock(self, offset_seconds: int) -> Any:
        """Set the sandbox's time so far ahead of the real one; what falls due is billed before this returns."""
        return self.control("POST", "/clock", {"offset_seconds": offset_seconds})

    def requests(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.control("GET", "/requests")["requests"]
        return found

    def deliveries(self) -> list[dict[str, Any]]:
        """Every attempt so far, oldest first."""
        found: list[dict[str, Any]] = self.control("GET", "/deliveries")["attempts"]
        return found

    def wait_quiet(self, timeout_seconds: float = 30) -> None:
        """Wait until no delivery is under way or scheduled; held and buffered ones do not count.

        Raises TimeoutError.
        """
        if not self.control("POST", "/quiet", {"timeout_seconds": timeout_seconds})["quiet"]:
            raise TimeoutError(f"deliveries were still under way after {timeout_seconds} s")

    def flush(self, timeout_seconds: float = 30) -> None:
        """Send what is held, delayed or buffered now, and wait for it. Raises TimeoutError."""
        if not self.control("POST", "/flush", {"timeout_seconds": timeout_seconds})["quiet"]:
            raise TimeoutError(f"deliveries were still under way after {timeout_seconds} s")

    def reset(self) -> None:
        """Forget everything: objects, events, records, knobs, clock."""
        self.control("POST", "/reset", {})

    def health(self) -> Any:
        return self.control("GET", "/health")

    def _verb(self, subscription_id: str, verb: str, **given: Any) -> Any:
        return self.control("POST", f"/subscriptions/{subscription_id}/{verb}", given)

    def _call(self, method: str, path: str, data: bytes, headers: dict[str, str]) -> Any:
        request = urllib.request.Request(self.url + path, data=data or None, headers=headers, method=method)
        try:
            with _DIRECT.open(request, timeout=60) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            with error:
                raise SandboxError(error.code, _decoded(error.read())) from None


def _decoded(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body


def _first_line(process: subprocess.Popen[str], *, timeout_seconds: float) -> str:
    assert process.stdout is not None
    deadline = time.monotonic() + timeout_seconds
    ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
    return process.stdout.readline() if ready else ""
