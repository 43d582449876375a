"""A worker that sweeps when it is told to: `sweep INSTANT` or `notices INSTANT` on standard input, one answer a line.

An answer is {"steps": how many, "seconds": how long, "rss": bytes resident at most so far}. `buffers INSTANT` answers
how many pages the search for what is due reads: {"buffers": how many}.
"""

import json
import resource
import sys
import time
from datetime import datetime
from typing import Any

import django

django.setup()

from django.db import connection  # noqa: E402, these need the applications to be ready

from notifications.schedule import make_notices  # noqa: E402
from subscriptions.sweep import BATCH, DUE, advance  # noqa: E402
from subscriptions.terms import EARLIEST  # noqa: E402


def main() -> None:
    print("ready", flush=True)
    for line in sys.stdin:
        what, _, instant = line.strip().partition(" ")
        now, began = datetime.fromisoformat(instant), time.perf_counter()
        if what == "buffers":
            print(json.dumps({"buffers": buffers(now)}), flush=True)
            continue
        steps = sum(len(batch) for batch in advance(now=now))
        if what == "notices":
            make_notices(now=now)
        seconds = time.perf_counter() - began
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"steps": steps, "seconds": seconds, "rss": rss}), flush=True)


def buffers(now: datetime) -> int:
    where: dict[str, Any] = {"now": now, "deadline": EARLIEST, "id": 0, "limit": BATCH}
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {DUE}", where)
        (plans,) = cursor.fetchone()
    plan = json.loads(plans)[0]["Plan"] if isinstance(plans, str) else plans[0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


if __name__ == "__main__":
    main()
