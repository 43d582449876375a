"""The access check over HTTP with a million devices in the database, one device a request and a thousand.

One: beside a bare view that runs the same prepared statement, and beside DRF with the ORM, in turns within each round;
a ratio is the median of the rounds' ratios. Ours runs with everything that production runs with. The devices asked for
are scattered over all tenants.
"""

import json
import os
import random
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from statistics import median
from urllib.request import Request, urlopen

import psycopg

from billing_site.local.postgres import Postgres
from billing_site.local.process import CHECKOUT, module
from tests.bench import fleet
from tests.bench.load import Load, Questions
from tests.bench.result import Result
from tests.bench.servers import CountedWire, Web
from tests.bench.sweep import SERVER

TENANTS, DEVICES = 1_000, 1_000  # devices of each
PER_CALL = 1_000
ROUNDS, PER_ROUND = 15, {"one": 300, "floor": 300, "orm": 100}
BATCH_ROUNDS, CALLS, CALLERS = 9, 24, 4
SECRET = "tk_bench_0123456789abcdefghijklmnopqrstuvwxyz"
KEY = """
    INSERT INTO api_keys (prefix, sha256, name, scopes, last_used_at)
    VALUES ('bench', %s, 'bench', '["access:read"]', '2099-01-01Z')"""
HEAD = f"Host: 127.0.0.1\r\nUser-Agent: bench\r\nAuthorization: Bearer {SECRET}\r\n"
CHANCE = random.Random(1)


@dataclass
class Field:
    """Everything that runs."""

    load: Load
    ours: Web
    bare: Web

    def single(self, what: str) -> float:
        """Questions a second."""
        requests = [_get(what, *_device()) for _ in range(PER_ROUND[what])]
        web = self.ours if what == "one" else self.bare
        try:
            return self.load.ask(Questions(web.port, requests)).rate
        except RuntimeError as error:
            raise RuntimeError(f"{what}: {error}\n{web.tail()}") from None

    def batch(self, calls: int = CALLS, callers: int = CALLERS) -> float:
        """Devices a second."""
        questions = Questions(self.ours.port, [_post() for _ in range(calls)], callers)
        return PER_CALL * self.load.ask(questions).rate


def measure() -> list[Result]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        url = stack.enter_context(Postgres(directory, configuration=SERVER)).url
        env = dict(os.environ) | {"DATABASE_URL": url}
        subprocess.run(module("django", "migrate", "--verbosity", "0"), env=env, cwd=CHECKOUT, check=True)
        print(f"  loading {TENANTS * DEVICES:,} devices", flush=True)
        with psycopg.connect(url, autocommit=True) as database:
            database.execute("SET TIME ZONE 'UTC'")
            database.execute(KEY, [sha256(SECRET.encode()).hexdigest()])
            fleet.load(database, [DEVICES] * TENANTS)
        load = stack.enter_context(Load.process())
        with CountedWire(url) as wire, _servers(directory, wire.url) as (ours, bare):
            statements = _statements(Field(load, ours, bare), wire)
        with _servers(directory, url) as (ours, bare):
            _insist_on_true_answers(ours.port, bare.port)
            field = Field(load, ours, bare)
            return [*_single(field), _batch(field), *statements]


def _single(field: Field) -> list[Result]:
    for what in PER_ROUND:
        field.single(what)
    rates: dict[str, list[float]] = {what: [] for what in PER_ROUND}
    for number in range(ROUNDS):
        for what in sorted(rates, reverse=bool(number % 2)):
            rates[what].append(field.single(what))
    print(
        "  requests/s, slowest and fastest:", {n: (round(min(r)), round(max(r))) for n, r in rates.items()}, flush=True
    )

    def line(name: str, beside: str, note: str, least: float) -> Result:
        ratio = median(a / b for a, b in zip(rates["one"], rates[beside], strict=True))
        ours, floor = median(rates["one"]), median(rates[beside])
        return Result(name, ours, floor, "requests/s", note, ratio, f"ratio ≥ {least:g}", ratio >= least)

    return [
        line("access.one", "floor", "beside: a bare view with the same prepared statement", 0.7),
        line("access.orm", "orm", "beside: DRF with the ORM, three queries", 2),
    ]


def _batch(field: Field) -> Result:
    field.batch()
    rates, singles = [], []
    for _ in range(BATCH_ROUNDS):
        rates.append(field.batch())
        singles.append(field.single("floor"))
    print(f"  devices/s, slowest and fastest: {min(rates):,.0f}, {max(rates):,.0f}", flush=True)
    ratio = median(a / b for a, b in zip(rates, singles, strict=True))
    note = f"{PER_CALL:,} in a call, {CALLERS} callers; beside: the bare view, one in a request"
    rate = median(rates)
    return Result("access.batch", rate, median(singles), "devices/s", note, ratio, "≥ 20,000", rate >= 20_000)


def _statements(field: Field, wire: CountedWire) -> list[Result]:
    """Counted on the wire to the database, on connections that are open."""
    field.single("one")
    field.batch(32, 16)

    def counted(ask: Callable[[], int]) -> float:
        before = wire.statements
        count = ask()
        return (wire.statements - before) / count

    def one() -> int:
        field.single("one")
        return PER_ROUND["one"]

    def many() -> int:
        field.batch(16, 16)
        return 16

    a_question, a_call = counted(one), counted(many)
    return [
        Result("access.statements_one", a_question, None, "statements", "", None, "1", a_question == 1),
        Result("access.statements_batch", a_call, None, "statements", "a call of 1,000", None, "≤ 3", a_call <= 3),
    ]


@contextmanager
def _servers(directory: Path, database: str) -> Iterator[tuple[Web, Web]]:
    env = {"DATABASE_URL": database}
    with (
        Web("ours", directory / "ours.log", env) as ours,
        Web("bare", directory / "bare.log", env, "tests.bench.bare") as bare,
    ):
        yield ours, bare


def _device() -> tuple[str, str]:
    tenant = CHANCE.randint(1, TENANTS)
    return f"fleet-{tenant}", f"fleet-{tenant}-{CHANCE.randint(1, DEVICES)}"


PATHS = {
    "one": "/api/v1/platform/tenants/{}/devices/{}/access",
    "floor": "/access/{}/{}",
    "orm": "/orm/{}/{}",
}


def _get(what: str, *device: str) -> bytes:
    return f"GET {PATHS[what].format(*device)} HTTP/1.1\r\n{HEAD}\r\n".encode()


def _post() -> bytes:
    asked = [{"tenant": tenant, "device_id": device} for tenant, device in (_device() for _ in range(PER_CALL))]
    body = json.dumps({"devices": asked}).encode()
    head = f"POST /api/v1/platform/access HTTP/1.1\r\n{HEAD}Content-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _insist_on_true_answers(ours: int, bare: int) -> None:
    """Whatever is fast says the same, and that a device is served."""
    device = _device()
    said = {}
    for what, port in (("one", ours), ("orm", bare)):
        url = f"http://127.0.0.1:{port}{PATHS[what].format(*device)}"
        with urlopen(Request(url, headers={"Authorization": f"Bearer {SECRET}"}), timeout=30) as answer:
            said[what] = json.loads(answer.read())
    assert said["one"]["allowed"], said
    assert len(said["one"]["features"]) == 6, said
    for name, value in said["orm"].items():
        assert said["one"][name] == value, said
