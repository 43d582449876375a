"""What a customer asks for, when it shall be so, and who asks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from subscriptions.audit import Actor


class ChangeAt(Enum):
    NOW = "now"
    TERM_END = "term_end"


@dataclass(frozen=True)
class AskedBy:
    """Who asks, and by which request. `now` is called whenever an instant is needed: Stripe takes its time."""

    actor: Actor
    now: Callable[[], datetime]
    source_id: str = ""
    key: str = ""  # the caller's Idempotency-Key


@dataclass(frozen=True)
class WishedChange:
    """What shall be bought instead. What is empty stays as it is; so do packs that are not named, and 0 is none."""

    plan: str = ""
    interval: str = ""
    interval_count: int | None = None
    currency: str = ""
    quantity: int | None = None
    packs: Mapping[str, int] = field(default_factory=dict)  # units by the pack's code
