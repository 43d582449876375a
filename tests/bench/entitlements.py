"""The summary of what a tenant may use: of one with 10,000 devices beside one with ten, and the bare counters."""

import os
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import psycopg

from billing_site.local.postgres import Postgres
from billing_site.local.process import CHECKOUT, module
from tests.bench import fleet
from tests.bench.result import Result
from tests.bench.sweep import SERVER
from tests.bench.told import Told

FEW, MANY = 1, 2  # the tenants
ROUNDS, EACH = 41, 25


def measure() -> list[Result]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        url = stack.enter_context(Postgres(directory, configuration=SERVER)).url
        env = dict(os.environ) | {"DATABASE_URL": url}
        subprocess.run(module("django", "migrate", "--verbosity", "0"), env=env, cwd=CHECKOUT, check=True)
        with psycopg.connect(url, autocommit=True) as database:
            fleet.load(database, [10, 10_000, *[100] * 500])
        return _summaries(stack.enter_context(Told("tests.bench.summaries", url)))


def _summaries(ask: Told) -> list[Result]:
    turns = [("many", "ours", MANY), ("few", "ours", FEW), ("floor", "floor", MANY), ("counted", "counted", MANY)]
    taken: dict[str, list[float]] = {name: [] for name, *_ in turns}
    for number in range(ROUNDS):
        for name, what, tenant in turns if number % 2 else reversed(turns):
            taken[name].append(ask({"what": what, "tenant": tenant, "times": EACH}) / EACH * 1000)

    def line(name: str, beside: str, note: str, most: float | None = None) -> Result:
        ratio = median(a / b for a, b in zip(taken["many"], taken[beside], strict=True))
        required, met = (f"ratio ≤ {most:g}", ratio <= most) if most else ("", None)
        return Result(name, median(taken["many"]), median(taken[beside]), "ms", note, ratio, required, met)

    return [
        line("entitlements.summary", "few", "10,000 devices; beside: ten", 1.2),
        line("entitlements.floor", "floor", "beside: the bare sum of the counters, for information"),
        line("entitlements.counted", "counted", "beside: counting the devices instead, for information"),
    ]
