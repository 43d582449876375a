"""No change without evidence: the triggers that hold it, for the columns that a migration names."""

from collections.abc import Sequence


TYPES = {"plan_id": "bigint", "price_id": "bigint", "quantity": "integer", "on_hold": "boolean", "own_hold": "boolean",
         "auto_renews": "boolean", "cancel_at_term_end": "boolean", "type": "text", "status": "text",
         "time_zone": "text", "end_reason": "text"}  # fmt: skip


def evidence(tracked: Sequence[str]) -> str:
    """SQL that makes the triggers, or makes them anew.

    Checked at commit, for every version that a transaction passed through: two changes need two entries. A foreign key
    would look at the last one only, and would accept evidence from another transaction. An entry must name each column
    that moved, and what it moved to.
    """

    def told(column: str) -> str:
        """What the entry says that the column became; an instant unless TYPES says otherwise."""
        return f"(told->'{column}'->>1)::{TYPES.get(column, 'timestamptz')}"

    old, new = (", ".join(f"{row}.{column}" for column in ("version", *tracked)) for row in ("OLD", "NEW"))
    moved = " OR ".join(
        f"(OLD.{c} IS DISTINCT FROM NEW.{c} AND (NOT told ? '{c}' OR {told(c)} IS DISTINCT FROM NEW.{c}))" for c in tracked
    )
    began = " OR ".join(f"{told(c)} IS DISTINCT FROM NEW.{c}" for c in tracked if c != "end_reason")
    began += " OR coalesce(told->'end_reason'->>1, '') <> NEW.end_reason"
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
        is_honest := is_honest AND NEW.version = 1 AND NOT ({began});
    ELSIF NEW.version <> OLD.version + 1 OR {moved} THEN
        is_honest := false;
    END IF;
    IF is_honest IS NOT TRUE THEN
        RAISE EXCEPTION 'subscription %: version % is not one more, or has no audit entry in this transaction that says what changed',
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
