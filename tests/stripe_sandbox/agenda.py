"""When something falls due next, so that the clock need not look at everything every second.

Who changes a thing says ``touch``; its deadlines are worked out anew when the clock next asks.
"""

import heapq
from collections.abc import Callable

OWN_TIME = ""  # what is on no test clock

Ask = Callable[[str], tuple[str, int] | None]  # the clock a thing is on and its next deadline; None: nothing is due


class Agenda:
    """Ids by their next deadline, a heap for every clock. Not thread-safe: ``World`` holds the lock."""

    def __init__(self) -> None:
        self._touched: set[str] = set()
        self._heaps: dict[str, list[tuple[int, str]]] = {}
        self._next: dict[str, tuple[str, int]] = {}

    def touch(self, object_id: str) -> None:
        self._touched.add(object_id)

    def forget(self) -> None:
        self._touched.clear()
        self._heaps.clear()
        self._next.clear()

    def first(self, clock: str, *, by: int, ask: Ask) -> str | None:
        """The id with the earliest deadline that has passed ``by`` then; it stays first until it is touched."""
        for object_id in sorted(self._touched):
            self._note(object_id, ask(object_id))
        self._touched.clear()
        heap = self._heaps.get(clock, [])
        while heap and heap[0][0] <= by:
            when, object_id = heap[0]
            if self._next.get(object_id) == (clock, when):
                return object_id
            heapq.heappop(heap)  # it has changed since
        return None

    def _note(self, object_id: str, found: tuple[str, int] | None) -> None:
        if found is None:
            self._next.pop(object_id, None)
        elif self._next.get(object_id) != found:
            self._next[object_id] = found
            heapq.heappush(self._heaps.setdefault(found[0], []), (found[1], object_id))
