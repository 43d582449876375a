"""What is wrong with the database connection, said by `manage.py migrate` and `manage.py check --database default`."""

from collections.abc import Sequence
from typing import Any

from django.core.checks import CheckMessage, Tags, Warning, register
from django.db import connections


@register(Tags.database)
def connects_as_a_plain_role(databases: Sequence[str] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """A superuser, and a role with BYPASSRLS, pass by row security silently."""
    found: list[CheckMessage] = []
    for alias in databases or ():
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT rolname, rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user")
            role, passes_by = cursor.fetchone()
        if passes_by:
            hint = "Make a plain role the owner of the database and name it in DATABASE_URL."
            text = f"The service connects as {role}, whom row security does not hold."
            found.append(Warning(text, hint, id="termkeeper.W001"))
    return found
