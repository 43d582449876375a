"""What is being bought, what Stripe has to be told, and where we differ."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('entitlements', '0011_slot_packs'),
        ('subscriptions', '0007_quantities_and_trials'),
        ('webhooks', '0001_initial'),
    ]

    operations = [
        migrations.CreateModel(
            name='Checkout',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('quantity', models.PositiveIntegerField(default=1)),
                ('session_id', models.CharField(blank=True, help_text="Stripe's checkout session, once it is made.", max_length=255)),
                ('url', models.TextField(blank=True, help_text='Where the customer pays.')),
                ('success_url', models.TextField(help_text='Where the customer goes on, once what was bought is here.')),
                ('cancel_url', models.TextField()),
                ('state', models.CharField(choices=[('OPEN', 'Open'), ('COMPLETE', 'Complete'), ('EXPIRED', 'Expired')], default='OPEN', max_length=16)),
                ('actor', models.CharField(help_text='Who asked for it: member:7, apikey:3.', max_length=64)),
                ('created_at', models.DateTimeField()),
                ('expires_at', models.DateTimeField(help_text='Until then Stripe takes the payment.')),
            ],
            options={
                'db_table': 'stripe_checkouts',
            },
        ),
        migrations.CreateModel(
            name='Drift',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('kind', models.CharField(choices=[('STATUS', 'Status'), ('PERIOD', 'Period'), ('PLAN', 'Plan'), ('QUANTITY', 'Quantity or packs'), ('CANCELLATION', 'Cancellation'), ('CUSTOMER', 'Customer'), ('BILLED_AFTER_END', 'Billed at Stripe after its end here'), ('SERVED_AFTER_END', 'Served here after its end at Stripe'), ('DUPLICATE', 'Bought twice'), ('UNKNOWN_HERE', 'Not known here'), ('UNKNOWN_AT_STRIPE', 'Not known at Stripe'), ('UNREADABLE', 'Not understood'), ('REFUND', 'Refund'), ('DISPUTE', 'Dispute')], max_length=32)),
                ('severity', models.CharField(choices=[('HIGH', 'High'), ('MEDIUM', 'Medium'), ('LOW', 'Low')], max_length=16)),
                ('object_id', models.CharField(help_text='The Stripe object: a subscription, a refund, a dispute.', max_length=255)),
                ('ours', models.JSONField(default=dict, help_text='What we have, by name.')),
                ('theirs', models.JSONField(default=dict, help_text='What Stripe has, by the same names.')),
                ('found_at', models.DateTimeField()),
                ('seen_at', models.DateTimeField(help_text='When it was last so.')),
                ('resolved_at', models.DateTimeField(blank=True, null=True)),
                ('resolution', models.CharField(blank=True, help_text='What ended it: a repair, and whose; or nobody.', max_length=255)),
            ],
            options={
                'verbose_name_plural': 'drift',
                'db_table': 'stripe_drifts',
                'ordering': ['-id'],
            },
        ),
        migrations.CreateModel(
            name='Reconciliation',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('started_at', models.DateTimeField()),
                ('finished_at', models.DateTimeField(blank=True, null=True)),
                ('phase', models.CharField(choices=[('STRIPE', 'What Stripe has'), ('OURS', 'What only we have'), ('MONEY', 'Refunds and disputes'), ('DONE', 'Done')], default='STRIPE', max_length=16)),
                ('cursor', models.CharField(blank=True, help_text='The last one of the page that was compared.', max_length=255)),
                ('compared', models.PositiveIntegerField(default=0, help_text='How many subscriptions so far.')),
                ('found', models.PositiveIntegerField(default=0, help_text='How many differences so far.')),
                ('repaired', models.PositiveIntegerField(default=0)),
                ('reads', models.PositiveIntegerField(default=0, help_text='Requests to Stripe.')),
                ('lease_until', models.DateTimeField(blank=True, help_text='Whoever compares now has it until then.', null=True)),
                ('error_code', models.CharField(blank=True, help_text='Why it stopped, if it did; it goes on later.', max_length=64)),
            ],
            options={
                'db_table': 'stripe_reconciliations',
                'ordering': ['-id'],
            },
        ),
        migrations.CreateModel(
            name='Telling',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('aspect', models.CharField(choices=[('END', 'It is over'), ('TERM_END', 'Whether it ends with its term'), ('ITEMS', 'What was bought'), ('PAUSE', 'Whether it is paid for'), ('CLOSED', 'Its tenant is no customer any more')], max_length=16)),
                ('version', models.PositiveIntegerField(default=0, help_text='The version of our subscription that has it; Stripe is told of each once.')),
                ('actor', models.CharField(help_text='Who changed it here.', max_length=64)),
                ('reason', models.TextField(blank=True)),
                ('state', models.CharField(choices=[('PENDING', 'Pending'), ('DONE', 'Done'), ('STUCK', 'Stuck')], default='PENDING', max_length=16)),
                ('attempts', models.PositiveSmallIntegerField(default=0)),
                ('created_at', models.DateTimeField()),
                ('next_attempt_at', models.DateTimeField(help_text='When it may be tried (again); also the lease of who tries it now.')),
                ('done_at', models.DateTimeField(blank=True, null=True)),
                ('outcome', models.CharField(blank=True, max_length=255)),
                ('error_code', models.CharField(blank=True, max_length=64)),
                ('error', models.TextField(blank=True, help_text='Why the last try failed.')),
            ],
            options={
                'db_table': 'stripe_tellings',
                'ordering': ['-id'],
            },
        ),
        migrations.RemoveIndex(
            model_name='stripeevent',
            name='stripe_events_of_subscription',
        ),
        migrations.AddField(
            model_name='stripelink',
            name='compared_at',
            field=models.DateTimeField(blank=True, help_text='When a reconciliation last saw it at Stripe, and compared.', null=True),
        ),
        migrations.AddField(
            model_name='stripeprice',
            name='slot_pack',
            field=models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, related_name='stripe_prices', to='entitlements.slotpack'),
        ),
        migrations.AlterField(
            model_name='stripeprice',
            name='plan_price',
            field=models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, related_name='stripe_prices', to='subscriptions.planprice'),
        ),
        migrations.AddIndex(
            model_name='stripeevent',
            index=models.Index(condition=models.Q(('attempts', 0), ('state', 'PENDING')), fields=['stripe_subscription_id'], name='stripe_events_beside'),
        ),
        migrations.AddConstraint(
            model_name='stripeprice',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('plan_price__isnull', False), ('slot_pack__isnull', True)), models.Q(('plan_price__isnull', True), ('slot_pack__isnull', False)), _connector='OR'), name='a_stripe_price_sells_a_plan_or_a_slot_pack'),
        ),
        migrations.AddField(
            model_name='checkout',
            name='parent',
            field=models.ForeignKey(blank=True, db_index=False, help_text='Of an add-on: its main subscription.', null=True, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='subscriptions.subscription'),
        ),
        migrations.AddField(
            model_name='checkout',
            name='plan',
            field=models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='subscriptions.plan'),
        ),
        migrations.AddField(
            model_name='checkout',
            name='price',
            field=models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='subscriptions.planprice'),
        ),
        migrations.AddField(
            model_name='checkout',
            name='renews',
            field=models.ForeignKey(blank=True, db_index=False, help_text='The subscription that goes on with what is bought, instead of a new one.', null=True, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='subscriptions.subscription'),
        ),
        migrations.AddField(
            model_name='checkout',
            name='tenant',
            field=models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name='checkouts', to='subscriptions.tenant'),
        ),
        migrations.AddField(
            model_name='drift',
            name='subscription',
            field=models.ForeignKey(blank=True, db_index=False, null=True, on_delete=django.db.models.deletion.PROTECT, related_name='drifts', to='subscriptions.subscription'),
        ),
        migrations.AddField(
            model_name='drift',
            name='tenant',
            field=models.ForeignKey(blank=True, db_index=False, null=True, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='subscriptions.tenant'),
        ),
        migrations.AddConstraint(
            model_name='reconciliation',
            constraint=models.UniqueConstraint(condition=models.Q(('finished_at__isnull', True)), fields=('finished_at',), name='one_reconciliation_at_a_time', nulls_distinct=False),
        ),
        migrations.AddField(
            model_name='telling',
            name='link',
            field=models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, related_name='tellings', to='webhooks.stripelink'),
        ),
        migrations.AddField(
            model_name='telling',
            name='tenant',
            field=models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='subscriptions.tenant'),
        ),
        migrations.AddIndex(
            model_name='checkout',
            index=models.Index(fields=['tenant', '-id'], name='checkouts_of_tenant'),
        ),
        migrations.AddConstraint(
            model_name='checkout',
            constraint=models.UniqueConstraint(condition=models.Q(('parent__isnull', True), ('state', 'OPEN')), fields=('tenant',), name='one_open_checkout_for_a_main_subscription'),
        ),
        migrations.AddConstraint(
            model_name='checkout',
            constraint=models.UniqueConstraint(condition=models.Q(('parent__isnull', False), ('state', 'OPEN')), fields=('parent', 'plan'), name='one_open_checkout_per_addon'),
        ),
        migrations.AddConstraint(
            model_name='checkout',
            constraint=models.UniqueConstraint(condition=models.Q(('session_id', ''), _negated=True), fields=('session_id',), name='one_checkout_per_session'),
        ),
        migrations.AddIndex(
            model_name='drift',
            index=models.Index(condition=models.Q(('resolved_at__isnull', True)), fields=['seen_at'], name='drifts_open'),
        ),
        migrations.AddConstraint(
            model_name='drift',
            constraint=models.UniqueConstraint(condition=models.Q(('resolved_at__isnull', True)), fields=('object_id', 'kind'), name='one_open_drift_per_object_and_kind'),
        ),
        migrations.AddIndex(
            model_name='telling',
            index=models.Index(condition=models.Q(('state', 'PENDING')), fields=['next_attempt_at'], name='tellings_pending'),
        ),
        migrations.AddIndex(
            model_name='telling',
            index=models.Index(condition=models.Q(('state', 'STUCK')), fields=['created_at'], name='tellings_stuck'),
        ),
        migrations.AddConstraint(
            model_name='telling',
            constraint=models.UniqueConstraint(condition=models.Q(('link__isnull', False)), fields=('link', 'aspect', 'version'), name='stripe_is_told_of_a_version_once'),
        ),
        migrations.AddConstraint(
            model_name='telling',
            constraint=models.UniqueConstraint(condition=models.Q(('link__isnull', True), ('state', 'PENDING')), fields=('tenant',), name='a_tenant_is_closed_once_at_a_time'),
        ),
        migrations.AddConstraint(
            model_name='telling',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('aspect', 'CLOSED'), ('link__isnull', True)), models.Q(models.Q(('aspect', 'CLOSED'), _negated=True), ('link__isnull', False)), _connector='OR'), name='a_telling_is_about_a_subscription_or_a_tenant'),
        ),
        migrations.AddConstraint(
            model_name='telling',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('done_at__isnull', False), ('state', 'DONE')), models.Q(models.Q(('state', 'DONE'), _negated=True), ('done_at__isnull', True)), _connector='OR'), name='a_telling_is_done_when_it_says_so'),
        ),
    ]
