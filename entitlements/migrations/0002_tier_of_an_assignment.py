"""An assignment's tier is its allocation's, held by the database."""

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("entitlements", "0001_initial")]
    operations = [
        migrations.RunSQL(
            """
            ALTER TABLE slot_assignments ADD CONSTRAINT an_assignments_tier_is_its_allocations
                FOREIGN KEY (allocation_id, tier_id) REFERENCES tier_allocations (id, tier_id)
            """,
            "ALTER TABLE slot_assignments DROP CONSTRAINT an_assignments_tier_is_its_allocations",
        )
    ]
