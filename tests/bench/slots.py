"""Slots taken by `slots.assign` beside the same rows written by one bare statement, which is told the allocation.

Both in the same processes with the same connections, in turns within each round; a ratio is the median of the rounds'.
"""

import os
import subprocess
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import psycopg

from billing_site.local.postgres import Postgres
from billing_site.local.process import CHECKOUT, module
from tests.bench import fleet
from tests.bench.result import Result
from tests.bench.sweep import SERVER
from tests.bench.told import Told

PROCESSES, CALLERS = 4, 4  # of each
ROUNDS, EACH = 11, 15  # slots a caller and turn: short turns, for what else the machine does falls on both alike
ALLOCATIONS = 1_000
HOT = ALLOCATIONS + 1


@dataclass
class Callers:
    """Sixteen of them, and the number of the next device."""

    processes: list[Told]
    _next: int = 0

    def rate(self, what: str, tenants: list[int], *, each: int = EACH, processes: int = PROCESSES,
             callers: int = CALLERS) -> float:  # fmt: skip
        """Calls a second."""
        began = perf_counter()
        for process in self.processes[:processes]:
            process.tell({"what": what, "tenants": tenants, "first": self._next, "each": each, "callers": callers})
            self._next += each * callers
        for process in self.processes[:processes]:
            process.line()
        return processes * callers * each / (perf_counter() - began)


def measure() -> list[Result]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        url = stack.enter_context(Postgres(directory, configuration=SERVER)).url
        env = dict(os.environ) | {"DATABASE_URL": url}
        subprocess.run(module("django", "migrate", "--verbosity", "0"), env=env, cwd=CHECKOUT, check=True)
        with psycopg.connect(url, autocommit=True) as database:
            # What is prepared while a table is empty is planned for an empty one, until it is analyzed.
            fleet.load(database, [100] * HOT)
        callers = Callers([stack.enter_context(Told("tests.bench.callers", url)) for _ in range(PROCESSES)])
        many = _beside(callers, "slots.many", [*range(1, ALLOCATIONS + 1)], 0.8, "over 1,000 allocations, 16 callers")
        hot = _beside(callers, "slots.hot", [HOT], 0.7, "on one allocation, 16 callers")
        bulk = _bulk(callers)
    return [many, hot, *bulk]


def _beside(callers: Callers, name: str, tenants: list[int], least: float, note: str) -> Result:
    rates: dict[str, list[float]] = {"ours": [], "floor": []}
    for what in rates:
        callers.rate(what, tenants)
    for number in range(ROUNDS):
        for what in sorted(rates, reverse=bool(number % 2)):
            rates[what].append(callers.rate(what, tenants))
    print(f"  {name}, slowest and fastest:", {n: (round(min(r)), round(max(r))) for n, r in rates.items()}, flush=True)
    ratio = median(a / b for a, b in zip(rates["ours"], rates["floor"], strict=True))
    note += "; beside: one bare statement that knows the allocation"
    ours, beside = median(rates["ours"]), median(rates["floor"])
    return Result(name, ours, beside, "slots/s", note, ratio, f"ratio ≥ {least:g}", ratio >= least)


def _bulk(callers: Callers) -> list[Result]:
    rates: dict[str, list[float]] = {"bulk": [], "ours": []}
    for number in range(7):
        for what in sorted(rates, reverse=bool(number % 2)):
            each = 1 if what == "bulk" else 60
            slots = 1_000 if what == "bulk" else 1
            rates[what].append(slots * callers.rate(what, [HOT], each=each, processes=1, callers=1))
    ratio = median(a / b for a, b in zip(rates["bulk"], rates["ours"], strict=True))
    note = "devices in calls of 1,000; beside: one at a time. One caller"
    bulk, single = median(rates["bulk"]), median(rates["ours"])
    return [Result("slots.bulk", bulk, single, "slots/s", note, ratio, "ratio ≥ 10", ratio >= 10)]
