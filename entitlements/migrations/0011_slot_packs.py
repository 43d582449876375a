"""Slot packs, and plans that are sold by the device."""

import django.core.validators
import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('entitlements', '0010_no_key_to_wait_for'),
        ('subscriptions', '0007_quantities_and_trials'),
    ]

    operations = [
        migrations.AddField(
            model_name='planslots',
            name='by_device',
            field=models.BooleanField(db_default=False, default=False, help_text='The plan is sold by the device: one that is deleted lowers the quantity that is paid for.'),
        ),
        migrations.AlterField(
            model_name='planslots',
            name='slots',
            field=models.PositiveIntegerField(help_text='Per unit of the plan.'),
        ),
        migrations.CreateModel(
            name='SlotPack',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('code', models.SlugField(max_length=63, unique=True)),
                ('name', models.CharField(max_length=200)),
                ('slots', models.PositiveIntegerField(help_text='Per unit of the pack.')),
                ('currency', models.CharField(max_length=3, validators=[django.core.validators.RegexValidator('^[A-Z]{3}$', 'Three capital letters: EUR.')])),
                ('amount_minor', models.PositiveBigIntegerField(help_text='Per unit and interval, in minor units: 4900 is 49.00.')),
                ('interval', models.CharField(choices=[('month', 'month'), ('year', 'year')], help_text='As of the plan beside it.', max_length=8)),
                ('interval_count', models.PositiveSmallIntegerField(default=1)),
                ('is_sold', models.BooleanField(default=True, help_text='Offered to customers.')),
                ('tier', models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='entitlements.devicetier')),
            ],
            options={
                'db_table': 'slot_packs',
                'ordering': ['name'],
            },
        ),
        migrations.CreateModel(
            name='SubscriptionPack',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('quantity', models.PositiveIntegerField()),
                ('pack', models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='entitlements.slotpack')),
                ('subscription', models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name='packs', to='subscriptions.subscription')),
            ],
            options={
                'db_table': 'subscription_packs',
            },
        ),
        migrations.AddConstraint(
            model_name='slotpack',
            constraint=models.CheckConstraint(condition=models.Q(('interval_count__gt', 0), ('slots__gt', 0)), name='a_pack_has_slots_and_an_interval'),
        ),
        migrations.AddConstraint(
            model_name='subscriptionpack',
            constraint=models.UniqueConstraint(fields=('subscription', 'pack'), name='one_row_per_subscription_and_pack'),
        ),
        migrations.AddConstraint(
            model_name='subscriptionpack',
            constraint=models.CheckConstraint(condition=models.Q(('quantity__gt', 0)), name='a_pack_that_is_held_counts'),
        ),
    ]
