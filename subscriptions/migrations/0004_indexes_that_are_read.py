"""Every index costs every status change: none that another one covers, and one for each reader of milestones."""

import django.db.models.deletion
from django.db import migrations, models


# By name: left to itself, Django drops whatever index has the field as its one column, `one_live_main_per_tenant` too.
DROP = """
ALTER TABLE subscriptions DROP CONSTRAINT subscriptions_number_key;
DROP INDEX subscriptions_number_8b6246b4_like, subscriptions_tenant_id_4275a0ca, subscriptions_parent_id_92750ecb,
           subscriptions_plan_id_b857580e, subscriptions_price_id_05de6e5b,
           subscription_audit_tenant_id_8ea1312a, subscription_audit_subscription_id_ab75b294;
"""
MAKE = """
ALTER TABLE subscriptions ADD CONSTRAINT subscriptions_number_key UNIQUE (number);
CREATE INDEX subscriptions_number_8b6246b4_like ON subscriptions (number varchar_pattern_ops);
CREATE INDEX subscriptions_tenant_id_4275a0ca ON subscriptions (tenant_id);
CREATE INDEX subscriptions_parent_id_92750ecb ON subscriptions (parent_id);
CREATE INDEX subscriptions_plan_id_b857580e ON subscriptions (plan_id);
CREATE INDEX subscriptions_price_id_05de6e5b ON subscriptions (price_id);
CREATE INDEX subscription_audit_tenant_id_8ea1312a ON subscription_audit (tenant_id);
CREATE INDEX subscription_audit_subscription_id_ab75b294 ON subscription_audit (subscription_id);
"""


class Migration(migrations.Migration):

    dependencies = [
        ('subscriptions', '0003_calendars_trials_and_families_set_aside'),
    ]

    operations = [
        migrations.SeparateDatabaseAndState(
            database_operations=[migrations.RunSQL(DROP, MAKE)],
            state_operations=[
                migrations.AlterField(
                    model_name='auditentry',
                    name='subscription',
                    field=models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name='audit', to='subscriptions.subscription'),
                ),
                migrations.AlterField(
                    model_name='auditentry',
                    name='tenant',
                    field=models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='subscriptions.tenant'),
                ),
                migrations.AlterField(
                    model_name='subscription',
                    name='number',
                    field=models.CharField(help_text='The public identifier: SUB-YYYYMMDD-XXXXX.', max_length=20),
                ),
                migrations.AlterField(
                    model_name='subscription',
                    name='parent',
                    field=models.ForeignKey(blank=True, db_index=False, help_text='The main subscription of an add-on: the root of its family.', null=True, on_delete=django.db.models.deletion.PROTECT, related_name='addons', to='subscriptions.subscription'),
                ),
                migrations.AlterField(
                    model_name='subscription',
                    name='plan',
                    field=models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name='subscriptions', to='subscriptions.plan'),
                ),
                migrations.AlterField(
                    model_name='subscription',
                    name='price',
                    field=models.ForeignKey(blank=True, db_index=False, help_text='What a renewal costs.', null=True, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='subscriptions.planprice'),
                ),
                migrations.AlterField(
                    model_name='subscription',
                    name='tenant',
                    field=models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name='subscriptions', to='subscriptions.tenant'),
                ),
            ],
        ),
        migrations.AddIndex(
            model_name='subscription',
            index=models.Index(condition=models.Q(('status', 'GRACE')), fields=['grace_end'], name='subscriptions_grace_ending'),
        ),
        migrations.AddIndex(
            model_name='subscription',
            index=models.Index(condition=models.Q(('status', 'TRIAL')), fields=['term_end'], name='subscriptions_trial_ending'),
        ),
        migrations.AddIndex(
            model_name='subscription',
            index=models.Index(condition=models.Q(('parent__isnull', False)), fields=['parent'], name='addons_of_main'),
        ),
        migrations.AddConstraint(
            model_name='subscription',
            constraint=models.UniqueConstraint(fields=('number',), name='one_subscription_per_number'),
        ),
    ]
