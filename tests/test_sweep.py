"""The clock over many families at once: what a batch does when one is refused, when it is killed, when others sweep."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, ProgrammingError, connection, transaction

from billing_site.local.process import CHECKOUT, module, wait_until
from subscriptions import lifecycle, states, sweep
from subscriptions.models import AuditEntry, SetAside, Subscription
from subscriptions.states import Deadline, Status, Type
from tests.builders import FEB_1, subscription
from tests.history import advance, by, in_state, nothing_changes, on, state, steps

pytestmark = pytest.mark.django_db(transaction=True)
HOUR = timedelta(hours=1)
AtCommit = Callable[[Subscription, str], None]


def poison(s: Subscription) -> None:
    """Somebody has written an audit entry for this subscription's next version by hand: no step can be evidenced."""
    AuditEntry.objects.create(
        subscription=s, tenant_id=s.tenant_id, version=s.version + 1, action="amended", effective_at=on(1, 2),
        actor="staff:1", reason="by hand", changes={},
    )  # fmt: skip


# --- one that the database refuses -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_a_family_that_the_database_refuses_is_set_aside_and_all_others_step(batch_size: int) -> None:
    all_of_them = [subscription() for _ in range(9)]
    poison(all_of_them[4])
    taken = advance(FEB_1, batch_size)
    assert len(taken) == 8
    assert [state(s) for s in all_of_them] == ["GRACE"] * 4 + ["ACTIVE"] + ["GRACE"] * 4
    aside = SetAside.objects.get()
    assert (aside.root, aside.since, aside.retry_at) == (all_of_them[4], FEB_1, FEB_1 + HOUR)
    assert "one_audit_entry_per_version" in aside.error


@pytest.mark.parametrize(
    ("why", "said"),
    [
        ("RAISE EXCEPTION 'refused at the commit' USING ERRCODE = 'integrity_constraint_violation'", "at the commit"),
        ("RAISE EXCEPTION 'refused by a trigger of somebody'", "by a trigger of somebody"),
        ("PERFORM 1 / 0", "division by zero"),
    ],
)
def test_a_family_whose_change_is_refused_only_at_the_commit_is_set_aside_too(
    why: str, said: str, at_commit: AtCommit
) -> None:
    bad, good = subscription(), subscription()
    at_commit(bad, why)
    advance(FEB_1)
    assert (state(bad), state(good)) == ("ACTIVE", "GRACE")
    assert said in SetAside.objects.get().error


def test_what_is_wrong_with_the_code_sets_nobody_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    subscription()
    monkeypatch.setattr(
        sweep, "MOVE", sweep.MOVE.replace("INSERT INTO subscription_audit", "INSERT INTO no_such_table")
    )
    with pytest.raises(ProgrammingError):
        advance(FEB_1)
    assert not SetAside.objects.exists()


def test_a_dry_run_sets_aside_what_only_a_commit_would_refuse(at_commit: AtCommit) -> None:
    bad = subscription()
    at_commit(bad, REFUSE)
    out = StringIO()
    with pytest.raises(CommandError, match="1 family could not be moved"):
        call_command("advance_subscriptions", now=FEB_1, dry_run=True, stdout=out, stderr=StringIO())
    assert "0 steps would be taken" in out.getvalue()
    assert not SetAside.objects.exists()


def test_an_addon_goes_nowhere_without_its_family() -> None:
    main = subscription()
    addon = subscription(Type.ADDON, parent=main)
    poison(addon)
    advance(FEB_1)
    assert (state(main), state(addon)) == ("ACTIVE", "ACTIVE")
    assert SetAside.objects.get().root == main


def test_what_is_set_aside_is_tried_again_in_an_hour_and_not_before(at_commit: AtCommit) -> None:
    s = subscription()
    at_commit(s, REFUSE)
    advance(FEB_1)
    at_commit(s, "")
    with nothing_changes():
        advance(FEB_1 + HOUR - timedelta(microseconds=1))
    assert steps_of(advance(FEB_1 + HOUR)) == [(s.pk, FEB_1)]
    assert not SetAside.objects.exists()


def test_a_family_that_fails_again_keeps_the_day_it_failed_first() -> None:
    s = subscription()
    poison(s)
    advance(FEB_1)
    advance(FEB_1 + HOUR)
    aside = SetAside.objects.get()
    assert (aside.since, aside.retry_at) == (FEB_1, FEB_1 + 2 * HOUR)


def test_what_staff_renewed_meanwhile_is_no_longer_set_aside(at_commit: AtCommit) -> None:
    s = subscription()
    at_commit(s, REFUSE)
    advance(FEB_1)
    at_commit(s, "")
    lifecycle.renew(s.pk, term_end=on(3, 1), **by(FEB_1))
    advance(FEB_1 + timedelta(minutes=1))
    assert not SetAside.objects.exists()


def test_the_command_names_what_is_set_aside_and_fails() -> None:
    bad, good = subscription(), subscription()
    poison(bad)
    out, err = StringIO(), StringIO()
    with pytest.raises(CommandError, match="1 family could not be moved"):
        call_command("advance_subscriptions", now=FEB_1, stdout=out, stderr=err)
    assert good.number in out.getvalue()
    assert bad.number in err.getvalue()


def test_a_lost_connection_sets_nobody_aside(at_commit: AtCommit) -> None:
    """It is no family's fault: the sweep ends with its error, and the next one finds everything as it was."""
    s = subscription()
    at_commit(s, CUT)
    with pytest.raises(OperationalError):
        advance(FEB_1)
    connection.close()
    assert not SetAside.objects.exists()
    at_commit(s, "")
    assert steps_of(advance(FEB_1)) == [(s.pk, FEB_1)]


# --- killed ----------------------------------------------------------------------------------------------------------


def test_a_sweep_that_is_killed_in_the_middle_of_a_batch_repeats_nothing_and_loses_nothing() -> None:
    all_of_them = [subscription() for _ in range(5)]
    before = AuditEntry.objects.count()
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("LOCK TABLE subscription_audit IN SHARE MODE")  # the second statement of a step waits here
        process = a_sweep_elsewhere()
        assert wait_until(lambda: sweeps_elsewhere(waiting=True) == 1, seconds=60)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
    assert wait_until(lambda: sweeps_elsewhere() == 0, seconds=60)
    assert (AuditEntry.objects.count(), {state(s) for s in all_of_them}) == (before, {"ACTIVE"})
    advance(FEB_1)
    for s in all_of_them:
        assert steps(s) == [("grace_started", FEB_1)]
        assert s.audit.count() == Subscription.objects.get(pk=s.pk).version == 2


def test_a_sweep_that_is_killed_between_batches_goes_on_with_the_next_one() -> None:
    all_of_them = [subscription() for _ in range(5)]
    batches = sweep.advance(now=FEB_1, batch_size=2)
    next(batches)
    del batches
    assert Subscription.objects.filter(status=Status.GRACE).count() == 2
    advance(FEB_1)
    assert [steps(s) for s in all_of_them] == [[("grace_started", FEB_1)]] * 5


# --- the statement is made of the tables -----------------------------------------------------------------------------


def test_a_rule_that_changes_in_the_table_changes_in_the_statement(monkeypatch: pytest.MonkeyPatch) -> None:
    grace, active = in_state("GRACE"), in_state("ACTIVE")
    monkeypatch.setitem(states.DEADLINES, Status.GRACE, Deadline("grace_end", Status.EXPIRED, Status.EXPIRED))
    monkeypatch.setattr(sweep, "MOVE", sweep._move_statement())
    advance(on(2, 20))
    assert (state(grace), state(active)) == ("EXPIRED", "EXPIRED")


def test_the_search_for_what_is_due_reads_one_range_of_its_index() -> None:
    for _ in range(3):
        subscription()
    with connection.cursor() as cursor:
        cursor.execute("SET enable_seqscan = off; SET enable_bitmapscan = off")  # as with many rows
        cursor.execute(f"EXPLAIN {sweep.DUE}", {"now": on(1, 15), "deadline": on(1, 1), "id": 0, "limit": 10})
        plan = "\n".join(line for (line,) in cursor.fetchall())
        cursor.execute("RESET enable_seqscan; RESET enable_bitmapscan")
    assert "Index Cond: ((next_deadline <=" in plan
    assert "subscriptions_due" in plan
    assert "Sort Key: subscriptions.next_deadline" not in plan


# --- what the tests above stand on -----------------------------------------------------------------------------------

REFUSE = "RAISE EXCEPTION 'refused at the commit' USING ERRCODE = 'integrity_constraint_violation'"
CUT = "PERFORM pg_terminate_backend(pg_backend_pid())"


@pytest.fixture
def at_commit() -> Iterator[Callable[[Subscription, str], None]]:
    """Let something happen at the commit of whoever changes this subscription; an empty something takes it back."""

    def install(s: Subscription, what: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute("DROP FUNCTION IF EXISTS at_commit CASCADE")
            if what:
                cursor.execute(
                    f"CREATE FUNCTION at_commit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {what};"
                    " RETURN NULL; END $$"
                )
                cursor.execute(
                    "CREATE CONSTRAINT TRIGGER at_commit AFTER UPDATE ON subscriptions DEFERRABLE INITIALLY DEFERRED"
                    f" FOR EACH ROW WHEN (NEW.id = {s.pk}) EXECUTE FUNCTION at_commit()"
                )

    yield install
    with connection.cursor() as cursor:
        cursor.execute("DROP FUNCTION IF EXISTS at_commit CASCADE")


def steps_of(entries: list[AuditEntry]) -> list[tuple[int, datetime]]:
    return [(entry.subscription_id, entry.effective_at) for entry in entries]


def a_sweep_elsewhere() -> "subprocess.Popen[bytes]":
    """A process of its own that sweeps the test's database."""
    db = connection.settings_dict
    url = (
        f"postgres://{db['USER']}:{db['PASSWORD']}@{db['HOST']}:{db['PORT']}/{db['NAME']}?application_name={ELSEWHERE}"
    )
    command = module("django", "advance_subscriptions", "--now", FEB_1.isoformat())
    return subprocess.Popen(command, env=dict(os.environ) | {"DATABASE_URL": url}, cwd=CHECKOUT)


ELSEWHERE = "a-sweep-elsewhere"


def sweeps_elsewhere(waiting: bool = False) -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_clear_snapshot()")
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
            " AND (wait_event_type = 'Lock' OR NOT %s)",
            [ELSEWHERE, waiting],
        )
        (count,) = cursor.fetchone()
    return int(count)
