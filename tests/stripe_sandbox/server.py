"""HTTP/1.1 with keep-alive: reads one request, lets a fault have it if a knob says so, and writes one answer."""

import json
import socket
import sys
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

from . import api, control, deadlines, pages
from .api import Answer, Request
from .errors import BY_STATUS, ControlError, StripeError, named
from .forms import parse
from .knobs import Fault, draw
from .store import Store
from .world import Config, World

_BODY_LIMIT = 4_000_000
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_FORM = "application/x-www-form-urlencoded"
_PAGE_HEADERS = (
    ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"),
    ("Cache-Control", "no-store"),
)


class SandboxServer(ThreadingHTTPServer):
    """Bound to loopback only. ``start`` begins the clock and the deliveries; ``stop`` ends everything promptly."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, port: int, store: Store, config: Config) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.stopping = threading.Event()
        self.world = World(store, config, base_url=self.url)

    def start(self) -> None:
        self.world.deliveries.start()
        threading.Thread(target=self._keep_time, name="clock", daemon=True).start()

    def stop(self) -> None:
        """Must be called from another thread than the one in ``serve_forever``."""
        self.stopping.set()
        self.world.deliveries.stop()
        self.shutdown()

    def _keep_time(self) -> None:
        while not self.stopping.wait(1.0):
            if self.world.knobs.auto_renew:
                deadlines.tick(self.world, now=self.world.now())
            self.world.deliveries.clock_moved(self.world.now())

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Callers that hang up are part of the tests, not of the log; our own defects are for the log."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError | BrokenPipeError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    server: SandboxServer
    protocol_version = "HTTP/1.1"
    server_version = "StripeSandbox"
    disable_nagle_algorithm = True
    wbufsize = 65_536
    timeout = 120

    def do_GET(self) -> None:
        self._handle()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """What was asked is at /_sandbox/requests."""

    def _handle(self) -> None:
        body = self._read_body()
        if body is None:
            return
        parts = urlsplit(self.path)
        if parts.path.startswith("/v1/") or parts.path.startswith("/v2/"):
            self._api(parts.path, parts.query, body)
        elif self.client_address[0] not in _LOOPBACK or not self._from_here():
            self._send(403, b'{"error": "the side door is for this machine only"}')
        elif parts.path.startswith("/_sandbox/"):
            self._control(parts.path.removeprefix("/_sandbox"), parts.query, body)
        else:
            self._show(pages.answer(self.server.world, pages.Asked(self.command, parts.path, parts.query, body)))

    def _read_body(self) -> str | None:
        try:
            length = int(self.headers.get("Content-Length") or 0)
        except ValueError:
            length = -1
        if length < 0 or length > _BODY_LIMIT or self.headers.get("Transfer-Encoding"):
            self.close_connection = True
            self._send(411 if self.headers.get("Transfer-Encoding") else 413, b"")
            return None
        return self.rfile.read(length).decode("utf-8", "replace")

    def _from_here(self) -> bool:
        """A page elsewhere must not steer the sandbox through somebody's browser."""
        origin, host = self.headers.get("Origin"), urlsplit(f"//{self.headers.get('Host', '')}").hostname
        return (host is None or host in _LOOPBACK) and (origin is None or urlsplit(origin).hostname in _LOOPBACK)

    # the API

    def _api(self, path: str, query: str, body: str) -> None:
        began, world = time.monotonic(), self.server.world
        request = Request(self.command, path, query, body, dict(self.headers))
        fault: Fault | None = None
        answer: Answer | None = self._too_many()
        if answer is None:
            with world.keys.claim(request.idempotency_key) as mine:
                fault, answer = self._answer(request, path) if mine else (None, _refusal("idempotency_key_in_use"))
        world.requests.append(
            {
                "at": round(time.time(), 3),
                "method": self.command,
                "path": path,
                "params": _params(request),
                "idempotency_key": request.header("Idempotency-Key") or None,
                "stripe_version": request.header("Stripe-Version") or None,
                "user_agent": request.header("User-Agent"),
                "status": answer.status if answer else None,
                "fault": fault is not None,
                "seconds": round(time.monotonic() - began, 4),
            }
        )
        if answer is None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self._send(answer.status, answer.body, headers=answer.headers)

    def _answer(self, request: Request, path: str) -> tuple[Fault | None, Answer | None]:
        """The fault that had the request, if one did, and the answer; None is a connection that breaks."""
        world = self.server.world
        latency = draw(world.knobs.latency_seconds, world.dice)
        if latency > 0:
            self.server.stopping.wait(latency)
        fault = self._claim_fault(path)
        answer: Answer | None = None
        if fault is None or fault.after or not (fault.status or fault.close):
            answer = api.answer(world, request)
        if fault is not None:
            if fault.hang_seconds > 0:
                self.server.stopping.wait(fault.hang_seconds)
            gone = fault.close or self.server.stopping.is_set()
            answer = None if gone else _faulty(fault) if fault.status else answer
        return fault, answer

    def _too_many(self) -> Answer | None:
        """The refusal of a request that goes over the account's rate."""
        world, kind = self.server.world, "reads" if self.command == "GET" else "writes"
        per_second = world.knobs.rate_limit_reads if kind == "reads" else world.knobs.rate_limit_writes
        if world.rate.admits(kind, per_second=per_second):
            return None
        return _refusal("rate_limit", headers=(("Stripe-Rate-Limited-Reason", "global-rate"),))

    def _claim_fault(self, path: str) -> Fault | None:
        """The first fault that fits, used up by one if its times are counted."""
        world = self.server.world
        with world.lock:
            for fault in world.knobs.errors:
                if path.startswith(fault.path_prefix) and fault.method.upper() in ("", self.command):
                    if fault.times == 1:
                        world.knobs.errors.remove(fault)
                    elif fault.times > 1:
                        fault.times -= 1
                    return fault
        return None

    # the side door

    def _control(self, path: str, query: str, body: str) -> None:
        is_form, back = (self.headers.get("Content-Type") or "").startswith(_FORM), "/"
        try:
            given = dict(parse_qsl(body)) if is_form else json.loads(body) if body.strip() else {}
            if not isinstance(given, dict):
                raise ControlError("the body is a JSON object", status=400)
            given |= {name: values[-1] for name, values in parse_qs(query).items()}
            back = str(given.pop("back", back))
            back = back if back.startswith("/") else "/"
            answered = control.answer(self.server.world, self.command, path, given)
        except json.JSONDecodeError as error:
            self._send_json(400, {"error": f"the body is not JSON: {error}"})
        except (ControlError, StripeError) as error:
            if is_form:
                self._show(pages.refusal(error.status, str(error), back=back))
            else:
                self._send_json(error.status, {"error": str(error)})
        except (TypeError, ValueError) as error:
            self._send_json(400, {"error": f"could not read that: {error}"})
        except Exception:
            traceback.print_exc(file=sys.stderr)
            self._send_json(500, {"error": "the sandbox itself failed; its traceback is on stderr"})
        else:
            if is_form:  # a person pressed a button
                bought = path.endswith("/complete") and answered["success_url"]
                self._show(pages.go(bought.replace("{CHECKOUT_SESSION_ID}", answered["id"]) if bought else back))
            else:
                self._send_json(200, answered)

    def _show(self, shown: pages.Shown) -> None:
        headers = (("Location", shown.location),) if shown.location else _PAGE_HEADERS
        self._send(shown.status, shown.body.encode(), content_type="text/html; charset=utf-8", headers=headers)

    def _send_json(self, status: int, body: Any) -> None:
        self._send(status, json.dumps(body, indent=2, ensure_ascii=False).encode())

    def _send(
        self,
        status: int,
        body: bytes,
        *,
        content_type: str = "application/json",
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value.replace("\r", "").replace("\n", ""))
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()


def _faulty(fault: Fault) -> Answer:
    headers = (("Retry-After", str(fault.retry_after)),) if fault.retry_after else ()
    match fault.body:
        case "empty":
            return Answer(fault.status, b"", headers)
        case "garbage":
            return Answer(fault.status, b"<html><h1>upstream \xff\xfe went away", headers)
    name = fault.error or BY_STATUS.get(fault.status, "api_error")
    return _refusal(name, status=fault.status, headers=headers)


def _refusal(name: str, *, status: int = 0, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    error = named(name)
    return Answer(status or error.status, json.dumps(error.body()).encode(), headers)


def _params(request: Request) -> Any:
    try:
        return parse("&".join(filter(None, (request.query, request.body))))
    except StripeError:
        return request.body[:1000]
