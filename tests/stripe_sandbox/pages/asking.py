"""What a page changes, it changes as a program would: by the API's own routes, with their checks and their events."""

from typing import Any

from ..calls import ROUTES, Call
from ..forms import encode, parse
from ..ids import API_VERSION
from ..params import read
from ..store import Obj
from ..world import World


def ask(world: World, method: str, path: str, **given: Any) -> Obj:
    """The API's answer to its owner, without key and without the faults that the knobs ask for. Raises StripeError."""
    for route in ROUTES:
        match = route.pattern.match(path)
        if match and route.method == method:
            params = read(route.accepts, parse(encode(given)))
            expand = params.pop("expand", [])
            with world.changing():
                call = Call(
                    world, params, match.groups(), now=world.now(), version=API_VERSION, path=path, expand=expand
                )
                return route.answer(call)
    raise LookupError(f"no route for {method} {path}")
