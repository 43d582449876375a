"""Indexes that another one covers, or that nobody reads, cost every status change."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('subscriptions', '0003_calendars_trials_and_families_set_aside'),
    ]

    operations = [
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
        migrations.AddIndex(
            model_name='subscription',
            index=models.Index(condition=models.Q(('parent__isnull', False)), fields=['parent'], name='addons_of_main'),
        ),
        migrations.AddConstraint(
            model_name='subscription',
            constraint=models.UniqueConstraint(fields=('number',), name='one_subscription_per_number'),
        ),
    ]
