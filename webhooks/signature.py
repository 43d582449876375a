"""Stripe's signature over a delivery: HMAC-SHA256 of `{t}.{raw body}`, verified on bytes, strictly.

Source: https://docs.stripe.com/webhooks/signature. Stripe's own client decodes the body first and accepts timestamps
from the future; this does neither.
"""

import hmac
from collections.abc import Iterable
from hashlib import sha256

TOLERANCE_SECONDS = 300
MOST_SIGNATURES = 8  # Stripe sends one per secret while rotating; more is somebody trying


class BadSignature(Exception):
    """The delivery was not signed by us and Stripe alone, not now, or not in a form that Stripe uses."""


def verify(body: bytes, header: str, secrets: Iterable[str], *, now: float) -> None:
    """Return if `header` carries a `v1` signature of `body` by one of `secrets`, at most 300 s from `now` (unix time).

    Raises BadSignature, which carries nothing of the delivery.
    """
    if not header.isascii():
        raise BadSignature("not ASCII")
    timestamps, signatures = [], []
    for item in header.split(","):
        name, _, value = item.strip().partition("=")
        if name == "t":
            timestamps.append(value)
        elif name == "v1":
            signatures.append(value)
    if len(timestamps) != 1 or not 0 < len(signatures) <= MOST_SIGNATURES:
        raise BadSignature("malformed")
    timestamp = timestamps[0]
    if not (timestamp.isdigit() and len(timestamp) <= 12) or abs(now - int(timestamp)) > TOLERANCE_SECONDS:
        raise BadSignature("too old, or from the future")
    signed = timestamp.encode() + b"." + body
    for secret in secrets:
        expected = hmac.new(secret.encode(), signed, sha256).hexdigest()
        for signature in signatures:
            if hmac.compare_digest(expected, signature):
                return
    raise BadSignature("no signature matches")
