"""The verbs, one at a time. Families: test_families; the clock: test_clock; any sequence: test_lifecycle_properties."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from subscriptions import lifecycle
from subscriptions.audit import CLOCK, STRIPE, Actor
from subscriptions.errors import (
    IllegalTransition,
    InvalidPlan,
    InvalidTerm,
    LiveMainExists,
    ReasonMissing,
    SubscriptionNotFound,
)
from subscriptions.lifecycle import CancelAt, Purchase
from subscriptions.models import AuditEntry, Plan, Subscription
from subscriptions.states import Action, EndReason, Status, Type
from tests.builders import ALICE, FEB_1, JAN_1, MAR_1, PlanFactory, PlanPriceFactory, TenantFactory, subscription
from tests.history import by, changed, entries, in_state, nothing_changes, on, refused, state

pytestmark = pytest.mark.django_db
JAN_10 = on(1, 10)

Verb = Callable[..., AuditEntry | None]


def another_plan(s: Subscription, **by: Any) -> AuditEntry | None:
    return lifecycle.change_plan(s.pk, plan=PlanFactory.create(type=s.type), price=None, **by)


VERBS: dict[str, Verb] = {
    "activate": lambda s, **by: lifecycle.activate(s.pk, **by),
    "renew": lambda s, **by: lifecycle.renew(s.pk, term_end=MAR_1, **by),
    "amend_term": lambda s, **by: lifecycle.amend_term(s.pk, term_end=MAR_1, **by),
    "change_plan": another_plan,
    "enter_grace": lambda s, **by: lifecycle.enter_grace(s.pk, **by),
    "suspend": lambda s, **by: lifecycle.suspend(s.pk, **by),
    "hold": lambda s, **by: lifecycle.suspend(s.pk, hold=True, **by),
    "lift_hold": lambda s, **by: lifecycle.lift_hold(s.pk, **by),
    "cancel now": lambda s, **by: lifecycle.cancel(s.pk, at=CancelAt.NOW, **by),
    "cancel at term end": lambda s, **by: lifecycle.cancel(s.pk, at=CancelAt.TERM_END, **by),
    "resume": lambda s, **by: lifecycle.resume(s.pk, **by),
    "expire": lambda s, **by: lifecycle.expire(s.pk, why=EndReason.CANCELLED, **by),
}

# A status from which each verb changes something.
ALLOWS = dict.fromkeys(VERBS, "ACTIVE") | {"activate": "GRACE", "lift_hold": "HOLD", "resume": "CANCELLED"}

# Where each verb leads from each status, on the 10th of a January that is paid for; "-" is refused.
STATES = "                          TRIAL      ACTIVE     GRACE      SUSPENDED  HOLD       EXPIRED   "
LEADS_TO = """
    activate             |  ACTIVE     -          ACTIVE     ACTIVE     -          -
    renew                |  ACTIVE     ACTIVE     ACTIVE     ACTIVE     HOLD       -
    amend_term           |  TRIAL      ACTIVE     ACTIVE     ACTIVE     HOLD       -
    change_plan          |  TRIAL      ACTIVE     GRACE      SUSPENDED  HOLD       -
    enter_grace          |  GRACE      GRACE      -          -          -          -
    suspend              |  SUSPENDED  SUSPENDED  SUSPENDED  -          -          -
    hold                 |  HOLD       HOLD       HOLD       HOLD       -          -
    lift_hold            |  -          -          -          -          ACTIVE     -
    cancel now           |  EXPIRED    EXPIRED    EXPIRED    EXPIRED    EXPIRED    -
    cancel at term end   |  TRIAL      ACTIVE     GRACE      SUSPENDED  HOLD       -
    resume               |  TRIAL      ACTIVE     GRACE      SUSPENDED  HOLD       -
    expire               |  EXPIRED    EXPIRED    EXPIRED    EXPIRED    EXPIRED    -
"""
CASES = [
    (verb.strip(), before, after)
    for verb, _, row in (line.partition("|") for line in LEADS_TO.strip().splitlines())
    for before, after in zip(STATES.split(), row.split(), strict=True)
]


@pytest.mark.parametrize(("verb", "before", "after"), [case for case in CASES if case[2] != "-"])
def test_a_verb_leads_where_the_table_says(verb: str, before: str, after: str) -> None:
    s = in_state(before)
    VERBS[verb](s, **by(JAN_10))
    assert state(s) == after


@pytest.mark.parametrize(("verb", "before"), [case[:2] for case in CASES if case[2] == "-"])
def test_a_verb_that_the_status_does_not_allow_is_refused_and_changes_nothing(verb: str, before: str) -> None:
    s = in_state(before)
    with refused(IllegalTransition, s.number):
        VERBS[verb](s, **by(JAN_10))


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_writes_down_who_when_why_and_what_caused_it(verb: str) -> None:
    s = in_state(ALLOWS[verb])
    entry = VERBS[verb](s, actor=ALICE, now=JAN_10, source_id="request-1", reason="by letter of 9 January")
    assert entry is not None
    assert (entry.actor, entry.effective_at, entry.source_id) == ("staff:1", JAN_10, "request-1")
    assert (entry.reason, entry.tenant_id) == ("by letter of 9 January", s.tenant_id)
    assert entry.version == s.version + 1 == Subscription.objects.get(pk=s.pk).version


@pytest.mark.parametrize("verb", VERBS)
def test_the_answer_is_the_entry_as_it_stands_in_the_database(verb: str) -> None:
    answer = VERBS[verb](in_state(ALLOWS[verb]), **by(JAN_10))
    assert answer is not None
    stored = AuditEntry.objects.get(pk=answer.pk)
    columns = [field.attname for field in AuditEntry._meta.concrete_fields if field.name != "transaction_id"]
    assert [getattr(answer, column) for column in columns] == [getattr(stored, column) for column in columns]
    assert answer.subscription.version == stored.subscription.version
    assert answer.subscription.status == stored.subscription.status


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_repeated_with_its_source_changes_nothing_and_answers_none(verb: str) -> None:
    s = in_state(ALLOWS[verb])
    assert VERBS[verb](s, **by(JAN_10, "request-1"))
    with nothing_changes():
        assert VERBS[verb](s, **by(on(1, 11), "request-1")) is None


@pytest.mark.parametrize("verb", VERBS)
def test_a_repeat_is_recognised_after_other_changes(verb: str) -> None:
    s = in_state(ALLOWS[verb])
    VERBS[verb](s, **by(JAN_10, "request-1"))
    if state(s) != "EXPIRED":
        lifecycle.amend_term(s.pk, term_end=on(6, 1), **by(on(1, 11)))
    with nothing_changes():
        assert VERBS[verb](s, **by(on(1, 12), "request-1")) is None


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("reason", ["", " \n"])
def test_staff_must_say_why(verb: str, reason: str) -> None:
    s = in_state(ALLOWS[verb])
    with refused(ReasonMissing):
        VERBS[verb](s, actor=ALICE, now=JAN_10, reason=reason)


@pytest.mark.parametrize("actor", [STRIPE, CLOCK, Actor.member(7)])
def test_nobody_else_has_to_say_why(actor: Actor) -> None:
    entry = lifecycle.enter_grace(subscription().pk, actor=actor, now=JAN_10)
    assert entry is not None
    assert (entry.actor, entry.reason) == (actor, "")


@pytest.mark.parametrize("verb", VERBS)
def test_a_now_without_a_time_zone_is_refused(verb: str) -> None:
    s = in_state(ALLOWS[verb])
    with refused(InvalidTerm, "now has no time zone"):
        VERBS[verb](s, **by(datetime(2026, 1, 10)))  # noqa: DTZ001


@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_subscription_is_not_found(verb: str) -> None:
    nobody = Subscription(pk=0, type=Type.MAIN)
    with refused(SubscriptionNotFound):
        VERBS[verb](nobody, **by(JAN_10))


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_takes_a_lock_a_read_and_a_write(verb: str) -> None:
    s = in_state(ALLOWS[verb])
    with CaptureQueriesContext(connection) as queries:
        assert VERBS[verb](s, **by(JAN_10, "request-1"))
    made_here = 'INSERT INTO "plans"'
    lock, *reads, write = [sql for query in queries if not (sql := query["sql"].strip()).startswith(made_here)]
    assert len(reads) == (2 if verb == "lift_hold" else 1)  # what it was when it was suspended is in the audit
    assert lock.startswith("SELECT")
    assert lock.endswith("FOR NO KEY UPDATE")
    assert all(read.startswith("SELECT") and "FOR NO KEY UPDATE" not in read for read in reads)
    assert write.startswith("WITH")
    assert "INSERT INTO subscription_audit" in write


@pytest.mark.django_db(transaction=True)
def test_a_verb_is_one_transaction() -> None:
    s = subscription()
    with CaptureQueriesContext(connection) as queries:
        lifecycle.enter_grace(s.pk, **by(JAN_10))
    assert [query["sql"].split()[0] for query in queries] == ["BEGIN", "SELECT", "SELECT", "WITH", "COMMIT"]


def start(plan: Plan, term: tuple[datetime, datetime] = (JAN_1, FEB_1), **given: Any) -> AuditEntry | None:
    tenant_id = given.pop("tenant_id", None) or TenantFactory.create().pk
    return lifecycle.start(tenant_id, Purchase(plan, *term), **(by(JAN_1) | given))


def test_a_start_takes_a_number_check_and_a_write() -> None:
    plan, tenant = PlanFactory.create(), TenantFactory.create()
    with CaptureQueriesContext(connection) as queries:
        start(plan, tenant_id=tenant.pk, source_id="request-1")
    check, write = [query["sql"].strip() for query in queries]
    assert check.startswith("(SELECT")
    assert write.startswith("WITH born")


# --- start -----------------------------------------------------------------------------------------------------------


def test_a_start_writes_the_subscription_and_its_first_audit_entry() -> None:
    s = subscription(term=(JAN_1, FEB_1))
    entry = s.audit.get()
    assert (s.status, s.type, s.version, entry.version) == (Status.ACTIVE, Type.MAIN, 1, 1)
    assert (entry.action, entry.actor, entry.reason) == (Action.STARTED, ALICE, "ordered by letter")
    assert (entry.effective_at, entry.source_id, entry.tenant_id) == (JAN_1, "", s.tenant_id)
    assert entry.changes == {
        "type": [None, "MAIN"],
        "status": [None, "ACTIVE"],
        "plan_id": [None, s.plan_id],
        "quantity": [None, 1],
        "term_start": [None, "2026-01-01T00:00:00+00:00"],
        "term_end": [None, "2026-02-01T00:00:00+00:00"],
        "anniversary": [None, "2026-01-01T00:00:00+00:00"],
        "time_zone": [None, "UTC"],
        "term_deadline": [None, "2026-02-01T00:00:00+00:00"],
        "on_hold": [None, False],
        "own_hold": [None, False],
        "auto_renews": [None, False],
        "cancel_at_term_end": [None, False],
    }


def test_a_start_answers_the_entry_as_it_stands_in_the_database() -> None:
    answer = start(PlanFactory.create())
    assert answer is not None
    stored = AuditEntry.objects.get()
    columns = [field.attname for field in AuditEntry._meta.concrete_fields if field.name != "transaction_id"]
    assert [getattr(answer, column) for column in columns] == [getattr(stored, column) for column in columns]
    assert answer.subscription.number == stored.subscription.number


@pytest.mark.parametrize(("type", "status"), [(Type.MAIN, "ACTIVE"), (Type.TEMPORARY, "ACTIVE"), (Type.TRIAL, "TRIAL")])
def test_a_subscription_is_of_its_plans_type_and_begins_active_unless_it_is_a_trial(type: Type, status: str) -> None:
    s = subscription(type)
    assert (s.type, s.status) == (type, status)


def test_a_main_subscription_may_begin_in_trial_in_grace_or_suspended() -> None:
    trial, grace, suspended = (subscription(status=Status(name)) for name in ("TRIAL", "GRACE", "SUSPENDED"))
    assert (trial.status, trial.grace_end, trial.suspension_end) == ("TRIAL", None, None)
    assert (grace.status, grace.grace_end) == ("GRACE", on(2, 15))
    assert (suspended.status, suspended.suspension_end) == ("SUSPENDED", on(3, 2))


def test_nothing_begins_expired() -> None:
    plan = PlanFactory.create()
    with refused(IllegalTransition):
        start(plan, status=Status.EXPIRED)


def test_a_number_names_the_day_and_five_crockford_characters() -> None:
    assert Subscription.objects.filter(number__regex=r"^SUB-20260101-[0-9A-HJKMNP-TV-Z]{5}$").get(pk=subscription().pk)


def test_a_number_names_the_day_in_utc() -> None:
    after_midnight = datetime(2026, 1, 2, 1, tzinfo=timezone(timedelta(hours=2)))
    entry = start(PlanFactory.create(), now=after_midnight)
    assert entry is not None
    assert entry.subscription.number.startswith("SUB-20260101-")


def test_a_start_in_the_past_is_true_from_the_start_of_its_term_and_one_in_the_future_from_now() -> None:
    past = start(PlanFactory.create(), (JAN_1, FEB_1), now=JAN_10)
    future = start(PlanFactory.create(), (FEB_1, MAR_1), now=JAN_10)
    assert past is not None
    assert future is not None
    assert (past.effective_at, future.effective_at) == (JAN_1, JAN_10)


def test_a_start_repeated_with_its_source_changes_nothing_and_answers_none() -> None:
    plan, tenant = PlanFactory.create(), TenantFactory.create()
    assert start(plan, tenant_id=tenant.pk, source_id="request-1")
    with nothing_changes():
        assert start(plan, tenant_id=tenant.pk, source_id="request-1") is None


def test_two_starts_without_a_source_are_two_subscriptions() -> None:
    plan, tenant = PlanFactory.create(type=Type.TEMPORARY), TenantFactory.create()
    assert start(plan, tenant_id=tenant.pk)
    assert start(plan, tenant_id=tenant.pk)
    assert Subscription.objects.count() == 2


def test_a_start_by_staff_needs_a_reason() -> None:
    plan = PlanFactory.create()
    with refused(ReasonMissing):
        start(plan, reason="")


@pytest.mark.parametrize(
    ("term", "now", "match"),
    [
        ((FEB_1, JAN_1), JAN_1, "must be later than term_start"),
        ((JAN_1, JAN_1), JAN_1, "must be later than term_start"),
        ((datetime(2026, 1, 1), FEB_1), JAN_1, "term_start has no time zone"),  # noqa: DTZ001
        ((JAN_1, datetime(2026, 2, 1)), JAN_1, "term_end has no time zone"),  # noqa: DTZ001
        ((JAN_1, FEB_1), datetime(2026, 1, 1), "now has no time zone"),  # noqa: DTZ001
        ((JAN_1, datetime.max.replace(tzinfo=UTC)), JAN_1, "term_end .* is not between 1900 and 9000"),
        ((JAN_1, datetime.max.replace(tzinfo=timezone(timedelta(hours=-12)))), JAN_1, "is not between"),
        ((datetime.min.replace(tzinfo=timezone(timedelta(hours=12))), FEB_1), JAN_1, "is not between"),
        ((JAN_1, FEB_1), datetime.max.replace(tzinfo=UTC), "now .* is not between"),
    ],
)
def test_dates_that_make_no_term_are_refused(term: tuple[datetime, datetime], now: datetime, match: str) -> None:
    plan = PlanFactory.create()
    with refused(InvalidTerm, match):
        start(plan, term, now=now)


def test_a_price_of_another_plan_is_refused() -> None:
    plan, price = PlanFactory.create(), PlanPriceFactory.create()
    with refused(InvalidPlan):
        lifecycle.start(TenantFactory.create().pk, Purchase(plan, JAN_1, FEB_1, price), **by(JAN_1))


def test_dates_are_written_down_in_utc() -> None:
    in_berlin = datetime(2026, 2, 1, 1, tzinfo=timezone(timedelta(hours=1)))
    entry = start(PlanFactory.create(), (JAN_1, in_berlin))
    assert entry is not None
    assert entry.changes["term_end"] == [None, "2026-02-01T00:00:00+00:00"]


def test_microseconds_are_kept() -> None:
    almost = FEB_1 - timedelta(microseconds=1)
    s = subscription(term=(JAN_1, almost))
    assert s.term_end == almost
    assert s.audit.get().changes["term_end"] == [None, "2026-01-31T23:59:59.999999+00:00"]


# --- activate --------------------------------------------------------------------------------------------------------


def test_activating_a_trial_makes_it_what_was_bought() -> None:
    s, price = subscription(Type.TRIAL), PlanPriceFactory.create()
    entry = lifecycle.activate(
        s.pk, purchase=Purchase(price.plan, JAN_10, MAR_1, price, auto_renews=True), **by(JAN_10)
    )
    assert changed(entry) == {
        "type": ("TRIAL", "MAIN"),
        "status": ("TRIAL", "ACTIVE"),
        "plan_id": (s.plan_id, price.plan_id),
        "price_id": (None, price.pk),
        "term_start": (JAN_1, JAN_10),
        "term_end": (FEB_1, MAR_1),
        "auto_renews": (False, True),
    }


@pytest.mark.parametrize("before", ["TRIAL", "GRACE", "SUSPENDED"])
def test_activating_without_a_purchase_keeps_what_is_left_of_the_term(before: str) -> None:
    s = in_state(before)
    assert lifecycle.activate(s.pk, **by(FEB_1 - timedelta(microseconds=1)))
    s.refresh_from_db()
    assert (s.status, s.term_start, s.term_end) == (Status.ACTIVE, JAN_1, FEB_1)
    assert (s.grace_end, s.suspension_end) == (None, None)


def test_activating_without_a_purchase_is_refused_when_the_term_is_over() -> None:
    s = in_state("GRACE")
    with refused(InvalidTerm, "renew it instead"):
        lifecycle.activate(s.pk, **by(FEB_1))


def test_activating_a_trial_as_a_second_main_is_refused() -> None:
    main = subscription()
    trial = subscription(Type.TRIAL, tenant=main.tenant)
    with pytest.raises(LiveMainExists):
        lifecycle.activate(trial.pk, purchase=Purchase(PlanFactory.create(), JAN_1, FEB_1), **by(JAN_10))


@pytest.mark.parametrize(
    ("of", "becomes"), [(Type.TRIAL, Type.ADDON), (Type.MAIN, Type.TEMPORARY), (Type.MAIN, Type.TRIAL)]
)
def test_only_a_trial_becomes_another_type_and_never_an_addon(of: Type, becomes: Type) -> None:
    s, plan = subscription(of, status=Status.TRIAL), PlanFactory.create(type=becomes)
    with refused(InvalidPlan):
        lifecycle.activate(s.pk, purchase=Purchase(plan, JAN_1, FEB_1), **by(JAN_10))


def test_activating_with_an_impossible_term_or_a_foreign_price_is_refused() -> None:
    s, price = subscription(Type.TRIAL), PlanPriceFactory.create()
    with refused(InvalidTerm):
        lifecycle.activate(s.pk, purchase=Purchase(price.plan, FEB_1, JAN_1), **by(JAN_10))
    with refused(InvalidPlan):
        lifecycle.activate(s.pk, purchase=Purchase(s.plan, JAN_1, FEB_1, price), **by(JAN_10))


# --- renew -----------------------------------------------------------------------------------------------------------


def test_an_early_renewal_keeps_term_start_and_grows_the_term() -> None:
    s = subscription()
    entry = lifecycle.renew(s.pk, term_end=MAR_1, **by(FEB_1 - timedelta(microseconds=1)))
    assert changed(entry) == {"term_end": (FEB_1, MAR_1)}


def test_a_renewal_at_the_instant_the_term_ends_begins_a_new_term() -> None:
    s = subscription()
    entry = lifecycle.renew(s.pk, term_end=MAR_1, **by(FEB_1))
    assert changed(entry) == {"term_start": (JAN_1, FEB_1), "term_end": (FEB_1, MAR_1)}


def test_a_renewal_in_grace_keeps_the_anniversary() -> None:
    s = subscription()
    lifecycle.enter_grace(s.pk, **by(FEB_1))
    entry = lifecycle.renew(s.pk, term_end=MAR_1, **by(on(2, 10)))
    assert changed(entry) == {
        "status": ("GRACE", "ACTIVE"),
        "term_start": (JAN_1, FEB_1),
        "term_end": (FEB_1, MAR_1),
        "grace_end": (on(2, 15), None),
    }


def test_a_renewal_brings_a_suspended_subscription_back() -> None:
    s = in_state("SUSPENDED")
    entry = lifecycle.renew(s.pk, term_end=MAR_1, **by(JAN_10))
    assert changed(entry) == {
        "status": ("SUSPENDED", "ACTIVE"),
        "term_end": (FEB_1, MAR_1),
        "suspension_end": (on(3, 6), None),
    }


def test_a_renewal_extends_the_term_of_what_is_on_hold_and_does_not_lift_the_hold() -> None:
    s = in_state("HOLD")
    entry = lifecycle.renew(s.pk, term_end=MAR_1, actor=STRIPE, now=JAN_10)
    assert changed(entry) == {"term_end": (FEB_1, MAR_1)}
    assert state(s) == "HOLD"


@pytest.mark.parametrize("term_end", [FEB_1, FEB_1 - timedelta(microseconds=1), JAN_1, on(1, 1) - timedelta(days=400)])
def test_a_renewal_not_later_than_the_present_term_changes_nothing(term_end: datetime) -> None:
    s = in_state("GRACE")
    with nothing_changes():
        assert lifecycle.renew(s.pk, term_end=term_end, **by(JAN_10)) is None


def test_a_renewal_by_a_microsecond_is_a_renewal() -> None:
    s = subscription()
    later = FEB_1 + timedelta(microseconds=1)
    assert changed(lifecycle.renew(s.pk, term_end=later, **by(JAN_10))) == {"term_end": (FEB_1, later)}


def test_a_renewal_ends_a_cancellation_unless_the_new_term_is_the_last_one() -> None:
    s = subscription()
    lifecycle.cancel(s.pk, at=CancelAt.TERM_END, **by(JAN_10))
    last = lifecycle.renew(s.pk, term_end=MAR_1, cancel_at_term_end=True, **by(on(1, 11)))
    assert changed(last) == {"term_end": (FEB_1, MAR_1)}
    going_on = lifecycle.renew(s.pk, term_end=on(4, 1), **by(on(1, 12)))
    assert changed(going_on) == {"term_end": (MAR_1, on(4, 1)), "cancel_at_term_end": (True, False)}


@pytest.mark.parametrize(
    ("term_end", "match"),
    [
        (datetime(2026, 3, 1), "term_end has no time zone"),  # noqa: DTZ001
        (datetime.max.replace(tzinfo=UTC), "term_end .* is not between"),
    ],
)
def test_a_renewal_until_no_instant_is_refused(term_end: datetime, match: str) -> None:
    s = subscription(auto_renews=True)
    with refused(InvalidTerm, match):
        lifecycle.renew(s.pk, term_end=term_end, **by(JAN_10))
    with refused(InvalidTerm, match):
        lifecycle.amend_term(s.pk, term_end=term_end, **by(JAN_10))


def test_a_term_may_end_on_a_leap_day_and_in_the_far_future() -> None:
    leap_day, far = datetime(2028, 2, 29, tzinfo=UTC), datetime(8999, 12, 31, tzinfo=UTC)
    s = subscription(term=(datetime(2024, 2, 29, tzinfo=UTC), leap_day), auto_renews=True)
    assert (s.term_end, s.term_deadline) == (leap_day, datetime(2028, 3, 3, tzinfo=UTC))
    assert changed(lifecycle.renew(s.pk, term_end=far, **by(JAN_10))) == {"term_end": (leap_day, far)}


# --- amend_term, change_plan -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", ["TRIAL", "ACTIVE", "HOLD"])
def test_amending_a_term_moves_its_end_either_way_and_nothing_else(before: str) -> None:
    s = in_state(before)
    assert changed(lifecycle.amend_term(s.pk, term_end=MAR_1, **by(JAN_10))) == {"term_end": (FEB_1, MAR_1)}
    assert changed(lifecycle.amend_term(s.pk, term_end=on(1, 8), **by(JAN_10))) == {"term_end": (MAR_1, on(1, 8))}


@pytest.mark.parametrize("before", ["GRACE", "SUSPENDED"])
def test_what_ended_by_a_wrong_date_is_active_again_by_the_right_one(before: str) -> None:
    s = in_state(before)
    lifecycle.amend_term(s.pk, term_end=MAR_1, **by(on(2, 3)))
    s.refresh_from_db()
    assert (s.status, s.term_end, s.grace_end, s.suspension_end) == ("ACTIVE", MAR_1, None, None)


def test_a_grace_period_is_counted_from_the_amended_end_of_a_term_that_is_over() -> None:
    s = in_state("GRACE")
    lifecycle.amend_term(s.pk, term_end=on(2, 2), **by(on(2, 3)))
    s.refresh_from_db()
    assert (s.status, s.grace_end) == ("GRACE", on(2, 16))


def test_amending_a_term_to_nothing_is_refused() -> None:
    s = subscription()
    with refused(InvalidTerm, "must be later than term_start"):
        lifecycle.amend_term(s.pk, term_end=JAN_1, **by(JAN_10))


def test_a_change_of_plan_changes_the_plan_and_the_price_alone() -> None:
    s, price = subscription(), PlanPriceFactory.create()
    entry = lifecycle.change_plan(s.pk, plan=price.plan, price=price, **by(JAN_10))
    assert changed(entry) == {"plan_id": (s.plan_id, price.plan_id), "price_id": (None, price.pk)}


def test_a_plan_of_another_type_or_a_price_of_another_plan_is_refused() -> None:
    s, price, trial = subscription(), PlanPriceFactory.create(), PlanFactory.create(type=Type.TRIAL)
    with refused(InvalidPlan):
        lifecycle.change_plan(s.pk, plan=trial, price=None, **by(JAN_10))
    with refused(InvalidPlan):
        lifecycle.change_plan(s.pk, plan=s.plan, price=price, **by(JAN_10))


def test_changing_to_the_same_plan_changes_nothing() -> None:
    s = subscription()
    with nothing_changes():
        assert lifecycle.change_plan(s.pk, plan=s.plan, price=None, **by(JAN_10)) is None


# --- enter_grace, suspend, lift_hold ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "grace_end"),
    [
        (JAN_10, on(2, 15)),  # payment failed early: what was paid for is served first
        (FEB_1, on(2, 15)),
        (on(2, 10), on(2, 15)),  # noticed late: counted from the end of the term
        (on(5, 1), on(5, 1)),  # never over before it began
    ],
)
def test_grace_is_counted_from_the_end_of_the_term(now: datetime, grace_end: datetime) -> None:
    entry = lifecycle.enter_grace(subscription().pk, **by(now))
    assert changed(entry) == {"status": ("ACTIVE", "GRACE"), "grace_end": (None, grace_end)}


def test_a_suspension_is_remembered_for_its_window() -> None:
    entry = lifecycle.suspend(in_state("GRACE").pk, **by(JAN_10))
    assert changed(entry) == {
        "status": ("GRACE", "SUSPENDED"),
        "grace_end": (on(2, 15), None),
        "suspension_end": (None, on(3, 11)),
    }


def test_a_hold_has_no_end() -> None:
    entry = lifecycle.suspend(subscription().pk, hold=True, **by(JAN_10))
    assert changed(entry) == {"status": ("ACTIVE", "SUSPENDED"), "on_hold": (False, True)}


def test_a_hold_may_be_put_on_what_is_suspended_already() -> None:
    entry = lifecycle.suspend(in_state("SUSPENDED").pk, hold=True, **by(JAN_10))
    assert changed(entry) == {"suspension_end": (on(3, 6), None), "on_hold": (False, True)}


@pytest.mark.parametrize(("grace", "suspension"), [(0, 0), (3, 5), (400, 32767)])
def test_windows_come_from_the_settings_and_a_plan_overrides_them(grace: int, suspension: int, settings: Any) -> None:
    settings.GRACE_DAYS, settings.SUSPENSION_DAYS = 1, 2
    own = PlanFactory.create(grace_days=grace, suspension_days=suspension)
    for plan, grace_days, suspension_days in ((PlanFactory.create(), 1, 2), (own, grace, suspension)):
        s = subscription(plan=plan)
        lifecycle.enter_grace(s.pk, **by(JAN_10))
        lifecycle.suspend(s.pk, **by(JAN_10))
        _, in_grace, suspended = entries(s)
        assert changed(in_grace)["grace_end"] == (None, FEB_1 + timedelta(days=grace_days))
        assert changed(suspended)["suspension_end"] == (None, JAN_10 + timedelta(days=suspension_days))


def test_a_lifted_hold_returns_to_active_while_the_term_runs() -> None:
    s = in_state("HOLD")
    entry = lifecycle.lift_hold(s.pk, **by(FEB_1 - timedelta(microseconds=1)))
    assert changed(entry) == {"status": ("SUSPENDED", "ACTIVE"), "on_hold": (True, False)}


@pytest.mark.parametrize(
    ("lifted", "status", "column", "end"),
    [
        (on(1, 31), "ACTIVE", "term_end", FEB_1),
        (FEB_1, "GRACE", "grace_end", on(2, 15)),
        (on(2, 14), "GRACE", "grace_end", on(2, 15)),
        (on(2, 15), "SUSPENDED", "suspension_end", on(4, 16)),
        (on(4, 15), "SUSPENDED", "suspension_end", on(4, 16)),
        (on(4, 16), "SUSPENDED", "suspension_end", on(6, 15)),  # over by its dates: nothing is lost by a hold
    ],
)
def test_a_lifted_hold_is_what_its_dates_say_then(lifted: datetime, status: str, column: str, end: datetime) -> None:
    s = in_state("HOLD")
    assert lifecycle.lift_hold(s.pk, **by(lifted))
    s.refresh_from_db()
    assert (s.status, getattr(s, column), s.on_hold) == (status, end, False)


def test_a_lifted_hold_on_a_trial_is_a_trial_again() -> None:
    s = subscription(Type.TRIAL)
    lifecycle.suspend(s.pk, hold=True, **by(on(1, 5)))
    assert lifecycle.lift_hold(s.pk, **by(on(1, 6)))
    assert state(s) == "TRIAL"


def test_a_lifted_hold_on_what_was_cancelled_ends_it_once_its_term_is_over() -> None:
    s = in_state("CANCELLED")
    lifecycle.suspend(s.pk, hold=True, **by(on(1, 6)))
    entry = lifecycle.lift_hold(s.pk, **by(FEB_1))
    assert (state(s), s.ended_at, s.end_reason) == ("EXPIRED", FEB_1, EndReason.CANCELLED_AT_TERM_END)
    assert entry is not None
    assert entry.action == Action.HOLD_LIFTED


def test_a_lifted_hold_returns_to_active_while_a_renewal_may_still_be_settling() -> None:
    s = in_state("HOLD", auto_renews=True)
    assert lifecycle.lift_hold(s.pk, **by(on(2, 3, 23, 59)))
    assert state(s) == "ACTIVE"


# --- cancel, resume, expire ------------------------------------------------------------------------------------------


def test_a_cancellation_at_term_end_changes_no_status_and_no_date() -> None:
    s = subscription()
    entry = lifecycle.cancel(s.pk, at=CancelAt.TERM_END, **by(JAN_10))
    assert entry is not None
    assert (entry.action, changed(entry)) == (Action.CANCEL_SCHEDULED, {"cancel_at_term_end": (False, True)})


def test_what_is_cancelled_at_term_end_awaits_no_settlement() -> None:
    s = subscription(auto_renews=True)
    lifecycle.cancel(s.pk, at=CancelAt.TERM_END, **by(JAN_10))
    s.refresh_from_db()
    assert s.term_deadline == FEB_1
    lifecycle.resume(s.pk, **by(JAN_10))
    s.refresh_from_db()
    assert s.term_deadline == on(2, 4)


@pytest.mark.parametrize(("at", "now"), [(CancelAt.NOW, JAN_10), (CancelAt.TERM_END, FEB_1)])
def test_a_cancellation_now_or_after_the_term_ends_it_at_once(at: CancelAt, now: datetime) -> None:
    entry = lifecycle.cancel(subscription().pk, at=at, **by(now))
    assert entry is not None
    assert entry.action == Action.EXPIRED
    assert changed(entry) == {
        "status": ("ACTIVE", "EXPIRED"),
        "ended_at": (None, now),
        "end_reason": ("", "cancelled"),
    }


def test_cancelling_at_term_end_twice_changes_nothing_and_cancelling_now_still_ends_it() -> None:
    s = subscription()
    lifecycle.cancel(s.pk, at=CancelAt.TERM_END, **by(JAN_10))
    with nothing_changes():
        assert lifecycle.cancel(s.pk, at=CancelAt.TERM_END, **by(on(1, 11))) is None
    assert lifecycle.cancel(s.pk, at=CancelAt.NOW, **by(on(1, 12)))
    assert state(s) == "EXPIRED"


def test_cancelling_at_term_end_does_not_take_the_rest_of_a_paid_term_from_what_is_on_hold() -> None:
    s = in_state("HOLD")
    lifecycle.cancel(s.pk, at=CancelAt.TERM_END, **by(JAN_10))
    lifecycle.lift_hold(s.pk, **by(on(1, 11)))
    s.refresh_from_db()
    assert (s.status, s.cancel_at_term_end) == (Status.ACTIVE, True)


def test_resuming_undoes_a_cancellation_at_term_end() -> None:
    s = subscription()
    lifecycle.cancel(s.pk, at=CancelAt.TERM_END, **by(JAN_10))
    entry = lifecycle.resume(s.pk, **by(on(1, 11)))
    assert entry is not None
    assert (entry.action, changed(entry)) == (Action.CANCEL_UNDONE, {"cancel_at_term_end": (True, False)})


def test_resuming_what_is_not_cancelled_changes_nothing() -> None:
    s = subscription()
    with nothing_changes():
        assert lifecycle.resume(s.pk, **by(JAN_10)) is None


@pytest.mark.parametrize("before", ["TRIAL", "GRACE", "SUSPENDED", "HOLD"])
def test_expiring_says_when_and_why_and_leaves_no_other_date_of_a_status(before: str) -> None:
    s = in_state(before)
    entry = lifecycle.expire(s.pk, why=EndReason.NEVER_PAID, ended_at=on(1, 7), **by(JAN_10))
    s.refresh_from_db()
    assert entry is not None
    assert (entry.effective_at, entry.action) == (on(1, 7), Action.EXPIRED)
    assert (s.status, s.ended_at, s.end_reason) == (Status.EXPIRED, on(1, 7), EndReason.NEVER_PAID)
    assert (s.grace_end, s.suspension_end, s.on_hold, s.next_deadline) == (None, None, False, None)


@pytest.mark.parametrize("ended_at", [JAN_10 + timedelta(microseconds=1), datetime(2026, 1, 7)])  # noqa: DTZ001
def test_an_end_in_the_future_or_without_a_time_zone_is_refused(ended_at: datetime) -> None:
    s = subscription()
    with refused(InvalidTerm, "ended_at"):
        lifecycle.expire(s.pk, why=EndReason.CANCELLED, ended_at=ended_at, **by(JAN_10))
