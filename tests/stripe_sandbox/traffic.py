"""How many requests there may be, and that one idempotency key is one request at a time."""

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

_PATIENCE_SECONDS = 0.3


class RateLimit:
    """So many requests in any one second of real time; reads and writes are counted apart."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: dict[str, deque[float]] = {"reads": deque(), "writes": deque()}

    def admits(self, kind: str, *, per_second: int) -> bool:
        """Whether there is room for one more; if so it is counted. 0 is no limit."""
        if per_second <= 0:
            return True
        at, taken = time.monotonic(), self._taken[kind]
        with self._lock:
            while taken and taken[0] <= at - 1:
                taken.popleft()
            if len(taken) >= per_second:
                return False
            taken.append(at)
            return True


class KeysInUse:
    """Keys of requests that are being answered. A second one waits a moment, as if it had come a little later."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._used: set[str] = set()

    @contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """False if another request has the key and keeps it."""
        with self._free:
            mine = self._free.wait_for(lambda: not key or key not in self._used, _PATIENCE_SECONDS)
            if mine:
                self._used.add(key)
        try:
            yield mine
        finally:
            if mine:
                with self._free:
                    self._used.discard(key)
                    self._free.notify_all()
