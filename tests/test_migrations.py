"""What our own migrations make of rows that are older than they are."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection, transaction

from subscriptions.models import Subscription, Tenant
from subscriptions.proof import verify
from tests.history import on

pytestmark = pytest.mark.django_db(transaction=True)

SOLD = """
    WITH born AS (
        INSERT INTO subscriptions (number, tenant_id, plan_id, type, status, term_start, term_end, term_deadline,
                                   on_hold, auto_renews, cancel_at_term_end, end_reason, version)
        SELECT %(number)s, tenants.id, plans.id, plans.type, 'ACTIVE', %(start)s, %(end)s, %(end)s, false, false, false,
               '', 1
          FROM tenants, plans WHERE tenants.slug = 'acme' AND plans.type = %(type)s
        RETURNING *
    )
    INSERT INTO subscription_audit (subscription_id, tenant_id, version, action, effective_at, actor, source_id, reason,
                                    changes)
    SELECT id, tenant_id, 1, 'started', term_start, 'staff:1', '', 'letter',
           (SELECT jsonb_object_agg(key, jsonb_build_array(NULL, value)) FROM jsonb_each(to_jsonb(born))
             WHERE key NOT IN ('id', 'number', 'tenant_id', 'version', 'next_deadline', 'created_at', 'parent_type'))
      FROM born"""


@pytest.fixture
def before_calendars() -> Iterator[None]:
    """The tables as they were before 0003; afterwards as they are."""
    call_command("migrate", "subscriptions", "0002_evidence", verbosity=0)
    yield
    call_command("migrate", verbosity=0)  # what stands on these tables went with them
    with connection.cursor() as cursor:  # see conftest
        cursor.execute("ALTER TABLE audit_seals DISABLE TRIGGER seals_are_never_emptied")
        cursor.execute("ALTER TABLE slot_assignments DISABLE TRIGGER assignments_are_never_emptied")


@pytest.mark.long
@pytest.mark.usefixtures("before_calendars")
def test_what_was_sold_before_gets_its_anniversary_and_trials_are_counted_as_they_began() -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("INSERT INTO tenants (slug, name, billing_email, contact_email) VALUES ('acme', 'Acme', '', '')")
        for kind in ("MAIN", "TRIAL"):
            cursor.execute("INSERT INTO plans (code, name, type, is_sold) VALUES (%s, %s, %s, true)", [kind] * 3)
        for number, kind in enumerate(["MAIN", "TRIAL", "TRIAL"]):
            sold: dict[str, Any] = {"number": f"SUB-{number}", "type": kind, "start": on(1, 31), "end": on(2, 28)}
            cursor.execute(SOLD, sold)
    call_command("migrate", "subscriptions", verbosity=0)
    assert Tenant.objects.get().time_zone == "UTC"
    columns = ("anniversary", "time_zone", "own_hold", "trial_ordinal")
    assert [*Subscription.objects.order_by("number").values_list(*columns)] == [
        (on(1, 31), "UTC", False, None),
        (on(1, 31), "UTC", False, 1),
        (on(1, 31), "UTC", False, 2),
    ]
    assert verify().subscriptions == 3  # each is what its audit tells, though the audit says nothing of an anniversary
