"""The sweep over a million subscriptions beside the same change as one hand-written statement, on the same tables.

A run is 100,000 subscriptions, scattered over the tables, that become due at one instant; each is used once. Ours is a
process that has everything a worker has. The floor knows what the sweep has to find out: that all are ACTIVE and enter
GRACE, and that no add-on has a will of its own.
"""

import json
import os
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Self

import psycopg

from billing_site.local.postgres import Postgres
from billing_site.local.process import CHECKOUT, module
from tests.bench import million
from tests.bench.result import Result

MEGABYTE = 1024 * 1024
GRACE = timedelta(days=14)
# As a server for a million subscriptions would be set up. fsync and synchronous_commit are on, as they are by default.
SERVER = {"shared_buffers": "1GB", "max_wal_size": "16GB", "checkpoint_timeout": "60min"}
SUSPENSION = timedelta(days=60)

FLOOR = """
    WITH moved AS (
        UPDATE {subscriptions} AS s
           SET status = 'GRACE', version = version + 1,
               grace_end = term_end + make_interval(days => coalesce(plans.grace_days, 14))
          FROM plans WHERE plans.id = s.plan_id AND s.status = 'ACTIVE' AND s.term_deadline <= %(now)s
        RETURNING s.id, s.tenant_id, s.parent_id, s.version, s.term_end, s.grace_end
    ), written AS (
        INSERT INTO {audit} (subscription_id, tenant_id, version, action, effective_at, actor, source_id, reason,
                             request_id, changes)
        SELECT id, tenant_id, version, 'grace_started', term_end, 'clock', '', '', '',
               jsonb_build_object('status', jsonb_build_array('ACTIVE', 'GRACE'),
                                  'grace_end', jsonb_build_array(NULL, grace_end))
          FROM moved
        RETURNING id
    ) SELECT count(*) FROM written"""
FLOOR_WITH_NOTICES = FLOOR.replace(
    ") SELECT count",
    """), told AS (
        INSERT INTO notices (subscription_id, tenant_id, kind, anchor, state, attempts, next_attempt_at, recipients,
                             error)
        SELECT id, tenant_id, 'grace_started', term_end, 'PENDING', 0, %(now)s, '[]', '' FROM moved
         WHERE parent_id IS NULL
    ) SELECT count""",
)
BARE = [
    "CREATE TABLE bare_subscriptions AS SELECT * FROM subscriptions",
    "CREATE TABLE bare_audit AS SELECT * FROM subscription_audit WITH NO DATA",
    "VACUUM (ANALYZE) bare_subscriptions",
]


class Sweeper:
    """A process of ours that sweeps when it is told to."""

    def __init__(self, database: str) -> None:
        self._process = subprocess.Popen(
            module("tests.bench.sweeper"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_env(database),
            cwd=CHECKOUT,
            text=True,
        )

    def __enter__(self) -> Self:
        self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def __call__(self, now: datetime, what: str = "sweep") -> dict[str, Any]:
        assert self._process.stdin
        self._process.stdin.write(f"{what} {now.isoformat()}\n")
        self._process.stdin.flush()
        found: dict[str, Any] = json.loads(self._answer())
        return found

    def _answer(self) -> str:
        assert self._process.stdout
        line: str = self._process.stdout.readline()
        if not line:
            raise RuntimeError("The sweeper has ended: see its error above.")
        return line


def _env(database: str) -> dict[str, str]:
    return dict(os.environ) | {"DATABASE_URL": database}


def due(group: int) -> datetime:
    """When the last of a group's terms is over."""
    return datetime(2026, 2, 1, group, 59, tzinfo=UTC)


def measure() -> list[Result]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        url = stack.enter_context(Postgres(directory, configuration=SERVER)).url
        subprocess.run(module("django", "migrate", "--verbosity", "0"), env=_env(url), cwd=CHECKOUT, check=True)
        database = stack.enter_context(psycopg.connect(url, autocommit=True))
        database.execute("SET TIME ZONE 'UTC'")
        print("  loading a million subscriptions", flush=True)
        million.load(database)
        one, two = (stack.enter_context(Sweeper(url)) for _ in range(2))
        idle = _idle(one, database)
        memory_before = one(due(0) - timedelta(minutes=54))
        print(f"  {memory_before['steps']:,} due in {memory_before['seconds']:.2f} s", flush=True)
        one(due(0))
        speed = _beside(one, database, "sweep", FLOOR, [1, 2, 3, 4, 5, 6], "sweep.steps", 1.3)
        one(due(6), "notices")
        with_notices = _beside(one, database, "notices", FLOOR_WITH_NOTICES, [7, 8, 9], "sweep.with_notices", 1.5)
        bare = _bare(database, speed)
        memory = _memory(memory_before, one(due(9) + GRACE))
        workers = _two_workers(one, two)
    return [speed, with_notices, bare, workers, memory, *idle]


def _beside(
    ours: Sweeper, database: psycopg.Connection, what: str, floor: str, groups: list[int], name: str, most: float
) -> Result:
    """Both in turns, one group each."""
    taken: dict[str, list[float]] = {"ours": [], "floor": []}
    turns = ["ours", "floor", "floor", "ours"] * 3
    for group, turn in zip(groups, turns, strict=False):
        if turn == "ours":
            answer = ours(due(group), what)
            steps, seconds = answer["steps"], answer["seconds"]
        else:
            steps, seconds = _statement(database, floor, due(group))
        taken[turn].append(seconds / steps * 100_000)
        print(f"  {name} {turn}: {steps:,} steps in {seconds:.2f} s", flush=True)
    seconds, beside = median(taken["ours"]), median(taken["floor"])
    note = f"{100_000 / seconds:,.0f} steps/s; beside: one statement, {100_000 / beside:,.0f} rows/s"
    return Result(
        name, seconds, beside, "s for 100,000", note, seconds / beside, f"ratio ≤ {most}", seconds / beside <= most
    )


def _statement(database: psycopg.Connection, statement: str, now: datetime, **tables: str) -> tuple[int, float]:
    names = {"subscriptions": "subscriptions", "audit": "subscription_audit"} | tables
    began = perf_counter()
    row = database.execute(statement.format(**names).encode(), {"now": now}).fetchone()  # and its commit
    assert row
    return row[0], perf_counter() - began


def _bare(database: psycopg.Connection, speed: Result) -> Result:
    """For information: what triggers, constraints and indexes cost the floor."""
    for statement in BARE:
        database.execute(statement.encode())
    database.execute("UPDATE bare_subscriptions SET status = 'ACTIVE' WHERE id % 10 = 0")
    tables = {"subscriptions": "bare_subscriptions", "audit": "bare_audit"}
    steps, seconds = _statement(database, FLOOR, due(9), **tables)
    seconds *= 100_000 / steps
    note = f"beside: the statement on tables without constraint, trigger or index, {100_000 / seconds:,.0f} rows/s"
    return Result("sweep.bare", speed.ours, seconds, "s for 100,000", note, speed.ours / seconds)


def _two_workers(one: Sweeper, two: Sweeper) -> Result:
    alone, together = [], []
    for group in range(4):
        now = due(group) + GRACE + SUSPENSION
        if group % 4 in (0, 3):
            answer = one(now)
            alone.append(answer["seconds"] / answer["steps"])
        else:
            began = perf_counter()
            with ThreadPoolExecutor(2) as pool:
                steps = sum(answer["steps"] for answer in pool.map(lambda worker, now=now: worker(now), (one, two)))
            together.append((perf_counter() - began) / steps)
    ratio = median(together) / median(alone)
    note = "two workers at once; beside: one. They and the database share the cores"
    return Result("sweep.two_workers", median(together) * 1e5, median(alone) * 1e5, "s for 100,000", note, ratio,
                  "ratio ≤ 1", ratio <= 1)  # fmt: skip


def _memory(few: dict[str, Any], many: dict[str, Any]) -> Result:
    growth = (many["rss"] - few["rss"]) / MEGABYTE
    note = f"resident at most after {many['steps']:,} steps at once; beside: after {few['steps']:,}; {growth:+.1f} MB"
    return Result("sweep.memory", many["rss"] / MEGABYTE, few["rss"] / MEGABYTE, "MB", note, None, "growth ≤ 10 MB",
                  growth <= 10)  # fmt: skip


def _idle(one: Sweeper, database: psycopg.Connection) -> list[Result]:
    """A tick with nothing due."""
    now = datetime(2026, 1, 15, tzinfo=UTC)
    ours = median(one(now)["seconds"] for _ in range(50)) * 1000
    floor = []
    for _ in range(50):
        began = perf_counter()
        database.execute("SELECT 1").fetchone()
        floor.append(perf_counter() - began)
    beside = median(floor) * 1000
    buffers = one(now, "buffers")["buffers"]
    return [
        Result("sweep.idle", ours, beside, "ms", "a tick with nothing due; beside: SELECT 1", ours / beside, "≤ 5 ms",
               ours <= 5),
        Result("sweep.idle_buffers", buffers, None, "buffers", "that a tick with nothing due reads of a million rows"),
    ]  # fmt: skip
