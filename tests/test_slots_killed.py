"""A caller that is killed between any two statements leaks nothing, and may do the same again."""

from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection, transaction

from entitlements import bulk, limits, quotas, slots
from entitlements.bulk import Wish
from entitlements.follow import catch_up, follow
from entitlements.limits import Park
from subscriptions import lifecycle
from subscriptions.audit import STRIPE, Actor
from subscriptions.lifecycle import CancelAt
from subscriptions.models import Subscription
from subscriptions.states import Type
from tests.builders import giving, selling, subscription
from tests.history import broken, by, on, settle, written
from tests.test_limits import fill, held_by, parked

pytestmark = pytest.mark.django_db(transaction=True)
NOW = on(1, 10)
BY: dict[str, Any] = {"actor": Actor.api_key(3), "now": NOW}


class Killed(BaseException):
    """Not an error that anybody handles: the process is gone."""


def killed_before(statement: int, does: Callable[[], object]) -> bool:
    """Do it, and lose the process and its connection before this statement; whether it came so far."""
    seen = 0

    def kill(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == statement:
            connection.connection.close()  # the server takes back what was not committed
            raise Killed
        return execute(sql, params, many, context)

    try:
        with connection.execute_wrapper(kill):
            does()
    except Killed:
        return True
    finally:
        connection.close()
        connection.in_atomic_block, connection.savepoint_ids, connection.needs_rollback = False, [], False
    return False


def change_plan(s: Subscription) -> None:
    with transaction.atomic():
        smaller = s.plan.__class__.objects.get(code="smaller")
        entry = lifecycle.change_plan(s.pk, plan=smaller, price=None, actor=STRIPE, now=NOW)
        follow([entry] if entry else [], actor=STRIPE, now=NOW)


def end_the_addon(s: Subscription) -> None:
    with transaction.atomic():
        entry = lifecycle.cancel(s.addons.get().pk, at=CancelAt.NOW, **by(NOW))
        follow([entry] if entry else [], actor=STRIPE, now=NOW)


DEEDS: dict[str, Callable[[Subscription], object]] = {
    "assign": lambda s: slots.assign(s.tenant_id, "new", "basic", **BY),
    "assign many": lambda s: bulk.assign_many(s.tenant_id, [Wish(f"new-{n}", "basic") for n in range(2)], **BY),
    "release": lambda s: slots.release(s.tenant_id, "d-1", **BY),
    "delete": lambda s: slots.delete(s.tenant_id, "d-1", **BY),
    "move": lambda s: slots.move(s.tenant_id, "d-1", s.addons.get().pk, **BY),
    "change the tier": lambda s: slots.change_tier(s.tenant_id, "d-1", "premium", **BY),
    "resize": lambda s: limits.resize(s.pk, "basic", 1, park=Park.NEWEST, **by(NOW)),
    "change the plan": change_plan,
    "end the add-on": end_the_addon,
    "consume": lambda s: quotas.consume(s.tenant_id, "api", 3, key="once", now=NOW),
}


@pytest.mark.parametrize("deed", DEEDS)
def test_killed_before_any_statement_it_has_done_all_or_nothing_and_may_be_done_again(deed: str) -> None:
    main = subscription(plan=giving(slots={"basic": 4, "premium": 1}, api=10))
    subscription(Type.ADDON, parent=main, slots={"basic": 1})
    selling({"basic": 1}, code="smaller")
    fill(main, "d-1", "d-2")
    before, statement = written(), 1
    while killed_before(statement, lambda: DEEDS[deed](main)):
        assert written() == before, f"killed before statement {statement}"
        statement += 1
    assert statement > 1
    assert written() != before
    if deed != "end the add-on":
        DEEDS[deed](Subscription.objects.get(pk=main.pk))
    assert broken() == []


def test_the_job_that_follows_is_killed_before_any_statement_and_still_comes_to_its_end() -> None:
    main = subscription(slots={"basic": 1})
    addon = subscription(Type.ADDON, parent=main, slots={"basic": 2})
    fill(main, "m-1")
    fill(addon, "a-1", "a-2")
    lifecycle.cancel(addon.pk, at=CancelAt.NOW, **by(NOW))
    lifecycle.change_plan(main.pk, plan=selling({"basic": 2}), price=None, **by(NOW))
    statement = 1
    settle()
    while killed_before(statement, lambda: catch_up(now=NOW)):
        statement += 1
    assert statement > 10
    assert broken() == []
    assert (held_by(main), held_by(addon), parked()) == (["a-1", "m-1"], [], ["a-2"])
