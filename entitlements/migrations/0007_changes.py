"""What the feed of changes reads: exceptions by their transaction, and that the catalogue changed, whoever changed it."""

import django.db.models.functions.comparison
from django.db import migrations, models

CATALOGUE = """
-- A row per transaction and table, so that two who edit the catalogue never wait for each other here.
CREATE FUNCTION the_catalogue_changed() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    INSERT INTO catalogue_changes ("table") VALUES (TG_TABLE_NAME) ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
CREATE TRIGGER everybody_is_told AFTER INSERT OR UPDATE OR DELETE ON device_tiers
    FOR EACH ROW EXECUTE FUNCTION the_catalogue_changed();
CREATE TRIGGER everybody_is_told AFTER INSERT OR UPDATE OR DELETE ON features
    FOR EACH ROW EXECUTE FUNCTION the_catalogue_changed();
CREATE TRIGGER everybody_is_told AFTER INSERT OR UPDATE OR DELETE ON tier_features
    FOR EACH ROW EXECUTE FUNCTION the_catalogue_changed();
CREATE TRIGGER everybody_is_told AFTER INSERT OR UPDATE OR DELETE ON plan_features
    FOR EACH ROW EXECUTE FUNCTION the_catalogue_changed();
-- A plan's windows say until when its subscriptions serve. Nobody has bought a new one, or one that can be deleted.
CREATE TRIGGER everybody_is_told AFTER UPDATE ON plans FOR EACH ROW
    WHEN ((OLD.grace_days, OLD.suspension_days) IS DISTINCT FROM (NEW.grace_days, NEW.suspension_days))
    EXECUTE FUNCTION the_catalogue_changed();
"""

OVERRIDES = """
CREATE FUNCTION feature_overrides_know_their_transaction() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.transaction_id := pg_current_xact_id()::text::bigint;
    RETURN NEW;
END $$;
CREATE TRIGGER an_exception_knows_its_transaction BEFORE UPDATE ON feature_overrides FOR EACH ROW
    WHEN (OLD.transaction_id = NEW.transaction_id) EXECUTE FUNCTION feature_overrides_know_their_transaction();
-- No verb deletes one. Whoever does leaves no row that could tell its tenant: everybody is told.
CREATE TRIGGER everybody_is_told AFTER DELETE ON feature_overrides
    FOR EACH ROW EXECUTE FUNCTION the_catalogue_changed();
"""


class Migration(migrations.Migration):

    dependencies = [
        ('entitlements', '0006_quota_answers_and_override_entries'),
        ('subscriptions', '0006_slots'),
    ]

    operations = [
        migrations.CreateModel(
            name='CatalogueChange',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('transaction_id', models.BigIntegerField(db_default=django.db.models.functions.comparison.Cast(django.db.models.functions.comparison.Cast(models.Func(function='pg_current_xact_id'), models.TextField()), models.BigIntegerField()), editable=False)),
                ('table', models.CharField(help_text="Which of the catalogue's tables.", max_length=32)),
            ],
            options={
                'db_table': 'catalogue_changes',
                'constraints': [models.UniqueConstraint(fields=('transaction_id', 'table'), name='one_change_per_transaction_and_table')],
            },
        ),
        migrations.RemoveField(
            model_name='devicetier',
            name='transaction_id',
        ),
        migrations.AddIndex(
            model_name='featureoverride',
            index=models.Index(fields=['transaction_id', 'id'], name='overrides_by_change'),
        ),
        migrations.RunSQL(CATALOGUE, "DROP FUNCTION the_catalogue_changed CASCADE"),
        migrations.RunSQL(OVERRIDES, "DROP FUNCTION feature_overrides_know_their_transaction CASCADE"),
    ]
