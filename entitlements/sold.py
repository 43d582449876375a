"""What was sold beside what its plan sells now: a plan that is edited touches nothing that was sold, until synced."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import groupby

from django.db import connection, transaction

from entitlements import limits
from entitlements.limits import Limits, Park
from subscriptions import families
from subscriptions.audit import Actor, check_reason
from subscriptions.errors import DomainError
from subscriptions.states import Status


class ChangedMeanwhile(DomainError):
    """Nothing was done: its slots, or its plan's, have changed since the preview. Look again."""

    code, http_status = "changed_meanwhile", 409


@dataclass(frozen=True)
class Amount:
    """Of a tier or a feature: how much was sold, how much its plan sells now; how many devices would lose a slot."""

    what: str  # its code
    sold: int
    would_be: int
    losing: int


@dataclass(frozen=True)
class Differs:
    """A subscription that holds something else than its plan sells now."""

    pk: int
    number: str
    tenant: str
    status: str
    amounts: tuple[Amount, ...]

    @property
    def fingerprint(self) -> str:
        """What was looked at: another one, and something else would be done."""
        said = json.dumps([self.pk, [asdict(amount) for amount in self.amounts]])
        return hashlib.sha256(said.encode()).hexdigest()[:16]

    @property
    def losing(self) -> int:
        return sum(amount.losing for amount in self.amounts)


AFTER_TIERS = 2**15  # more than any tier's position

_BOUGHT = {"subscription": "{s}.id", "plan": "{s}.plan_id", "quantity": "{s}.quantity"}
_SELLS, _GIVES = limits.SELLS.format(**_BOUGHT), limits.GIVES.format(**_BOUGHT)

_DIFFERING = f"""
    WITH page AS MATERIALIZED (
        SELECT s.id, s.number, s.status, s.plan_id, s.quantity, tenants.name
          FROM subscriptions AS s JOIN tenants ON tenants.id = s.tenant_id
         WHERE s.plan_id = %(plan)s AND s.status <> '{Status.EXPIRED}' AND s.id > %(after)s
           AND (%(only)s::bigint[] IS NULL OR s.id = ANY(%(only)s))
           AND (EXISTS (
               SELECT FROM (SELECT tier_id, slot_limit FROM tier_allocations WHERE subscription_id = s.id) AS a
                 FULL JOIN ({_SELLS.format(s="s")}) AS p USING (tier_id)
                WHERE coalesce(slot_limit, 0) <> coalesce(slots, 0))
            OR EXISTS (
               SELECT FROM (SELECT feature_id, amount FROM subscription_features WHERE subscription_id = s.id) AS a
                 FULL JOIN ({_GIVES.format(s="s")}) AS p USING (feature_id)
                WHERE coalesce(a.amount, 0) <> coalesce(p.amount, 0)))
         ORDER BY s.id LIMIT %(most)s
    )
    SELECT page.id, page.number, page.name, page.status, tier.code, coalesce(has.slot_limit, 0), coalesce(p.slots, 0),
           greatest(coalesce(has.slots_used, 0) - coalesce(p.slots, 0), 0), tier.position
      FROM page CROSS JOIN device_tiers AS tier
      LEFT JOIN tier_allocations AS has ON has.subscription_id = page.id AND has.tier_id = tier.id
      LEFT JOIN LATERAL ({_SELLS.format(s="page")}) AS p ON p.tier_id = tier.id
     WHERE coalesce(has.slot_limit, 0) <> coalesce(p.slots, 0)
    UNION ALL
    SELECT page.id, page.number, page.name, page.status, features.code, coalesce(has.amount, 0), coalesce(p.amount, 0),
           0, {AFTER_TIERS}
      FROM page CROSS JOIN features
      LEFT JOIN subscription_features AS has ON has.subscription_id = page.id AND has.feature_id = features.id
      LEFT JOIN LATERAL ({_GIVES.format(s="page")}) AS p ON p.feature_id = features.id
     WHERE coalesce(has.amount, 0) <> coalesce(p.amount, 0)
     ORDER BY 1, 9, 5"""


def differing(plan_id: int, *, most: int, after: int = 0, only: Sequence[int] | None = None) -> list[Differs]:
    """The plan's subscriptions that are not over and whose slots differ, those after a key, no more than so many.

    One statement.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            _DIFFERING, {"plan": plan_id, "after": after, "most": most, "only": None if only is None else [*only]}
        )
        rows = cursor.fetchall()
    return [
        Differs(pk, number, tenant, status, tuple(Amount(*row[4:8]) for row in those))
        for (pk, number, tenant, status), those in groupby(rows, key=lambda row: row[:4])
    ]


@transaction.atomic
def sync(
    plan_id: int,
    subscription_id: int,
    *,
    seen: str,
    park: Park,
    actor: Actor,
    now: datetime,
    source_id: str = "",
    reason: str = "",
) -> Limits | None:
    """Set its slots to what its plan sells now, where that is what was `seen` (a fingerprint); None if it differs no
    more. Safe to repeat. Raises ChangedMeanwhile, and what `limits.sync_from_plan` raises.
    """
    check_reason(actor, reason)
    with families.locked(subscription_id, now, "") as family:  # nobody else changes its plan or its limits meanwhile
        found = differing(plan_id, most=1, only=[subscription_id])
        if not found:
            if family.subject.plan_id != plan_id:
                raise ChangedMeanwhile
            return None
        if found[0].fingerprint != seen:
            raise ChangedMeanwhile
        return limits.sync_from_plan(
            subscription_id, park=park, actor=actor, now=now, source_id=source_id, reason=reason
        )
