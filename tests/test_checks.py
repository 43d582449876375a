"""The start-up check of the database role."""

import pytest
from django.db import connection

from billing_site.checks import connects_as_a_plain_role

pytestmark = pytest.mark.django_db


def test_a_plain_role_is_no_cause_for_a_warning() -> None:
    assert connects_as_a_plain_role(databases=["default"]) == []


def test_a_role_that_row_security_does_not_hold_is_named() -> None:
    """A superuser cannot be had here: a view of the same name says that we are one."""
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE TEMP VIEW pg_roles AS SELECT current_user AS rolname, true AS rolsuper, false AS rolbypassrls"
        )
        cursor.execute("SET LOCAL search_path = pg_temp, public, pg_catalog")
    [warning] = connects_as_a_plain_role(databases=["default"])
    assert (warning.id, warning.msg) == (
        "termkeeper.W001", "The service connects as termkeeper, whom row security does not hold.",
    )  # fmt: skip
