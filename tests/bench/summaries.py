"""A process that asks for summaries when it is told to: `{"what": …, "tenant": id, "times": n}`; answers seconds."""

import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime

import django

django.setup()

from django.db import connection  # noqa: E402, these need the applications to be ready

from entitlements.features import entitlements_of  # noqa: E402
from entitlements.models import SlotAssignment  # noqa: E402

FLOOR = """
    SELECT tier.code, sum(a.slot_limit), sum(a.slots_used)
      FROM tier_allocations AS a JOIN device_tiers AS tier ON tier.id = a.tier_id
     WHERE a.tenant_id = %s AND a.is_open GROUP BY tier.id ORDER BY tier.position"""


def ours(tenant: int) -> None:
    assert len(entitlements_of(tenant, datetime.now(UTC)).slots) == 3


def floor(tenant: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute(FLOOR, [tenant])
        assert len(cursor.fetchall()) == 3


def counted(tenant: int) -> None:
    assert SlotAssignment.objects.filter(tenant=tenant, device__tenant=tenant, released_at=None).count()


DO: dict[str, Callable[[int], None]] = {"ours": ours, "floor": floor, "counted": counted}


def main() -> None:
    print("ready", flush=True)
    for line in sys.stdin:
        told = json.loads(line)
        do, began = DO[told["what"]], time.perf_counter()
        for _ in range(told["times"]):
            do(told["tenant"])
        print(json.dumps(time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    main()
