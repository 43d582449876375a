"""A worker that compares with Stripe when it is told to; each answer is a line of JSON.

`load` makes, of what a sandbox was seeded with, the same here; `floor` pages Stripe's list and does nothing with it;
`run` is a whole reconciliation, at so many reads a second.
"""

import json
import sys
import time
from datetime import UTC, datetime
from typing import Any

import django

django.setup()

from django.conf import settings  # noqa: E402, these need the applications to be ready
from django.db import connection  # noqa: E402
from django.test.utils import CaptureQueriesContext  # noqa: E402
from django.utils import timezone  # noqa: E402
from djstripe.models import Customer  # noqa: E402

from subscriptions.models import Plan, PlanPrice  # noqa: E402
from webhooks import stripe_api  # noqa: E402
from webhooks.models import StripeLink, StripePrice  # noqa: E402
from webhooks.reconciling import reconcile  # noqa: E402
from webhooks.reconciling.comparing import Asker, By  # noqa: E402
from webhooks.reconciling.pace import Pacer  # noqa: E402

EQUAL = """
    UPDATE subscriptions AS s
       SET price_id = %s, auto_renews = true, term_start = bought.term_start, anniversary = bought.term_start,
           term_end = bought.term_end, term_deadline = bought.term_end + '72 hours'
      FROM unnest(%s::bigint[], %s::timestamptz[], %s::timestamptz[]) AS bought (id, term_start, term_end)
     WHERE s.id = bought.id"""


def listed() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    more = True
    while more:
        after = found[-1]["id"] if found else ""
        rows, more = stripe_api.list_page(
            "/v1/subscriptions", after=after, status="all", expand=[*reconcile.EXPANDED]
        )  # fmt: skip
        found += rows
    return found


def load(said: dict[str, Any]) -> dict[str, Any]:
    """Tenant and subscription n of the fleet are customer and subscription n of the sandbox."""
    settings.STRIPE_API_BASE, settings.STRIPE_SECRET_KEY = said["url"], said["key"]
    price = PlanPrice.objects.create(
        plan=Plan.objects.get(code="fleet"), currency="EUR", amount_minor=4900, interval="month"
    )
    StripePrice.objects.create(pk=said["price"], plan_price=price)
    numbers = {sub: n for n, sub in enumerate(said["subscriptions"], 1)}
    Customer.objects.bulk_create(
        Customer(id=customer, subscriber_id=n, livemode=False) for n, customer in enumerate(said["customers"], 1)
    )
    terms = {}
    for row in listed():
        item = row["items"]["data"][0]
        start, end = (datetime.fromtimestamp(item[f"current_period_{side}"], UTC) for side in ("start", "end"))
        terms[numbers[row["id"]]] = (start, end)
    starts, ends = zip(*terms.values(), strict=True)
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE subscriptions DISABLE TRIGGER USER")
        cursor.execute(EQUAL, [price.pk, [*terms], [*starts], [*ends]])
        cursor.execute("ALTER TABLE subscriptions ENABLE TRIGGER USER")
    StripeLink.objects.bulk_create(
        StripeLink(pk=sub, subscription_id=n, ticket=1, applied_ticket=1) for sub, n in numbers.items()
    )
    with connection.cursor() as cursor:
        cursor.execute("VACUUM (ANALYZE)")
    return {"loaded": len(terms)}


def run(said: dict[str, Any]) -> dict[str, Any]:
    ask = Asker(Pacer(said["per_second"], time.monotonic, time.sleep))
    began = time.perf_counter()
    done = reconcile.go_on(lambda run: By(ask, timezone.now, f"reconciliation:{run.pk}"), now=timezone.now)
    seconds = time.perf_counter() - began
    assert done is not None
    return {"seconds": seconds, "reads": done.reads, "compared": done.compared, "found": done.found}


def floor(said: dict[str, Any]) -> dict[str, Any]:
    began = time.perf_counter()
    return {"compared": len(listed()), "seconds": time.perf_counter() - began}


def page(said: dict[str, Any]) -> dict[str, Any]:
    """The statements of the first page of a run, which is taken to its end."""
    seen: list[int] = []
    ask = Asker(Pacer(1e6, time.monotonic, time.sleep))

    with CaptureQueriesContext(connection) as statements:
        reconcile.go_on(
            lambda run: By(ask, timezone.now, f"reconciliation:{run.pk}"), now=timezone.now,
            tick=lambda run: seen.append(len(statements)),
        )  # fmt: skip
    return {"statements": seen[1] - seen[0]}


DOES = {"load": load, "run": run, "floor": floor, "page": page}


def main() -> None:
    print("ready", flush=True)
    for line in sys.stdin:
        said = json.loads(line)
        print(json.dumps(DOES[said["what"]](said)), flush=True)


if __name__ == "__main__":
    main()
