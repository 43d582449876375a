"""Everything the sandbox knows, behind one lock.

Whoever changes anything does so inside ``changing()``: when the outermost block ends, the change is on disk and its
events are on their way. Nothing below asks the clock: edges read ``now()`` once and pass it on.
"""

import json
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from . import shapes
from .agenda import Agenda
from .deliveries import Deliveries, Errand
from .errors import ControlError
from .ids import API_VERSION, new_id
from .knobs import Knobs, knobs_from
from .store import Obj, Store
from .traffic import KeysInUse, RateLimit

_NOBODY: Obj = {"id": None, "idempotency_key": None}


@dataclass(frozen=True)
class Config:
    webhook_url: str
    webhook_secret: str
    api_key: str


class World:
    def __init__(self, store: Store, config: Config, *, base_url: str) -> None:
        self.store, self.config, self.base_url = store, config, base_url
        self.lock = threading.RLock()
        self.requests: deque[Obj] = deque(maxlen=10_000)
        self.started_at = time.time()
        self.request: Obj = _NOBODY  # who is asking, for the events this causes; read and set under the lock
        self._depth = 0
        self._errands: list[Errand] = []
        self._aloud = True
        self.rate, self.keys = RateLimit(), KeysInUse()
        self.agenda = Agenda()
        self._rethink()
        self.knobs, self.dice, self.clock_offset = Knobs(), random.Random(0), 0
        self._recall_settings()
        self.deliveries = Deliveries(self)

    def now(self) -> int:
        return int(time.time()) + self.clock_offset

    def time_of(self, obj: Obj) -> int:
        """Now, for an object: that of the test clock which it or its customer is on, or the sandbox's own."""
        clock = self.store.get("test_helpers.test_clock", self.clock_of(obj) or "")
        return clock["frozen_time"] if clock else self.now()

    def clock_of(self, obj: Obj) -> str | None:
        """The test clock that it or its customer is on."""
        customer = obj if obj["object"] == "customer" else self.store.get("customer", str(obj.get("customer")))
        found: str | None = (customer or {}).get("test_clock")
        return found

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the lock; at the end of the outermost block commit, then hand over the deliveries."""
        with self.lock:
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.store.commit()
                    errands, self._errands = self._errands, []
                    self.deliveries.enqueue(errands)

    # objects

    def put(self, obj: Obj) -> Obj:
        """Keep the object under the kind it names itself."""
        match obj["object"]:
            case "subscription" | "checkout.session":
                self.agenda.touch(obj["id"])
            case "subscription_schedule" | "invoice":
                self.agenda.touch(_subscription_of(obj))
        return self.store.put(obj["object"], obj)

    def need(self, kind: str, object_id: str) -> Obj:
        """An object that one of ours refers to, so that its absence is a defect here. Raises KeyError."""
        return self.store.all(kind)[object_id]

    # events

    @contextmanager
    def speaking(self, aloud: bool) -> Iterator[None]:
        """With ``aloud`` False nothing that happens inside becomes an event."""
        before, self._aloud = self._aloud, aloud
        try:
            yield
        finally:
            self._aloud = before

    def emit(self, kind: str, obj: Obj, *, now: int, previous: Obj | None = None) -> Obj:
        """Record that something happened to an object, as it is now, and tell every endpoint that listens."""
        return self.announce(kind, public(obj), now=now, previous=previous) if self._aloud else {}

    def announce(
        self,
        kind: str,
        snapshot: Obj,
        *,
        now: int,
        previous: Obj | None = None,
        version: str = API_VERSION,
        twist: Callable[[Obj], Obj] | None = None,
    ) -> Obj:
        """Like ``emit`` for a snapshot made elsewhere; ``twist`` may spoil the event before it is kept and sent."""
        targets = self.endpoints_for(kind)
        event = shapes.event(
            kind, snapshot, previous=previous, request=dict(self.request), pending=len(targets), now=now
        )
        event["api_version"] = version
        event = twist(event) if twist else event
        self.store.put("event", event)
        for target in targets:
            errand = Errand(id=new_id("delivery"), event=event["id"], endpoint=target)
            self.store.put("delivery", errand.plain())
            self._errands.append(errand)
        return event

    @contextmanager
    def updating(self, obj: Obj, kind: str, *, now: int) -> Iterator[Obj]:
        """Change an object; if it did change, keep it and emit ``kind`` with what it was before."""
        before = public(obj) if self._aloud else {}
        yield obj
        self.put(obj)
        previous = what_was(before, public(obj)) if self._aloud else {}
        if previous:
            self.emit(kind, obj, now=now, previous=previous)

    def endpoints_for(self, kind: str) -> list[str]:
        targets = ["default"] if self.config.webhook_url else []
        registered = self.store.all("webhook_endpoint").values()
        listening = [e for e in registered if e["status"] == "enabled" and {"*", kind} & set(e["enabled_events"])]
        return targets + [endpoint["id"] for endpoint in listening]

    # settings

    def turn(self, given: Any, *, onto_present: bool) -> Knobs:
        """Turn knobs. With ``onto_present`` those not named stay; otherwise they go back to rest."""
        with self.changing():
            self.knobs = knobs_from(given, self.knobs if onto_present else None)
            self._rethink()  # of dunning
            self.dice = random.Random(self.knobs.seed)
            self._keep_settings()
        self.deliveries.knobs_turned()
        return self.knobs

    def set_clock(self, offset_seconds: Any) -> None:
        with self.changing():
            try:
                self.clock_offset = int(offset_seconds)
            except (TypeError, ValueError):
                raise ControlError("offset_seconds is a whole number", status=400) from None
            self._keep_settings()

    def reset(self) -> None:
        """Forget every object, event, request, delivery and knob, and go back to the real time."""
        with self.changing():
            self.store.clear()
            self._errands.clear()
            self.agenda.forget()
            self.requests.clear()
            self.deliveries.forget()
            self.knobs, self.dice, self.clock_offset = Knobs(), random.Random(0), 0
        self.deliveries.wait_quiet(5)  # for attempts under way: what arrives after this is of the new world

    def _rethink(self) -> None:
        for kind in ("subscription", "checkout.session"):
            for object_id in self.store.all(kind):
                self.agenda.touch(object_id)

    def _keep_settings(self) -> None:
        self.store.put("setting", {"id": "knobs", "value": self.knobs.plain()})
        self.store.put("setting", {"id": "clock_offset", "value": self.clock_offset})

    def _recall_settings(self) -> None:
        settings = self.store.all("setting")
        if "knobs" in settings:
            self.knobs = knobs_from(settings["knobs"]["value"])
            self.dice = random.Random(self.knobs.seed)
        if "clock_offset" in settings:
            self.clock_offset = settings["clock_offset"]["value"]


def _subscription_of(obj: Obj) -> str:
    details = (obj.get("parent") or {}).get("subscription_details") or {}
    return str(obj.get("subscription") or details.get("subscription"))


def public(obj: Obj) -> Obj:
    """A copy without what is ours. Through JSON, which all of it is: several times faster than deepcopy."""
    copied: Obj = json.loads(json.dumps({key: value for key, value in obj.items() if not key.startswith("_")}))
    return copied


def outer(obj: Obj) -> Obj:
    """Like ``public``, but what is inside is shared: for answers that are written down at once."""
    return {key: value for key, value in obj.items() if not key.startswith("_")}


def what_was(before: Obj, after: Obj) -> Obj:
    """Stripe's ``previous_attributes``: the old values of what changed; groups show only their changed keys."""
    previous: Obj = {}
    for key in before | after:
        old, new = before.get(key), after.get(key)
        if old == new:
            continue
        both_groups = isinstance(old, dict) and isinstance(new, dict) and "data" not in old
        previous[key] = what_was(old, new) if both_groups else old  # type: ignore[arg-type]
    return previous
