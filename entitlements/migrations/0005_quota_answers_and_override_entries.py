"""What a repeat is answered is the whole answer; and a tenant's exceptions have a history."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('entitlements', '0004_one_door'),
        ('subscriptions', '0006_slots'),
    ]

    operations = [
        migrations.AddField(
            model_name='quotaoperation',
            name='quota_limit',
            field=models.BigIntegerField(default=0, help_text='What was allowed then: of the answer, too.'),
            preserve_default=False,
        ),
        migrations.CreateModel(
            name='FeatureOverrideEntry',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('amount', models.PositiveBigIntegerField()),
                ('expires_at', models.DateTimeField(blank=True, help_text='Its own instant: it was ended.', null=True)),
                ('at', models.DateTimeField()),
                ('actor', models.CharField(help_text='staff:12, operator:1000.', max_length=64)),
                ('request_id', models.CharField(blank=True, max_length=64)),
                ('reason', models.TextField()),
                ('feature', models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='entitlements.feature')),
                ('tenant', models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='subscriptions.tenant')),
            ],
            options={
                'verbose_name_plural': 'feature override entries',
                'db_table': 'feature_override_entries',
                'indexes': [models.Index(fields=['tenant', '-id'], name='override_entries_of_tenant')],
                'constraints': [models.CheckConstraint(condition=models.Q(models.Q(('actor', ''), _negated=True), models.Q(('reason', ''), _negated=True)), name='an_override_entry_says_who_and_why')],
            },
        ),
    ]
