"""One call of the API: what a route gets, what it answers with, and the table of routes."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import dropwhile, islice
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

    def page(self, kind: str, wanted: Callable[[Obj], bool] = lambda obj: True) -> Obj:
        """One page of what is wanted, newest first. Looks at no more objects than it has to."""
        objects, limit = self.world.store.all(kind), self.params.get("limit", 10)
        after, before = self.params.get("starting_after"), self.params.get("ending_before")
        if after and before:
            raise StripeError("You cannot parameterize both starting_after and ending_before", param="starting_after")
        for param in ("starting_after", "ending_before"):
            if self.params.get(param) and self.params[param] not in objects:
                raise no_such(kind.replace("_", " "), self.params[param], param=param, status=400)
        if before:
            rest = list(self._first(limit + 1, _beyond(objects.values(), before), wanted))
            shown = rest[:limit][::-1]
        else:
            newest: Iterable[Obj] = reversed(objects.values())
            rest = list(self._first(limit + 1, _beyond(newest, after) if after else newest, wanted))
            shown = rest[:limit]
        more = len(rest) > limit
        return render_list(self.world, shown, self.path, has_more=more, expand=self.expand, version=self.version)

    def _first(self, count: int, objects: Iterable[Obj], wanted: Callable[[Obj], bool]) -> Iterable[Obj]:
        created = self.params.get("created")
        if created is not None:
            objects = (obj for obj in objects if within(obj["created"], created))
        return islice(filter(wanted, objects), count)


def _beyond(objects: Iterable[Obj], object_id: str) -> Iterable[Obj]:
    return islice(dropwhile(lambda obj: obj["id"] != object_id, objects), 1, None)


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
