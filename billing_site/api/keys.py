"""API keys: made, shown once, kept as their hash, found again.

A key looks like `tk_4fzyo82mvyr1_…`: the part between the underscores is its prefix, which names it in lists and logs.
"""

import hashlib
import secrets
from collections.abc import Iterable
from datetime import datetime
from typing import Final

from billing_site.models import ApiKey
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
