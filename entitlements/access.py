"""May this device be served, now? One statement, for one device or for a thousand, and nothing is remembered.

It fails closed: a device is served by its open slot in a subscription that serves at this instant, and by nothing else.
What the clock should have ended by now has ended here, whether the clock went or not.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final

from django.db import models

from entitlements import room
from entitlements.errors import TooMany
from entitlements.models import Feature
from entitlements.slots import DEVICE_ID
from subscriptions import serving, terms
from subscriptions.states import GRANTS_ACCESS, INSTANTS, Status

MOST_QUESTIONS = 1_000  # a call
SLUG = re.compile(r"[A-Za-z0-9_-]{1,63}", re.ASCII)


class Reason(models.TextChoices):
    """Why a device is served, or is not."""

    OK = "ok", "Served"  # it has a slot in a subscription that serves
    SUSPENDED = "suspended", "Suspended"  # service is withheld: its subscription is suspended, or should be by now
    EXPIRED = "expired", "Expired"  # its subscription is over, or should be by now
    NOT_STARTED = "not_started", "Not started"  # its subscription begins later
    NO_SLOT = "no_slot", "No slot"  # it is registered, and nobody gave it a slot
    PARKED = "parked", "Parked"  # it lost its slot, and waits for one
    UNKNOWN_DEVICE = "unknown_device", "Unknown device"  # nobody registered it, or it was deleted
    WRONG_TENANT = "wrong_tenant", "Another tenant's"  # this tenant has no such device, and another one has
    UNKNOWN_TENANT = "unknown_tenant", "Unknown tenant"  # there is no such tenant, or it is not the asker's to know


Features = Mapping[str, bool | int]
NO_FEATURES: Final[Features] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Access:
    """Whether a device is served at the instant that was asked for, by what, and for how long that may be believed."""

    reason: Reason
    tier: str | None = None  # of its slot, or of the one that it waits for
    subscription: str | None = None  # the number of the one whose slot it has
    valid_until: datetime | None = None  # the first instant at which it may change though nobody does anything
    features: Features = field(default_factory=lambda: NO_FEATURES)  # of its tier; none where it is not served

    @property
    def allowed(self) -> bool:
        return self.reason is Reason.OK

    def as_told_to_a_tenant(self) -> "Access":
        """Without what it says of other tenants."""
        return replace(self, reason=Reason.UNKNOWN_DEVICE) if self.reason is Reason.WRONG_TENANT else self


# --- the statement, in the parts of which those make theirs who ask for more beside it --------------------------------

ONE = "(SELECT %(tenant)s::text AS tenant, %(device)s::text AS device) AS question"
MANY = "unnest(%(tenants)s::text[], %(devices)s::text[]) WITH ORDINALITY AS question (tenant, device, place)"


def found(whose: str = "true") -> str:
    """What is joined to `question`: nothing of a tenant `t` that is not `whose`."""
    return f"""
      LEFT JOIN tenants AS t ON t.slug = question.tenant AND {whose}
      LEFT JOIN devices AS d ON d.tenant_id = t.id AND d.device_id = question.device AND d.deleted_at IS NULL
      LEFT JOIN slot_assignments AS x ON x.device_id = d.id AND x.released_at IS NULL
      LEFT JOIN tier_allocations AS a ON a.id = x.allocation_id
      LEFT JOIN (subscriptions AS s {serving.JOIN}) ON s.id = a.subscription_id
      LEFT JOIN device_tiers AS tier ON tier.id = coalesce(x.tier_id, d.parked_tier_id)"""


# A scalar with LIMIT, and not EXISTS, which a planner may answer for a thousand devices by reading all there are.
_ANOTHERS = """
    (SELECT true FROM devices AS other
      WHERE other.device_id = question.device AND other.deleted_at IS NULL LIMIT 1)"""
_GRANTS = ", ".join(f"'{status}'" for status in sorted(GRANTS_ACCESS))
_SUSPENSION_END = serving.instant(INSTANTS[Status.SUSPENDED], "s", "serving.until")  # had the clock suspended it

# Read from the top; what nobody thought of ends at the bottom, and is not served.
_REASON = f"""
    CASE WHEN t.id IS NULL THEN '{Reason.UNKNOWN_TENANT}'
         WHEN d.id IS NULL THEN CASE WHEN {_ANOTHERS} THEN '{Reason.WRONG_TENANT}' ELSE '{Reason.UNKNOWN_DEVICE}' END
         WHEN d.parked_at IS NOT NULL THEN '{Reason.PARKED}'
         WHEN x.id IS NULL THEN '{Reason.NO_SLOT}'
         WHEN s.status = '{Status.EXPIRED}' OR s.suspension_end <= %(now)s THEN '{Reason.EXPIRED}'
         WHEN s.status NOT IN ({_GRANTS}) THEN '{Reason.SUSPENDED}'
         WHEN %(now)s < s.term_start THEN '{Reason.NOT_STARTED}'
         WHEN {serving.NOW} THEN '{Reason.OK}'
         WHEN NOT {serving.is_cancelled("s", "main")} AND %(now)s < {_SUSPENSION_END} THEN '{Reason.SUSPENDED}'
         ELSE '{Reason.EXPIRED}' END"""
_FEATURES = f"""
    jsonb_object_agg(feature.code, CASE feature.kind WHEN '{Feature.Kind.SWITCH}'
                     THEN to_jsonb(has.amount > 0) ELSE to_jsonb(has.amount) END)::text AS features
       FROM tier_features AS has JOIN features AS feature ON feature.id = has.feature_id"""


def answers(asked: str, *, more: str = "", whose: str = "true") -> str:
    """The statement that answers `asked`: the columns that `read` reads, after those of `more`."""
    if asked.endswith(MANY):  # what a tier gives is put together once, and not for each of a thousand devices
        given = f"WITH given AS MATERIALIZED (SELECT has.tier_id, {_FEATURES} GROUP BY has.tier_id)"
        features, of_tier = "given.features", "LEFT JOIN given ON given.tier_id = x.tier_id"
        order = "ORDER BY question.place"
    else:
        given = of_tier = order = ""
        features = f"(SELECT {_FEATURES} WHERE has.tier_id = x.tier_id)"
    # OFFSET 0: the reason is found once, not in each column that asks for it.
    return f"""
        {given}
        SELECT {more} said.reason, tier.code, s.number,
               CASE said.reason WHEN '{Reason.OK}' THEN serving.until
                                WHEN '{Reason.NOT_STARTED}' THEN s.term_start END::text,
               CASE said.reason WHEN '{Reason.OK}' THEN {features} END
          FROM {asked} {found(whose)} {of_tier}
         CROSS JOIN LATERAL (SELECT {_REASON} AS reason OFFSET 0) AS said {order}"""


def read(row: Sequence[Any]) -> Access:
    reason, tier, subscription, valid_until, features = row
    return Access(
        _REASONS[reason],
        tier,
        subscription,
        datetime.fromisoformat(valid_until) if valid_until else None,  # of a thousand, quicker than the driver does it
        _features(features) if features else NO_FEATURES,
    )


_REASONS: Final = {reason.value: reason for reason in Reason}  # looked up a thousand times a call


@lru_cache(maxsize=256)
def _features(text: str) -> Features:
    return MappingProxyType(json.loads(text))


def question(tenant: str, device_id: str) -> tuple[str, str]:
    """What is asked of the database: what can be nobody's name is nobody's there, whatever bytes it has."""
    well_formed = DEVICE_ID.fullmatch(device_id)
    return tenant if SLUG.fullmatch(tenant) else "", device_id if well_formed else ""


def parameters(pairs: Sequence[tuple[str, str]], now: datetime) -> dict[str, Any]:
    """What `MANY` takes. Raises TooMany."""
    if len(pairs) > MOST_QUESTIONS:
        raise TooMany(f"{len(pairs)} devices, where up to {MOST_QUESTIONS} are asked for.", limit=MOST_QUESTIONS)
    asked = [question(*pair) for pair in pairs]
    tenants, devices = _array(tenant for tenant, _ in asked), _array(device for _, device in asked)
    return {"tenants": tenants, "devices": devices, "now": now, **serving.windows()}


def _array(names: Iterable[str]) -> str:
    """As PostgreSQL writes one. What `question` lets through has no character that would need an escape."""
    return "{" + ",".join([f'"{name}"' for name in names]) + "}"


# --- who asks in Python ----------------------------------------------------------------------------------------------

_ACCESS = answers(ONE)
_ACCESS_MANY = answers(MANY)


def access(tenant_slug: str, device_id: str, now: datetime) -> Access:
    """Whether a device is served at `now`. Never raises for what does not exist: that is an answer. One statement."""
    terms.aware(now, "now")
    tenant, device = question(tenant_slug, device_id)
    row = room.one(_ACCESS, {"tenant": tenant, "device": device, "now": now, **serving.windows()})
    assert row is not None, "a question has an answer"
    return read(row)


def access_many(pairs: Sequence[tuple[str, str]], now: datetime) -> list[Access]:
    """The same for up to 1,000 pairs of a tenant's slug and a device id, in their order. One statement.

    Raises TooMany.
    """
    terms.aware(now, "now")
    return [read(row) for row in room.every(_ACCESS_MANY, parameters(pairs, now))]
