"""A reconciliation of 10,000 links that are all equal, beside bare paging of the same list at Stripe's stand-in."""

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
from tests.stripe_sandbox.client import Sandbox

LINKS = 10_000
ROUNDS = 2
READS_PER_SECOND = 20  # the default of RECONCILE_READS_PER_SECOND; Stripe allows 100 in live mode, 25 in test mode
WITHOUT_LIMIT = 1e6


def measure() -> list[Result]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        url = stack.enter_context(Postgres(directory, configuration=SERVER)).url
        env = dict(os.environ) | {"DATABASE_URL": url}
        subprocess.run(module("django", "migrate", "--verbosity", "0"), env=env, cwd=CHECKOUT, check=True)
        with psycopg.connect(url, autocommit=True) as database:
            fleet.load(database, [0] * LINKS)
        stripe = stack.enter_context(Sandbox.start())
        product = {"name": "Fleet"}
        price = stripe.api(
            "POST", "/v1/prices", currency="eur", unit_amount=4900, recurring={"interval": "month"},
            product_data=product,
        )["id"]  # fmt: skip
        seeded = stripe.seed(LINKS, price)
        comparer = stack.enter_context(Told("tests.bench.comparer", url))
        comparer({"what": "load", "url": stripe.url, "key": stripe.api_key, "price": price, **seeded})
        floors, ours = [], []
        for _ in range(ROUNDS):
            floors.append(comparer({"what": "floor"})["seconds"])
            ours.append(comparer({"what": "run", "per_second": WITHOUT_LIMIT}))
        paced = comparer({"what": "run", "per_second": READS_PER_SECOND})
        statements = comparer({"what": "page"})["statements"]
    wrong = [run for run in (*ours, paced) if (run["compared"], run["found"]) != (LINKS, 0)]
    if wrong:
        raise RuntimeError(f"Not every link was compared and equal: {wrong[0]}")
    seconds, bare = median(run["seconds"] for run in ours), median(floors)
    rate = paced["reads"] / paced["seconds"]
    note = f"10,000 equal links in {paced['reads']} reads; beside: bare paging of the same list"
    return [
        Result("reconcile.links", seconds, bare, "s", note, seconds / bare),
        Result("reconcile.paced", paced["seconds"], None, "s", f"at most {READS_PER_SECOND} reads a second"),
        Result("reconcile.reads", rate, READS_PER_SECOND, "reads/s", "beside: the budget", rate / READS_PER_SECOND,
               f"≤ {READS_PER_SECOND}", rate <= READS_PER_SECOND),
        Result("reconcile.page", statements, None, "statements", "for a page of 100 links, BEGIN and COMMIT included"),
    ]  # fmt: skip
