"""Events as Stripe delivers them: today's shape, signed over the raw bytes."""

import json
import time
from typing import Any

from tests.stripe_sandbox.deliveries import sign

CREATED = 1_767_225_600  # 2026-01-01


def event(event_id: str = "evt_1", type: str = "customer.subscription.updated", **changes: Any) -> dict[str, Any]:
    """An event about the subscription sub_1; `changes` replace its fields, and ... removes one."""
    found = {
        "id": event_id,
        "object": "event",
        "api_version": "2026-05-27.dahlia",
        "created": CREATED,
        "data": {"object": {"id": "sub_1", "object": "subscription", "status": "active", "customer": "cus_1"}},
        "livemode": False,
        "pending_webhooks": 1,
        "request": {"id": None, "idempotency_key": None},
        "type": type,
    } | changes
    return {name: value for name, value in found.items() if value is not ...}


def written(event: Any) -> bytes:
    """The bytes of it, laid out as Stripe does."""
    return json.dumps(event, indent=2).encode()


def signature(body: bytes, secret: str, *, ago: float = 0) -> str:
    """Stripe-Signature, made `ago` seconds before now."""
    return sign(body, secret, at=int(time.time() - ago))
