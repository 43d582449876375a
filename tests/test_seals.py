"""The sealed audit: what was written cannot be rewritten unnoticed, and the first that does not fit is named."""

import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command, load_command_class
from django.db import IntegrityError, connection, transaction

from subscriptions import lifecycle
from subscriptions.management.progress import on_terminal
from subscriptions.models import AuditEntry, AuditSeal, Subscription
from subscriptions.proof import DoesNotFit, Proof, export, replay, verify, verify_export
from subscriptions.seals import canonical, entry_digest, header, here, made_of, nonce, read, seal, seal_digest, unpack
from subscriptions.tasks import seal_audit
from tests.builders import FEB_1, TenantFactory, subscription
from tests.history import advance, at_once, by, in_state, on
from tests.test_notices import settle

pytestmark = pytest.mark.django_db(transaction=True)

NOW = on(6, 1)
ELSEWHERE = 7  # a cluster


def sealed(at_most: int = 5000) -> list[AuditSeal]:
    """Everything that was written, sealed."""
    settle()
    made = []
    while one := seal(now=NOW, at_most=at_most):
        made.append(one)
    return made


def history(seals: int = 3) -> list[AuditEntry]:
    """Six entries of two subscriptions, sealed two by two."""
    for _ in range(2):
        s = in_state("GRACE")
        lifecycle.activate(s.pk, **by(on(1, 6)))
    assert len(sealed(at_most=2)) == seals
    return [*AuditEntry.objects.order_by("id")]


@contextmanager
def owner_of(*tables: str) -> Iterator[Any]:
    """What only the owner of the tables can do: work with their triggers off."""
    with transaction.atomic(), connection.cursor() as cursor:
        for table in tables:
            cursor.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        yield cursor
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        for table in tables:
            cursor.execute(f"ALTER TABLE {table} ENABLE TRIGGER USER")
        # the teardown's TRUNCATE
        cursor.execute("ALTER TABLE subscription_audit DISABLE TRIGGER the_audit_is_never_emptied")
        cursor.execute("ALTER TABLE audit_seals DISABLE TRIGGER seals_are_never_emptied")


def tamper(statement: str, *values: object, table: str = "subscription_audit") -> None:
    with owner_of(table) as cursor:
        cursor.execute(statement, values)
        assert cursor.rowcount > 0


def unfit(**expected: Any) -> tuple[str, dict[str, object]]:
    """How the first does not fit, and which it is."""
    with pytest.raises(DoesNotFit) as found:
        verify(**expected)
    return found.value.how, found.value.which


def fits(entries: int, seals: int, unsealed: int = 0) -> Proof:
    proof = verify()
    assert (proof.entries, proof.seals, proof.unsealed) == (entries, seals, unsealed)
    return proof


# --- what is sealed --------------------------------------------------------------------------------------------------


def test_what_was_written_is_sealed_once_in_portions_and_fits() -> None:
    history()
    proof = fits(6, 3)
    assert sealed() == []
    s = subscription()
    fits(6, 3, unsealed=1)
    assert [made.number for made in sealed()] == [4]
    assert (fits(7, 4).head != proof.head, verify(expected=proof.head).seals) == (True, 4)
    assert proof.subscriptions == 2
    assert AuditSeal.objects.get(number=4).until_id == s.audit.get().pk


def test_an_empty_audit_fits() -> None:
    assert sealed() == []
    assert fits(0, 0).head == "0" * 64


def test_the_clocks_job_seals_what_there_is() -> None:
    in_state("GRACE")
    settle()
    seal_audit()
    seal_audit()
    assert [*AuditSeal.objects.values_list("number", "count")] == [(1, 2)]


def test_anybody_can_compute_the_digests_again() -> None:
    """From the docstring of `seals` alone, by hand."""
    history()
    entry = AuditEntry.objects.select_related("subscription").order_by("id")[1]
    plain = {
        "id": entry.pk, "subscription_id": entry.subscription_id, "tenant_id": entry.tenant_id, "version": 2,
        "action": "grace_started", "effective_at": "2026-01-05T00:00:00.000000Z",
        "recorded_at": entry.recorded_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"), "actor": "staff:1", "source_id": "",
        "reason": "as agreed", "changes": entry.changes, "transaction_id": entry.transaction_id, "request_id": "",
        "address": None,
    }  # fmt: skip
    first, second = AuditSeal.objects.order_by("number")[:2]
    key = hmac.digest(bytes(first.salt), entry.pk.to_bytes(8, "big"), "sha256")
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    digest = hashlib.sha256(key + text.encode()).digest()
    assert bytes(first.entries)[40:] == entry.pk.to_bytes(8, "big") + digest
    says = {
        "number": 2, "era": 1, "cluster": first.cluster, "after": [first.until_transaction_id, first.until_id],
        "until": [second.until_transaction_id, second.until_id], "greatest_id": second.greatest_id, "count": 2,
        "sealed_at": "2026-06-01T00:00:00.000000Z", "previous": first.digest,
    }  # fmt: skip
    text = json.dumps(says, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode() + bytes(second.entries)).hexdigest() == second.digest


def test_every_column_of_an_entry_is_sealed() -> None:
    subscription()
    (entry,) = read("", {})
    assert set(entry) == {field.column for field in AuditEntry._meta.concrete_fields}


def test_odd_values_written_by_hand_are_sealed_too() -> None:
    s = subscription()
    with connection.cursor() as cursor:
        cursor.execute(
            """INSERT INTO subscription_audit (subscription_id, tenant_id, version, action, effective_at, actor,
                                               source_id, reason, changes, address)
               VALUES (%s, %s, 2, 'amended', 'infinity', 'staff:1', '', %s,
                       '{"a": [1.50, 1e400], "b": [123456789012345678901234567890, -0.0]}', 'fe80::1/64')""",
            [s.pk, s.tenant_id, 'Ünïcödé \u2028 " \\ \x01'],
        )
    sealed()
    _, odd = read("ORDER BY a.id", {})
    assert (odd["effective_at"], odd["address"]) == ("infinity", "fe80::1/64")
    assert odd["changes"]["a"][0] == "1.50"
    assert unfit() == ("versions", {"subscription": s.number})  # its seal fits
    tamper("UPDATE subscription_audit SET changes = jsonb_set(changes, '{a,0}', '1.5') WHERE id = %s", odd["id"])
    assert unfit()[0] == "rewritten"


# --- what does not fit -----------------------------------------------------------------------------------------------

REWRITINGS = {
    "reason": "'another'", "actor": "'clock'", "source_id": "'evt_1'", "effective_at": "effective_at + interval '1us'",
    "recorded_at": "recorded_at - interval '1us'", "action": "'suspended'", "version": "9", "request_id": "'r'",
    "address": "'10.0.0.1'", "changes": "changes || '{\"status\": [\"GRACE\", \"EXPIRED\"]}'",
    "transaction_id": "transaction_id - 1", "tenant_id": "(SELECT max(id) FROM tenants)",
}  # fmt: skip


@pytest.mark.parametrize("column", REWRITINGS)
def test_a_rewritten_entry_is_named(column: str) -> None:
    victim = history()[1]
    tamper(f"UPDATE subscription_audit SET {column} = {REWRITINGS[column]} WHERE id = %s", victim.pk)
    assert unfit() == ("rewritten", {"entry": victim.pk, "seal": 1})


def test_an_entry_that_was_moved_into_another_range_was_rewritten() -> None:
    first, *_, last = history()
    tamper("UPDATE subscription_audit SET transaction_id = %s WHERE id = %s", first.transaction_id, last.pk)
    assert unfit() == unfit(portion=1) == ("rewritten", {"entry": last.pk, "seal": 3})


def test_a_removed_entry_is_named() -> None:
    victim = history()[3]
    tamper("DELETE FROM subscription_audit WHERE id = %s", victim.pk)
    assert unfit() == ("missing", {"entry": victim.pk, "seal": 2})


@pytest.mark.parametrize("place", [0, 2, 4])
def test_an_entry_that_was_slipped_in_is_named(place: int) -> None:
    like = history()[place]
    tamper(
        """INSERT INTO subscription_audit (subscription_id, tenant_id, version, action, effective_at, actor, source_id,
                                           reason, changes, transaction_id)
           SELECT subscription_id, tenant_id, 9, action, effective_at, actor, source_id, reason, changes, %s
             FROM subscription_audit WHERE id = %s""",
        like.transaction_id,
        like.pk,
    )
    slipped = AuditEntry.objects.latest("id")
    how, which = unfit()
    assert (how, which["entry"]) == ("slipped in", slipped.pk)
    assert unfit(portion=1) == (how, which)


def test_a_rewritten_seal_breaks_the_chain() -> None:
    history()
    tamper("UPDATE audit_seals SET sealed_at = now() WHERE number = 2", table="audit_seals")
    assert unfit() == ("chain broken", {"seal": 2})


@pytest.mark.parametrize("number", [1, 2])
def test_a_removed_seal_breaks_the_chain(number: int) -> None:
    history()
    tamper("DELETE FROM audit_seals WHERE number = %s", number, table="audit_seals")
    assert unfit() == ("chain broken", {"seal": number})


def test_who_rewrites_the_seals_too_is_found_by_a_head_that_was_noted() -> None:
    victim = history()[1]
    noted = verify().head
    tamper("UPDATE subscription_audit SET reason = 'another' WHERE id = %s", victim.pk)
    tamper("DELETE FROM audit_seals", table="audit_seals")
    assert len(sealed(at_most=2)) == 3
    fits(6, 3)  # nothing in the tables shows it
    assert unfit(expected=noted) == ("head unknown", {"head": noted})


def test_who_removes_the_last_seals_is_found_by_a_head_that_was_noted() -> None:
    history()
    noted = verify().head
    tamper("DELETE FROM audit_seals WHERE number = 3", table="audit_seals")
    fits(4, 2, unsealed=2)
    assert unfit(expected=noted)[0] == "head unknown"


@pytest.mark.parametrize("change", ["UPDATE audit_seals SET count = 9", "DELETE FROM audit_seals"])
def test_seals_only_grow(change: str) -> None:
    history()
    with pytest.raises(IntegrityError, match="append-only"):
        connection.cursor().execute(change)
    with owner_of("audit_seals") as cursor:
        cursor.execute("ALTER TABLE audit_seals ENABLE TRIGGER seals_are_never_emptied")
        with pytest.raises(IntegrityError, match="append-only"), transaction.atomic():
            cursor.execute("TRUNCATE audit_seals")
    fits(6, 3)


# --- open transactions, several sealers, death -----------------------------------------------------------------------


def test_an_entry_of_a_transaction_that_was_open_when_a_seal_was_made_is_in_a_later_seal() -> None:
    """Its entry comes before one that was committed: who seals up to the last id would never seal it."""
    slow, quick, before = subscription(), subscription(), subscription()
    settle()
    wrote, go_on = threading.Event(), threading.Event()

    def slowly() -> None:
        with transaction.atomic():
            lifecycle.enter_grace(slow.pk, **by(on(1, 5)))
            wrote.set()
            assert go_on.wait(timeout=30)
        connection.close()

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(slowly)
        assert wrote.wait(timeout=30)
        lifecycle.enter_grace(quick.pk, **by(on(1, 6)))
        while_open = seal(now=NOW)
        again = seal(now=NOW)
        fits(3, 1, unsealed=1)
        go_on.set()
        writing.result()
    assert (while_open and while_open.until_id, again) == (before.audit.get().pk, None)
    (later,) = sealed()
    assert [*unpack(later.entries)] == [slow.audit.latest("id").pk, quick.audit.latest("id").pk]
    fits(5, 2)


def test_eight_sealers_at_once_seal_everything_once() -> None:
    for _ in range(10):
        in_state("GRACE")
    settle()
    while any(at_once(*[lambda: seal(now=NOW, at_most=3)] * 8)):
        pass
    fits(20, 7)


def test_a_sealer_waits_for_nobody() -> None:
    subscription()
    settle()
    with transaction.atomic():
        made = seal(now=NOW)
        assert (made and made.number, at_once(lambda: seal(now=NOW))) == (1, [None])


def test_two_seals_cannot_follow_the_same_one() -> None:
    history()
    twin = AuditSeal.objects.get(number=3)
    twin.number = 4
    with pytest.raises(IntegrityError, match="a_seal_is_followed_by_one"):
        twin.save(force_insert=True)


def test_a_sealer_that_dies_leaves_no_half_seal_and_the_next_one_seals_the_same() -> None:
    subscription()
    settle()

    def dies() -> None:
        with transaction.atomic():
            assert seal(now=NOW)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dies()
    assert AuditSeal.objects.count() == 0
    assert [made.count for made in sealed()] == [1]
    fits(1, 1)


def test_sealing_looks_at_what_is_new_only(django_assert_num_queries: Any) -> None:
    history()
    with django_assert_num_queries(8):  # with BEGIN and COMMIT
        assert seal(now=NOW) is None
    with transaction.atomic(), connection.cursor() as cursor:
        for way in ("seqscan", "bitmapscan", "sort"):  # which a table of six rows would be read by
            cursor.execute(f"SET LOCAL enable_{way} = off")
        cursor.execute(
            """EXPLAIN SELECT * FROM subscription_audit AS a WHERE (a.transaction_id, a.id) > (7, 7)
                AND a.transaction_id < pg_snapshot_xmin(pg_current_snapshot())::text::bigint
              ORDER BY a.transaction_id, a.id LIMIT 5000"""
        )
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert "Index Scan using audit_by_transaction" in plan
    assert "Index Cond: ((ROW(transaction_id, id) > ROW(7, 7)) AND (transaction_id < " in plan
    assert "Sort" not in plan


# --- a dump that was restored elsewhere ------------------------------------------------------------------------------


def sealed_elsewhere(count: int, cluster: int = ELSEWHERE) -> None:
    """The first entries, as another cluster sealed them before the dump."""
    entries = read("ORDER BY a.transaction_id, a.id LIMIT %(count)s", {"count": count})
    made = made_of(entries, None, (0, 0), cluster)
    made.sealed_at = NOW
    made.digest = seal_digest(header(made), made.entries)
    made.save(force_insert=True)


def shift(by: int) -> None:
    tamper("UPDATE subscription_audit SET transaction_id = transaction_id + %s", by)


@pytest.mark.parametrize("is_a_fork", [False, True])
def test_where_transactions_are_counted_anew_sealing_goes_on(is_a_fork: bool) -> None:
    """A fork of this cluster, from a file copy, has its name, and may have counted further."""
    cluster = here()[0] if is_a_fork else ELSEWHERE
    in_state("GRACE")
    old = subscription()
    shift(by=10**15)  # as in a dump of an old and busy cluster
    sealed_elsewhere(2, cluster)  # the third was not, when the dump was made
    new = subscription()
    fits(2, 1, unsealed=2)
    settle_here()
    assert [[*unpack(made.entries)] for made in (seal(now=NOW), seal(now=NOW)) if made] == [
        [old.audit.get().pk],
        [new.audit.get().pk],
    ]
    lifecycle.enter_grace(new.pk, **by(on(1, 5)))
    settle_here()
    assert seal(now=NOW)
    proof = fits(5, 4)
    eras = [*AuditSeal.objects.order_by("number").values_list("era", "cluster")]
    assert eras == [(1, cluster), (2, None), (3, here()[0]), (3, here()[0])]
    assert (seal(now=NOW), verify().head) == (None, proof.head)


def test_what_was_never_sealed_before_a_restore_is_sealed_in_portions() -> None:
    for _ in range(5):
        subscription()
    shift(by=10**15)
    new = subscription()
    settle_here()
    assert [made.count for made in iter(lambda: seal(now=NOW, at_most=2), None)] == [2, 2, 1, 1]
    fits(6, 4)
    tamper("UPDATE subscription_audit SET reason = 'x' WHERE id = %s", new.audit.get().pk)
    assert unfit() == ("rewritten", {"entry": new.audit.get().pk, "seal": 4})


def test_a_cluster_that_overtakes_the_restored_transactions_seals_its_own_all_the_same() -> None:
    """Its first entries lie before the place up to which was sealed elsewhere, and are found by their ids."""
    old, new = subscription(), subscription()
    ahead = new.audit.get().transaction_id + 1
    for _ in range(5):  # transactions of others
        connection.cursor().execute("SELECT pg_current_xact_id()")
    tamper("UPDATE subscription_audit SET transaction_id = %s WHERE id = %s", ahead, old.audit.get().pk)
    entries = read("WHERE a.id = %(id)s", {"id": old.audit.get().pk})
    made = made_of(entries, None, (0, 0), ELSEWHERE)
    made.sealed_at = NOW
    made.digest = seal_digest(header(made), made.entries)
    made.save(force_insert=True)
    fits(1, 1, unsealed=1)
    assert [[*unpack(one.entries)] for one in sealed()] == [[new.audit.get().pk]]
    fits(2, 2)


@pytest.mark.parametrize("number", [1, 3])
def test_in_each_era_what_is_slipped_in_is_named(number: int) -> None:
    subscription()
    subscription()
    shift(by=10**15)
    sealed_elsewhere(1)
    subscription()
    settle_here()
    assert (seal(now=NOW), seal(now=NOW)) != (None, None)
    fits(3, 3)
    like = AuditEntry.objects.order_by("id")[number - 1]
    tamper(
        """INSERT INTO subscription_audit (id, subscription_id, tenant_id, version, action, effective_at, actor,
                                           source_id, reason, changes, transaction_id)
           SELECT %s, subscription_id, tenant_id, 9, action, effective_at, actor, source_id, reason, changes,
                  transaction_id - 1
             FROM subscription_audit WHERE id = %s""",
        new_id := like.pk - 50 if number == 1 else like.pk + 50,
        like.pk,
    )
    assert unfit() == ("slipped in", {"entry": new_id, "seal": number})


def settle_here() -> None:
    """Nothing of this cluster that is open is older than what was written last."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_current_xact_id()::text::bigint")
        (now,) = cursor.fetchone()
        for _ in range(100_000):
            cursor.execute("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint > %s", [now])
            if cursor.fetchone()[0]:
                return
    raise AssertionError("a transaction stays open")


# --- subscriptions and their audit -----------------------------------------------------------------------------------


def test_a_subscription_that_is_not_what_its_audit_tells_is_named() -> None:
    history()
    s = in_state("HOLD")
    assert replay() == 3
    tamper("UPDATE subscriptions SET auto_renews = true WHERE id = %s", s.pk, table="subscriptions")
    assert unfit() == ("replay", {"subscription": s.number, "columns": ["auto_renews"]})


@pytest.mark.parametrize("state", ["TRIAL", "ACTIVE", "GRACE", "SUSPENDED", "HOLD", "CANCELLED", "EXPIRED"])
def test_a_subscription_in_any_state_is_what_its_audit_tells(state: str) -> None:
    s = in_state(state)
    advance(FEB_1)
    assert (replay(), s.audit.count() > 0) == (1, True)


def test_a_version_without_an_entry_is_named() -> None:
    s = in_state("GRACE")
    tamper("UPDATE subscriptions SET version = 3 WHERE id = %s", s.pk, table="subscriptions")
    assert unfit() == ("versions", {"subscription": s.number})


def test_changes_that_cannot_be_read_are_named_by_their_subscription() -> None:
    subscription()
    s = in_state("GRACE")
    subscription()
    tamper("""UPDATE subscription_audit SET changes = '{"term_end": [1, "soon"]}' WHERE version = 2""")
    assert unfit() == ("unreadable", {"subscription": s.pk})


# --- exports ---------------------------------------------------------------------------------------------------------


def exported(s: Subscription | None = None) -> list[str]:
    return [*export(s.tenant if s else None)]


def unfit_export(lines: list[str], **expected: Any) -> tuple[str, dict[str, object]]:
    with pytest.raises(DoesNotFit) as found:
        verify_export(lines, **expected)
    return found.value.how, found.value.which


def two_tenants() -> tuple[Subscription, Subscription]:
    mine, other = in_state("GRACE"), in_state("SUSPENDED")
    lifecycle.activate(mine.pk, **by(on(1, 6)))
    sealed(at_most=3)
    lifecycle.enter_grace(mine.pk, **by(on(1, 7)))
    lifecycle.activate(other.pk, **by(on(1, 7)))
    return mine, other


def test_an_export_verifies_without_the_database(django_assert_num_queries: Any) -> None:
    two_tenants()
    lines, proof = exported(), verify()
    with django_assert_num_queries(0):
        there = verify_export(lines, expected=proof.head)
    assert (there.entries, there.seals, there.unsealed, there.others) == (5, 2, 2, 0)
    assert str(there) == str(proof) == f"5 entries in 2 seals fit; 2 entries are not sealed yet; head {proof.head}"


def test_the_export_of_a_tenant_reveals_nothing_of_another_and_verifies() -> None:
    mine, other = two_tenants()
    lines = exported(mine)
    there = verify_export(lines, expected=verify().head)
    assert (there.entries, there.others, there.seals, there.unsealed) == (3, 2, 2, 1)
    said = [json.loads(line) for line in lines]
    shown = [line["entry"]["id"] for line in said if "entry" in line]
    assert shown == [*mine.audit.order_by("id").values_list("pk", flat=True)]
    assert {line["entry"]["tenant_id"] for line in said if "entry" in line} == {mine.tenant_id}
    # Nor can it be guessed: who knows every column of another's entry still lacks its nonce.
    salts = {bytes(one.salt).hex() for one in AuditSeal.objects.all()}
    (guess,) = read("WHERE a.id = %(id)s", {"id": other.audit.earliest("id").pk})
    nonces = {nonce(bytes(one.salt), guess["id"]).hex() for one in AuditSeal.objects.all()}
    text = "\n".join(lines)
    assert not any(secret in text for secret in salts | nonces)
    assert entry_digest(guess, b"").hex() not in text


TAMPERINGS = {
    "an entry's words": ("rewritten", lambda said: said[1]["entry"].update(reason="another")),
    "an entry and its digest": ("rewritten", lambda said: _with_its_digest(said[1], reason="another")),
    "an entry's digest": ("rewritten", lambda said: said[1].update(digest="0" * 64)),
    "an entry's nonce": ("rewritten", lambda said: said[1].update(nonce="0" * 64)),
    "an entry left out": ("missing", lambda said: said.pop(1)),
    "an entry told as not sealed": ("missing", lambda said: said[1].pop("nonce")),
    "an entry twice": ("slipped in", lambda said: said.insert(1, said[1])),
    "an entry in another seal": ("missing", lambda said: said.insert(5, said.pop(1))),
    "an entry more": ("slipped in", lambda said: said.insert(1, _another(said[1]))),
    "an unsealed entry left out": ("missing", lambda said: said.pop(-2)),
    "a seal's words": ("chain broken", lambda said: _first_seal(said)["seal"].update(sealed_at="2020-01-01")),
    "a seal's digest": ("chain broken", lambda said: _first_seal(said).update(digest="0" * 64)),
    "a seal's entries": ("chain broken", lambda said: _first_seal(said).update(entries="00" * 40)),
    "a seal left out": ("chain broken", lambda said: said.remove(_first_seal(said))),
    "the end cut off": ("missing", lambda said: said.pop()),
    "all cut off": ("missing", lambda said: said.clear()),
    "no beginning": ("unreadable", lambda said: said.pop(0)),
    "a line of something else": ("unreadable", lambda said: said.insert(3, {"hello": 1})),
    "a line that is no object": ("unreadable", lambda said: said.insert(3, [])),
    "a seal without a number": ("unreadable", lambda said: _first_seal(said)["seal"].pop("number")),
    "a sealed entry again, as not sealed": ("slipped in", lambda said: said.insert(-2, {"entry": said[1]["entry"]})),
    "an entry without its columns": ("unreadable", lambda said: said.insert(-2, {"entry": {"id": 10**9}})),
    "a note beside an entry": ("unreadable", lambda said: said[1].update(note="approved")),
    "two exports": ("unreadable", lambda said: said.extend([*said])),
}


def _with_its_digest(line: dict[str, Any], **columns: str) -> None:
    line["entry"].update(columns)
    line["digest"] = entry_digest(line["entry"], bytes.fromhex(line["nonce"])).hex()


def _another(line: dict[str, Any]) -> dict[str, Any]:
    other = json.loads(json.dumps(line))
    _with_its_digest(other, id=10**9)  # type: ignore[arg-type]
    return other  # type: ignore[no-any-return]


def _first_seal(said: list[dict[str, Any]]) -> dict[str, Any]:
    return next(line for line in said if "seal" in line)


@pytest.mark.parametrize("of", ["all", "one tenant"])
@pytest.mark.parametrize("what", TAMPERINGS)
def test_an_export_that_was_tampered_with_is_named(what: str, of: str) -> None:
    mine, _ = two_tenants()
    said = [json.loads(line) for line in exported(mine if of == "one tenant" else None)]
    how, change = TAMPERINGS[what]
    change(said)
    assert unfit_export([canonical(line).decode() for line in said])[0] == how


@pytest.mark.parametrize("forge", ['{"entry":{"id":1},', '{"reason":"forged",', "{ "])
def test_a_line_that_can_be_read_in_two_ways_is_none(forge: str) -> None:
    two_tenants()
    beginning, first, *others = exported()
    assert unfit_export([beginning, forge + first[1:], *others]) == ("unreadable", {"line": 2})


def test_an_entry_whose_subscription_or_tenant_was_changed_is_named() -> None:
    victim = history()[1]
    statement = "UPDATE subscriptions SET tenant_id = %s WHERE id = %s"
    tamper(statement, TenantFactory.create().pk, victim.subscription_id, table="subscriptions")
    assert unfit()[0] == "astray"


def test_an_export_without_a_noted_head_is_named() -> None:
    mine, _ = two_tenants()
    assert unfit_export(exported(mine), expected="ab" * 32) == ("head unknown", {"head": "ab" * 32})


@pytest.mark.parametrize("line", ["", "{", "[" * 100_000, '{"entry": 1}', "null", '{"export": {}}', '"\\ud800"'])
def test_a_file_that_is_no_export_says_which_line(line: str) -> None:
    assert unfit_export([line]) == ("unreadable", {"line": 1})


# --- the commands ----------------------------------------------------------------------------------------------------


def run(*command: str) -> str:
    out = StringIO()
    call_command(*command, stdout=out)
    return out.getvalue()


def refused(*command: str) -> tuple[str, str]:
    """What it printed, and the error of an exit that is not zero."""
    out = StringIO()
    with pytest.raises(CommandError) as error:
        call_command(*command, stdout=out)
    assert error.value.returncode == 1
    return out.getvalue(), str(error.value)


def test_the_commands_prove_the_tables_and_an_export(tmp_path: Path) -> None:
    history()
    head = verify().head
    said = f"6 entries in 3 seals fit; 0 entries are not sealed yet; head {head}\n"
    assert run("verify_audit") == run("verify_audit", "--expect", head.upper()) == said
    file = tmp_path / "audit.jsonl"
    file.write_text(run("export_audit"))
    assert run("verify_audit", "--file", str(file), "--expect", head) == said
    assert json.loads(run("verify_audit", "--json")) == {
        "ok": True, "entries": 6, "seals": 3, "unsealed": 0, "head": head, "others": 0, "subscriptions": 2,
    }  # fmt: skip


def test_what_does_not_fit_is_a_failure_of_the_command() -> None:
    victim = history()[1]
    tamper("UPDATE subscription_audit SET reason = 'x' WHERE id = %s", victim.pk)
    message = f"Entry {victim.pk} was rewritten since seal 1."
    assert refused("verify_audit") == ("", message)
    printed, error = refused("verify_audit", "--json")
    assert error == message
    assert json.loads(printed) == {"ok": False, "how": "rewritten", "message": message, "entry": victim.pk, "seal": 1}


def test_a_broken_chain_is_not_exported() -> None:
    history()
    tamper("DELETE FROM audit_seals WHERE number = 1", table="audit_seals")
    printed, error = refused("export_audit")
    assert (printed.count("\n"), error) == (1, "Nothing more is exported. Seal 1 is missing: the chain is broken.")


def test_the_export_of_nobody_is_refused(tmp_path: Path) -> None:
    assert refused("export_audit", "--tenant", "nobody") == ("", "There is no tenant 'nobody'.")
    assert "cannot be read" in refused("verify_audit", "--file", str(tmp_path / "nowhere"))[1]
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in refused("verify_audit", "--file", str(tmp_path / "bytes"))[1]


@pytest.mark.parametrize("head", ["", "abc", "g" * 64, "0" * 63, "0" * 64 + "\n"])
def test_a_head_that_is_none_is_a_usage_error(head: str) -> None:
    with pytest.raises(CommandError, match="is not a head: 64 hexadecimal digits"):
        call_command("verify_audit", f"--expect={head}")


def test_help_says_what_protects_from_rewritten_seals() -> None:
    parser = load_command_class("subscriptions", "verify_audit").create_parser("manage.py", "verify_audit")
    said = " ".join(parser.format_help().split())
    for words in ("can rewrite the seals, too: only --expect", "--expect HEAD", "kept elsewhere", "--file EXPORT"):
        assert words in said


def test_progress_is_for_terminals_only() -> None:
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    terminal, pipe = Terminal(), StringIO()
    history()
    verify(tick=on_terminal(terminal))
    verify(tick=on_terminal(pipe))
    assert [line.strip("\033[K") for line in terminal.getvalue().split("\r")] == ["", "6 entries", "2 subscriptions"]
    assert pipe.getvalue() == ""
