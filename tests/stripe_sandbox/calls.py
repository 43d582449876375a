"""One call of the API: what a route gets, what it answers with, and the table of routes."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from .errors import StripeError, no_such
from .params import Group
from .render import render, render_list
from .store import Obj
from .world import World


@dataclass
class Call:
    """``params`` are read and typed; ``ids`` are what the path named; ``now`` is the one reading of the clock.

    Finding an object that lives on a test clock makes ``now`` the time of that clock.
    """

    world: World
    params: Obj
    ids: tuple[str, ...]
    now: int
    version: str
    path: str
    expand: list[str] = field(default_factory=list)

    def find(self, kind: str, object_id: str, *, what: str = "", param: str = "id", status: int = 404) -> Obj:
        """Raises StripeError (404, or 400 for an id that came as a parameter)."""
        found = self.world.store.get(kind, object_id)
        if found is None or found.get("deleted"):
            raise no_such(what or kind.replace("_", " "), object_id, param=param, status=status)
        self.now = self.world.time_of(found) if self.world.clock_of(found) else self.now
        return found

    def refer(self, kind: str, object_id: str, *, param: str | None = None) -> Obj:
        """An object that a parameter names."""
        return self.find(kind, object_id, param=param or kind, status=400)

    def show(self, obj: Obj) -> Obj:
        return render(self.world, obj, expand=self.expand, version=self.version)

    def page(self, objects: Iterable[Obj]) -> Obj:
        """One page, newest first; ``objects`` are already filtered and in the order of their creation."""
        newest = list(objects)[::-1]
        newest = [obj for obj in newest if within(obj["created"], self.params.get("created"))]
        limit = self.params.get("limit", 10)
        after, before = self.params.get("starting_after"), self.params.get("ending_before")
        if after and before:
            raise StripeError("You cannot parameterize both starting_after and ending_before", param="starting_after")
        if before:
            rest = newest[: self._position(newest, before, "ending_before")]
            shown, has_more = rest[-limit:], len(rest) > limit
        else:
            rest = newest[self._position(newest, after, "starting_after") + 1 :] if after else newest
            shown, has_more = rest[:limit], len(rest) > limit
        return render_list(self.world, shown, self.path, has_more=has_more, expand=self.expand, version=self.version)

    def _position(self, objects: list[Obj], object_id: str, param: str) -> int:
        for position, obj in enumerate(objects):
            if obj["id"] == object_id:
                return position
        raise no_such("object", object_id, param=param, status=400)


def within(value: int, bounds: Any) -> bool:
    """Stripe's date filters: an instant, or any of gt, gte, lt, lte."""
    if bounds is None:
        return True
    if isinstance(bounds, int):
        return value == bounds
    checks = {"gt": value.__gt__, "gte": value.__ge__, "lt": value.__lt__, "lte": value.__le__}
    return all(checks[name](bound) for name, bound in bounds.items())


Handler = Callable[[Call], Obj]


@dataclass(frozen=True)
class Route:
    method: str
    path: str
    accepts: Group
    answer: Handler
    pattern: re.Pattern[str]


ROUTES: list[Route] = []


def route(method: str, path: str, accepts: Group) -> Callable[[Handler], Handler]:
    """Put a handler into the table; ``{}`` in the path stands for an id."""

    def register(handler: Handler) -> Handler:
        pattern = re.compile("^" + re.escape(path).replace(r"\{\}", "([^/]+)") + "$")
        ROUTES.append(Route(method, path, accepts, handler, pattern))
        return handler

    return register
