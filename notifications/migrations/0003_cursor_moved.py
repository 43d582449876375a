"""The audit's cursors belong to whoever reads the audit: the table stays, its model moves to `subscriptions`."""

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("notifications", "0002_last_run"), ("subscriptions", "0006_slots")]
    operations = [
        migrations.SeparateDatabaseAndState(state_operations=[migrations.DeleteModel(name="AuditCursor")]),
    ]
