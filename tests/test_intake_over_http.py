"""The doorbell behind a real gunicorn, a real broker and a database that comes and goes: raw sockets, odd framing."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import Any

import pytest
import redis
from django.db import connection

from billing_site.local import ports
from billing_site.local.process import wait_until
from billing_site.local.valkey import Valkey
from tests.bench.deliveries import event, signature, written
from tests.bench.servers import CountedWire, Web
from webhooks.intake import LARGEST_BODY
from webhooks.models import StripeEvent

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.xdist_group("intake_over_http")]
FORMER, SECRET = "whsec_http_former", "whsec_http_canary"
CARD = "4242424242424242"


@pytest.fixture(scope="module")
def wire(django_db_setup: None) -> Iterator[CountedWire]:
    name = connection.settings_dict["NAME"]
    with CountedWire(os.environ["DATABASE_URL"].rpartition("/")[0] + f"/{name}") as wire:
        yield wire


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with Valkey(tmp_path_factory.mktemp("broker")) as valkey:
        yield valkey


@pytest.fixture(scope="module")
def web(wire: CountedWire, broker: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    env = {"DATABASE_URL": wire.url, "REDIS_URL": broker.url, "STRIPE_WEBHOOK_SECRET": f"{FORMER},{SECRET}"}
    with Web("web", tmp_path_factory.mktemp("web") / "web.log", env) as web:
        yield web
        assert "Traceback" not in web.logged()
        for canary in (CARD, SECRET, FORMER):
            assert canary not in web.logged()


def head(
    body: bytes, *framing: str, header: str | None = None, version: str = "1.1", path: str = "/webhook/stripe"
) -> bytes:
    """The head of a delivery of this body; `framing` are its lines about the length."""
    signed = signature(body, SECRET) if header is None else header
    lines = [f"POST {path} HTTP/{version}", "Host: 127.0.0.1", f"Stripe-Signature: {signed}", *framing]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def delivery(body: bytes, **how: Any) -> bytes:
    return head(body, f"Content-Length: {len(body)}", **how) + body


def chunks(body: bytes, size: int = 100) -> bytes:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [*pieces, b""])


class Line:
    """A connection to the server, for bytes that no client library would send."""

    def __init__(self, web: Web) -> None:
        self.socket = socket.create_connection(("127.0.0.1", web.port), timeout=15)
        self._unread = b""

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # the server may answer and hang up before the end
            self.socket.sendall(data)

    def answer(self) -> tuple[int, dict[str, Any]]:
        """The next status and its JSON; (0, {}) if the server hung up without one."""
        while b"\r\n\r\n" not in self._unread:
            if not (data := self._receive()):
                return 0, {}
            self._unread += data
        told, _, rest = self._unread.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in told.split(b"\r\n")[1:])
        length = int(fields[b"content-length"])
        while len(rest) < length and (data := self._receive()):
            rest += data
        self._unread = rest[length:]
        is_json = fields[b"content-type"].startswith(b"application/json")
        return int(told.split()[1]), json.loads(rest[:length]) if is_json else {}

    def _receive(self) -> bytes:
        try:
            return self.socket.recv(65536)
        except ConnectionResetError:
            return b""


def answer_to(web: Web, request: bytes, *, then_close: bool = False) -> tuple[int, dict[str, Any]]:
    with Line(web) as line:
        line.send(request)
        if then_close:
            line.socket.shutdown(socket.SHUT_WR)
        return line.answer()


CHUNKED, ASKING = "Transfer-Encoding: chunked", "Expect: 100-continue"
NEW = (200, {"received": True, "handled": True, "duplicate": False})
DUPLICATE = (200, {"received": True, "handled": True, "duplicate": True})
BODY = written(event())
LARGE = BODY + b" " * (LARGEST_BODY + 1 - len(BODY))


def rows() -> int:
    return StripeEvent.objects.count()


# --- Framing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_of",
    [
        pytest.param(delivery, id="with its length"),
        pytest.param(lambda body: head(body, CHUNKED) + chunks(body), id="in chunks"),
        pytest.param(lambda body: head(body, CHUNKED) + chunks(body, 1), id="byte by byte"),
        pytest.param(
            lambda body: head(body, CHUNKED) + chunks(body)[:-2] + b"X-Seen: 1\r\n\r\n",
            id="in chunks with a trailer",
        ),
        pytest.param(lambda body: delivery(body, version="1.0"), id="by HTTP/1.0"),
        pytest.param(lambda body: head(body, f"Content-Length: 000{len(body)}") + body, id="with leading zeros"),
        pytest.param(lambda body: head(body, f"Content-Length: {len(body)}", ASKING) + body, id="after asking"),
    ],
)  # fmt: skip
def test_a_delivery_is_accepted(web: Web, request_of: Callable[[bytes], bytes]) -> None:
    with Line(web) as line:
        line.send(request_of(BODY))
        if ASKING.encode() in request_of(BODY):
            assert line.socket.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert line.answer() == NEW
    assert rows() == 1


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        pytest.param(head(BODY, "Content-Length: 20") + BODY, 400, id="a length that is too small"),
        pytest.param(head(BODY, "Content-Length: 0") + BODY, 400, id="a length of nothing"),
        pytest.param(head(BODY) + BODY, 400, id="no length at all"),
        pytest.param(head(BODY, version="1.0") + BODY, 400, id="no length at all by HTTP/1.0"),
        pytest.param(head(BODY, "Content-Length: -5") + BODY, 400, id="a negative length"),
        pytest.param(head(BODY, "Content-Length: garbage") + BODY, 400, id="a length that is no number"),
        pytest.param(head(BODY, "Content-Length: ²") + BODY, 400, id="a length in other digits"),
        pytest.param(head(BODY, "Content-Length: 5", "Content-Length: 6") + BODY, 400, id="two lengths"),
        pytest.param(head(BODY, "Content-Length: 5", CHUNKED) + chunks(BODY), 400, id="both"),
        pytest.param(head(BODY, "Transfer-Encoding: gzip") + BODY, 400, id="another coding"),
        pytest.param(head(BODY, CHUNKED) + b"xyz\r\n", 400, id="a chunk of no size"),
        pytest.param(head(BODY, CHUNKED) + b"-5\r\n", 400, id="a chunk of negative size"),
        pytest.param(head(BODY, CHUNKED) + b"2\r\nabc\r\n0\r\n\r\n", 400, id="a chunk too long"),
        pytest.param(head(BODY, CHUNKED) + chunks(BODY)[:-2] + b"bad trailer\r\n\r\n", 400, id="a bad trailer"),
        pytest.param(head(BODY, CHUNKED) + chunks(BODY)[:-2] + b"Host: x\r\n\r\n", 400, id="a second host"),
        pytest.param(b"\r\n\r\n\0\0" + delivery(BODY), 400, id="garbage before it"),
        pytest.param(delivery(BODY).replace(b"Stripe-Signature: ", b"Stripe-Signature "), 400, id="a field of no name"),
        pytest.param(delivery(BODY, header=""), 400, id="an empty signature"),
        pytest.param(delivery(BODY, header=signature(BODY, SECRET) + ",é"), 400, id="a signature that is not ASCII"),
        pytest.param(delivery(BODY, header=signature(BODY, SECRET) + "\0"), 400, id="a signature with NUL"),
        pytest.param(delivery(BODY, header="t=1," * 1000), 400, id="a signature of 4,000 characters"),
        pytest.param(delivery(BODY, header="t=1," * 9000), 431, id="a signature of 36,000 characters"),
        pytest.param(delivery(LARGE), 413, id="a body over 512 KB"),
        pytest.param(head(LARGE, CHUNKED) + chunks(LARGE, 9999), 413, id="chunks over 512 KB"),
        pytest.param(head(BODY, "Content-Length: 10000000"), 413, id="a length of ten megabytes and nothing yet"),
        pytest.param(head(BODY, "Content-Length: " + "9" * 4000), 413, id="a length of 4,000 digits"),
        pytest.param(delivery(b" " * 10_000_000), 413, id="ten megabytes"),
        pytest.param(delivery(BODY).replace(b"POST", b"GET", 1), 405, id="another method"),
        pytest.param(delivery(BODY, path="/webhook/stripe/"), 404, id="a slash too many"),
    ],
)
def test_a_delivery_is_refused_at_once_that_has(web: Web, request_: bytes, status: int) -> None:
    begun = time.monotonic()
    assert answer_to(web, request_)[0] == status
    assert time.monotonic() - begun < 4, "a thread of the server waited for what never comes"
    assert rows() == 0


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(delivery(BODY)[:-30], id="a length"),
        pytest.param(head(BODY, CHUNKED) + chunks(BODY)[:-30], id="chunks"),
        pytest.param(head(BODY, CHUNKED) + chunks(BODY)[:-5], id="chunks but the last"),
    ],
)
def test_a_delivery_that_promises_more_than_it_brings_is_refused_when_the_client_hangs_up(
    web: Web, request_: bytes
) -> None:
    assert answer_to(web, request_, then_close=True)[0] == 400
    assert rows() == 0


def test_a_length_that_is_too_large_does_no_harm_to_what_was_signed_and_came_whole(web: Web) -> None:
    assert answer_to(web, head(BODY, f"Content-Length: {len(BODY) + 500}") + BODY, then_close=True) == NEW


def test_two_deliveries_in_one_breath_are_both_answered(web: Web) -> None:
    with Line(web) as line:
        line.send(delivery(written(event("evt_a"))) + delivery(written(event("evt_b"))))
        assert [line.answer(), line.answer()] == [NEW, NEW]
    assert rows() == 2


def test_a_refused_delivery_does_not_spoil_the_next_one_on_its_connection(web: Web) -> None:
    with Line(web) as line:
        line.send(delivery(BODY, header="") + delivery(BODY))
        assert [line.answer()[0], line.answer()] == [400, NEW]


def test_each_of_the_secrets_is_good(web: Web) -> None:
    assert answer_to(web, delivery(BODY, header=signature(BODY, FORMER))) == NEW
    assert answer_to(web, delivery(BODY)) == DUPLICATE
    assert answer_to(web, delivery(BODY, header=signature(BODY, f"{FORMER},{SECRET}")))[0] == 400


# --- Many at once ----------------------------------------------------------------------------------------------------


def test_sixteen_deliveries_of_one_event_at_once_make_one_row(web: Web) -> None:
    for number in range(5):
        request, start = delivery(written(event(f"evt_{number}"))), threading.Barrier(16)

        def post(request: bytes = request, start: threading.Barrier = start) -> tuple[int, dict[str, Any]]:
            with Line(web) as line:
                start.wait()
                line.send(request)
                return line.answer()

        with ThreadPoolExecutor(16) as pool:
            answers = [post.result() for post in [pool.submit(post) for _ in range(16)]]
        assert sorted(answers, key=str) == [NEW, *[DUPLICATE] * 15]
        assert rows() == number + 1


def test_hundreds_of_events_by_sixteen_callers_are_each_kept_once(web: Web) -> None:
    def post(number: int) -> int:
        return answer_to(web, delivery(written(event(f"evt_{number % 300}"))))[0]

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(post, range(600))) == {200}
    assert rows() == 300


# --- The database ----------------------------------------------------------------------------------------------------


def warm(web: Web) -> None:
    """Every thread of every worker that is likely to answer has its connection to the database."""
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: answer_to(web, delivery(written(event(f"evt_warm_{n}")))), range(64)))


def test_on_the_wire_too_an_event_costs_one_statement(web: Web, wire: CountedWire) -> None:
    warm(web)
    with Line(web) as line:
        for event_id in ("evt_1", "evt_2", "evt_1", "evt_2"):
            before = wire.statements
            line.send(delivery(written(event(event_id))))
            assert line.answer()[0] == 200
            assert wire.statements - before == 1
        for refused in (delivery(BODY, header=""), delivery(written(event(type="charge.succeeded")))):
            before = wire.statements
            line.send(refused)
            line.answer()
            assert wire.statements == before


def kill_connections(_: CountedWire) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def cut_and_mend(wire: CountedWire) -> None:
    wire.cut()
    wire.mend()


@pytest.mark.parametrize("interrupt", [kill_connections, cut_and_mend])
def test_a_delivery_after_the_database_was_restarted_is_kept(
    web: Web, wire: CountedWire, interrupt: Callable[[CountedWire], None]
) -> None:
    warm(web)
    before = rows()
    interrupt(wire)
    with ThreadPoolExecutor(16) as pool:
        requests = [delivery(written(event(f"evt_{number}"))) for number in range(40)]
        assert list(pool.map(lambda request: answer_to(web, request), requests)) == [NEW] * 40
    assert rows() - before == 40


def test_while_the_database_is_away_stripe_is_asked_to_come_again(web: Web, wire: CountedWire) -> None:
    wire.cut()
    try:
        for path in ("/webhook/stripe", "/webhook/stripe/00000000-0000-4000-8000-000000000000"):
            assert answer_to(web, delivery(BODY, path=path)) == (503, {"code": "database_unavailable"})
        assert answer_to(web, delivery(BODY, header=""))[0] == 400
    finally:
        wire.mend()
    assert answer_to(web, delivery(BODY)) == NEW


# --- The broker ------------------------------------------------------------------------------------------------------


def tasks_waiting(broker: Valkey) -> int:
    with redis.Redis.from_url(broker.url) as client:
        return int(client.llen("celery"))


def grows(broker: Valkey) -> bool:
    """Whether a task comes within a second."""
    waiting = tasks_waiting(broker)
    return wait_until(lambda: tasks_waiting(broker) > waiting, seconds=1)


def test_a_new_event_pokes_the_workers_and_a_duplicate_does_not(web: Web, broker: Valkey) -> None:
    waiting = tasks_waiting(broker)
    assert answer_to(web, delivery(BODY)) == NEW
    assert wait_until(lambda: tasks_waiting(broker) > waiting, seconds=10)
    assert wait_until(lambda: not grows(broker), seconds=20)  # pokes of the test before this one may still come
    assert answer_to(web, delivery(BODY)) == DUPLICATE
    assert not grows(broker)


def test_the_broker_may_be_away_and_come_back(web: Web, broker: Valkey) -> None:
    broker.stop()
    try:
        for number in range(20):
            begun = time.monotonic()
            assert answer_to(web, delivery(written(event(f"evt_{number}")))) == NEW
            assert time.monotonic() - begun < 2
    finally:
        broker.start()
    numbers = iter(range(100, 1000))
    assert wait_until(
        lambda: answer_to(web, delivery(written(event(f"evt_{next(numbers)}")))) == NEW and tasks_waiting(broker) > 0,
        seconds=15,
        every=0.2,
    )


def test_a_broker_that_never_answers_holds_nothing_up(wire: CountedWire, tmp_path: Any) -> None:
    with closing(socket.create_server((ports.LOCALHOST, 0))) as silent:
        env = {"DATABASE_URL": wire.url, "REDIS_URL": f"redis://127.0.0.1:{silent.getsockname()[1]}/0"}
        with Web("web", tmp_path / "web.log", env | {"STRIPE_WEBHOOK_SECRET": SECRET}) as web:
            for number in range(20):
                begun = time.monotonic()
                assert answer_to(web, delivery(written(event(f"evt_{number}")))) == NEW
                assert time.monotonic() - begun < 2
    assert rows() == 20
