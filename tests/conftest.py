"""Real parts for every test: PostgreSQL and Valkey come from `make test`, or from DATABASE_URL and REDIS_URL."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection, transaction
from django.test import TransactionTestCase

from tests.stripe_sandbox.client import Sandbox
from tests.stripe_sandbox_cast import api as api
from tests.stripe_sandbox_cast import receiver as receiver
from tests.stripe_sandbox_cast import running as running
from tests.stripe_sandbox_cast import sandbox as sandbox
from tests.stripe_spec import validate_request


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: Any) -> None:
    """Tests that commit are cleaned up with TRUNCATE, which the audit and its seals refuse: only in test databases."""
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        cursor.execute("ALTER TABLE subscription_audit DISABLE TRIGGER the_audit_is_never_emptied")
        cursor.execute("ALTER TABLE audit_seals DISABLE TRIGGER seals_are_never_emptied")
        cursor.execute("ALTER TABLE slot_assignments DISABLE TRIGGER assignments_are_never_emptied")
        cursor.execute("ALTER TABLE feature_override_entries DISABLE TRIGGER override_entries_are_never_emptied")


def _empty_filled_tables(test: TransactionTestCase) -> None:
    """After a test that commits. Django's own way truncates all tables, dj-stripe's 150 too, and makes every content
    type and permission anew: seconds a test. This empties the few that hold something.
    """
    kept = {"django_migrations", "django_content_type", "auth_permission"}
    tables = set(connection.introspection.django_table_names(only_existing=True, include_views=False)) - kept
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(" UNION ALL ".join(f"SELECT '{t}' WHERE EXISTS (SELECT FROM {t})" for t in sorted(tables)))
        filled = {table for (table,) in cursor.fetchall()}
        append_only = {"subscription_audit", "audit_seals", "slot_assignments", "feature_override_entries"}
        for table in sorted(filled & append_only):
            cursor.execute(f"TRUNCATE {table}")
        if "tier_allocations" in filled:  # without evidence: it is gone already
            cursor.execute("TRUNCATE tier_allocations CASCADE")
        for table in sorted(filled - append_only):
            cursor.execute(f"DELETE FROM {table}")


TransactionTestCase._fixture_teardown = _empty_filled_tables  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def stripe_process() -> Iterator[Sandbox]:
    with Sandbox.start(api_key="sk_test_local", webhook_secret="whsec_local") as sandbox:
        yield sandbox


@pytest.fixture
def stripe(stripe_process: Sandbox, settings: Any) -> Iterator[Sandbox]:
    """The Stripe sandbox, empty, as the service's Stripe. It delivers nothing: a test says which event comes."""
    stripe_process.reset()
    settings.STRIPE_API_BASE = stripe_process.url
    settings.STRIPE_SECRET_KEY = stripe_process.api_key
    yield stripe_process
    asked = stripe_process.requests()
    stripe_process.reset()
    for request in asked:  # whatever it was answered: what we send is what Stripe publishes
        if request["user_agent"].startswith("Stripe/v1 PythonBindings"):
            validate_request(request["method"], request["path"], request["params"])
