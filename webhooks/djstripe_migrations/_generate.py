"""Write ``0001_squashed.py`` from upstream's migrations, or compare the tables the two ways lead to.

When and how to run it stands in the package's docstring. The leading underscore keeps Django from taking this file
for a migration.
"""

import argparse
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import django
from django.conf import settings
from django.db import connection
from django.db.migrations import AddField, CreateModel, Migration
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations.base import Operation
from django.db.migrations.operations.fields import FieldOperation
from django.db.migrations.operations.models import ModelOperation
from django.db.migrations.state import ModelState
from django.db.migrations.utils import resolve_relation
from django.db.migrations.writer import MigrationWriter
from django.test.utils import override_settings

SQUASHED = ("djstripe", "0001_squashed")

HEADER = """\
# Written by _generate.py; do not edit. The package's docstring says when to write it anew.
#
# No RunPython or RunSQL is lost: {replaced} hold only operations
# on models and fields (the generator refuses anything else), so a fresh database needs nothing but the last schema.
#
# ruff: noqa
# fmt: off

"""

# One line per fact about the tables of dj-stripe; an oid or an order of creation never shows.
SCHEMA = """
SELECT format('column %s.%s %s null=%s default=%s identity=%s collation=%s', c.relname, a.attname,
              format_type(a.atttypid, a.atttypmod), NOT a.attnotnull, pg_get_expr(d.adbin, d.adrelid), a.attidentity,
              a.attcollation::regcollation)
  FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
  LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
 WHERE c.relkind = 'r' AND starts_with(c.relname, 'djstripe_')
UNION ALL
SELECT format('constraint %s %s: %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
  FROM pg_constraint WHERE starts_with(conrelid::regclass::text, 'djstripe_')
UNION ALL
SELECT format('index %s: %s', tablename, indexdef) FROM pg_indexes WHERE starts_with(tablename, 'djstripe_')
UNION ALL
SELECT format('sequence %s %s', sequencename, data_type) FROM pg_sequences WHERE starts_with(sequencename, 'djstripe_')
"""


@contextmanager
def upstream_only() -> Iterator[None]:
    """Let Django see dj-stripe's migrations as if this package did not exist."""
    others = {label: module for label, module in settings.MIGRATION_MODULES.items() if label != "djstripe"}
    with override_settings(MIGRATION_MODULES=others):
        yield


def squash() -> Migration:
    """Build one migration that replaces all of upstream's and creates their last state directly."""
    with upstream_only():
        loader = MigrationLoader(None)
    (leaf,) = loader.graph.leaf_nodes("djstripe")
    chain = [key for key in loader.graph.forwards_plan(leaf) if key[0] == "djstripe"]
    for key in chain:
        for operation in loader.graph.nodes[key].operations:
            if not isinstance(operation, ModelOperation | FieldOperation):
                raise SystemExit(f"{key[1]} has {operation!r}: decide what a fresh database needs of it.")
    state = loader.project_state(leaf)
    models = {name: model for (app_label, name), model in state.models.items() if app_label == "djstripe"}

    class Squashed(Migration):
        initial = True
        replaces = chain
        # The first migration of the subscriber's app. Where DJSTRIPE_SUBSCRIBER_MODEL_MIGRATION_DEPENDENCY names a
        # later one, ours inherits that edge of the graph from upstream's 0001.
        dependencies: ClassVar = [("__setting__", "DJSTRIPE_SUBSCRIBER_MODEL")]
        operations: ClassVar = list(creations(models))

    return Squashed(SQUASHED[1], SQUASHED[0])


def creations(models: dict[str, ModelState]) -> Iterator[Operation]:
    """Yield CreateModel for every model after the models it refers to, and AddField where they refer to each other."""
    waiting = {name: references(model) & models.keys() - {name} for name, model in models.items()}
    added_later = []
    while waiting:
        name = min(waiting, key=lambda candidate: len(waiting[candidate] & waiting.keys()))
        unmet = waiting.pop(name) & waiting.keys()
        model = models[name]
        late = {field for field in model.fields if field_references(model, field) & unmet}
        added_later += [AddField(name, field, model.fields[field]) for field in model.fields if field in late]
        fields = [(field, value) for field, value in model.fields.items() if field not in late]
        # A state always carries these two options, mostly empty; a migration names them only when they hold something.
        empty = {option for option in ("indexes", "constraints") if not model.options[option]}
        options = {option: value for option, value in model.options.items() if option not in empty}
        yield CreateModel(model.name, fields, options, model.bases, model.managers)
    yield from added_later


def references(model: ModelState) -> set[str]:
    """Name the dj-stripe models that this one's fields point at."""
    return {name for field in model.fields for name in field_references(model, field)}


def field_references(model: ModelState, field_name: str) -> set[str]:
    remote = model.fields[field_name].remote_field
    targets = [target for target in (getattr(remote, "model", None), getattr(remote, "through", None)) if target]
    resolved = [resolve_relation(target, model.app_label, model.name_lower) for target in targets]
    return {name for app_label, name in resolved if app_label == "djstripe"}


def source(migration: Migration) -> str:
    """Serialise the migration, with the subscriber model as the setting it is and not as its value of today."""
    subscriber = f"to={settings.DJSTRIPE_SUBSCRIBER_MODEL.lower()!r}"
    text = MigrationWriter(migration, include_header=False).as_string()
    if text.count(subscriber) != 1:
        raise SystemExit(f"Expected {subscriber} in Customer.subscriber and nowhere else.")
    replaced = ", ".join(name for _, name in migration.replaces)
    return HEADER.format(replaced=replaced) + text.replace(subscriber, "to=settings.DJSTRIPE_SUBSCRIBER_MODEL")


def schema_of_fresh_database() -> Counter[str]:
    """Migrate dj-stripe (and what it depends on) into a temporary database and describe its tables."""
    home, name = connection.settings_dict["NAME"], "djstripe_schema_check"
    with connection._nodb_cursor() as cursor:
        cursor.execute(f"DROP DATABASE IF EXISTS {name}")
        cursor.execute(f"CREATE DATABASE {name}")
    connection.close()
    connection.settings_dict["NAME"] = name
    try:
        started = time.perf_counter()
        executor = MigrationExecutor(connection)
        executor.migrate(executor.loader.graph.leaf_nodes("djstripe"))
        seconds = time.perf_counter() - started
        with connection.cursor() as cursor:
            cursor.execute(SCHEMA)
            facts = Counter(line for (line,) in cursor.fetchall())
    finally:
        connection.close()
        connection.settings_dict["NAME"] = home
        with connection._nodb_cursor() as cursor:
            cursor.execute(f"DROP DATABASE {name}")
    print(f"{facts.total()} facts about the tables, migrated in {seconds:.1f} s")
    return facts


def check_schema() -> None:
    """Exit with the differences unless both ways lead to the same tables, down to the names of constraints."""
    ours = schema_of_fresh_database()
    with upstream_only():
        theirs = schema_of_fresh_database()
    if ours != theirs:
        only_theirs, only_ours = sorted(theirs - ours), sorted(ours - theirs)
        raise SystemExit("\n".join(["Upstream only:", *only_theirs, "Ours only:", *only_ours]))
    print("The tables are the same.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check-schema", action="store_true", help="compare with upstream's tables; write nothing")
    arguments = parser.parse_args()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "billing_site.settings")
    django.setup()
    if arguments.check_schema:
        check_schema()
    else:
        Path(__file__).with_name(f"{SQUASHED[1]}.py").write_text(source(squash()))
