"""A worker that sweeps when it is told to: `sweep INSTANT` or `notices INSTANT` on standard input, one answer a line.

An answer is {"steps": how many, "seconds": how long, "rss": bytes resident at most so far}.
"""

import json
import resource
import sys
import time
from datetime import datetime

import django

django.setup()

from notifications.schedule import make_notices  # noqa: E402, it needs the applications to be ready
from subscriptions.sweep import advance  # noqa: E402


def main() -> None:
    print("ready", flush=True)
    for line in sys.stdin:
        what, _, instant = line.strip().partition(" ")
        now, began = datetime.fromisoformat(instant), time.perf_counter()
        steps = sum(len(batch) for batch in advance(now=now))
        if what == "notices":
            make_notices(now=now)
        seconds = time.perf_counter() - began
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"steps": steps, "seconds": seconds, "rss": rss}), flush=True)


if __name__ == "__main__":
    main()
