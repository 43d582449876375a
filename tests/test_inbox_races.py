"""Many workers, one inbox. Where a rule guards a race, the same race is shown without it, or the test holds the lock.

The Gate makes interleavings certain instead of likely: Stripe's answer is fetched when it is asked for, and arrives
when the test lets it.
"""

import queue
import random
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

import pytest
from django.db import connection, transaction
from django.utils import timezone

from billing_site.local.process import wait_until
from subscriptions.models import AuditEntry, PlanPrice, Subscription
from subscriptions.states import Action, Status
from tests.builders import PlanPriceFactory
from tests.stripe_cast import bought_at_stripe, rings
from tests.stripe_sandbox.client import Sandbox
from webhooks import inbox, stripe_api
from webhooks.catalogue import price_at_stripe
from webhooks.converge import converge
from webhooks.known import known_of
from webhooks.models import StripeEvent, StripeLink
from webhooks.stripe_state import wanted

pytestmark = pytest.mark.django_db(transaction=True)

T = TypeVar("T")
WORKERS = 8
PATIENCE_SECONDS = 20.0
OLDER = "older than what was applied"
HOP_BY_HOP = {"host", "connection", "content-length", "accept-encoding"}


class Gate:
    """Between us and Stripe: an answer is as old as its request, and is held until the test lets it arrive."""

    def __init__(self, stripe_url: str) -> None:
        self._held: queue.Queue[threading.Event] = queue.Queue()
        self.is_open = False
        direct, gate = urllib.request.build_opener(urllib.request.ProxyHandler({})), self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                kept = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
                request = urllib.request.Request(stripe_url + self.path, sent or None, kept, method=self.command)
                with direct.open(request, timeout=PATIENCE_SECONDS) as answer:
                    body = answer.read()
                if not gate.is_open:
                    arrives = threading.Event()
                    gate._held.put(arrives)
                    arrives.wait(PATIENCE_SECONDS)
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, format: str, *args: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def holds_one(self) -> threading.Event:
        """The next answer that Stripe has given and nobody has received; set it to let it arrive."""
        return self._held.get(timeout=PATIENCE_SECONDS)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def gate(stripe: Sandbox, settings: Any) -> Iterator[Gate]:
    found = Gate(stripe.url)
    settings.STRIPE_API_BASE = found.url
    yield found
    found.stop()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(WORKERS) as threads:
        yield threads


def meanwhile(pool: ThreadPoolExecutor, call: Callable[[], T]) -> Future[T]:
    """Do it in another thread, on a database connection of its own that ends with it."""

    def done() -> T:
        try:
            return call()
        finally:
            connection.close()

    return pool.submit(done)


def tries(event: StripeEvent) -> Callable[[], str | None]:
    return lambda: inbox.apply(event.pk, now=timezone.now())


def ours(stripe_id: str) -> Subscription:
    return Subscription.objects.get(stripe_link=stripe_id)


def active_subscription(stripe: Sandbox, **bought: Any) -> str:
    """Bought and paid at Stripe, ACTIVE here."""
    stripe_id = str(bought_at_stripe(stripe, **bought)["id"])
    assert inbox.apply(rings(stripe_id).pk, now=timezone.now()) == "started"
    return stripe_id


def keep(stripe: Sandbox, stripe_id: str) -> None:
    """The customer takes a pending cancellation back."""
    stripe.control("POST", f"/subscriptions/{stripe_id}/keep")


# --- Order -----------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
@pytest.mark.parametrize("times", [10, pytest.param(100, marks=pytest.mark.long)])
def test_sixteen_shuffled_events_and_a_slow_stripe_end_in_its_last_state_every_time(
    stripe: Sandbox, pool: ThreadPoolExecutor, times: int
) -> None:
    dice, prices = random.Random(16), [PlanPriceFactory.create(), PlanPriceFactory.create()]
    changes = changes_at(stripe, prices)
    arrived: queue.Queue[str | None] = queue.Queue()
    workers = [meanwhile(pool, lambda: list(worked(arrived))) for _ in range(WORKERS)]
    bought: list[str] = []
    stripe.knobs(latency_seconds=[0, 0.03], auto_renew=False)
    for _ in range(times):
        bought.append(stripe_id := bought_at_stripe(stripe, price=prices[0])["id"])
        on_the_way: list[StripeEvent] = []
        for events in (3, 2, 3, 2, 3, 3):
            dice.choice(changes)(stripe_id)
            on_the_way += [rings(stripe_id) for _ in range(events)]
            dice.shuffle(on_the_way)
            for _ in range(dice.randrange(len(on_the_way))):
                arrived.put(on_the_way.pop().pk)
        for event in on_the_way:
            arrived.put(event.pk)
    for _ in workers:
        arrived.put(None)
    outcomes = [outcome for worker in workers for outcome in worker.result()]
    later = timezone.now() + timedelta(seconds=10)
    list(inbox.drain(now=lambda: later))  # who was overtaken again and again
    stripe.knobs()
    assert StripeEvent.objects.filter(state=StripeEvent.State.DONE).count() == 16 * times
    assert [stripe_id for stripe_id in bought if here(stripe_id) != there(stripe_id)] == []
    assert OLDER in outcomes


def changes_at(stripe: Sandbox, prices: list[PlanPrice]) -> list[Callable[[str], Any]]:
    """What customers do at Stripe."""

    def sold_at(price: PlanPrice) -> Callable[[str], Any]:
        sold = price_at_stripe(price)

        def change(stripe_id: str) -> None:
            item = stripe.api("GET", f"/v1/subscriptions/{stripe_id}")["items"]["data"][0]["id"]
            items = [{"id": item, "price": sold}]
            stripe.api("POST", f"/v1/subscriptions/{stripe_id}", items=items, proration_behavior="none")

        return change

    return [
        stripe.pay, stripe.pay, stripe.fail, *map(sold_at, prices),
        lambda stripe_id: stripe.cancel(stripe_id, at_period_end=True), lambda stripe_id: keep(stripe, stripe_id),
    ]  # fmt: skip


def worked(arrived: "queue.Queue[str | None]") -> Iterator[str | None]:
    for event_id in iter(arrived.get, None):
        yield inbox.apply(event_id, now=timezone.now())


def here(stripe_id: str) -> tuple[object, ...]:
    s = ours(stripe_id)
    return _comparable(s.status, s.price_id, s.term_end, s.cancel_at_term_end)


def there(stripe_id: str) -> tuple[object, ...]:
    state = wanted(stripe_api.fetch_subscription(stripe_id))
    (item,) = state.items
    price = PlanPrice.objects.get(stripe_prices=item.price_id)
    return _comparable(state.status, price.pk, state.term(item)[1], state.is_last(item))


def _comparable(status: object, price: int | None, *of_an_active_one: object) -> tuple[object, ...]:
    return (status, price, *(of_an_active_one if status == Status.ACTIVE else ()))


@pytest.mark.parametrize("attempt", range(3))
def test_a_slow_old_answer_never_overwrites_a_newer_one(
    stripe: Sandbox, gate: Gate, pool: ThreadPoolExecutor, attempt: int
) -> None:
    gate.is_open = True
    stripe_id = active_subscription(stripe)
    gate.is_open = False
    slow = meanwhile(pool, tries(rings(stripe_id)))
    old_answer = gate.holds_one()
    stripe.fail(stripe_id)
    quick = meanwhile(pool, tries(rings(stripe_id)))
    gate.holds_one().set()
    assert quick.result(PATIENCE_SECONDS) == "grace started"
    stripe.pay(stripe_id)
    last = meanwhile(pool, tries(rings(stripe_id)))
    gate.holds_one().set()
    assert last.result(PATIENCE_SECONDS) == "renewed"
    old_answer.set()
    assert slow.result(PATIENCE_SECONDS) == OLDER
    assert (ours(stripe_id).status, ours(stripe_id).version) == (Status.ACTIVE, 3)


def test_without_tickets_a_slow_old_answer_does_overwrite_a_newer_one(
    stripe: Sandbox, gate: Gate, pool: ThreadPoolExecutor
) -> None:
    gate.is_open = True
    stripe_id = active_subscription(stripe)
    gate.is_open = False
    slow = meanwhile(pool, lambda: fetched_and_applied(stripe_id, "slow"))
    old_answer = gate.holds_one()
    stripe.cancel(stripe_id, at_period_end=True)
    quick = meanwhile(pool, lambda: fetched_and_applied(stripe_id, "quick"))
    gate.holds_one().set()
    assert quick.result(PATIENCE_SECONDS) == "cancelled at term end"
    old_answer.set()
    assert slow.result(PATIENCE_SECONDS) == "cancellation undone"
    assert not ours(stripe_id).cancel_at_term_end  # stale: at Stripe it is cancelled


def fetched_and_applied(stripe_id: str, source_id: str) -> str:
    """What the inbox would be without tickets: fetch, lock, apply."""
    state = wanted(stripe_api.fetch_subscription(stripe_id))
    with transaction.atomic():
        StripeLink.objects.select_for_update().get(pk=stripe_id)
        return converge(known_of(state), state, now=timezone.now(), source_id=source_id)[1]


def test_who_read_before_another_applied_is_overtaken_and_reads_again(
    stripe: Sandbox, gate: Gate, pool: ThreadPoolExecutor
) -> None:
    """The older one has read what we know and waits for the family's lock, while the newer one finds nothing to do."""
    gate.is_open = True
    stripe_id = active_subscription(stripe)
    stripe.cancel(stripe_id, at_period_end=True)
    of_cancelling, of_keeping = rings(stripe_id), rings(stripe_id)
    with transaction.atomic():
        Subscription.objects.select_for_update(of=("self",)).get(stripe_link=stripe_id)
        older = meanwhile(pool, tries(of_cancelling))
        assert wait_until(somebody_waits_for_a_lock, seconds=PATIENCE_SECONDS)
        keep(stripe, stripe_id)
        newer = meanwhile(pool, tries(of_keeping))
        assert newer.result(PATIENCE_SECONDS) == "nothing new"
    assert older.result(PATIENCE_SECONDS) == OLDER
    assert (ours(stripe_id).cancel_at_term_end, ours(stripe_id).version) == (False, 1)


def somebody_waits_for_a_lock() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT FROM pg_locks WHERE NOT granted")
        return cursor.fetchone() is not None


def test_many_first_events_at_once_start_one_subscription(stripe: Sandbox, pool: ThreadPoolExecutor) -> None:
    stripe_id = bought_at_stripe(stripe)["id"]
    ready = threading.Barrier(WORKERS)

    def together(event: StripeEvent) -> Callable[[], str | None]:
        return lambda: (ready.wait(PATIENCE_SECONDS), tries(event)())[1]

    started = [meanwhile(pool, together(rings(stripe_id))) for _ in range(WORKERS)]
    outcomes = [future.result(PATIENCE_SECONDS) for future in started]
    assert outcomes.count("started") == 1
    later = timezone.now() + timedelta(seconds=10)
    list(inbox.drain(now=lambda: later))  # who was overtaken again and again
    assert set(StripeEvent.objects.values_list("state", "error_code")) == {("DONE", "")}
    assert AuditEntry.objects.filter(action=Action.STARTED).count() == Subscription.objects.count() == 1


# --- Sharing the events ----------------------------------------------------------------------------------------------


def test_a_drain_passes_by_what_another_worker_is_claiming(stripe: Sandbox, pool: ThreadPoolExecutor) -> None:
    first, second = (rings(active_subscription(stripe)) for _ in range(2))
    with transaction.atomic():
        StripeEvent.objects.select_for_update().get(pk=first.pk)
        drained = meanwhile(pool, lambda: list(inbox.drain(now=timezone.now)))
        assert drained.result(5) == [(second.pk, "nothing new")]
    assert list(inbox.drain(now=timezone.now)) == [(first.pk, "nothing new")]


def test_two_drains_at_once_share_the_events_and_try_each_once(stripe: Sandbox, pool: ThreadPoolExecutor) -> None:
    events = {rings(active_subscription(stripe)).pk for _ in range(4) for _ in range(4)}
    ready = threading.Barrier(2)

    def drain() -> list[str]:
        ready.wait(PATIENCE_SECONDS)
        return [event_id for event_id, _ in inbox.drain(now=timezone.now)]

    drains = [meanwhile(pool, drain) for _ in range(2)]
    tried = [event_id for drained in drains for event_id in drained.result(PATIENCE_SECONDS)]
    assert sorted(tried) == sorted(events)
    assert set(StripeEvent.objects.filter(pk__in=events).values_list("attempts", flat=True)) == {1}


def test_nobody_else_tries_an_event_until_the_lease_of_who_tries_it_is_over(
    stripe: Sandbox, gate: Gate, pool: ThreadPoolExecutor, settings: Any
) -> None:
    gate.is_open = True
    stripe_id = active_subscription(stripe)
    gate.is_open = False
    event, now = rings(stripe_id), timezone.now()
    lost = meanwhile(pool, lambda: inbox.apply(event.pk, now=now))
    answer = gate.holds_one()
    almost = now + timedelta(seconds=settings.INBOX_LEASE_SECONDS - 0.001)
    assert list(inbox.drain(now=lambda: almost)) == []
    gate.is_open = True
    over = now + timedelta(seconds=settings.INBOX_LEASE_SECONDS)
    assert list(inbox.drain(now=lambda: over)) == [(event.pk, "nothing new")]
    answer.set()
    lost.result(PATIENCE_SECONDS)
    event.refresh_from_db()
    assert (event.state, event.attempts, event.outcome) == ("DONE", 2, "nothing new")


def test_a_replay_asked_for_during_a_try_is_not_swallowed_by_it(
    stripe: Sandbox, gate: Gate, pool: ThreadPoolExecutor
) -> None:
    gate.is_open = True
    stripe_id = active_subscription(stripe)
    gate.is_open = False
    event = rings(stripe_id)
    before = meanwhile(pool, tries(event))
    old_answer = gate.holds_one()
    stripe.cancel(stripe_id)
    assert inbox.replay([event.pk], now=timezone.now()) == 1
    old_answer.set()
    before.result(PATIENCE_SECONDS)
    gate.is_open = True
    assert list(inbox.drain(now=timezone.now)) == [(event.pk, "expired")]


def session_of_this_thread() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


def test_a_connection_that_is_cut_in_the_middle_of_a_drain_loses_nothing(
    stripe: Sandbox, gate: Gate, pool: ThreadPoolExecutor, settings: Any
) -> None:
    gate.is_open = True
    bought = [active_subscription(stripe) for _ in range(3)]
    events = [rings(stripe_id) for stripe_id in bought]
    for stripe_id in bought:
        stripe.cancel(stripe_id)
    gate.is_open = False
    session: queue.Queue[int] = queue.Queue()

    def drain() -> list[tuple[str, str]]:
        session.put(session_of_this_thread())
        return list(inbox.drain(now=timezone.now))

    drained = meanwhile(pool, drain)
    gate.holds_one().set()
    second = gate.holds_one()
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s)", [session.get()])
    gate.is_open = True
    second.set()
    outcomes = [outcome.split(",")[0] for _, outcome in drained.result(PATIENCE_SECONDS)]
    assert outcomes == ["expired", "failed: unexpected", "expired"]
    over = timezone.now() + timedelta(seconds=settings.INBOX_LEASE_SECONDS + 10)
    list(inbox.drain(now=lambda: over))
    assert {ours(stripe_id).status for stripe_id in bought} == {Status.EXPIRED}
    assert [AuditEntry.objects.filter(source_id=event.pk).count() for event in events] == [1, 1, 1]
