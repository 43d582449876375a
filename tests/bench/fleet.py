"""Tenants with devices in slots, as many as somebody asks for, loaded with SQL as `million` is."""

from collections.abc import Sequence
from pathlib import Path

import psycopg

from tests.bench.million import without_guards

TABLES = ["devices", "tier_allocations", "slot_assignments", "subscriptions", "subscription_audit"]


def load(database: psycopg.Connection, devices: Sequence[int]) -> None:
    """Fill an empty, migrated database: a tenant for each number, with so many devices; then VACUUM and ANALYZE it."""
    database.execute(
        "CREATE TEMPORARY TABLE fleet AS SELECT * FROM unnest(%s::int[]) WITH ORDINALITY AS fleet (devices, place)",
        [[*devices]],
    )
    with without_guards(database, TABLES):
        database.execute(Path(__file__).with_suffix(".sql").read_bytes())
    database.execute("VACUUM (ANALYZE)")
