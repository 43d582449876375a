"""What a tenant may use: slots, switches and quotas, summed over its subscriptions that serve; and its exceptions.

Numbers add, and one switch that is on is enough; each subscription gives what its plan gave when it was sold. An
exception stands in place of what they give together, until it expires by itself. Whoever has no subscription that
serves has nothing, exceptions or not: they amend what was sold and replace none of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db import connection

from entitlements.errors import InvalidAmount, InvalidExpiry, NoSuchFeature
from entitlements.models import Feature
from subscriptions import serving, terms
from subscriptions.audit import Actor
from subscriptions.errors import ReasonMissing
from subscriptions.unread import THIS

MOST = 10**15  # of one feature, for one tenant or in one call
_MOST_OF_ALL = 2**63 - 1  # what a counter holds: several plans together may give more


@dataclass(frozen=True)
class SlotsOfTier:
    """The slots of a tier in all subscriptions that serve."""

    tier: str
    name: str
    limit: int
    used: int

    @property
    def available(self) -> int:
        return self.limit - self.used


@dataclass(frozen=True)
class Quota:
    """A number that a tenant may use up. A gauge may stand above its limit."""

    code: str
    name: str
    limit: int
    used: int

    @property
    def available(self) -> int:
        return max(self.limit - self.used, 0)


@dataclass(frozen=True)
class Entitlements:
    """What a tenant may use. Of the catalogue's features all are named, also those that it does not have."""

    slots: list[SlotsOfTier] = field(default_factory=list)  # in the tiers' order; only those that it holds
    switches: dict[str, bool] = field(default_factory=dict)
    quotas: list[Quota] = field(default_factory=list)
    valid_until: datetime | None = None  # until then the clock alone changes nothing; None: never


# Parts of statements, with the parameters `said`. `own`: what serves now, and what is yet to begin.
# `given`: the features, each with what the tenant has of it now.
GIVEN = f"""
    own AS MATERIALIZED (
        SELECT s.id, s.term_start, serving.until, {serving.NOW} AS serves
          FROM subscriptions AS s {serving.JOIN}
         WHERE s.tenant_id = %(tenant)s AND serving.until > greatest(s.term_start, %(now)s)
    ), sold AS (
        SELECT p.feature_id, least(sum(p.amount), {_MOST_OF_ALL})::bigint AS amount
          FROM own JOIN subscription_features AS p ON p.subscription_id = own.id WHERE own.serves GROUP BY p.feature_id
    ), exceptions AS (
        SELECT o.feature_id, o.amount, o.expires_at FROM feature_overrides AS o
         WHERE o.tenant_id = %(tenant)s AND (o.expires_at IS NULL OR %(now)s < o.expires_at)
           AND EXISTS (SELECT FROM own WHERE serves)
    ), given AS MATERIALIZED (
        SELECT features.id, features.code, features.name, features.kind,
               coalesce(exceptions.amount, sold.amount, 0) AS amount
          FROM features LEFT JOIN sold ON sold.feature_id = features.id
          LEFT JOIN exceptions ON exceptions.feature_id = features.id
         WHERE %(feature)s IN ('', features.code)
    )"""

ENTITLEMENTS = f"""
    WITH {GIVEN}
    SELECT 'TIER' AS what, tier.position, tier.code, tier.name, sum(a.slot_limit), sum(a.slots_used), NULL::timestamptz
      FROM own JOIN tier_allocations AS a ON a.subscription_id = own.id AND a.is_open
      JOIN device_tiers AS tier ON tier.id = a.tier_id
     WHERE own.serves GROUP BY tier.id HAVING sum(a.slot_limit) > 0
    UNION ALL
    SELECT given.kind, 0, given.code, given.name, given.amount, coalesce(usage.used, 0), NULL
      FROM given LEFT JOIN quota_usage AS usage ON usage.tenant_id = %(tenant)s AND usage.feature_id = given.id
    UNION ALL
    SELECT 'UNTIL', 0, '', '', 0, 0, least(
        (SELECT min(CASE WHEN serves THEN until ELSE term_start END) FROM own),
        (SELECT min(expires_at) FROM exceptions))
     ORDER BY 2, 3"""


def said(tenant_id: int, now: datetime, feature: str = "") -> dict[str, Any]:
    """The parameters that `GIVEN` takes. An empty feature: all of them."""
    terms.aware(now, "now")
    return {"tenant": tenant_id, "now": now, "feature": feature, **serving.windows()}


def entitlements_of(tenant_id: int, now: datetime) -> Entitlements:
    """What the tenant may use at `now`. One statement, which reads counters and counts no devices."""
    with connection.cursor() as cursor:
        cursor.execute(ENTITLEMENTS, said(tenant_id, now))
        return read(cursor.fetchall())


def read(rows: Sequence[Sequence[Any]]) -> Entitlements:
    """What the rows of `ENTITLEMENTS` say; others may be among them."""
    valid_until = next(until for what, *_, until in rows if what == "UNTIL")
    kinds = Feature.Kind
    return Entitlements(
        [SlotsOfTier(code, name, int(n), int(used)) for what, _, code, name, n, used, _ in rows if what == "TIER"],
        {code: n > 0 for what, _, code, _, n, *_ in rows if what == kinds.SWITCH},
        [Quota(code, name, int(n), int(used)) for what, _, code, name, n, used, _ in rows if what == kinds.QUOTA],
        valid_until,
    )


# --- exceptions ------------------------------------------------------------------------------------------------------

_ENTRY = """
    INSERT INTO feature_override_entries (tenant_id, feature_id, amount, expires_at, at, actor, request_id, reason)
    SELECT tenant_id, feature_id, amount, expires_at, %(now)s, %(actor)s, %(request)s, %(reason)s FROM written
    RETURNING id"""

_OVERRIDE = f"""
    WITH written AS (
        INSERT INTO feature_overrides AS o (tenant_id, feature_id, amount, reason, expires_at)
        VALUES (%(tenant)s, %(feature)s, %(amount)s, %(reason)s, %(expires_at)s)
        ON CONFLICT (tenant_id, feature_id) DO UPDATE
           SET amount = EXCLUDED.amount, reason = EXCLUDED.reason, expires_at = EXCLUDED.expires_at,
               transaction_id = {THIS}
         WHERE (o.amount, o.reason, o.expires_at)
               IS DISTINCT FROM (EXCLUDED.amount, EXCLUDED.reason, EXCLUDED.expires_at)
        RETURNING o.tenant_id, o.feature_id, o.amount, o.expires_at
    ) {_ENTRY}"""

_END = f"""
    WITH written AS (
        UPDATE feature_overrides AS o SET expires_at = %(now)s, transaction_id = {THIS}
         WHERE o.tenant_id = %(tenant)s AND o.feature_id = %(feature)s
           AND (o.expires_at IS NULL OR %(now)s < o.expires_at)
        RETURNING o.tenant_id, o.feature_id, o.amount, o.expires_at
    ) {_ENTRY}"""


def override(
    tenant_id: int, feature: str, amount: int, *, reason: str, expires_at: datetime | None, actor: Actor, now: datetime
) -> bool:
    """Give a tenant this amount in place of what its plans give (a switch: 1 or 0), until `expires_at`; None: for good.

    An exception that there is already is replaced; the same again changes nothing. Whether anything changed. Raises
    NoSuchFeature, InvalidAmount, InvalidExpiry, and ReasonMissing whoever asks.
    """
    of = _asked_for(feature, reason)
    most = 1 if of.kind == Feature.Kind.SWITCH else MOST
    if type(amount) is not int or not 0 <= amount <= most:
        raise InvalidAmount("A switch is 1 or 0." if most == 1 else "")
    if expires_at is not None:
        terms.aware(expires_at, "expires_at")
        if expires_at <= now:
            raise InvalidExpiry
    return _write(_OVERRIDE, tenant_id, of, reason, actor, now, amount=amount, expires_at=expires_at)


def end_override(tenant_id: int, feature: str, *, reason: str, actor: Actor, now: datetime) -> bool:
    """Let the plans count again from now; whether there was an exception. Raises NoSuchFeature, ReasonMissing."""
    return _write(_END, tenant_id, _asked_for(feature, reason), reason, actor, now)


def _asked_for(feature: str, reason: str) -> Feature:
    if not reason.strip():
        raise ReasonMissing
    of = Feature.objects.filter(code=feature).first()
    if of is None:
        raise NoSuchFeature(f"There is no feature {feature}.", feature=feature)
    return of


def _write(statement: str, tenant_id: int, of: Feature, reason: str, actor: Actor, now: datetime, **more: Any) -> bool:
    terms.aware(now, "now")
    who = {"actor": actor, "request": actor.request_id, "reason": reason}
    with connection.cursor() as cursor:
        cursor.execute(statement, {"tenant": tenant_id, "feature": of.pk, "now": now, **who, **more})
        return cursor.fetchone() is not None
