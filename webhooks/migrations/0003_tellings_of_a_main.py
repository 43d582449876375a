"""An add-on's end follows its main subscription, whose versions are counted apart from its own."""

from django.db import migrations, models
from django.db.models import Q


class Migration(migrations.Migration):

    dependencies = [("webhooks", "0002_buying_telling_reconciling")]

    operations = [
        migrations.AddField(
            model_name="telling",
            name="of_main",
            field=models.BooleanField(
                db_default=False,
                default=False,
                help_text="It is the version of its main subscription, whose end it follows.",
            ),
        ),
        migrations.RemoveConstraint(model_name="telling", name="stripe_is_told_of_a_version_once"),
        migrations.AddConstraint(
            model_name="telling",
            constraint=models.UniqueConstraint(
                name="stripe_is_told_of_a_version_once",
                fields=["link", "aspect", "version", "of_main"],
                condition=Q(link__isnull=False),
            ),
        ),
    ]
