"""A million subscriptions, loaded with SQL: without triggers, foreign keys and indexes, which come back afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

GROUPS = 10  # of 100,000 subscriptions each; all of one group are due at the same instant
TABLES = ["subscriptions", "subscription_audit"]

CONSTRAINTS = """
    SELECT format('ALTER TABLE %%I DROP CONSTRAINT %%I', t.relname, c.conname),
           format('ALTER TABLE %%I ADD CONSTRAINT %%I %%s', t.relname, c.conname, pg_get_constraintdef(c.oid))
      FROM pg_constraint AS c JOIN pg_class AS t ON t.oid = c.conrelid
     WHERE t.relname = ANY(%s) AND c.contype = 'f'"""
INDEXES = """
    SELECT format('DROP INDEX %%I', i.relname), pg_get_indexdef(i.oid)
      FROM pg_index AS x JOIN pg_class AS i ON i.oid = x.indexrelid JOIN pg_class AS t ON t.oid = x.indrelid
     WHERE t.relname = ANY(%s) AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = i.oid)"""


def load(database: psycopg.Connection) -> None:
    """Fill an empty, migrated database; then VACUUM and ANALYZE it."""
    with without_guards(database, TABLES):
        database.execute(Path(__file__).with_name("million.sql").read_bytes())
    database.execute("VACUUM (ANALYZE)")


@contextmanager
def without_guards(database: psycopg.Connection, tables: list[str]) -> Iterator[None]:
    """Within it these tables have no triggers, foreign keys and indexes; afterwards the same as before."""
    dropped = [row for query in (CONSTRAINTS, INDEXES) for row in database.execute(query, [tables]).fetchall()]
    for table in tables:
        database.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER".encode())
    for drop, _ in dropped:
        database.execute(drop.encode())
    yield
    for _, make in reversed(dropped):
        database.execute(make.encode())
    for table in tables:
        database.execute(f"ALTER TABLE {table} ENABLE TRIGGER USER".encode())
