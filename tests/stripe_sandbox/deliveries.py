"""Webhooks on their way: signed, sent by a pool of threads, tried again, and spoilt where the knobs say so."""

from __future__ import annotations

import copy
import hashlib
import heapq
import hmac
import http.client
import itertools
import json
import sys
import threading
import time
import traceback
from collections import deque
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from .generations import downgraded_event, is_old
from .knobs import STRIPE_RETRIES, draw
from .store import Obj

if TYPE_CHECKING:
    from .world import World

_POOL = 16


@dataclass(frozen=True)
class Errand:
    """One event for one endpoint. ``attempt`` counts from 0; ``due`` is for what waits for the sandbox's clock."""

    id: str
    event: str
    endpoint: str
    attempt: int = 0
    lost: bool = False
    due: int | None = None

    def plain(self) -> Obj:
        return asdict(self)


@dataclass(frozen=True)
class Letter:
    """What is posted: the same bytes at every attempt, signed anew at each."""

    url: str
    secret: str
    body: bytes
    kind: str
    object_id: str


def sign(body: bytes, secret: str, *, at: int) -> str:
    """The value of Stripe-Signature."""
    mac = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256)
    return f"t={at},v1={mac.hexdigest()}"


class Deliveries:
    """The queue. Lock order: the world's lock may be held when taking ours, never the other way round."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._turn = threading.Condition()
        self._queue: list[tuple[float, int, list[Errand]]] = []  # (due, serial, errands sent one after another)
        self._shuffling: list[Errand] = []
        self._parked: list[Errand] = []  # until the sandbox's clock has come so far
        self._running, self._serial = 0, itertools.count()
        self._flushing = self._stopping = False
        self._epoch = 0  # a reset must not be undone by an attempt that was under way
        self.attempts: deque[Obj] = deque(maxlen=10_000)

    def start(self) -> None:
        """Take up what an earlier process left undelivered, and begin."""
        left = [Errand(**kept) for kept in self._world.store.all("delivery").values()]
        self._parked = [errand for errand in left if errand.due is not None]
        self.enqueue([errand for errand in left if errand.due is None])
        for number in range(_POOL):
            threading.Thread(target=self._work, name=f"delivery-{number}", daemon=True).start()

    def stop(self) -> None:
        with self._turn:
            self._stopping = True
            self._turn.notify_all()

    def enqueue(self, errands: list[Errand]) -> None:
        knobs, dice = self._world.knobs, self._world.dice
        if not errands:
            return
        if knobs.drop:  # drawn here, in the order of the events, so that a seed always loses the same ones
            errands = [replace(errand, lost=dice.random() < knobs.drop) for errand in errands]
        with self._turn:
            if knobs.reorder > 1:
                self._shuffling += errands
                while len(self._shuffling) >= knobs.reorder:
                    batch, self._shuffling = self._shuffling[: knobs.reorder], self._shuffling[knobs.reorder :]
                    dice.shuffle(batch)
                    self._push(batch, draw(knobs.delay_seconds, dice))
            else:
                for errand in errands:
                    self._push([errand], draw(knobs.delay_seconds, dice))

    def flush(self, timeout_seconds: float) -> bool:
        """Send all that is held, delayed, buffered or waiting for a retry now; whether the queue emptied in time."""
        with self._turn:
            self._release_shuffled()
            self._unpark(self._parked)
            self._queue = [(0.0, serial, batch) for _, serial, batch in self._queue]
            heapq.heapify(self._queue)
            self._flushing = True
            self._turn.notify_all()
        quiet = self.wait_quiet(timeout_seconds)
        with self._turn:
            self._flushing = False
        return quiet

    def clock_moved(self, now: int) -> None:
        """Send again what is due by the sandbox's clock."""
        with self._turn:
            self._unpark([errand for errand in self._parked if (errand.due or 0) <= now])

    def _unpark(self, errands: list[Errand]) -> None:
        self._parked = [errand for errand in self._parked if errand not in errands]
        for errand in sorted(errands, key=lambda errand: errand.due or 0):
            self._push([errand], 0.0)

    def wait_quiet(self, timeout_seconds: float) -> bool:
        """Wait until nothing is under way or scheduled. What the knobs hold back does not count."""
        with self._turn:
            return self._turn.wait_for(lambda: self._quiet() or self._stopping, timeout_seconds)

    def pending(self) -> Obj:
        with self._turn:
            queued = sum(len(batch) for _, _, batch in self._queue)
            held = 0 if self._world.knobs.deliver or self._flushing else queued
            return {
                "queued": queued - held,
                "held": held + len(self._shuffling),
                "running": self._running,
                "waiting_for_the_clock": len(self._parked),
                "quiet": self._quiet(),
            }

    def knobs_turned(self) -> None:
        with self._turn:
            if self._world.knobs.reorder <= 1:
                self._release_shuffled()
            self._turn.notify_all()

    def forget(self) -> None:
        with self._turn:
            self._queue.clear()
            self._shuffling.clear()
            self._parked.clear()
            self.attempts.clear()
            self._epoch += 1
            self._turn.notify_all()

    def _quiet(self) -> bool:
        held_back = not (self._world.knobs.deliver or self._flushing)
        return self._running == 0 and (held_back or not self._queue)

    def _push(self, batch: list[Errand], after_seconds: float) -> None:
        heapq.heappush(self._queue, (time.monotonic() + after_seconds, next(self._serial), batch))
        self._turn.notify_all()

    def _release_shuffled(self) -> None:
        if self._shuffling:
            batch, self._shuffling = self._shuffling, []
            self._world.dice.shuffle(batch)
            self._push(batch, 0.0)

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            epoch, batch = taken
            try:
                for errand in batch:
                    self._deliver(errand, epoch)
            except Exception:  # a defect of ours must not cost the pool a thread
                traceback.print_exc(file=sys.stderr)
            finally:
                with self._turn:
                    self._running -= 1
                    self._turn.notify_all()

    def _take(self) -> tuple[int, list[Errand]] | None:
        with self._turn:
            while not self._stopping:
                open_ = self._world.knobs.deliver or self._flushing
                if not (open_ and self._queue and self._running < self._world.knobs.workers):
                    self._turn.wait()
                    continue
                wait = self._queue[0][0] - time.monotonic()
                if wait > 0:
                    self._turn.wait(wait)
                    continue
                self._running += 1
                return self._epoch, heapq.heappop(self._queue)[2]
            return None

    def _deliver(self, errand: Errand, epoch: int) -> None:
        world = self._world
        with world.lock:
            letter, knobs = self._write(errand), world.knobs
        if letter is None:
            self._finish(errand, epoch)
            return
        if errand.lost:
            self._note(errand, letter, epoch, outcome="dropped", status=None, error="dropped by the knob")
            self._finish(errand, epoch)
            return
        gate = threading.Barrier(knobs.duplicate)
        accepted: list[bool] = []

        def send(copy_: int) -> None:
            gate.wait()
            accepted.append(self._post(errand, letter, epoch, copy_=copy_))

        others = [threading.Thread(target=send, args=(n,), daemon=True) for n in range(1, knobs.duplicate)]
        for other in others:
            other.start()
        send(0)
        for other in others:
            other.join()
        pauses = STRIPE_RETRIES if isinstance(knobs.retry, str) else knobs.retry
        if any(accepted):
            self._count_down(errand, epoch)
        again = errand.attempt < len(pauses) and not any(accepted)
        self._finish(errand, epoch, retry_in=pauses[errand.attempt] if again else None)

    def _count_down(self, errand: Errand, epoch: int) -> None:
        """One endpoint fewer is waiting for the event."""
        with self._world.changing():
            event = self._world.store.get("event", errand.event)
            if event and epoch == self._epoch:
                self._world.store.put("event", event | {"pending_webhooks": max(0, event["pending_webhooks"] - 1)})

    def _write(self, errand: Errand) -> Letter | None:
        """None if the event or the endpoint is gone."""
        world = self._world
        event = world.store.get("event", errand.event)
        endpoint = world.store.get("webhook_endpoint", errand.endpoint)
        if event is None or (endpoint is None and errand.endpoint != "default"):
            return None
        url, secret = world.config.webhook_url, world.config.webhook_secret
        if endpoint is not None:
            url, secret = endpoint["url"], endpoint["_secret"]
            if is_old(endpoint["api_version"]) and not is_old(event["api_version"]):
                event = downgraded_event(copy.deepcopy(event), endpoint["api_version"])
        body = json.dumps(event, ensure_ascii=False).encode()
        return Letter(url, secret, body, event["type"], str(event["data"]["object"].get("id")))

    def _post(self, errand: Errand, letter: Letter, epoch: int, *, copy_: int) -> bool:
        world = self._world
        with world.lock:
            knobs = world.knobs
            corrupt = knobs.corrupt > 0 and world.dice.random() < knobs.corrupt
        began = time.monotonic()
        secret = letter.secret + "-not" if corrupt else letter.secret
        at = world.now() if knobs.timestamp_clock == "sandbox" else int(time.time())
        signature = sign(letter.body, secret, at=at + knobs.timestamp_offset)
        status, error = None, None
        try:
            status = _send(letter, signature, timeout_seconds=knobs.delivery_timeout_seconds)
        except (OSError, ValueError, http.client.HTTPException) as failure:  # ValueError: a URL that is none
            error = f"{type(failure).__name__}: {failure}"
        accepted = status is not None and 200 <= status < 300
        outcome = "delivered" if accepted else "refused" if status else "failed"
        seconds = round(time.monotonic() - began, 4)
        self._note(
            errand,
            letter,
            epoch,
            outcome=outcome,
            status=status,
            error=error,
            copy=copy_,
            seconds=seconds,
            corrupt=corrupt,
        )
        return accepted

    def _note(self, errand: Errand, letter: Letter, epoch: int, **result: object) -> None:
        facts = {"event": errand.event, "type": letter.kind, "object": letter.object_id, "endpoint": errand.endpoint}
        with self._turn:
            if epoch == self._epoch:
                at = {"url": letter.url, "attempt": errand.attempt, "at": round(time.time(), 3)}
                self.attempts.append(facts | at | result)

    def _finish(self, errand: Errand, epoch: int, *, retry_in: float | None = None) -> None:
        with self._world.changing(), self._turn:
            if epoch != self._epoch:
                return
            if retry_in is None:
                self._world.store.remove("delivery", errand.id)
                return
            again = replace(errand, attempt=errand.attempt + 1)
            if isinstance(self._world.knobs.retry, str):  # counted from when it was due, however late it was sent
                now = self._world.now()
                again = replace(again, due=int((now if errand.due is None else errand.due) + retry_in))
                if again.due is not None and again.due > now and not self._flushing:
                    self._world.store.put("delivery", again.plain())
                    self._parked.append(again)
                    return
                retry_in = 0.0
            self._world.store.put("delivery", again.plain())
            self._push([again], 0.0 if self._flushing else retry_in)


def _send(letter: Letter, signature: str, *, timeout_seconds: float) -> int:
    """The status answered. Redirects are not followed: Stripe counts them as failures."""
    parts = urlsplit(letter.url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=timeout_seconds)
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "Cache-Control": "no-cache",
            "User-Agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
            "Accept": "*/*; q=0.5, application/xml",
            "Stripe-Signature": signature,
            "Connection": "close",
        }
        connection.request("POST", path, body=letter.body, headers=headers)
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()
