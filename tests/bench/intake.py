"""The intake over HTTP beside the barest view that does its work, and beside dj-stripe's.

All are real gunicorn processes with the same workers on one migrated database, measured in turns within each round; a
ratio is the median of the rounds' ratios. Ours runs with everything that production runs with; the others without any
middleware. dj-stripe fetches from a Stripe that answers out of memory.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from uuid import UUID

from billing_site.local.process import CHECKOUT, module
from billing_site.local.valkey import Valkey
from tests.bench.database import scratch_database
from tests.bench.load import EVENT_ID, Job, Load, Report
from tests.bench.result import Result
from tests.bench.servers import CountedWire, Web
from tests.bench.stand_in import instant
from tests.stripe_sandbox.client import Sandbox

ROUNDS = 21  # short ones: what else the machine does then falls on all of them alike
PER_ROUND = {"new": 300, "duplicate": 300, "floor": 300, "empty": 300, "djstripe": 8}
MEMORY_EVENTS = 20_000
MEGABYTE = 1024 * 1024

SECRET = "whsec_bench"
API_KEY = "sk_test_00000000000000000000bench"  # dj-stripe insists on the form of a real one
ENDPOINT = UUID("00000000-0000-4000-8000-00000000be9c")
OURS, FLOOR, EMPTY, DJSTRIPE = "/webhook/stripe", "/floor", "/empty", f"/djstripe/{ENDPOINT}"


@dataclass
class Field:
    """Everything that runs, and the numbers of the events that were not yet used."""

    load: Load
    body: bytes
    ours: Web
    bare: Web
    _next: int = 0

    def deliver(self, path: str, count: int, *, again: bool = False) -> Report:
        """`again`: the events of the last time, which are duplicates now."""
        first = self._next - count if again else self._next
        self._next = first + count
        web = self.ours if path == OURS else self.bare
        try:
            return self.load.deliver(Job(web.port, path, self.body, SECRET, first, count))
        except RuntimeError as error:
            raise RuntimeError(f"{error}\n{web.tail()}") from None


def measure() -> list[Result]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        database = stack.enter_context(scratch_database())
        broker = stack.enter_context(Valkey(directory / "broker"))
        stripe = stack.enter_context(Sandbox.start(api_key=API_KEY))
        body = _an_event(stripe)
        _register_endpoint(database)
        env = {
            "REDIS_URL": broker.url,
            "STRIPE_API_BASE": stack.enter_context(instant(stripe)),
            "STRIPE_SECRET_KEY": API_KEY,
            "STRIPE_WEBHOOK_SECRET": SECRET,
        }
        load = stack.enter_context(Load.process())
        statements = _statements(load, body, directory, database, env)
        with _servers(directory, env | {"DATABASE_URL": database}) as (ours, bare):
            field = Field(load, body, ours, bare, 10_000)
            results = _speed(field)
            memory = _memory(field)
    return [*results, *statements, memory]


def _speed(field: Field) -> list[Result]:
    for path, count in ((OURS, 500), (FLOOR, 500), (EMPTY, 500), (DJSTRIPE, 16)):
        field.deliver(path, count)
    rates: dict[str, list[float]] = {name: [] for name in PER_ROUND}
    for number in range(ROUNDS):
        order = [("new", OURS), ("floor", FLOOR), ("empty", EMPTY), ("djstripe", DJSTRIPE)]
        for name, path in order if number % 2 else reversed(order):
            rates[name].append(field.deliver(path, PER_ROUND[name]).rate)
            if name == "new":
                rates["duplicate"].append(field.deliver(path, PER_ROUND["duplicate"], again=True).rate)

    print(
        "  requests/s, the slowest and the fastest round:",
        {n: (round(min(r)), round(max(r))) for n, r in rates.items()},
    )

    def line(name: str, ours: str, beside: str, note: str, least: float | None = None) -> Result:
        ratio = median(a / b for a, b in zip(rates[ours], rates[beside], strict=True))
        required = f"ratio ≥ {least:g}" if least else ""
        met = ratio >= least if least else None
        return Result(name, median(rates[ours]), median(rates[beside]), "requests/s", note, ratio, required, met)

    return [
        line("intake.new", "new", "floor", "new events; beside: a bare view that verifies and inserts", 0.8),
        line("intake.duplicate", "duplicate", "new", "the same events again; beside: new events", 0.95),
        line("intake.djstripe", "new", "djstripe", "beside: dj-stripe's stock view on an instant Stripe", 10),
        line("intake.empty", "new", "empty", "new events; beside: an empty view, for information"),
    ]


def _statements(load: Load, body: bytes, directory: Path, database: str, env: dict[str, str]) -> list[Result]:
    """Counted on the wire to the database, BEGIN, COMMIT and health checks included, on connections that are open."""
    with CountedWire(database) as wire, _servers(directory, env | {"DATABASE_URL": wire.url}) as (ours, bare):
        field = Field(load, body, ours, bare)
        field.deliver(DJSTRIPE, 1)  # at first it fetches the customer, the product and more, and races with itself
        for path in (OURS, FLOOR, DJSTRIPE):
            field.deliver(path, 96)

        def per_request(path: str, *, again: bool = False) -> float:
            before = wire.statements
            field.deliver(path, 32, again=again)
            return (wire.statements - before) / 32

        new, duplicate = per_request(OURS), per_request(OURS, again=True)
        floor, djstripe = per_request(FLOOR), per_request(DJSTRIPE)
    return [
        Result("intake.statements_new", new, floor, "statements", "beside: the bare view", new / floor, "1", new == 1),
        Result("intake.statements_again", duplicate, new, "statements", "", duplicate / new, "1", duplicate == 1),
        Result(
            "intake.statements_djstripe", new, djstripe, "statements", "beside: dj-stripe, BEGIN and SAVEPOINT counted",
            new / djstripe,
        ),
    ]  # fmt: skip


def _memory(field: Field) -> Result:
    before = [worker.memory_info().rss for worker in field.ours.workers()]
    for _ in range(4):
        field.deliver(OURS, MEMORY_EVENTS // 4)
    after = [worker.memory_info().rss for worker in field.ours.workers()]
    growth = max(b - a for a, b in zip(before, after, strict=True)) / MEGABYTE
    note = f"resident memory of the larger web worker after {MEMORY_EVENTS:,} more events, which is {growth:+.1f} MB"
    larger, was = max(after) / MEGABYTE, max(before) / MEGABYTE
    return Result("intake.memory", larger, was, "MB", note, larger / was, "growth ≤ 2 MB", growth <= 2)


@contextmanager
def _servers(directory: Path, env: dict[str, str]) -> Iterator[tuple[Web, Web]]:
    with (
        Web("ours", directory / "ours.log", env) as ours,
        Web("bare", directory / "bare.log", env, "tests.bench.bare") as bare,
    ):
        yield ours, bare


def _an_event(stripe: Sandbox) -> bytes:
    """A renewal as the sandbox tells of it, with a place for the id."""
    product = stripe.api("POST", "/v1/products", name="Fleet")
    recurring = {"interval": "month"}
    price = stripe.api(
        "POST", "/v1/prices", product=product["id"], currency="eur", unit_amount=4900, recurring=recurring
    )
    customer = stripe.api("POST", "/v1/customers", email="billing@acme.example", name="Acme")
    subscription = stripe.api(
        "POST", "/v1/subscriptions", customer=customer["id"], items=[{"price": price["id"], "quantity": 3}]
    )
    event = stripe.emit("customer.subscription.updated", subscription["id"])
    return json.dumps(event | {"id": EVENT_ID.decode()}, indent=2).encode()


def _register_endpoint(database: str) -> None:
    where = {"id": "we_bench", "djstripe_uuid": str(ENDPOINT), "url": "http://127.0.0.1/djstripe", "status": "enabled"}
    how = {"secret": SECRET, "livemode": False, "enabled_events": ["*"]}
    script = f"from djstripe.models import WebhookEndpoint; WebhookEndpoint.objects.create(**{where | how})"
    command = module("django", "shell", "--verbosity", "0", "--command", script)
    subprocess.run(command, env=dict(os.environ) | {"DATABASE_URL": database}, cwd=CHECKOUT, check=True)
