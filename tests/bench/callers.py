"""A process of four callers that take slots when they are told to, a line of JSON on standard input each time:

`{"what": "ours" | "floor" | "bulk", "tenants": [ids], "first": number, "each": how many a caller, "callers": n}`. It
answers with the seconds that it took. The devices are new, and named by their numbers from `first` on.
"""

import json
import random
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from threading import Barrier
from typing import Any

import django

django.setup()

from django.db import connection  # noqa: E402, these need the applications to be ready

from entitlements import bulk, slots  # noqa: E402
from entitlements.bulk import Wish  # noqa: E402
from entitlements.models import TierAllocation  # noqa: E402
from subscriptions.audit import Actor  # noqa: E402

CALLERS = 4
GATEWAY = Actor.api_key(1)

FLOOR = """
    WITH taken AS (
        UPDATE tier_allocations SET slots_used = slots_used + 1 WHERE id = %(allocation)s
    ), device AS (
        INSERT INTO devices (tenant_id, device_id) VALUES (%(tenant)s, %(device)s) RETURNING id
    )
    INSERT INTO slot_assignments (allocation_id, tier_id, device_id, tenant_id, assigned_at, assigned_by, source_id,
                                  reason, released_by, ended, end_reason)
    SELECT %(allocation)s, %(tier)s, device.id, %(tenant)s, %(now)s, 'apikey:1', '', '', '', '', '' FROM device
    RETURNING assigned_at"""


def ours(tenant: int, device_id: str, now: datetime) -> None:
    assert slots.assign(tenant, device_id, "basic", actor=GATEWAY, now=now).is_new


def floor(tenant: int, device_id: str, now: datetime) -> None:
    allocation, tier = KNOWN[tenant]
    with connection.cursor() as cursor:
        cursor.execute(
            FLOOR, {"allocation": allocation, "tier": tier, "tenant": tenant, "device": device_id, "now": now}
        )
        assert cursor.fetchone()


def thousand(tenant: int, device_id: str, now: datetime) -> None:
    wishes = [Wish(f"{device_id}-{n}", "basic") for n in range(bulk.MOST_DEVICES)]
    assert len(bulk.assign_many(tenant, wishes, actor=GATEWAY, now=now)) == bulk.MOST_DEVICES


KNOWN: dict[int, tuple[int, int]] = {}
DO: dict[str, Callable[[int, str, datetime], None]] = {"ours": ours, "floor": floor, "bulk": thousand}


def main() -> None:
    found = TierAllocation.objects.filter(tier__code="basic").values_list("tenant_id", "pk", "tier_id")
    KNOWN.update({tenant: (pk, tier) for tenant, pk, tier in found})
    with ThreadPoolExecutor(CALLERS) as pool:
        print("ready", flush=True)
        for line in sys.stdin:
            told = json.loads(line)
            together = Barrier(told["callers"])  # nobody takes the work of two, and each has its own connection
            jobs = [(told, told["first"] + n * told["each"], together) for n in range(told["callers"])]
            began = time.perf_counter()
            list(pool.map(lambda job: call(*job), jobs))
            print(json.dumps(time.perf_counter() - began), flush=True)


def call(told: dict[str, Any], first: int, together: Barrier) -> None:
    do, tenants, chance = DO[told["what"]], told["tenants"], random.Random(first)
    connection.ensure_connection()
    together.wait()
    for number in range(first, first + told["each"]):
        do(chance.choice(tenants), f"{told['what']}-{number}", datetime.now(UTC))


if __name__ == "__main__":
    main()
