from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("webhooks", "0004_scheduled_changes")]

    operations = [
        migrations.AddField(
            model_name="checkout",
            name="request",
            field=models.JSONField(
                default=dict, help_text="What Stripe is asked for, kept so that it can be asked again in the same words."
            ),
        ),
        migrations.AlterField(
            model_name="checkout",
            name="success_url",
            field=models.TextField(
                blank=True, help_text="Where the customer goes on, once what was bought is here. Empty: a page of ours."
            ),
        ),
    ]
