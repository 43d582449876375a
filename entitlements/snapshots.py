"""What a tenant may use and which of its devices are served, at one instant, under a version that never falls."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter

from entitlements import features, room
from entitlements.features import Entitlements
from entitlements.models import Feature


@dataclass(frozen=True)
class Snapshot:
    """Everything here was true together."""

    version: int
    entitlements: Entitlements
    devices: Mapping[str, str]  # device id → tier, of those that are served; whoever is not named is not served
    tiers: Mapping[str, Mapping[str, bool | int]]  # tier → what its devices may do


# The version counts the transactions that had finished when the snapshot was taken: those below its end that were not
# running. That set only grows, by every commit; and what it has seen is exactly what the statement has seen. There is
# no counter to write, so none to wait for.
VERSION = """
    pg_snapshot_xmax(pg_current_snapshot())::text::bigint
      - (SELECT count(*) FROM pg_snapshot_xip(pg_current_snapshot()))"""

# One statement, so one snapshot. Its rows: what, and then the columns of the summary (position, code, name, amount,
# used, until). Access says the same of each device: a test holds them to each other.
_SNAPSHOT = f"""
    ({features.ENTITLEMENTS})
    UNION ALL
    SELECT 'VERSION', 0, '', '', {VERSION}, 0, NULL
    UNION ALL
    SELECT 'HAS', 0, tier.code, f.code, has.amount, CASE f.kind WHEN '{Feature.Kind.SWITCH}' THEN 1 ELSE 0 END, NULL
      FROM device_tiers AS tier LEFT JOIN (tier_features AS has JOIN features AS f ON f.id = has.feature_id)
        ON has.tier_id = tier.id
    UNION ALL
    SELECT 'DEVICE', 0, d.device_id, tier.code, 0, 0, NULL
      FROM (SELECT a.id, a.tier_id FROM {room.SERVING}) AS slots
      JOIN device_tiers AS tier ON tier.id = slots.tier_id
      JOIN slot_assignments AS x ON x.allocation_id = slots.id AND x.released_at IS NULL
      JOIN devices AS d ON d.id = x.device_id AND d.deleted_at IS NULL AND d.parked_at IS NULL"""


def snapshot_of(tenant_id: int, now: datetime) -> Snapshot:
    """What holds for the tenant at `now`. One statement, which reads the tenant's devices that are served, and no
    others.
    """
    rows = room.every(_SNAPSHOT, features.said(tenant_id, now))
    tiers: dict[str, dict[str, bool | int]] = {}
    for what, _, tier, feature, amount, is_switch, _ in rows:
        if what == "HAS":
            of_tier = tiers.setdefault(tier, {})
            if feature is not None:
                of_tier[feature] = amount > 0 if is_switch else int(amount)
    return Snapshot(
        version=next(int(row[4]) for row in rows if row[0] == "VERSION"),
        entitlements=features.read(sorted((row for row in rows if row[0] != "DEVICE"), key=itemgetter(1, 2))),
        devices={row[2]: row[3] for row in rows if row[0] == "DEVICE"},
        tiers=tiers,
    )
