"""A worker that drains the inbox when it is told to, a line of JSON on standard input each time:

`{"do": "links", "customers": [...], "subscriptions": [...], "price": …}` makes our side of what was bought at Stripe;
`{"do": "ours" | "floor", "events": n}` applies events until that many are done (all, for 0), and answers with how many
it tried, the seconds that it took and its statements.
"""

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import django

django.setup()

from django.db import connection, transaction  # noqa: E402, these need the applications to be ready
from django.utils import timezone  # noqa: E402

from tests.builders import PlanPriceFactory, TenantFactory  # noqa: E402
from webhooks import inbox, stripe_api  # noqa: E402
from webhooks.buying import newcomers  # noqa: E402
from webhooks.models import StripePrice  # noqa: E402

CLAIM = """
    UPDATE stripe_events SET attempts = attempts + 1
     WHERE event_id = (SELECT event_id FROM stripe_events WHERE state = 'PENDING' AND next_attempt_at <= now()
                        ORDER BY next_attempt_at LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING event_id, stripe_subscription_id"""

# What a change of one column costs at least: the row and its evidence, and the event.
CHANGE = """
    WITH moved AS (
        UPDATE subscriptions AS s SET version = version + 1, cancel_at_term_end = %(cancelled)s,
               term_deadline = term_end + CASE WHEN %(cancelled)s THEN interval '0' ELSE interval '72 hours' END
          FROM stripe_links AS link
         WHERE link.stripe_subscription_id = %(link)s AND s.id = link.subscription_id
        RETURNING s.id, s.tenant_id, s.version, s.term_deadline
    ), entry AS (
        INSERT INTO subscription_audit (subscription_id, tenant_id, version, action, effective_at, actor, source_id,
                                        reason, request_id, address, changes)
        SELECT id, tenant_id, version, 'cancel_scheduled', now(), 'stripe', %(event)s, '', '', NULL,
               jsonb_build_object('cancel_at_term_end', jsonb_build_array(NOT %(cancelled)s, %(cancelled)s),
                                  'term_deadline', jsonb_build_array(NULL, term_deadline)) FROM moved
    )
    UPDATE stripe_events SET state = 'DONE', done_at = now() WHERE event_id = %(event)s"""


def floor() -> Iterator[str]:
    while True:
        with connection.cursor() as cursor:
            cursor.execute(CLAIM)
            row = cursor.fetchone()
        if row is None:
            return
        found = stripe_api.fetch_subscription(row[1])
        with transaction.atomic(), connection.cursor() as cursor:
            told = {"event": row[0], "link": row[1], "cancelled": found["cancel_at_period_end"]}
            cursor.execute(CHANGE, told)
        yield row[0]


def ours() -> Iterator[str]:
    for event_id, _ in inbox.drain(now=timezone.now, limit=1_000_000):
        yield event_id


def links(told: dict[str, Any]) -> None:
    price = PlanPriceFactory.create()
    StripePrice.objects.create(pk=told["price"], plan_price=price)
    for customer in told["customers"]:
        newcomers.assign(customer, TenantFactory.create())


def work(told: dict[str, Any]) -> dict[str, float]:
    count = [0]

    def counted(execute: Any, sql: Any, params: Any, many: Any, context: Any) -> Any:
        count[0] += 1
        return execute(sql, params, many, context)

    connection.ensure_connection()
    began, tried = time.perf_counter(), 0
    with connection.execute_wrapper(counted):
        for tried, _ in enumerate(ours() if told["do"] == "ours" else floor(), start=1):
            if tried == told["events"]:
                break
    return {"tried": tried, "seconds": time.perf_counter() - began, "statements": count[0]}


def main() -> None:
    print("ready", flush=True)
    for line in sys.stdin:
        told = json.loads(line)
        if told["do"] == "links":
            links(told)
        done = {} if told["do"] == "links" else work(told)
        print(json.dumps(done), flush=True)


if __name__ == "__main__":
    main()
