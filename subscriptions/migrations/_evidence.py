"""No change without evidence: the triggers that hold it, for the columns that a migration names."""

from collections.abc import Sequence


def evidence(tracked: Sequence[str]) -> str:
    """SQL that makes the triggers, or makes them anew.

    Checked at commit, for every version that a transaction passed through: two changes need two entries. A foreign key
    would look at the last one only, and would accept evidence from another transaction. An entry must name each column
    that moved, and the status that it moved to.
    """
    old, new = (", ".join(f"{row}.{column}" for column in ("version", *tracked)) for row in ("OLD", "NEW"))
    named = " AND ".join(f"(OLD.{c} IS NOT DISTINCT FROM NEW.{c} OR changes ? '{c}')" for c in tracked)
    # No part of the WHERE: the entries of one transaction are many, and no index of theirs is to be read for each row.
    here = "tenant_id = NEW.tenant_id AND transaction_id = pg_current_xact_id()::text::bigint"
    return f"""
CREATE OR REPLACE FUNCTION subscriptions_need_evidence() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    honest boolean;
BEGIN
    IF NEW.version <> (CASE TG_OP WHEN 'UPDATE' THEN OLD.version ELSE 0 END) + 1 THEN
        RAISE EXCEPTION 'subscription %: a change must move its version by one', NEW.id
            USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'no_change_without_evidence';
    END IF;
    IF TG_OP = 'INSERT' THEN
        SELECT changes->'status'->>1 = NEW.status AND {here} INTO honest FROM ONLY subscription_audit
         WHERE subscription_id = NEW.id AND version = NEW.version;
    ELSE
        SELECT {named}
               AND (OLD.status = NEW.status OR changes->'status'->>1 = NEW.status) AND {here}
          INTO honest FROM ONLY subscription_audit
         WHERE subscription_id = NEW.id AND version = NEW.version;
    END IF;
    IF honest IS NOT TRUE THEN
        RAISE EXCEPTION 'subscription %: version % has no audit entry in this transaction that names what changed',
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
