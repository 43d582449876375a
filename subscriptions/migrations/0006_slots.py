"""Entries about slots, and the model of the audit's cursors."""

import django.contrib.postgres.fields
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('subscriptions', '0005_sealed_audit'),
    ]

    operations = [
        migrations.SeparateDatabaseAndState(state_operations=[  # its table was made by `notifications`
        migrations.CreateModel(
            name='AuditCursor',
            fields=[
                ('reader', models.CharField(max_length=32, primary_key=True, serialize=False)),
                ('transaction_id', models.BigIntegerField(default=0)),
                ('last_run_at', models.DateTimeField(help_text='Milestones that had passed by then have been looked for.', null=True)),
                ('milestones', django.contrib.postgres.fields.ArrayField(base_field=models.CharField(max_length=32), default=list, help_text='Those that were looked for then.', size=None)),
            ],
            options={
                'db_table': 'audit_cursors',
            },
        ),
        ]),
        migrations.AlterField(
            model_name='auditentry',
            name='action',
            field=models.CharField(choices=[('started', 'Started'), ('activated', 'Activated'), ('renewed', 'Renewed'), ('grace_started', 'Grace started'), ('suspended', 'Suspended'), ('hold_lifted', 'Hold lifted'), ('cancel_scheduled', 'Cancelled at term end'), ('cancel_undone', 'Cancellation undone'), ('expired', 'Expired'), ('amended', 'Term amended'), ('plan_changed', 'Plan changed'), ('grace_extended', 'Grace extended'), ('slots_changed', 'Slots changed'), ('devices_parked', 'Devices parked'), ('slots_repaired', 'Slots repaired')], max_length=32),
        ),
    ]
