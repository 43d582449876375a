"""Our squashed copy of dj-stripe's migrations stays equal to upstream's, and out of the way of its next one."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.core.management import call_command
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations.fields import FieldOperation
from django.db.migrations.operations.models import ModelOperation
from django.db.migrations.recorder import MigrationRecorder
from django.db.migrations.state import ModelState

from webhooks import djstripe_migrations

SQUASHED = ("djstripe", "0001_squashed")
REPLACED = import_module("webhooks.djstripe_migrations.0001_squashed").Migration.replaces
WRITE_ANEW = f"Upstream changed what our squashed migration was written from.\n\n{djstripe_migrations.__doc__}"


@pytest.fixture
def unreplaced() -> MigrationLoader:
    """Upstream's migrations and ours side by side, no database asked."""
    return MigrationLoader(None, replace_migrations=False)


def models_after(loader: MigrationLoader, migration: tuple[str, str]) -> dict[str, ModelState]:
    models = loader.project_state(migration).models.values()
    return {model.name: model for model in models if model.app_label == "djstripe"}


def test_ours_leads_to_the_same_models_as_the_migrations_it_replaces(unreplaced: MigrationLoader) -> None:
    ours, theirs = models_after(unreplaced, SQUASHED), models_after(unreplaced, REPLACED[-1])
    assert ours.keys() == theirs.keys(), WRITE_ANEW
    assert [name for name in theirs if ours[name] != theirs[name]] == [], WRITE_ANEW


def test_that_comparison_sees_a_single_changed_field(unreplaced: MigrationLoader) -> None:
    customer, changed = (models_after(unreplaced, SQUASHED)["Customer"] for _ in range(2))
    assert customer == changed
    changed.fields["subscriber"] = changed.fields["subscriber"].clone()
    changed.fields["subscriber"].null = False
    assert customer != changed


def test_what_ours_replaces_is_the_whole_beginning_of_upstreams_chain(unreplaced: MigrationLoader) -> None:
    assert set(REPLACED) <= unreplaced.graph.nodes.keys(), WRITE_ANEW
    chain = [key for key in unreplaced.graph.forwards_plan(REPLACED[-1]) if key[0] == "djstripe"]
    assert chain == REPLACED, WRITE_ANEW


def test_the_replaced_migrations_hold_no_data_that_a_fresh_database_would_miss(unreplaced: MigrationLoader) -> None:
    operations = [operation for key in REPLACED for operation in unreplaced.graph.nodes[key].operations]
    assert [op for op in operations if not isinstance(op, ModelOperation | FieldOperation)] == []


def test_a_fresh_database_runs_ours_and_nothing_it_replaces() -> None:
    loader = MigrationLoader(None)
    (leaf,) = loader.graph.leaf_nodes("djstripe")
    plan = [key for key in loader.graph.forwards_plan(leaf) if key[0] == "djstripe"]
    assert plan[0] == SQUASHED
    assert not set(plan) & set(REPLACED)


def test_a_later_migration_of_upstreams_is_found_and_runs_after_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    """A package made as ours is, with one more directory on its path, stands in for the next dj-stripe."""
    package = tmp_path / "next_djstripe_migrations"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from webhooks import djstripe_migrations\n__path__.extend(djstripe_migrations.__path__)\n"
    )
    (package / "9999_next.py").write_text(
        "from django.db import migrations\n\n\n"
        "class Migration(migrations.Migration):\n"
        f"    dependencies = [{REPLACED[-1]!r}]\n"
        "    operations = [migrations.DeleteModel('Mandate')]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    settings.MIGRATION_MODULES = {**settings.MIGRATION_MODULES, "djstripe": package.name}

    loader = MigrationLoader(None)

    assert loader.graph.leaf_nodes("djstripe") == [("djstripe", "9999_next")]
    plan = loader.graph.forwards_plan(("djstripe", "9999_next"))
    assert [key for key in plan if key[0] == "djstripe"] == [SQUASHED, ("djstripe", "9999_next")]
    assert "Mandate" in models_after(loader, SQUASHED)
    assert "Mandate" not in models_after(loader, ("djstripe", "9999_next"))


def test_ours_waits_for_the_subscriber_model(settings: Any) -> None:
    loader = MigrationLoader(None)
    subscriber_app = settings.DJSTRIPE_SUBSCRIBER_MODEL.split(".")[0]
    assert loader.graph.root_nodes(subscriber_app)[0] in loader.graph.forwards_plan(SQUASHED)
    subscriber: Any = models_after(loader, SQUASHED)["Customer"].fields["subscriber"]
    assert apps.get_model(subscriber.remote_field.model) is apps.get_model(settings.DJSTRIPE_SUBSCRIBER_MODEL)


def test_no_other_app_depends_on_ours_by_name(unreplaced: MigrationLoader) -> None:
    """Written anew, ours replaces more; an applied migration that depends on it would then depend on unapplied ones."""
    dependents = [key for key, migration in unreplaced.disk_migrations.items() if SQUASHED in migration.dependencies]
    assert dependents == [], f"Depend on upstream's name instead: {REPLACED[-1]!r}."


def djstripe_migrations_left_to_run() -> list[str]:
    executor = MigrationExecutor(connection)
    plan = executor.migration_plan(executor.loader.graph.leaf_nodes("djstripe"))
    return [migration.name for migration, _ in plan if migration.app_label == "djstripe"]


@pytest.mark.django_db
def test_a_database_that_ran_all_of_upstreams_has_nothing_left_to_run() -> None:
    MigrationRecorder(connection).record_unapplied(*SQUASHED)
    assert djstripe_migrations_left_to_run() == []


@pytest.mark.django_db
def test_a_database_that_ran_some_of_upstreams_goes_on_with_upstreams() -> None:
    MigrationRecorder(connection).record_unapplied(*SQUASHED)
    MigrationRecorder(connection).record_unapplied(*REPLACED[-1])
    assert djstripe_migrations_left_to_run()[0] == REPLACED[-1][1]


@pytest.mark.django_db
def test_makemigrations_finds_nothing_to_do_for_djstripe() -> None:
    call_command("makemigrations", "djstripe", check=True, dry_run=True, verbosity=0)
