"""Quotas: consumed, released, set; never exceeded, and each key once."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from django.db import OperationalError, connection, transaction

from billing_site.local.process import wait_until
from entitlements import quotas, tasks
from entitlements.errors import InvalidAmount, InvalidKey, KeyReused, NoSuchQuota, QuotaExceeded, QuotaNotInUse
from entitlements.features import entitlements_of
from entitlements.models import Feature, QuotaOperation, QuotaUsage
from entitlements.quotas import Operation, Use, consume, forget_old_keys, release, set_gauge
from subscriptions.errors import DomainError
from subscriptions.models import Tenant
from subscriptions.states import Type
from tests.builders import TenantFactory, giving, subscription
from tests.history import at_once, in_state, on

pytestmark = pytest.mark.django_db
NOW = on(1, 10)


@pytest.fixture
def acme() -> Tenant:
    """With a hundred API calls."""
    tenant: Tenant = TenantFactory.create(slug="acme")
    subscription(tenant=tenant, plan=giving(api=100, sso=True))
    return tenant


def rows() -> list[dict[str, Any]]:
    counters, keys = QuotaUsage.objects.order_by("pk"), QuotaOperation.objects.order_by("pk")
    return [dict(row) for row in [*counters.values(), *keys.values()]]


@contextmanager
def refused(error: type[DomainError]) -> Iterator[dict[str, object]]:
    """What the error told, once it was raised and nothing was written."""
    before, facts = rows(), dict[str, object]()
    with pytest.raises(error) as raised:
        yield facts
    facts.update(raised.value.facts)
    assert rows() == before


# --- one after the other ---------------------------------------------------------------------------------------------


def test_consumes_and_releases_and_answers_how_it_stands(acme: Tenant) -> None:
    assert consume(acme.pk, "api", 60, now=NOW) == Use(limit=100, used=60)
    assert consume(acme.pk, "api", 40, now=NOW) == Use(limit=100, used=100)
    assert release(acme.pk, "api", 30, now=NOW) == Use(limit=100, used=70)
    [quota] = entitlements_of(acme.pk, NOW).quotas
    assert (quota.used, quota.available) == (70, 30)
    assert not QuotaOperation.objects.exists()


def test_what_does_not_fit_is_refused_whole_with_numbers(acme: Tenant) -> None:
    consume(acme.pk, "api", 99, now=NOW)
    with refused(QuotaExceeded) as facts:
        consume(acme.pk, "api", 2, now=NOW, key="k-1")
    assert facts == {
        "feature": "api", "limit": 100, "used": 99, "available": 1, "requested": 2, "allowed": False
    }  # fmt: skip


def test_the_first_use_is_held_to_the_limit_too(acme: Tenant) -> None:
    with refused(QuotaExceeded):
        consume(acme.pk, "api", 101, now=NOW)


def test_no_more_is_released_than_is_in_use(acme: Tenant) -> None:
    with refused(QuotaNotInUse):
        release(acme.pk, "api", 1, now=NOW)
    consume(acme.pk, "api", 5, now=NOW)
    with refused(QuotaNotInUse) as facts:
        release(acme.pk, "api", 6, now=NOW, key="k-1")
    assert (facts["used"], facts["requested"]) == (5, 6)
    assert release(acme.pk, "api", 5, now=NOW).used == 0


def test_a_gauge_says_what_is_the_case_also_above_the_limit(acme: Tenant) -> None:
    above = set_gauge(acme.pk, "api", 130, now=NOW)
    assert (above, above.available, above.allowed) == (Use(limit=100, used=130), 0, False)
    with refused(QuotaExceeded):
        consume(acme.pk, "api", 1, now=NOW)
    assert not release(acme.pk, "api", 10, now=NOW).allowed
    assert set_gauge(acme.pk, "api", 100, now=NOW).allowed
    assert set_gauge(acme.pk, "api", 0, now=NOW) == Use(limit=100, used=0)


@pytest.mark.parametrize("state", ["SUSPENDED", "EXPIRED"])
def test_who_has_nothing_that_serves_consumes_nothing_but_may_release(state: str) -> None:
    tenant = in_state(state, plan=giving(api=100)).tenant
    set_gauge(tenant.pk, "api", 10, now=NOW)
    with refused(QuotaExceeded) as facts:
        consume(tenant.pk, "api", 1, now=NOW)
    assert (facts["limit"], facts["used"]) == (0, 10)
    assert release(tenant.pk, "api", 10, now=NOW) == Use(limit=0, used=0)


def test_a_quota_that_no_plan_gives_has_the_limit_nought(acme: Tenant) -> None:
    giving(exports=5)  # which nobody bought
    with refused(QuotaExceeded) as facts:
        consume(acme.pk, "exports", 1, now=NOW)
    assert facts["limit"] == 0


@pytest.mark.parametrize("verb", [consume, release, set_gauge])
@pytest.mark.parametrize("feature", ["nonsense", "sso", ""])
def test_what_is_no_quota_is_not_found(verb: Any, feature: str, acme: Tenant) -> None:
    with refused(NoSuchQuota):
        verb(acme.pk, feature, 1, now=NOW, key="k-1")


@pytest.mark.parametrize("verb", [consume, release, set_gauge])
@pytest.mark.parametrize("amount", [-1, 10**15 + 1, True, 1.0, "1", None, [1]])
def test_an_amount_is_a_whole_number(verb: Any, amount: object, acme: Tenant) -> None:
    with refused(InvalidAmount):
        verb(acme.pk, "api", amount, now=NOW)


@pytest.mark.parametrize("verb", [consume, release])
def test_nobody_consumes_or_releases_nothing(verb: Any, acme: Tenant) -> None:
    with refused(InvalidAmount):
        verb(acme.pk, "api", 0, now=NOW)


def test_the_largest_counter_is_not_exceeded_either(acme: Tenant) -> None:
    subscription(Type.TEMPORARY, tenant=acme, plan=giving(Type.TEMPORARY, api=2**63 - 1))
    QuotaUsage.objects.create(tenant=acme, feature=Feature.objects.get(code="api"), used=2**63 - 2)
    assert consume(acme.pk, "api", 1, now=NOW) == Use(2**63 - 1, 2**63 - 1)
    with refused(QuotaExceeded):
        consume(acme.pk, "api", 10**15, now=NOW)


@pytest.mark.parametrize("verb", [consume, release, set_gauge])
@pytest.mark.parametrize("key", ["", "k-1"])
def test_each_is_one_statement(verb: Any, key: str, acme: Tenant, django_assert_num_queries: Any) -> None:
    set_gauge(acme.pk, "api", 10, now=NOW)
    with django_assert_num_queries(1 + 2):  # and a savepoint, in a transaction only
        verb(acme.pk, "api", 1, now=NOW, key=key)


# --- keys ------------------------------------------------------------------------------------------------------------


def test_the_same_key_again_is_answered_the_same_and_does_nothing(acme: Tenant) -> None:
    first = [verb(acme.pk, "api", 5, now=NOW, key=verb.__name__) for verb in (consume, release, set_gauge)]
    consume(acme.pk, "api", 50, now=NOW)
    subscription(Type.TEMPORARY, tenant=acme, plan=giving(Type.TEMPORARY, api=7))  # and the limit is another one
    before = rows()
    again = [verb(acme.pk, "api", 5, now=on(1, 11), key=verb.__name__) for verb in (consume, release, set_gauge)]
    assert (first, rows()) == (again, before)
    assert first == [Use(100, 5), Use(100, 0), Use(100, 5)]


def test_a_key_that_was_used_for_something_else_is_refused(acme: Tenant) -> None:
    consume(acme.pk, "api", 5, now=NOW, key="k-1")
    with refused(KeyReused):
        consume(acme.pk, "api", 6, now=NOW, key="k-1")
    with refused(KeyReused) as facts:
        release(acme.pk, "api", 5, now=NOW, key="k-1")
    assert facts == {"key": "k-1", "operation": "consume", "amount": 5}


def test_a_key_is_a_tenants_and_a_quotas_own(acme: Tenant) -> None:
    other = subscription(plan=giving(api=10, exports=10)).tenant
    for tenant, feature, verb in [(acme, "api", consume), (other, "api", set_gauge), (other, "exports", consume)]:
        assert verb(tenant.pk, feature, 7, now=NOW, key="k-1").used == 7


def test_a_refusal_keeps_no_key_so_that_a_retry_after_an_upgrade_works(acme: Tenant) -> None:
    with refused(QuotaExceeded):
        consume(acme.pk, "api", 101, now=NOW, key="k-1")
    subscription(Type.TEMPORARY, tenant=acme, plan=giving(Type.TEMPORARY, api=1))
    assert consume(acme.pk, "api", 101, now=NOW, key="k-1") == Use(101, 101)


@pytest.mark.parametrize("key", ["k" * 256, "\0", "é", "a\nb"])
def test_a_key_that_cannot_be_kept_is_refused(key: str, acme: Tenant) -> None:
    with refused(InvalidKey):
        consume(acme.pk, "api", 1, now=NOW, key=key)
    assert consume(acme.pk, "api", 1, now=NOW, key="k" * 255).used == 1


def test_keys_are_forgotten_after_a_week_in_batches(acme: Tenant) -> None:
    for day, key in [(1, "a"), (2, "b"), (3, "c"), (4, "d")]:
        consume(acme.pk, "api", 1, now=on(1, day), key=key)
    assert forget_old_keys(on(1, 10), batch_size=1) == 2  # one that is a week old to the second is kept
    assert [*QuotaOperation.objects.order_by("key").values_list("key", flat=True)] == ["c", "d"]
    assert consume(acme.pk, "api", 1, now=on(1, 10), key="a").used == 5
    assert forget_old_keys(on(1, 10)) == 0


def test_the_clock_forgets_old_keys(acme: Tenant) -> None:
    consume(acme.pk, "api", 1, now=on(1, 1) + timedelta(days=1), key="long-ago")
    tasks.forget_quota_keys()
    assert not QuotaOperation.objects.exists()


# --- several at once -------------------------------------------------------------------------------------------------

CALLERS, LEFT = 16, 10
Answers = list[Use | Exception]


def after_all_have_seen_room(*calls: Callable[[], Use]) -> Answers:
    """What the calls answer that had all read the counter before the first of them moved it: it was locked."""
    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            QuotaUsage.objects.select_for_update().get()
            answers = pool.submit(at_once, *calls)
            assert wait_until(lambda: waiting() == len(calls), seconds=30, every=0.01)
        return answers.result()


def waiting() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_clear_snapshot()")
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return int(cursor.fetchone()[0])


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("guarded", [True, False])
def test_sixteen_for_the_last_ten_units_never_exceed_the_quota_but_for_the_guard(
    guarded: bool, acme: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not guarded:
        without = quotas._USE[Operation.CONSUME].replace(quotas.STILL_FITS, "true")
        monkeypatch.setitem(quotas._USE, Operation.CONSUME, without)
    set_gauge(acme.pk, "api", 100 - LEFT, now=NOW)
    answers = after_all_have_seen_room(*[partial(consume, acme.pk, "api", 1, now=NOW)] * CALLERS)
    refusals = sum(isinstance(answer, QuotaExceeded) for answer in answers)
    assert (refusals, QuotaUsage.objects.get().used) == ((6, 100) if guarded else (0, 106))
    assert sum(isinstance(answer, Use) for answer in answers) == CALLERS - refusals


@pytest.mark.django_db(transaction=True)
def test_many_with_one_key_at_once_are_one_and_all_are_answered_the_same(acme: Tenant) -> None:
    first = at_once(*[partial(consume, acme.pk, "api", 40, now=NOW, key="k-1")] * 6)
    assert first == [Use(100, 40)] * 6
    then = after_all_have_seen_room(*[partial(consume, acme.pk, "api", 20, now=NOW, key="k-2")] * 6)
    assert then == [Use(100, 60)] * 6


@pytest.mark.django_db(transaction=True)
def test_releases_at_once_never_go_below_nought(acme: Tenant) -> None:
    set_gauge(acme.pk, "api", 3, now=NOW)
    answers = after_all_have_seen_room(*[partial(release, acme.pk, "api", 1, now=NOW)] * 5)
    assert sum(isinstance(answer, QuotaNotInUse) for answer in answers) == 2
    assert QuotaUsage.objects.get().used == 0


@pytest.mark.django_db(transaction=True)
def test_who_is_killed_before_the_commit_leaves_nothing_and_burns_no_key(acme: Tenant) -> None:
    def dies() -> Use:
        with transaction.atomic():
            consume(acme.pk, "api", 60, now=NOW, key="k-1")
            connection.connection.close()
            return consume(acme.pk, "api", 1, now=NOW)

    [answer] = at_once(dies)
    assert isinstance(answer, OperationalError)
    assert rows() == []
    assert consume(acme.pk, "api", 60, now=NOW, key="k-1") == Use(100, 60)
