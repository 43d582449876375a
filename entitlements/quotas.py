"""Quotas: numbers that a tenant uses up and gives back, or that somebody else counts and reports.

Each verb is one statement that moves the counter and, under a key, keeps its answer: nothing is compared in Python, and
what is refused writes nothing. The same key again is answered the same, for a week, and does nothing; a refusal keeps
no key, so that the same call succeeds once there is room.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from django.db import IntegrityError, connection, transaction

from entitlements import features
from entitlements.errors import InvalidAmount, InvalidKey, KeyReused, NoSuchQuota, QuotaExceeded, QuotaNotInUse
from entitlements.features import MOST
from entitlements.models import Feature

KEY = re.compile(r"[\x20-\x7e]{0,255}")
KEYS_ARE_KEPT = timedelta(days=7)
BATCH = 10_000


class Operation(StrEnum):
    """What is done to a quota."""

    CONSUME = "consume"
    RELEASE = "release"
    SET = "set"


@dataclass(frozen=True)
class Use:
    """How a quota stands after what was asked for."""

    limit: int
    used: int

    @property
    def available(self) -> int:
        return max(self.limit - self.used, 0)

    @property
    def allowed(self) -> bool:
        return self.used <= self.limit


def consume(tenant_id: int, feature: str, amount: int, *, now: datetime, key: str = "") -> Use:
    """Use so much more. Raises QuotaExceeded, NoSuchQuota, InvalidAmount, InvalidKey, KeyReused."""
    return _use(Operation.CONSUME, tenant_id, feature, amount, now, key)


def release(tenant_id: int, feature: str, amount: int, *, now: datetime, key: str = "") -> Use:
    """Use so much less. Raises QuotaNotInUse where that is more than is in use, and else as `consume` does."""
    return _use(Operation.RELEASE, tenant_id, feature, amount, now, key)


def set_gauge(tenant_id: int, feature: str, amount: int, *, now: datetime, key: str = "") -> Use:
    """Say how much is in use. It is what is the case, so it is kept also above the limit, and is not `allowed` then.

    Raises NoSuchQuota, InvalidAmount, InvalidKey, KeyReused.
    """
    return _use(Operation.SET, tenant_id, feature, amount, now, key)


# The second look, at the row as it is under its lock: `quota` was read before whoever held the lock had moved it.
STILL_FITS = "EXCLUDED.used <= (SELECT most FROM quota) - u.used"

_WRITES = {
    Operation.CONSUME: f"""
        INSERT INTO quota_usage AS u (tenant_id, feature_id, used)
        SELECT %(tenant)s, quota.id, %(amount)s FROM quota
         WHERE %(amount)s <= quota.most - quota.used AND NOT EXISTS (SELECT FROM repeated)
        ON CONFLICT (tenant_id, feature_id) DO UPDATE SET used = u.used + EXCLUDED.used WHERE {STILL_FITS}""",
    Operation.RELEASE: """
        UPDATE quota_usage AS u SET used = u.used - %(amount)s FROM quota
         WHERE u.tenant_id = %(tenant)s AND u.feature_id = quota.id AND u.used >= %(amount)s
           AND NOT EXISTS (SELECT FROM repeated)""",
    Operation.SET: """
        INSERT INTO quota_usage AS u (tenant_id, feature_id, used)
        SELECT %(tenant)s, quota.id, %(amount)s FROM quota WHERE NOT EXISTS (SELECT FROM repeated)
        ON CONFLICT (tenant_id, feature_id) DO UPDATE SET used = EXCLUDED.used""",
}

# The key is written after the counter was locked: of two with one key the later finds the key taken, and starts anew.
_USE = {
    operation: f"""
    WITH {features.GIVEN}, quota AS MATERIALIZED (
        SELECT given.id, given.amount AS most, coalesce(usage.used, 0) AS used
          FROM given LEFT JOIN quota_usage AS usage ON usage.tenant_id = %(tenant)s AND usage.feature_id = given.id
         WHERE given.kind = '{Feature.Kind.QUOTA}'
    ), repeated AS MATERIALIZED (
        SELECT o.operation, o.amount, o.quota_limit, o.used
          FROM quota JOIN quota_operations AS o ON o.tenant_id = %(tenant)s AND o.feature_id = quota.id
         WHERE o.key = %(key)s
    ), written AS ({write}
        RETURNING u.used
    ), noted AS (
        INSERT INTO quota_operations (tenant_id, feature_id, key, operation, amount, used, quota_limit, at)
        SELECT %(tenant)s, quota.id, %(key)s, '{operation}', %(amount)s, written.used, quota.most, %(now)s
          FROM written, quota WHERE %(key)s <> ''
    )
    SELECT quota.most, quota.used, written.used,
           repeated.operation, repeated.amount, repeated.quota_limit, repeated.used
      FROM quota LEFT JOIN written ON true LEFT JOIN repeated ON true"""
    for operation, write in _WRITES.items()
}


def _use(operation: Operation, tenant_id: int, feature: str, amount: int, now: datetime, key: str) -> Use:
    least = 0 if operation == Operation.SET else 1
    if type(amount) is not int or not least <= amount <= MOST:  # True is an int, too
        raise InvalidAmount
    if not KEY.fullmatch(key):
        raise InvalidKey
    parameters = features.said(tenant_id, now, feature) | {"amount": amount, "key": key}
    while True:
        try:
            row = _row(_USE[operation], parameters) if feature else None
        except IntegrityError as error:
            if "a_key_is_used_once" not in str(error):
                raise
            continue  # somebody else used the key at the same moment: its answer is there now
        if row is None:
            raise NoSuchQuota(f"There is no quota {feature}.", feature=feature)
        limit, was, used, done, its_amount, its_limit, its_used = row
        if done:
            if (done, its_amount) != (operation, amount):
                raise KeyReused(key=key, operation=done, amount=its_amount)
            return Use(its_limit, its_used)
        if used is not None:
            return Use(limit, used)
        _check(operation, Use(limit, was), feature, amount)
        # It would have fitted, but somebody else was faster: what is the case now?


def _check(operation: Operation, use: Use, feature: str, amount: int) -> None:
    """Why nothing was done, where it is seen from how the quota stood."""
    facts: dict[str, Any] = {"feature": feature, "limit": use.limit, "used": use.used, "available": use.available}
    facts |= {"requested": amount, "allowed": False}
    if operation == Operation.CONSUME and amount > use.limit - use.used:
        raise QuotaExceeded(f"{use.used} of {use.limit} are in use, {amount} more are wanted.", **facts)
    if operation == Operation.RELEASE and amount > use.used:
        raise QuotaNotInUse(f"{use.used} are in use, fewer than {amount}.", **facts)


def _row(statement: str, parameters: Mapping[str, Any]) -> Sequence[Any] | None:
    if not connection.in_atomic_block:
        return _fetched(statement, parameters)
    with transaction.atomic():  # a key that was taken is looked up next, which the caller's transaction must outlive
        return _fetched(statement, parameters)


def _fetched(statement: str, parameters: Mapping[str, Any]) -> Sequence[Any] | None:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        row: Sequence[Any] | None = cursor.fetchone()
        return row


# --- keys ------------------------------------------------------------------------------------------------------------

_FORGET = """
    DELETE FROM quota_operations WHERE id IN (
        SELECT id FROM quota_operations WHERE at < %(before)s ORDER BY at LIMIT %(batch)s FOR UPDATE SKIP LOCKED)"""


def forget_old_keys(now: datetime, *, batch_size: int = BATCH) -> int:
    """Forget the keys that are older than a week, each batch in a statement of its own; how many there were."""
    forgotten = 0
    while True:
        with connection.cursor() as cursor:
            cursor.execute(_FORGET, {"before": now - KEYS_ARE_KEPT, "batch": batch_size})
            deleted: int = cursor.rowcount
        forgotten += deleted
        if deleted < batch_size:
            return forgotten
