"""Devices are found by how their id begins, too, in whatever collation: by the index that they have already."""

from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('entitlements', '0004_one_door'),
        ('subscriptions', '0006_slots'),
    ]

    operations = [
        migrations.RemoveConstraint(
            model_name='device',
            name='one_device_per_tenant_and_device_id',
        ),
        migrations.AddConstraint(
            model_name='device',
            constraint=models.UniqueConstraint(fields=('tenant', 'device_id'), name='one_device_per_tenant_and_device_id', opclasses=['int8_ops', 'varchar_pattern_ops']),
        ),
    ]
