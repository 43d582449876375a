"""What the database refuses by itself, whoever writes. Of subscriptions and their audit: test_evidence."""

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from django.db import Error, connection, transaction
from django.db.utils import IntegrityError

from subscriptions.models import Subscription
from tests.builders import FEB_1, JAN_1, PlanFactory, PlanPriceFactory, TenantFactory, subscription

pytestmark = pytest.mark.django_db

TABLES = {
    "tenants", "members", "plans", "plan_prices", "plan_slots", "subscriptions", "subscription_audit", "device_tiers",
    "devices", "tier_allocations", "slot_assignments", "features", "plan_features", "feature_overrides", "quota_usage",
    "stripe_events", "stripe_links", "stripe_prices", "notices", "api_keys",
}  # fmt: skip


def sql(statement: str, **values: Any) -> int:
    """The id of the row that was inserted."""
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return int(cursor.fetchone()[0]) if cursor.description else 0


def insert(table: str, returning: str = "0", **row: Any) -> int:
    columns, values = ", ".join(row), ", ".join(f"%({name})s" for name in row)
    return sql(f"INSERT INTO {table} ({columns}) VALUES ({values}) RETURNING {returning}", **row)


def test_every_table_of_the_contract_exists() -> None:
    assert TABLES - set(connection.introspection.table_names()) == set()


def test_the_service_is_neither_superuser_nor_exempt_from_row_security() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT rolsuper, rolbypassrls FROM pg_roles WHERE rolname = current_user")
        assert cursor.fetchone() == (False, False)


# --- entitlements ----------------------------------------------------------------------------------------------------


def at_commit(statement: str = "SELECT 1") -> int:
    written = sql(statement)
    connection.check_constraints()
    return written


class World:
    """One of everything that rows below point at, written without the ORM's help."""

    released: ClassVar = {"released_by": "staff:1", "ended": "released"}

    def __init__(self) -> None:
        self.basic = insert("device_tiers", "id", code="basic", name="Basic")
        self.premium = insert("device_tiers", "id", code="premium", name="Premium")
        self.s: Subscription = subscription(slots={"basic": 5})
        self.tenant, self.plan = self.s.tenant_id, PlanFactory.create().pk
        self.allocation = self.s.allocations.get().pk
        self.device = self.register("meter-1")
        self.feature = insert("features", "id", code="api", name="API calls", kind="QUOTA")

    def allocate(self, slots: int, used: int = 0, **more: Any) -> int:
        row: dict[str, Any] = {
            "subscription_id": self.s.pk,
            "tier_id": self.basic,
            "slot_limit": slots,
            "slots_used": used,
        }
        return insert("tier_allocations", "id", **row | more)

    def register(self, device_id: str, **more: Any) -> int:
        return insert("devices", "id", **{"tenant_id": self.tenant, "device_id": device_id} | more)

    def assign(self, **more: Any) -> int:
        row: dict[str, Any] = {
            "allocation_id": self.allocation, "tier_id": self.basic, "device_id": self.device, "assigned_at": JAN_1,
            "assigned_by": "staff:1", "released_by": "", "reason": "", "tenant_id": self.tenant,
        }  # fmt: skip
        return insert("slot_assignments", "id", **row | more)

    def override(self, reason: str = "as agreed") -> int:
        row: dict[str, Any] = {"tenant_id": self.tenant, "feature_id": self.feature, "amount": 1, "reason": reason}
        return insert("feature_overrides", "id", **row)

    def override_entry(self, actor: str = "staff:1", reason: str = "as agreed") -> int:
        row: dict[str, Any] = {"tenant_id": self.tenant, "feature_id": self.feature, "amount": 1, "at": JAN_1}
        return insert("feature_override_entries", "id", **row, actor=actor, request_id="", reason=reason)

    def use(self, used: int) -> int:
        return insert("quota_usage", "id", tenant_id=self.tenant, feature_id=self.feature, used=used)

    def notice(self, **more: Any) -> int:
        row: dict[str, Any] = {
            "subscription_id": self.s.pk, "tenant_id": self.s.tenant_id, "kind": "suspended", "anchor": FEB_1,
            "state": "PENDING", "attempts": 0, "next_attempt_at": JAN_1, "recipients": "[]", "error": "",
        }  # fmt: skip
        return insert("notices", "id", **row | more)

    def event(self, **more: Any) -> int:
        row: dict[str, Any] = {
            "event_id": "evt_1", "type": "invoice.paid", "object_id": "in_1", "stripe_subscription_id": "",
            "livemode": False, "created_at": JAN_1, "received_at": JAN_1, "state": "PENDING", "attempts": 0,
            "replays": 0, "next_attempt_at": JAN_1, "outcome": "", "error_code": "", "error": "",
        }  # fmt: skip
        return insert("stripe_events", **row | more)

    def link(self, at_stripe: str, **more: Any) -> int:
        row: dict[str, Any] = {
            "stripe_subscription_id": at_stripe,
            "subscription_id": self.s.pk,
            "ticket": 1,
            "applied_ticket": 0,
        }
        return insert("stripe_links", **row | more)

    def pack(self, **more: Any) -> int:
        row: dict[str, Any] = {
            "code": "ten", "name": "Ten more", "tier_id": self.basic, "slots": 10, "currency": "EUR",
            "amount_minor": 900, "interval": "month", "interval_count": 1, "is_sold": True,
        }  # fmt: skip
        return insert("slot_packs", "id", **row | more)

    def hold(self, pack: int, quantity: int = 1) -> int:
        return insert("subscription_packs", subscription_id=self.s.pk, pack_id=pack, quantity=quantity)

    def checkout(self, **more: Any) -> int:
        row: dict[str, Any] = {
            "tenant_id": self.tenant, "plan_id": self.plan, "price_id": PlanPriceFactory.create().pk, "quantity": 1,
            "session_id": "", "url": "", "success_url": "/", "cancel_url": "/", "state": "OPEN", "actor": "member:1",
            "created_at": JAN_1, "expires_at": FEB_1, "request": "{}",
        }  # fmt: skip
        return insert("stripe_checkouts", "id", **row | more)

    def telling(self, **more: Any) -> int:
        row: dict[str, Any] = {
            "aspect": "END", "tenant_id": self.tenant, "link_id": "sub_1", "version": 2, "actor": "staff:1",
            "reason": "", "state": "PENDING", "attempts": 0, "created_at": JAN_1, "next_attempt_at": JAN_1,
            "outcome": "", "error_code": "", "error": "",
        }  # fmt: skip
        return insert("stripe_tellings", "id", **row | more)

    def reconciliation(self) -> int:
        row: dict[str, Any] = {"phase": "STRIPE", "cursor": "", "error_code": ""}
        numbers = dict.fromkeys(("compared", "found", "repaired", "reads"), 0)
        return insert("stripe_reconciliations", "id", started_at=JAN_1, **row, **numbers)

    def drift(self) -> int:
        row: dict[str, Any] = {"kind": "STATUS", "severity": "HIGH", "object_id": "sub_1", "resolution": ""}
        return insert("stripe_drifts", "id", **row, ours="{}", theirs="{}", found_at=JAN_1, seen_at=JAN_1)

    def key(self, sha256: str = "0" * 64, prefix: str = "tk_1") -> int:
        return insert("api_keys", "id", prefix=prefix, sha256=sha256, name="gateway", scopes="[]")


def emptied(table: str, what: str) -> None:
    sql(f"ALTER TABLE {table} ENABLE TRIGGER {what}_are_never_emptied")  # tests that commit live without: see conftest
    sql(f"TRUNCATE {table}")


def twice(*calls: Callable[[], object]) -> None:
    for call in (*calls, *calls):
        call()


# The constraint's name → what it refuses.
REFUSED: dict[str, Callable[[World], object]] = {
    "slots_are_never_oversold": lambda w: sql(f"UPDATE tier_allocations SET slots_used = 6 WHERE id = {w.allocation}"),
    "slots_are_never_oversold ": lambda w: sql(
        f"UPDATE tier_allocations SET slots_used = -1 WHERE id = {w.allocation}"
    ),
    "slots_are_never_oversold  ": lambda w: w.allocate(-1, -1, tier_id=w.premium),
    "one_allocation_per_subscription_and_tier": lambda w: w.allocate(1),
    "one_open_assignment_per_device": lambda w: twice(w.assign),
    "an_assignment_is_of_its_allocations_tier_and_tenant": lambda w: w.assign(tier_id=w.premium),
    "an_assignment_is_of_its_devices_tenant": lambda w: w.assign(
        device_id=w.register("meter-9", tenant_id=TenantFactory.create().pk)
    ),
    "an_assignment_ends_after_it_began": lambda w: w.assign(assigned_at=FEB_1, released_at=JAN_1, **w.released),
    "a_released_slot_says_who_and_why": lambda w: w.assign(released_at=FEB_1),
    "a_released_slot_says_who_and_why ": lambda w: w.assign(ended="released", released_by="staff:1"),
    "an_assignment_names_its_actor": lambda w: w.assign(assigned_by=""),
    "nothing_is_in_use_of_what_is_over": lambda w: sql(
        f"UPDATE tier_allocations SET slots_used = 1, is_open = false WHERE id = {w.allocation}"
    ),
    "identity_never_changes": lambda w: sql(
        f"UPDATE devices SET tenant_id = {TenantFactory.create().pk} WHERE id = {w.device}"
    ),
    "identity_never_changes ": lambda w: sql(
        f"UPDATE tier_allocations SET tier_id = {w.premium} WHERE id = {w.allocation}"
    ),
    "assignments_are_history": lambda w: sql(
        f"UPDATE slot_assignments SET reason = 'never' WHERE id = {w.assign(released_at=FEB_1, **w.released)}"
    ),
    "assignments_are_history ": lambda w: sql(
        f"UPDATE slot_assignments SET assigned_by = 'stripe' WHERE id = {w.assign()}"
    ),
    "assignments_are_history  ": lambda w: sql(f"DELETE FROM slot_assignments WHERE id = {w.assign()}"),
    "override_entries_only_grow": lambda w: (w.override_entry(), sql("UPDATE feature_override_entries SET amount = 2")),
    "override_entries_only_grow ": lambda w: (w.override_entry(), sql("DELETE FROM feature_override_entries")),
    "override_entries_only_grow  ": lambda w: emptied("feature_override_entries", "override_entries"),
    "an_override_entry_says_who_and_why": lambda w: w.override_entry(actor=""),
    "an_override_entry_says_who_and_why ": lambda w: w.override_entry(reason=""),
    "assignments_are_history   ": lambda w: emptied("slot_assignments", "assignments"),
    "no_slots_without_evidence": lambda w: at_commit(
        f"UPDATE tier_allocations SET slot_limit = 6 WHERE id = {w.allocation}"
    ),
    "no_slots_without_evidence ": lambda w: at_commit(f"DELETE FROM tier_allocations WHERE id = {w.allocation}"),
    "no_slots_without_evidence  ": lambda w: (w.allocate(3, tier_id=w.premium), at_commit()),
    "a_parked_device_waits_for_a_tier": lambda w: w.register("meter-2", parked_at=JAN_1),
    "a_parked_device_waits_for_a_tier ": lambda w: w.register(
        "meter-2", parked_at=JAN_1, parked_tier_id=w.basic, deleted_at=JAN_1
    ),
    "one_default_tier": lambda w: [
        insert("device_tiers", code=code, name="Another", is_default=True) for code in ("a", "b")
    ],
    "one_row_per_tier_and_feature": lambda w: twice(
        lambda: insert("tier_features", tier_id=w.basic, feature_id=w.feature, amount=1)
    ),
    "a_key_is_used_once": lambda w: twice(
        lambda: insert(
            "quota_operations",
            tenant_id=w.tenant,
            feature_id=w.feature,
            key="k",
            operation="consume",
            amount=1,
            used=1,
            quota_limit=1,
            at=JAN_1,
        )
    ),
    "one_device_per_tenant_and_device_id": lambda w: w.register("meter-1"),
    "one_row_per_plan_and_tier": lambda w: twice(
        lambda: insert("plan_slots", plan_id=w.plan, tier_id=w.basic, slots=1)
    ),
    "one_row_per_plan_and_feature": lambda w: twice(
        lambda: insert("plan_features", plan_id=w.plan, feature_id=w.feature, amount=1)
    ),
    "one_row_per_subscription_and_feature": lambda w: twice(
        lambda: insert("subscription_features", subscription_id=w.s.pk, feature_id=w.feature, amount=1)
    ),
    "one_override_per_tenant_and_feature": lambda w: twice(w.override),
    "an_override_has_a_reason": lambda w: w.override(reason=""),
    "one_usage_row_per_tenant_and_feature": lambda w: twice(lambda: w.use(1)),
    "quota_use_is_never_negative": lambda w: w.use(-1),
    "device_tiers_code_key": lambda w: insert("device_tiers", code="basic", name="Basic again"),
    "features_code_key": lambda w: insert("features", code="api", name="API again", kind="SWITCH"),
    "one_notice_per_subscription_kind_and_anchor": lambda w: twice(w.notice),
    "a_sent_notice_says_when": lambda w: w.notice(state="SENT"),
    "a_sent_notice_says_when ": lambda w: w.notice(sent_at=JAN_1),
    "stripe_events_pkey": lambda w: twice(w.event),
    "an_event_is_done_when_it_says_so": lambda w: w.event(state="DONE"),
    "an_event_is_done_when_it_says_so ": lambda w: w.event(done_at=JAN_1),
    "stripe_links_pkey": lambda w: twice(lambda: w.link("sub_1", subscription_id=None)),
    "stripe_links_subscription_id_key": lambda w: [w.link("sub_1"), w.link("sub_2")],
    "only_a_ticket_that_was_taken_is_applied": lambda w: w.link("sub_1", applied_ticket=2),
    "stripe_prices_pkey": lambda w: twice(
        lambda: insert("stripe_prices", stripe_price_id="price_1", plan_price_id=PlanPriceFactory.create().pk)
    ),
    "a_stripe_price_sells_a_plan_or_a_slot_pack": lambda w: insert("stripe_prices", stripe_price_id="price_1"),
    "a_stripe_price_sells_a_plan_or_a_slot_pack ": lambda w: insert(
        "stripe_prices", stripe_price_id="p", plan_price_id=PlanPriceFactory.create().pk, slot_pack_id=w.pack()
    ),
    "slot_packs_code_key": lambda w: twice(w.pack),
    "a_pack_has_slots_and_an_interval": lambda w: w.pack(slots=0),
    "one_row_per_subscription_and_pack": lambda w: [w.hold(pack) for pack in [w.pack()] * 2],
    "a_pack_that_is_held_counts": lambda w: w.hold(w.pack(), 0),
    "one_open_checkout_for_a_main_subscription": lambda w: twice(w.checkout),
    "one_open_checkout_per_addon": lambda w: twice(lambda: w.checkout(parent_id=w.s.pk)),
    "one_checkout_per_session": lambda w: twice(lambda: w.checkout(session_id="cs_1", state="COMPLETE")),
    "stripe_is_told_of_a_version_once": lambda w: (w.link("sub_1"), w.telling(), w.telling()),
    "a_tenant_is_closed_once_at_a_time": lambda w: twice(lambda: w.telling(aspect="CLOSED", link_id=None)),
    "a_telling_is_about_a_subscription_or_a_tenant": lambda w: w.telling(link_id=None),
    "a_telling_is_about_a_subscription_or_a_tenant ": lambda w: (w.link("sub_1"), w.telling(aspect="CLOSED")),
    "a_telling_is_done_when_it_says_so": lambda w: (w.link("sub_1"), w.telling(state="DONE")),
    "one_reconciliation_at_a_time": lambda w: twice(w.reconciliation),
    "one_open_drift_per_object_and_kind": lambda w: twice(w.drift),
    "a_key_is_kept_as_its_hash": lambda w: w.key(sha256="tk_1_in_plain_text"),
    "api_keys_prefix_key": lambda w: [w.key(), w.key("1" * 64)],
    "one_key_per_hash": lambda w: [w.key(), w.key(prefix="tk_2")],
}


@pytest.mark.parametrize("constraint", REFUSED)
def test_a_row_that_breaks_a_rule_is_refused_by_the_rules_name(constraint: str) -> None:
    world = World()
    with pytest.raises(IntegrityError) as refusal, transaction.atomic():
        REFUSED[constraint](world)
    assert refused_by(refusal.value) == constraint.strip()


def refused_by(error: Error) -> str | None:
    diagnosis = getattr(error.__cause__, "diag", None)
    return getattr(diagnosis, "constraint_name", None)


def test_what_breaks_no_rule_is_written() -> None:
    w = World()
    w.assign(released_at=FEB_1, **w.released)
    w.assign()
    w.allocate(0, tier_id=w.premium)
    w.register("meter-2")
    w.override()
    w.use(0)
    w.notice()
    w.notice(state="SENT", sent_at=JAN_1, anchor=JAN_1)
    w.event()
    w.link("sub_1", applied_ticket=1)
    w.link("sub_2", subscription_id=None)
    w.key()
    w.hold(w.pack())
    w.checkout()
    w.checkout(parent_id=w.s.pk)
    w.checkout(state="EXPIRED")
    w.telling()
    w.telling(aspect="CLOSED", link_id=None)
    w.reconciliation()
    w.drift()


def test_no_constraint_of_these_tables_is_left_untried() -> None:
    """Foreign keys, NOT NULL and Django's own checks of positive numbers aside: those are not rules of the trade."""
    tables = [
        "device_tiers", "devices", "plan_slots", "tier_allocations", "slot_assignments", "features", "plan_features",
        "tier_features", "subscription_features", "feature_overrides", "quota_usage", "quota_operations",
        "stripe_events", "stripe_links", "stripe_prices", "notices", "api_keys", "slot_packs", "subscription_packs",
        "stripe_checkouts", "stripe_tellings", "stripe_reconciliations", "stripe_drifts",
    ]  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT conname FROM pg_constraint JOIN pg_class ON pg_class.oid = conrelid
             WHERE relname = ANY(%(tables)s) AND contype IN ('c', 'u', 'p')
               AND NOT (contype = 'p' AND EXISTS (SELECT FROM pg_attribute
                                                   WHERE attrelid = conrelid AND attname = 'id'))
            UNION SELECT relname FROM pg_class JOIN pg_index ON indexrelid = pg_class.oid
             WHERE indisunique AND indpred IS NOT NULL AND indrelid IN
                   (SELECT oid FROM pg_class WHERE relname = ANY(%(tables)s))""",
            {"tables": tables},
        )
        named = {name for (name,) in cursor.fetchall()}
    keys_of_foreign_keys = {"allocation_key", "device_key"}
    untried = named - {name.strip() for name in REFUSED} - keys_of_foreign_keys
    assert {name for name in untried if not name.endswith("_check")} == set()
