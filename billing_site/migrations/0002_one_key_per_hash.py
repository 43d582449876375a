from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("billing_site", "0001_initial")]
    operations = [
        migrations.AddConstraint(
            model_name="apikey",
            constraint=models.UniqueConstraint(name="one_key_per_hash", fields=("sha256",)),
        )
    ]
