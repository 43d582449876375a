"""Nothing can be started for a tenant that is closed, whoever starts it.

Who closes a tenant locks its row FOR UPDATE: one who starts something for it waits for that here, and sees what came
of it.
"""

from django.db import migrations

GUARD = """
CREATE FUNCTION a_closed_tenant_starts_nothing() RETURNS trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    PERFORM FROM tenants WHERE id = NEW.tenant_id AND closed_at IS NULL FOR KEY SHARE;
    IF NOT FOUND AND EXISTS (SELECT FROM tenants WHERE id = NEW.tenant_id) THEN
        RAISE EXCEPTION 'a_closed_tenant_starts_nothing: tenant %', NEW.tenant_id
            USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'a_closed_tenant_starts_nothing';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER a_closed_tenant_starts_nothing BEFORE INSERT ON subscriptions
    FOR EACH ROW EXECUTE FUNCTION a_closed_tenant_starts_nothing();
"""
UNGUARD = """
DROP TRIGGER a_closed_tenant_starts_nothing ON subscriptions;
DROP FUNCTION a_closed_tenant_starts_nothing();
"""


class Migration(migrations.Migration):

    dependencies = [("subscriptions", "0007_quantities_and_trials")]

    operations = [
        migrations.AlterModelOptions(
            name="tenant",
            options={"ordering": ["name"], "permissions": [("close_tenant", "Can close a tenant, and reopen it")]},
        ),
        migrations.RunSQL(GUARD, UNGUARD),
    ]
