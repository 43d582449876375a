"""No change without evidence: the triggers that hold it, for the columns that a migration names."""

from collections.abc import Sequence


def evidence(tracked: Sequence[str]) -> str:
    """SQL that makes the triggers, or makes them anew.

    Checked at commit, for every version that a transaction passed through: two changes need two entries. A foreign key
    would look at the last one only, and would accept evidence from another transaction. An entry must name each column
    that moved, and the status that it moved to.
    """
    old, new = (", ".join(f"{row}.{column}" for column in ("version", *tracked)) for row in ("OLD", "NEW"))
    unnamed = " OR ".join(f"(OLD.{c} IS DISTINCT FROM NEW.{c} AND NOT told ? '{c}')" for c in tracked)
    return f"""
CREATE OR REPLACE FUNCTION subscriptions_need_evidence() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    told jsonb;
    is_honest boolean;
BEGIN
    -- Who wrote it is no part of the WHERE: the entries of one transaction are many, and one index finds this one.
    SELECT changes, tenant_id = NEW.tenant_id AND transaction_id = pg_current_xact_id()::text::bigint
      INTO told, is_honest FROM ONLY subscription_audit
     WHERE subscription_id = NEW.id AND version = NEW.version;
    -- Compared here and not in the query, which would be three times as slow.
    IF TG_OP = 'INSERT' THEN
        is_honest := is_honest AND NEW.version = 1 AND told->'status'->>1 = NEW.status;
    ELSIF NEW.version <> OLD.version + 1 OR {unnamed} THEN
        is_honest := false;
    ELSIF OLD.status <> NEW.status THEN
        is_honest := is_honest AND told->'status'->>1 = NEW.status;
    END IF;
    IF is_honest IS NOT TRUE THEN
        RAISE EXCEPTION 'subscription %: version % is not one more, or has no audit entry in this transaction that names what changed',
            NEW.id, NEW.version
            USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'no_change_without_evidence';
    END IF;
    RETURN NULL;
END $$;

DROP TRIGGER IF EXISTS no_change_without_evidence ON subscriptions;
CREATE CONSTRAINT TRIGGER no_change_without_evidence AFTER UPDATE ON subscriptions
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (({old}) IS DISTINCT FROM ({new}))
    EXECUTE FUNCTION subscriptions_need_evidence();
DROP TRIGGER IF EXISTS no_beginning_without_evidence ON subscriptions;
CREATE CONSTRAINT TRIGGER no_beginning_without_evidence AFTER INSERT ON subscriptions
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    EXECUTE FUNCTION subscriptions_need_evidence();
"""
