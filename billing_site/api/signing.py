"""Snapshots signed with Ed25519, and the keys that are published to verify them.

The first key signs; all of them are published. So a key is replaced without a snapshot that anybody must refuse:
append the new one, wait until caches of the published keys have it (`PUBLISHED_AHEAD`), move it to the front, wait
until what the old one signed has expired (SNAPSHOT_SECONDS), and drop the old one.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings

from billing_site.api.entitlements import said
from entitlements.snapshots import Snapshot

ISSUER: Final = "termkeeper"
TYPE: Final = "termkeeper-snapshot+jwt"
ALGORITHM: Final = "EdDSA"
PUBLISHED_AHEAD: Final = timedelta(minutes=5)  # for so long the published keys may be cached


@dataclass(frozen=True)
class Key:
    """A key pair."""

    private: Ed25519PrivateKey
    public: dict[str, str]  # as JWK

    @property
    def kid(self) -> str:
        return self.public["kid"]


def signed(snapshot: Snapshot, *, tenant: str, now: datetime) -> str:
    """A compact JWS of what was true at `now`: `exp` is SNAPSHOT_SECONDS later, and never later than the first instant
    at which anything in it may change by the clock.
    """
    until = now + timedelta(seconds=settings.SNAPSHOT_SECONDS)
    if valid_until := snapshot.entitlements.valid_until:
        until = min(until, valid_until)
    claims = {
        "iss": ISSUER,
        "sub": tenant,
        "iat": int(now.timestamp()),
        "exp": int(until.timestamp()),  # whole seconds, the part of one cut off: never too late
        "version": snapshot.version,
        "entitlements": said(tenant, snapshot.entitlements),
        "devices": {device_id: {"tier": tier} for device_id, tier in snapshot.devices.items()},
        "tiers": snapshot.tiers,
    }
    key = keys()[0]
    return jwt.encode(claims, key.private, algorithm=ALGORITHM, headers={"kid": key.kid, "typ": TYPE})


def jwks() -> dict[str, Any]:
    """The public keys, the one that signs first."""
    return {"keys": [key.public for key in keys()]}


def keys() -> Sequence[Key]:
    """As SNAPSHOT_KEYS says; unset: one that follows from SECRET_KEY."""
    return _made(tuple(settings.SNAPSHOT_KEYS) or (_derived(settings.SECRET_KEY),))


@lru_cache(maxsize=8)
def _derived(secret: str) -> bytes:
    return HKDF(SHA256(), length=32, salt=None, info=b"termkeeper snapshot key").derive(secret.encode())


@lru_cache(maxsize=8)
def _made(seeds: tuple[bytes, ...]) -> tuple[Key, ...]:
    return tuple(_key(Ed25519PrivateKey.from_private_bytes(seed)) for seed in seeds)


def _key(private: Ed25519PrivateKey) -> Key:
    required = {"crv": "Ed25519", "kty": "OKP", "x": _base64url(private.public_key().public_bytes_raw())}
    canonical = json.dumps(required, sort_keys=True, separators=(",", ":"))  # RFC 7638, 3.2
    kid = _base64url(hashlib.sha256(canonical.encode()).digest())
    return Key(private, {**required, "use": "sig", "alg": ALGORITHM, "kid": kid})


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
