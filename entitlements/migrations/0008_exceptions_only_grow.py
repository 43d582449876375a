"""The history of a tenant's exceptions only grows, like the audit itself."""

from django.db import migrations

ONLY_GROW = """
CREATE FUNCTION feature_override_entries_only_grow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'feature_override_entries is append-only: % is refused', TG_OP
        USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'override_entries_only_grow';
END $$;
CREATE TRIGGER override_entries_only_grow BEFORE UPDATE OR DELETE ON feature_override_entries
    FOR EACH STATEMENT EXECUTE FUNCTION feature_override_entries_only_grow();
CREATE TRIGGER override_entries_are_never_emptied BEFORE TRUNCATE ON feature_override_entries
    FOR EACH STATEMENT EXECUTE FUNCTION feature_override_entries_only_grow();
"""


class Migration(migrations.Migration):
    dependencies = [("entitlements", "0007_changes")]
    operations = [
        migrations.RunSQL(ONLY_GROW, "DROP FUNCTION feature_override_entries_only_grow CASCADE"),
    ]
