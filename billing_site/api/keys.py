"""API keys: made, shown once, kept as their hash, found again.

A key looks like `tk_4fzyo82mvyr1_…`: the part between the underscores is its prefix, which names it in lists and logs.
"""

import hashlib
import secrets
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Final

from django.db import InternalError, OperationalError, connection

from billing_site.models import ApiKey
from subscriptions.errors import DomainError
from subscriptions.models import Tenant

SCOPES: Final = {
    "access:read": "Ask whether devices may be served.",
    "devices:write": "Register devices, which claims slots, and delete them.",
    "entitlements:read": "Read what a tenant may use.",
    "quotas:write": "Consume, release and set quotas.",
    "changes:read": "Follow what changes, for a cache.",
    "snapshot:read": "Fetch signed snapshots.",
    "customer": "Everything that a billing owner may do for the key's tenant: the customer API.",
}
NOTED_FOR: Final = timedelta(minutes=1)  # a use within a minute of one that is noted is not: reading stays reading

# The same rules in SQL, of `{key}` at `now`.
GOOD: Final = "{key}.revoked_at IS NULL AND ({key}.expires_at IS NULL OR %(now)s < {key}.expires_at)"
NOTED: Final = f"coalesce(%(now)s < {{key}}.last_used_at + interval '{NOTED_FOR.seconds} s', false)"

LONGEST_NAME: Final = 200
ALPHABET: Final = "abcdefghijkmnpqrstuvwxyz0123456789"


def make(
    name: str, scopes: Iterable[str], *, tenant: Tenant | None = None, expires_at: datetime | None = None
) -> tuple[ApiKey, str]:
    """A new key, and its secret, which nobody can show again."""
    prefix = "".join(secrets.choice(ALPHABET) for _ in range(12))
    secret = f"tk_{prefix}_{secrets.token_urlsafe(32)}"
    key = ApiKey.objects.create(
        prefix=prefix, sha256=digest(secret), name=name, tenant=tenant, scopes=sorted(scopes), expires_at=expires_at
    )
    return key, secret


def digest(secret: str) -> str:
    """256 random bits need no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


def find(secret: str, *, now: datetime) -> ApiKey | None:
    """The key with this secret, if it is good at `now`. Found by its whole hash: nothing is compared byte by byte."""
    found = ApiKey.objects.select_related("tenant").filter(sha256=digest(secret), revoked_at=None).first()
    return found if found and (found.expires_at is None or now < found.expires_at) else None


def missing(scope: str) -> str:
    return f"This takes an API key with the scope {scope}."


def is_noted(key: ApiKey, *, now: datetime) -> bool:
    return key.last_used_at is not None and now < key.last_used_at + NOTED_FOR


_NOTE = f"""
    UPDATE api_keys SET last_used_at = %(now)s WHERE id = (
        SELECT id FROM api_keys AS key WHERE id = %(id)s AND NOT {NOTED.format(key="key")}
           FOR NO KEY UPDATE SKIP LOCKED)"""


def note_use(key_id: int, *, now: datetime) -> None:
    """The key was used; of many who say so at once, one writes it and nobody waits. An answer is not refused because
    this cannot be written.
    """
    with suppress(OperationalError, InternalError), connection.cursor() as cursor:
        cursor.execute(_NOTE, {"now": now, "id": key_id})


# --- how people make and end one -------------------------------------------------------------------------------------


class InvalidKey(DomainError):
    """A key like this makes no sense."""

    code, http_status = "invalid_key", 400


def issue(
    name: str, scopes: Iterable[str], *, now: datetime, tenant: Tenant | None = None, expires_at: datetime | None = None
) -> tuple[ApiKey, str]:
    """`make`, for people. Raises InvalidKey."""
    check(name, scopes, now=now, tenant=tenant, expires_at=expires_at)
    return make(name, scopes, tenant=tenant, expires_at=expires_at)


def check(
    name: str, scopes: Iterable[str], *, now: datetime, tenant: Tenant | None = None, expires_at: datetime | None = None
) -> None:
    """Raises InvalidKey."""
    wanted = {*scopes}
    if not name.strip() or len(name) > LONGEST_NAME:
        raise InvalidKey(f"A key has a name, of up to {LONGEST_NAME} characters: who holds it.")
    if unknown := sorted(wanted - SCOPES.keys()):
        raise InvalidKey(f"There is no scope {', '.join(unknown)}. There are: {', '.join(SCOPES)}.")
    if not wanted:
        raise InvalidKey(f"A key without a scope opens nothing. There are: {', '.join(SCOPES)}.")
    if "customer" in wanted and tenant is None:
        raise InvalidKey("The scope customer is for a tenant: say which.")
    if expires_at is not None and expires_at <= now:
        raise InvalidKey(f"{expires_at.isoformat()} has passed: this key would open nothing.")


def revoke(key_id: int, *, now: datetime) -> bool:
    """From now on the key opens nothing; whether it did until now. Safe to repeat: the first time counts."""
    return bool(ApiKey.objects.filter(pk=key_id, revoked_at=None).update(revoked_at=now))


def state(key: ApiKey, *, now: datetime) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= now else "good"
