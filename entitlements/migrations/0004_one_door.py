"""What the database itself holds of slots: whose they are, what is history, and no limit without evidence."""

from django.db import migrations

SAME_TENANT = """
-- A composite key would need one more index on subscriptions, which every status change would write to.
CREATE FUNCTION tier_allocations_are_their_subscriptions() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    SELECT tenant_id INTO NEW.tenant_id FROM ONLY subscriptions WHERE id = NEW.subscription_id;
    RETURN NEW;
END $$;
CREATE TRIGGER an_allocation_is_its_subscriptions_tenants BEFORE INSERT ON tier_allocations
    FOR EACH ROW EXECUTE FUNCTION tier_allocations_are_their_subscriptions();

ALTER TABLE slot_assignments ADD CONSTRAINT an_assignment_is_of_its_allocations_tier_and_tenant
    FOREIGN KEY (allocation_id, tier_id, tenant_id) REFERENCES tier_allocations (id, tier_id, tenant_id);
ALTER TABLE slot_assignments ADD CONSTRAINT an_assignment_is_of_its_devices_tenant
    FOREIGN KEY (tenant_id, device_id) REFERENCES devices (tenant_id, id);
"""

IDENTITY = """
CREATE FUNCTION slots_keep_their_identity() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% %: whose it is, and of what, never changes', TG_TABLE_NAME, OLD.id
        USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'identity_never_changes';
END $$;
CREATE TRIGGER identity_never_changes BEFORE UPDATE ON tier_allocations FOR EACH ROW
    WHEN ((OLD.subscription_id, OLD.tenant_id, OLD.tier_id) IS DISTINCT FROM (NEW.subscription_id, NEW.tenant_id, NEW.tier_id))
    EXECUTE FUNCTION slots_keep_their_identity();
CREATE TRIGGER identity_never_changes BEFORE UPDATE ON devices FOR EACH ROW
    WHEN ((OLD.tenant_id, OLD.device_id) IS DISTINCT FROM (NEW.tenant_id, NEW.device_id))
    EXECUTE FUNCTION slots_keep_their_identity();
"""

HISTORY = """
CREATE FUNCTION slot_assignments_are_history() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'slot_assignments is history: % is refused', TG_OP
        USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'assignments_are_history';
END $$;
CREATE TRIGGER assignments_are_history BEFORE UPDATE ON slot_assignments FOR EACH ROW
    WHEN (OLD.released_at IS NOT NULL OR (OLD.allocation_id, OLD.device_id, OLD.assigned_at, OLD.assigned_by)
          IS DISTINCT FROM (NEW.allocation_id, NEW.device_id, NEW.assigned_at, NEW.assigned_by))
    EXECUTE FUNCTION slot_assignments_are_history();
CREATE TRIGGER assignments_stay BEFORE DELETE ON slot_assignments
    FOR EACH ROW EXECUTE FUNCTION slot_assignments_are_history();
CREATE TRIGGER assignments_are_never_emptied BEFORE TRUNCATE ON slot_assignments
    FOR EACH STATEMENT EXECUTE FUNCTION slot_assignments_are_history();
"""

EVIDENCE = """
-- Checked at commit. The entry says the limit before and after, under the tier's code: {"slots.basic": [10, 20]}.
CREATE FUNCTION tier_allocations_need_evidence() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    was integer := 0;
    becomes integer := 0;
    whose bigint;
    of_tier bigint;
BEGIN
    IF TG_OP <> 'INSERT' THEN was := OLD.slot_limit; whose := OLD.subscription_id; of_tier := OLD.tier_id; END IF;
    IF TG_OP <> 'DELETE' THEN becomes := NEW.slot_limit; whose := NEW.subscription_id; of_tier := NEW.tier_id; END IF;
    IF was <> becomes THEN
        PERFORM FROM ONLY subscription_audit AS entry JOIN device_tiers AS tier ON tier.id = of_tier
          WHERE entry.subscription_id = whose AND entry.transaction_id = pg_current_xact_id()::text::bigint
            AND entry.changes->('slots.' || tier.code) = jsonb_build_array(was, becomes);
        IF NOT FOUND THEN
            RAISE EXCEPTION 'subscription %: a slot limit moved from % to % without an audit entry in this transaction that says so',
                whose, was, becomes
                USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'no_slots_without_evidence';
        END IF;
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER no_slots_without_evidence AFTER UPDATE ON tier_allocations
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (OLD.slot_limit <> NEW.slot_limit)
    EXECUTE FUNCTION tier_allocations_need_evidence();
CREATE CONSTRAINT TRIGGER no_first_slots_without_evidence AFTER INSERT OR DELETE ON tier_allocations
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    EXECUTE FUNCTION tier_allocations_need_evidence();
"""


class Migration(migrations.Migration):
    dependencies = [("entitlements", "0003_slots")]
    operations = [
        migrations.RunSQL(
            SAME_TENANT,
            "ALTER TABLE slot_assignments DROP CONSTRAINT an_assignment_is_of_its_devices_tenant;"
            "ALTER TABLE slot_assignments DROP CONSTRAINT an_assignment_is_of_its_allocations_tier_and_tenant;"
            "DROP FUNCTION tier_allocations_are_their_subscriptions CASCADE",
        ),
        migrations.RunSQL(IDENTITY, "DROP FUNCTION slots_keep_their_identity CASCADE"),
        migrations.RunSQL(HISTORY, "DROP FUNCTION slot_assignments_are_history CASCADE"),
        migrations.RunSQL(EVIDENCE, "DROP FUNCTION tier_allocations_need_evidence CASCADE"),
    ]
