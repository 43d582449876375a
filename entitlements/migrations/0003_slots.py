"""What the verbs of slots, features and quotas need. Nothing wrote to these tables before, so none has rows to mind."""

import django.db.models.deletion
import django.db.models.functions.comparison
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('entitlements', '0002_tier_of_an_assignment'),
        ('subscriptions', '0006_slots'),
    ]

    operations = [
        migrations.CreateModel(
            name='QuotaOperation',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('key', models.CharField(max_length=255)),
                ('operation', models.CharField(max_length=16)),
                ('amount', models.BigIntegerField()),
                ('used', models.BigIntegerField(help_text='What was in use afterwards: the answer to a repeat.')),
                ('at', models.DateTimeField()),
            ],
            options={
                'db_table': 'quota_operations',
            },
        ),
        migrations.CreateModel(
            name='TierFeature',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('amount', models.PositiveBigIntegerField(default=1, help_text='1: on, 0: off; or how much.')),
            ],
            options={
                'db_table': 'tier_features',
            },
        ),
        migrations.AlterModelOptions(
            name='devicetier',
            options={'ordering': ['position', 'code']},
        ),
        migrations.RunSQL(  # made anew, with the tenant, in the next migration
            "ALTER TABLE slot_assignments DROP CONSTRAINT an_assignments_tier_is_its_allocations",
            "ALTER TABLE slot_assignments ADD CONSTRAINT an_assignments_tier_is_its_allocations "
            "FOREIGN KEY (allocation_id, tier_id) REFERENCES tier_allocations (id, tier_id)",
        ),
        migrations.RemoveConstraint(
            model_name='tierallocation',
            name='allocation_key',
        ),
        migrations.AddField(
            model_name='device',
            name='deleted_at',
            field=models.DateTimeField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name='device',
            name='parked_at',
            field=models.DateTimeField(blank=True, help_text='Since when it waits for a slot that it lost.', null=True),
        ),
        migrations.AddField(
            model_name='device',
            name='parked_tier',
            field=models.ForeignKey(blank=True, db_index=False, help_text='The tier of the slot that it waits for.', null=True, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='entitlements.devicetier'),
        ),
        migrations.AddField(
            model_name='device',
            name='transaction_id',
            field=models.BigIntegerField(db_default=django.db.models.functions.comparison.Cast(django.db.models.functions.comparison.Cast(models.Func(function='pg_current_xact_id'), models.TextField()), models.BigIntegerField()), editable=False, help_text='The database transaction that changed it, or its slot, last: readers of `changes` go by it.'),
        ),
        migrations.AddField(
            model_name='devicetier',
            name='is_default',
            field=models.BooleanField(db_default=False, default=False, help_text='What a device gets where nobody says which tier.'),
        ),
        migrations.AddField(
            model_name='devicetier',
            name='position',
            field=models.PositiveSmallIntegerField(db_default=0, default=0, help_text='Its place in lists, the smallest first.'),
        ),
        migrations.AddField(
            model_name='devicetier',
            name='transaction_id',
            field=models.BigIntegerField(db_default=django.db.models.functions.comparison.Cast(django.db.models.functions.comparison.Cast(models.Func(function='pg_current_xact_id'), models.TextField()), models.BigIntegerField()), editable=False),
        ),
        migrations.AddField(
            model_name='featureoverride',
            name='transaction_id',
            field=models.BigIntegerField(db_default=django.db.models.functions.comparison.Cast(django.db.models.functions.comparison.Cast(models.Func(function='pg_current_xact_id'), models.TextField()), models.BigIntegerField()), editable=False),
        ),
        migrations.AddField(
            model_name='slotassignment',
            name='end_reason',
            field=models.TextField(blank=True, db_default='', default='', help_text='Why it left its slot, in words.'),
        ),
        migrations.AddField(
            model_name='slotassignment',
            name='ended',
            field=models.CharField(blank=True, db_default='', default='', choices=[('released', 'Released'), ('deleted', 'Device deleted'), ('moved', 'Moved to another slot'), ('parked', 'Parked')], max_length=16),
        ),
        migrations.AddField(
            model_name='slotassignment',
            name='source_id',
            field=models.CharField(blank=True, db_default='', default='', help_text="What caused it: a request id, a file's line.", max_length=255),
        ),
        migrations.AddField(
            model_name='slotassignment',
            name='tenant',
            field=models.ForeignKey(db_constraint=False, db_index=False, default=0, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='subscriptions.tenant'),
            preserve_default=False,
        ),
        migrations.AddField(
            model_name='tierallocation',
            name='is_open',
            field=models.BooleanField(db_default=True, default=True, help_text='Until its subscription is over. Then nothing is assigned.'),
        ),
        migrations.AddField(
            model_name='tierallocation',
            name='tenant',
            field=models.ForeignKey(db_constraint=False, db_index=False, default=0, editable=False, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='subscriptions.tenant'),
            preserve_default=False,
        ),
        migrations.AlterField(
            model_name='device',
            name='tenant',
            field=models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name='devices', to='subscriptions.tenant'),
        ),
        migrations.AlterField(
            model_name='devicetier',
            name='code',
            field=models.SlugField(help_text='Names the tier in URLs and in the audit.', max_length=63, unique=True),
        ),
        migrations.AlterField(
            model_name='featureoverride',
            name='expires_at',
            field=models.DateTimeField(blank=True, help_text='Then the plans count again. Empty: never.', null=True),
        ),
        migrations.AlterField(
            model_name='planfeature',
            name='amount',
            field=models.PositiveBigIntegerField(default=1, help_text='1: on, 0: off; or how much.'),
        ),
        migrations.AlterField(
            model_name='slotassignment',
            name='allocation',
            field=models.ForeignKey(db_constraint=False, db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name='assignments', to='entitlements.tierallocation'),
        ),
        migrations.AlterField(
            model_name='slotassignment',
            name='assigned_by',
            field=models.CharField(help_text='The actor: member:7, apikey:3, stripe, clock.', max_length=64),
        ),
        migrations.AlterField(
            model_name='slotassignment',
            name='device',
            field=models.ForeignKey(db_constraint=False, db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name='assignments', to='entitlements.device'),
        ),
        migrations.RunSQL(  # Django drops every index of the one column with the one that was asked for
            "DROP INDEX IF EXISTS one_open_assignment_per_device;"
            "CREATE UNIQUE INDEX one_open_assignment_per_device ON slot_assignments (device_id) WHERE released_at IS NULL",
            migrations.RunSQL.noop,
        ),
        migrations.AlterField(
            model_name='slotassignment',
            name='tier',
            field=models.ForeignKey(db_constraint=False, db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='entitlements.devicetier'),
        ),
        migrations.AlterField(
            model_name='tierallocation',
            name='subscription',
            field=models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name='allocations', to='subscriptions.subscription'),
        ),
        migrations.AlterField(
            model_name='tierallocation',
            name='tier',
            field=models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='entitlements.devicetier'),
        ),
        migrations.AddIndex(
            model_name='device',
            index=models.Index(fields=['transaction_id', 'id'], name='devices_by_change'),
        ),
        migrations.AddIndex(
            model_name='device',
            index=models.Index(condition=models.Q(('parked_at__isnull', False)), fields=['tenant', 'parked_tier', 'parked_at'], name='devices_parked'),
        ),
        migrations.AddIndex(
            model_name='device',
            index=models.Index(fields=['device_id'], name='devices_by_device_id'),
        ),
        migrations.AddIndex(
            model_name='slotassignment',
            index=models.Index(fields=['device', '-id'], name='assignments_of_device'),
        ),
        migrations.AddIndex(
            model_name='slotassignment',
            index=models.Index(condition=models.Q(('released_at__isnull', True)), fields=['allocation', '-id'], name='open_assignments'),
        ),
        migrations.AddIndex(
            model_name='tierallocation',
            index=models.Index(condition=models.Q(('is_open', True)), fields=['tenant', 'tier'], name='allocations_of_tenant'),
        ),
        migrations.AddConstraint(
            model_name='device',
            constraint=models.UniqueConstraint(fields=('tenant', 'id'), name='device_key'),
        ),
        migrations.AddConstraint(
            model_name='device',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('parked_at__isnull', True), ('parked_tier__isnull', True)), models.Q(('deleted_at__isnull', True), ('parked_at__isnull', False), ('parked_tier__isnull', False)), _connector='OR'), name='a_parked_device_waits_for_a_tier'),
        ),
        migrations.AddConstraint(
            model_name='devicetier',
            constraint=models.UniqueConstraint(condition=models.Q(('is_default', True)), fields=('is_default',), name='one_default_tier'),
        ),
        migrations.AddConstraint(
            model_name='slotassignment',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('ended', ''), ('released_at__isnull', True), ('released_by', '')), models.Q(('released_at__isnull', False), models.Q(('released_by', ''), _negated=True), models.Q(('ended', ''), _negated=True)), _connector='OR'), name='a_released_slot_says_who_and_why'),
        ),
        migrations.AddConstraint(
            model_name='slotassignment',
            constraint=models.CheckConstraint(condition=models.Q(('assigned_by', ''), _negated=True), name='an_assignment_names_its_actor'),
        ),
        migrations.AddConstraint(
            model_name='tierallocation',
            constraint=models.UniqueConstraint(fields=('id', 'tier', 'tenant'), name='allocation_key'),
        ),
        migrations.AddConstraint(
            model_name='tierallocation',
            constraint=models.CheckConstraint(condition=models.Q(('is_open', True), ('slots_used', 0), _connector='OR'), name='nothing_is_in_use_of_what_is_over'),
        ),
        migrations.AddField(
            model_name='quotaoperation',
            name='feature',
            field=models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='entitlements.feature'),
        ),
        migrations.AddField(
            model_name='quotaoperation',
            name='tenant',
            field=models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='subscriptions.tenant'),
        ),
        migrations.AddField(
            model_name='tierfeature',
            name='feature',
            field=models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='entitlements.feature'),
        ),
        migrations.AddField(
            model_name='tierfeature',
            name='tier',
            field=models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name='features', to='entitlements.devicetier'),
        ),
        migrations.AddIndex(
            model_name='quotaoperation',
            index=models.Index(fields=['at'], name='quota_operations_by_time'),
        ),
        migrations.AddConstraint(
            model_name='quotaoperation',
            constraint=models.UniqueConstraint(fields=('tenant', 'feature', 'key'), name='a_key_is_used_once'),
        ),
        migrations.AddConstraint(
            model_name='tierfeature',
            constraint=models.UniqueConstraint(fields=('tier', 'feature'), name='one_row_per_tier_and_feature'),
        ),
    ]
