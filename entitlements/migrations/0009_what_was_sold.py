"""What was sold stays as it was: of features, too."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('entitlements', '0008_exceptions_only_grow'),
        ('subscriptions', '0006_slots'),
    ]

    operations = [
        migrations.CreateModel(
            name='SubscriptionFeature',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('amount', models.PositiveBigIntegerField(help_text='1: on, 0: off; or how much.')),
                ('feature', models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='entitlements.feature')),
                ('subscription', models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name='features', to='subscriptions.subscription')),
            ],
            options={
                'db_table': 'subscription_features',
                'constraints': [models.UniqueConstraint(fields=('subscription', 'feature'), name='one_row_per_subscription_and_feature')],
            },
        ),
        migrations.RunSQL(
            "INSERT INTO subscription_features (subscription_id, feature_id, amount)"
            " SELECT s.id, p.feature_id, p.amount FROM subscriptions AS s JOIN plan_features AS p USING (plan_id)"
            " WHERE s.status <> 'EXPIRED' AND p.amount > 0",
            migrations.RunSQL.noop,
        ),
    ]
