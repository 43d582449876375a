"""The promises that the database itself keeps: families, evidence, and an audit that only grows.

Every function names where it looks: a temporary table of the same name would come first otherwise.
"""

from django.db import migrations

from subscriptions.migrations._evidence import evidence

TRACKED = (
    "type", "status", "plan_id", "price_id", "term_start", "term_end", "term_deadline", "grace_end", "suspension_end",
    "on_hold", "auto_renews", "cancel_at_term_end", "ended_at", "end_reason",
)  # fmt: skip

FAMILY = """
ALTER TABLE subscriptions ADD CONSTRAINT a_parent_is_a_main_of_the_same_tenant
    FOREIGN KEY (parent_id, tenant_id, parent_type) REFERENCES subscriptions (id, tenant_id, type);

-- An add-on that lived on would never end: the clock moves it with its main subscription.
CREATE FUNCTION subscriptions_end_together() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    PERFORM FROM subscriptions AS main JOIN subscriptions AS addon ON addon.parent_id = main.id
      WHERE main.id = coalesce(NEW.parent_id, NEW.id) AND main.status = 'EXPIRED' AND addon.status <> 'EXPIRED';
    IF FOUND THEN
        RAISE EXCEPTION 'subscription %: an add-on cannot outlive its main subscription', NEW.id
            USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'no_addon_outlives_its_main';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER no_addon_outlives_its_main AFTER INSERT OR UPDATE ON subscriptions
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN ((NEW.type = 'ADDON' AND NEW.status <> 'EXPIRED') OR (NEW.type = 'MAIN' AND NEW.status = 'EXPIRED'))
    EXECUTE FUNCTION subscriptions_end_together();
"""

IDENTITY = """
CREATE FUNCTION subscriptions_keep_their_identity() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'subscription %: its id, number, tenant and parent never change', OLD.id
        USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'identity_never_changes';
END $$;
CREATE TRIGGER identity_never_changes BEFORE UPDATE ON subscriptions FOR EACH ROW
    WHEN ((OLD.id, OLD.number, OLD.tenant_id, OLD.parent_id) IS DISTINCT FROM (NEW.id, NEW.number, NEW.tenant_id, NEW.parent_id))
    EXECUTE FUNCTION subscriptions_keep_their_identity();
"""

APPEND_ONLY = """
-- When an entry was written, and by which transaction, is not the writer's to say.
CREATE FUNCTION subscription_audit_is_written_now() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.transaction_id := pg_current_xact_id()::text::bigint;
    NEW.recorded_at := statement_timestamp();
    RETURN NEW;
END $$;
CREATE TRIGGER the_audit_is_written_now BEFORE INSERT ON subscription_audit
    FOR EACH ROW EXECUTE FUNCTION subscription_audit_is_written_now();

CREATE FUNCTION subscription_audit_only_grows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'subscription_audit is append-only: % is refused', TG_OP
        USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'the_audit_only_grows';
END $$;
CREATE TRIGGER the_audit_only_grows BEFORE UPDATE OR DELETE ON subscription_audit
    FOR EACH STATEMENT EXECUTE FUNCTION subscription_audit_only_grows();
CREATE TRIGGER the_audit_is_never_emptied BEFORE TRUNCATE ON subscription_audit
    FOR EACH STATEMENT EXECUTE FUNCTION subscription_audit_only_grows();
"""


class Migration(migrations.Migration):
    dependencies = [("subscriptions", "0001_initial")]
    operations = [
        migrations.RunSQL(
            FAMILY,
            "DROP FUNCTION subscriptions_end_together CASCADE;"
            "ALTER TABLE subscriptions DROP CONSTRAINT a_parent_is_a_main_of_the_same_tenant",
        ),
        migrations.RunSQL(IDENTITY, "DROP FUNCTION subscriptions_keep_their_identity CASCADE"),
        migrations.RunSQL(evidence(TRACKED), "DROP FUNCTION subscriptions_need_evidence CASCADE"),
        migrations.RunSQL(
            APPEND_ONLY,
            "DROP FUNCTION subscription_audit_only_grows CASCADE;"
            "DROP FUNCTION subscription_audit_is_written_now CASCADE",
        ),
    ]
