"""Quantities, trials that a purchase begins with, tenants that are closed."""

import django.core.validators
from django.db import migrations, models

from subscriptions.migrations._evidence import evidence

TRACKED = (
    "type", "status", "plan_id", "price_id", "quantity", "term_start", "term_end", "anniversary", "time_zone",
    "term_deadline", "grace_end", "suspension_end", "on_hold", "own_hold", "auto_renews", "cancel_at_term_end",
    "ended_at", "end_reason",
)  # fmt: skip
FORMER = tuple(column for column in TRACKED if column != "quantity")


class Migration(migrations.Migration):

    dependencies = [
        ('subscriptions', '0006_slots'),
    ]

    operations = [
        migrations.AddField(
            model_name='plan',
            name='trial_days',
            field=models.PositiveSmallIntegerField(blank=True, help_text='A tenant that had no trial yet begins a purchase with so many days of it. Empty: none.', null=True, validators=[django.core.validators.MinValueValidator(1), django.core.validators.MaxValueValidator(730)]),
        ),
        migrations.AddField(
            model_name='plan',
            name='trial_needs_card',
            field=models.BooleanField(db_default=True, default=True, help_text='Whether that trial asks for a payment method first.'),
        ),
        migrations.AddField(
            model_name='subscription',
            name='quantity',
            field=models.PositiveIntegerField(db_default=1, default=1, help_text="How many units of the plan: each sells the plan's slots once."),
        ),
        migrations.AddField(
            model_name='tenant',
            name='closed_at',
            field=models.DateTimeField(blank=True, editable=False, help_text='Since when it is no customer any more: nothing can be started.', null=True),
        ),
        migrations.AlterField(
            model_name='auditentry',
            name='action',
            field=models.CharField(choices=[('started', 'Started'), ('activated', 'Activated'), ('renewed', 'Renewed'), ('grace_started', 'Grace started'), ('suspended', 'Suspended'), ('hold_lifted', 'Hold lifted'), ('cancel_scheduled', 'Cancelled at term end'), ('cancel_undone', 'Cancellation undone'), ('expired', 'Expired'), ('amended', 'Term amended'), ('plan_changed', 'Plan changed'), ('quantity_changed', 'Quantity changed'), ('billing_changed', 'Billing changed'), ('grace_extended', 'Grace extended'), ('slots_changed', 'Slots changed'), ('devices_parked', 'Devices parked'), ('slots_repaired', 'Slots repaired')], max_length=32),
        ),
        migrations.AddConstraint(
            model_name='subscription',
            constraint=models.CheckConstraint(condition=models.Q(('quantity__gt', 0)), name='at_least_one_unit_was_bought'),
        ),
        migrations.RunSQL(evidence(TRACKED), evidence(FORMER)),
    ]
