"""Events applied by one worker process while Stripe answers at once; and a queue of 50,000 that an outage left behind.

The floor does the least that would be right in a quiet world: it claims an event, asks Stripe, and writes the change,
its evidence and the event's end in one statement. Every question changes one thing: what was cancelled is resumed, and
cancelled again.
"""

import json
import os
import subprocess
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psycopg

from billing_site.local.postgres import Postgres
from billing_site.local.process import CHECKOUT, module
from tests.bench.result import Result
from tests.bench.stand_in import instant
from tests.bench.sweep import SERVER
from tests.bench.told import Told
from tests.stripe_sandbox.client import Sandbox

SUBSCRIPTIONS = 200
ROUNDS, EACH = 9, 100  # events a round
BEHIND, BEHIND_SUBSCRIPTIONS, FRESH = 50_000, 5_000, 40

RING = """
    INSERT INTO stripe_events (event_id, type, object_id, stripe_subscription_id, livemode, created_at, received_at,
                               state, attempts, replays, next_attempt_at, outcome, error_code, error)
    SELECT 'evt_' || %(name)s || '_' || n, 'customer.subscription.updated', link, link, false, now(), now(), 'PENDING',
           0, 0, now() - make_interval(secs => %(seconds_ago)s), '', '', ''
      FROM unnest(%(links)s::text[]) WITH ORDINALITY AS about (link, n)"""


@dataclass
class Bell:
    """Rings doorbells, as the intake does."""

    database: "psycopg.Connection[Any]"
    _rung: int = 0

    def ring(self, links: list[str], seconds_ago: float = 0) -> str:
        """The beginning of the events' ids."""
        self._rung += 1
        name = f"{self._rung}"
        self.database.execute(RING, {"name": name, "links": links, "seconds_ago": seconds_ago})
        return f"evt_{name}_"


def measure() -> list[Result]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        url = stack.enter_context(Postgres(directory, configuration=SERVER)).url
        env = dict(os.environ) | {"DATABASE_URL": url}
        subprocess.run(module("django", "migrate", "--verbosity", "0"), env=env, cwd=CHECKOUT, check=True)
        stripe = stack.enter_context(Sandbox.start())
        price = stripe.api("POST", "/v1/prices", currency="eur", unit_amount=4900, product_data={"name": "Fleet"},
                           recurring={"interval": "month"})["id"]  # fmt: skip
        at_stripe = stripe.seed(BEHIND_SUBSCRIPTIONS, price)
        os.environ["STRIPE_API_BASE"] = stack.enter_context(instant(stripe, flipping=_cancelled_or_not))
        os.environ["STRIPE_SECRET_KEY"] = stripe.api_key
        workers = [stack.enter_context(Told("tests.bench.drainer", url)) for _ in range(2)]
        bell = Bell(stack.enter_context(psycopg.connect(url, autocommit=True)))
        workers[0]({"do": "links", "customers": at_stripe["customers"], "price": price})
        return [*_throughput(bell, workers[0], at_stripe["subscriptions"]), *_behind(bell, workers, at_stripe)]


def _cancelled_or_not(body: bytes) -> bytes:
    """The same subscription, cancelled at its period's end if it was not, and the other way round."""
    found = json.loads(body)
    if found.get("object") == "subscription":
        is_cancelled = not found["cancel_at_period_end"]
        found["cancel_at_period_end"] = is_cancelled
        found["cancel_at"] = found["items"]["data"][0]["current_period_end"] if is_cancelled else None
    return json.dumps(found).encode()


def _throughput(bell: Bell, worker: Told, subscriptions: list[str]) -> list[Result]:
    some = subscriptions[:SUBSCRIPTIONS]
    bell.ring(some)
    worker({"do": "ours", "events": 0})  # they begin
    bell.database.execute("ANALYZE")
    rates: dict[str, list[float]] = {"ours": [], "floor": []}
    statements: dict[str, float] = {}
    for number in range(ROUNDS + 1):  # the first one warms up
        for what in sorted(rates, reverse=bool(number % 2)):
            bell.ring(some[:EACH])
            done = worker({"do": what, "events": 0})
            assert done["tried"] == EACH, done
            statements[what] = done["statements"] / EACH
            if number:
                rates[what].append(EACH / done["seconds"])
    print("  events/s, slowest and fastest:", {n: (round(min(r)), round(max(r))) for n, r in rates.items()}, flush=True)
    ratio = median(a / b for a, b in zip(rates["ours"], rates["floor"], strict=True))
    note = "one worker process, each event brings one change, Stripe answers out of memory; beside: claim, ask, write"
    return [
        Result("inbox.events", median(rates["ours"]), median(rates["floor"]), "events/s", note, ratio),
        Result("inbox.statements", statements["ours"] + 2, statements["floor"] + 2, "statements",
               "an event, BEGIN and COMMIT included", None, "≤ 8", statements["ours"] + 2 <= 8.1),
    ]  # fmt: skip


def _behind(bell: Bell, workers: list[Told], at_stripe: dict[str, list[str]]) -> list[Result]:
    """50,000 events wait, ten for each of 5,000 subscriptions. Two workers drain them while new ones come in."""
    links = at_stripe["subscriptions"] * (BEHIND // BEHIND_SUBSCRIPTIONS)
    bell.ring(links[SUBSCRIPTIONS:] + links[:SUBSCRIPTIONS], seconds_ago=3600)
    bell.database.execute("ANALYZE stripe_events")
    began, waits = time.perf_counter(), []
    for worker in workers:
        worker.tell({"do": "ours", "events": 0})
    drained = threading.Event()

    def wait() -> None:
        for worker in workers:
            worker.line()
        drained.set()

    threading.Thread(target=wait, daemon=True).start()
    for number in range(FRESH):
        rung = time.perf_counter()
        name = bell.ring([at_stripe["subscriptions"][-1 - number]])
        while bell.database.execute(
            "SELECT EXISTS (SELECT FROM stripe_events WHERE event_id = %s AND state = 'PENDING')", [f"{name}1"]
        ).fetchone() == (True,):
            if drained.wait(0.002):
                break
        if drained.is_set():
            break
        waits.append(time.perf_counter() - rung)
    drained.wait()
    seconds = time.perf_counter() - began
    left = bell.database.execute("SELECT count(*) FROM stripe_events WHERE state <> 'DONE'").fetchone()
    print(f"  {BEHIND:,} behind: drained in {seconds:.1f} s, {left} left, {len(waits)} new ones meanwhile", flush=True)
    longest = max(waits, default=0.0)
    return [
        Result("inbox.behind", BEHIND / seconds, None, "events/s",
               f"{BEHIND:,} events about {BEHIND_SUBSCRIPTIONS:,} subscriptions, two worker processes"),
        Result("inbox.fresh", longest, seconds, "seconds",
               f"the longest that one of {len(waits)} new events waited meanwhile; beside: until the queue was empty",
               longest / seconds, "≤ 1 s", longest <= 1),
    ]  # fmt: skip
