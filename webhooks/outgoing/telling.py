"""What changed here and Stripe has to know, as rows; `outbound` delivers them.

What a customer does goes to Stripe first and comes back as the truth: it is told nobody. What staff, a terminal or the
clock do is told; and, whoever did it, an add-on that Stripe bills apart from its MAIN ends where that ends.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django.db import connection, transaction

from subscriptions import unread
from subscriptions.audit import Actor
from subscriptions.models import AuditEntry
from subscriptions.states import Action, EndReason, Status, Type
from webhooks.models import Telling

READER = "stripe"
PAGE = 5_000  # audit entries a transaction
RECENT = "interval '30 days'"  # what is older and was not told is found by comparing everything, not told

Aspect = Telling.Aspect
# What of a subscription Stripe is told, and the columns that say so. An end is told as one, and nothing beside it.
TELLS: dict[Aspect, tuple[str, ...]] = {
    Aspect.END: ("status",),
    Aspect.TERM_END: ("cancel_at_term_end",),
    Aspect.ITEMS: ("plan_id", "price_id", "quantity"),
    Aspect.PAUSE: ("on_hold",),
}
# Of a MAIN, what moves where its add-ons end: always, or while it ends with its term.
MOVES_THE_END = ("cancel_at_term_end", "auto_renews")
MOVES_AN_END = ("term_end", "status")
MAY_MATTER = {column for columns in TELLS.values() for column in columns} | {*MOVES_THE_END, *MOVES_AN_END}


def tell(entries: Sequence[AuditEntry], *, now: datetime, link_of_begun: str = "", begun_id: int | None = None) -> int:
    """Rows for what the caller's transaction has written, if any of these entries may matter to Stripe; how many.
    `link_of_begun` is the Stripe subscription of what has just begun, while no link says so yet. Safe to repeat.
    """
    if not any(entry.changes.keys() & MAY_MATTER for entry in entries):
        return 0
    parameters: dict[str, Any] = {"now": now, "link": link_of_begun, "begun": begun_id}
    with connection.cursor() as cursor:
        cursor.execute(_TELL_THIS, parameters)
        told: int = cursor.fetchone()[0]
    return told


def tell_closed(tenant_id: int, *, actor: Actor, reason: str, now: datetime) -> None:
    """A row for a tenant that was closed: whatever its customer has at Stripe ends."""
    row = Telling(
        aspect=Aspect.CLOSED, tenant_id=tenant_id, actor=actor, reason=reason, created_at=now, next_attempt_at=now
    )
    Telling.objects.bulk_create([row], ignore_conflicts=True)


def catch_up(*, now: datetime, page: int = PAGE) -> int:
    """Rows for what the audit says since the last look: the clock's steps, and what somebody forgot to tell; how many.

    One statement and one commit a page, whatever was written meanwhile. Safe to run late, twice, and in two workers at
    once. Killed anywhere, it looks again.
    """
    with transaction.atomic():
        news = unread.locked(READER)
    parameters: dict[str, Any] = {
        "now": now, "link": "", "begun": None, "horizon": news.horizon, "page": page,
        "transaction": news.since, "entry": 0,
    }  # fmt: skip
    rows, last = 0, True
    while last:
        with connection.cursor() as cursor:
            cursor.execute(_TELL_PAGE, parameters)
            told, last = cursor.fetchone()
        rows += told
        if last:
            parameters["transaction"], parameters["entry"] = last
    unread.have_read(READER, news)
    return rows


def _values(rows: Sequence[tuple[str, str]]) -> str:
    return "VALUES " + ", ".join(f"('{aspect}', '{column}')" for aspect, column in rows)


def _array(columns: Sequence[str]) -> str:
    quoted = ", ".join(f"'{column}'" for column in columns)
    return f"array[{quoted}]"


def _tell_statement(which: str) -> str:
    tells = _values([(aspect, column) for aspect, columns in TELLS.items() for column in columns])
    ends = "(main.cancel_at_term_end OR NOT main.auto_renews)"
    return f"""
    WITH said AS MATERIALIZED (
        SELECT id, transaction_id, subscription_id, tenant_id, version, action, actor, reason, changes,
               NOT (actor = 'stripe' OR actor LIKE 'member:%%' OR actor LIKE 'apikey:%%') AS is_ours
          FROM subscription_audit AS a WHERE {which}
    ), links AS (
        SELECT stripe_subscription_id, subscription_id FROM stripe_links
         WHERE subscription_id IN (SELECT subscription_id FROM said)
        UNION SELECT %(link)s, %(begun)s::bigint WHERE %(link)s <> ''
    ), its_own AS (
        SELECT said.id, links.stripe_subscription_id AS link, tells.aspect, said.version, false AS of_main,
               said.tenant_id, said.actor, said.reason
          FROM said JOIN links ON links.subscription_id = said.subscription_id
          CROSS JOIN ({tells}) AS tells (aspect, "column")
         WHERE said.action <> '{Action.STARTED}' AND said.changes ? tells."column"
           AND CASE WHEN said.changes->'status'->>1 = '{Status.EXPIRED}'
                    THEN tells.aspect = '{Aspect.END}'
                         AND (said.is_ours OR said.changes->'end_reason'->>1 = '{EndReason.MAIN_ENDED}')
                    ELSE tells.aspect <> '{Aspect.END}' AND said.is_ours END
    ), with_its_main AS (
        SELECT said.id, links.stripe_subscription_id, '{Aspect.TERM_END}', said.version, true,
               said.tenant_id, said.actor, said.reason
          FROM said JOIN subscriptions AS main ON main.id = said.subscription_id AND main.type = '{Type.MAIN}'
          JOIN subscriptions AS addon ON addon.parent_id = main.id AND addon.status <> '{Status.EXPIRED}'
          JOIN stripe_links AS links ON links.subscription_id = addon.id
         WHERE main.status <> '{Status.EXPIRED}' AND said.action <> '{Action.STARTED}'
           AND (said.changes ?| {_array(MOVES_THE_END)} OR {ends} AND said.changes ?| {_array(MOVES_AN_END)})
    ), begun AS (
        SELECT said.id, links.stripe_subscription_id, '{Aspect.TERM_END}', said.version, false,
               said.tenant_id, said.actor, said.reason
          FROM said JOIN links ON links.subscription_id = said.subscription_id
          JOIN subscriptions AS addon ON addon.id = said.subscription_id AND addon.status <> '{Status.EXPIRED}'
          JOIN subscriptions AS main ON main.id = addon.parent_id
         WHERE said.action = '{Action.STARTED}' AND {ends}
    ), newest AS (
        SELECT DISTINCT ON (link, aspect) *
          FROM (SELECT * FROM its_own UNION ALL SELECT * FROM with_its_main UNION ALL SELECT * FROM begun) AS every
         ORDER BY link, aspect, id DESC
    ), told AS (
        INSERT INTO stripe_tellings (aspect, tenant_id, link_id, version, of_main, actor, reason, state, attempts,
                                     created_at, next_attempt_at, outcome, error_code, error)
        SELECT aspect, tenant_id, link, version, of_main, actor, reason, '{Telling.State.PENDING}', 0,
               %(now)s, %(now)s, '', '', ''
          FROM newest ORDER BY id
        ON CONFLICT DO NOTHING RETURNING 1
    )
    SELECT (SELECT count(*) FROM told),
           (SELECT array[transaction_id, id] FROM said ORDER BY transaction_id DESC, id DESC LIMIT 1)"""


_TELL_THIS = _tell_statement(f"a.transaction_id = {unread.THIS}")
_TELL_PAGE = _tell_statement(f"""
    a.transaction_id < %(horizon)s AND (a.transaction_id, a.id) > (%(transaction)s, %(entry)s)
       AND a.recorded_at > now() - {RECENT} ORDER BY a.transaction_id, a.id LIMIT %(page)s""")
