"""A small load generator: signed deliveries over kept-alive connections of loopback, from a process of its own."""

import multiprocessing
import selectors
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tests.bench.deliveries import signature

CONNECTIONS = 16
SLOWEST_SECONDS = 120.0
EVENT_ID = b"evt_bench_id"  # stands in the body where each delivery has an id of its own


@dataclass(frozen=True)
class Job:
    """Deliver events `first` … `first + count - 1` to a path of the server on this port of loopback."""

    port: int
    path: str
    body: bytes
    secret: str
    first: int
    count: int


@dataclass(frozen=True)
class Questions:
    """Send these requests, whole as they are, over so many connections to the server on this port of loopback."""

    port: int
    requests: Sequence[bytes]
    connections: int = CONNECTIONS


@dataclass(frozen=True)
class Report:
    seconds: float
    statuses: Counter[int]

    @property
    def rate(self) -> float:
        return self.statuses[200] / self.seconds


class Load:
    """The process that delivers; it signs before it measures."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    @classmethod
    @contextmanager
    def process(cls) -> Iterator["Load"]:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield cls(pool)

    def deliver(self, job: Job) -> Report:
        """Raises RuntimeError unless every delivery was answered with 200."""
        report = self._pool.submit(_deliver, job).result(SLOWEST_SECONDS * 1.5)
        if report.statuses != Counter({200: job.count}):
            raise RuntimeError(f"{job.path} answered {dict(report.statuses)} to {job.count} deliveries")
        return report

    def ask(self, questions: Questions) -> Report:
        """Raises RuntimeError unless every question was answered with 200."""
        report = self._pool.submit(_ask, questions).result(SLOWEST_SECONDS * 1.5)
        if report.statuses != Counter({200: len(questions.requests)}):
            raise RuntimeError(f"{dict(report.statuses)} to {len(questions.requests)} questions")
        return report


def _deliver(job: Job) -> Report:
    return _sent(job.port, [_request(job, number) for number in range(job.first, job.first + job.count)], CONNECTIONS)


def _ask(questions: Questions) -> Report:
    return _sent(questions.port, [*questions.requests], questions.connections)


def _sent(port: int, waiting: list[bytes], connections: int) -> Report:
    statuses: Counter[int] = Counter()
    with ExitStack() as stack:
        poll = stack.enter_context(selectors.DefaultSelector())
        lines: dict[int, socket.socket] = {}
        for _ in range(min(connections, len(waiting))):
            line = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            lines[line.fileno()] = line
            poll.register(line, selectors.EVENT_READ)
        answers = dict.fromkeys(lines, b"")
        begun = time.perf_counter()
        for line in lines.values():
            line.sendall(waiting.pop())
        while lines:
            ready = poll.select(SLOWEST_SECONDS)
            if not ready or time.perf_counter() - begun > SLOWEST_SECONDS:
                raise TimeoutError(f"Port {port} left requests unanswered")
            for number in (key.fd for key, _ in ready):
                data = lines[number].recv(65536)
                if not data:
                    raise ConnectionError(f"Port {port} hung up")
                answers[number] += data
                if not _is_whole(answers[number]):
                    continue
                statuses[int(answers[number][9:12])] += 1
                answers[number] = b""
                if waiting:
                    lines[number].sendall(waiting.pop())
                else:
                    poll.unregister(number)
                    del lines[number]
        return Report(time.perf_counter() - begun, statuses)


def _request(job: Job, number: int) -> bytes:
    body = job.body.replace(EVENT_ID, b"evt_%012d" % number)
    head = (
        f"POST {job.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: Stripe/1.0 (+https://stripe.com/docs/webhooks)\r\n"
        f"Accept: */*; q=0.5, application/xml\r\nContent-Type: application/json; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nStripe-Signature: {signature(body, job.secret)}\r\n\r\n"
    )
    return head.encode() + body


def _is_whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    if not end:
        return False
    at = head.lower().find(b"\r\ncontent-length: ")
    if at < 0:  # chunked
        return body.endswith(b"0\r\n\r\n")
    return len(body) >= int(head[at + 18 :].split(b"\r\n", 1)[0])
