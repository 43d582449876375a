"""Test clocks: customers who live in a time of their own, which is advanced at will.

Stripe lets one be advanced by two of the shortest intervals on it at a time; here there is no such limit.
"""

from . import accepted
from .billing import OVER, cancel
from .calls import Call, route
from .deadlines import tick
from .errors import StripeError
from .ids import new_id
from .periods import DAY
from .store import Obj

KIND = "test_helpers.test_clock"


@route("POST", "/v1/test_helpers/test_clocks", accepted.CLOCK_CREATE)
def create(call: Call) -> Obj:
    clock = {
        "id": new_id(KIND),
        "object": KIND,
        "created": call.now,
        "deletes_after": call.now + 30 * DAY,
        "frozen_time": call.params["frozen_time"],
        "livemode": False,
        "name": call.params.get("name"),
        "status": "ready",
        "status_details": {},
    }
    return call.show(call.world.put(clock))


@route("GET", "/v1/test_helpers/test_clocks", accepted.PAGED)
def list_all(call: Call) -> Obj:
    return call.page(KIND)


@route("GET", "/v1/test_helpers/test_clocks/{}", accepted.PLAIN)
def retrieve(call: Call) -> Obj:
    return call.show(call.find(KIND, call.ids[0], what="test_clock"))


@route("DELETE", "/v1/test_helpers/test_clocks/{}", accepted.NOTHING)
def delete(call: Call) -> Obj:
    """Its customers go with it."""
    world, clock = call.world, call.find(KIND, call.ids[0], what="test_clock")
    for customer in list(world.store.all("customer").values()):
        if customer.get("test_clock") != clock["id"]:
            continue
        for subscription in world.store.all("subscription").values():
            if subscription["customer"] == customer["id"] and subscription["status"] not in OVER:
                cancel(world, subscription, now=clock["frozen_time"])
        world.put({"id": customer["id"], "object": "customer", "deleted": True})
    world.store.remove(KIND, clock["id"])
    return {"id": clock["id"], "object": KIND, "deleted": True}


@route("POST", "/v1/test_helpers/test_clocks/{}/advance", accepted.CLOCK_ADVANCE)
def advance(call: Call) -> Obj:
    """What falls due until then is done when this answers, though the answer says, as Stripe's does, ``advancing``."""
    world, clock, to = call.world, call.find(KIND, call.ids[0], what="test_clock"), call.params["frozen_time"]
    if to <= clock["frozen_time"]:
        message = "The frozen_time of a test clock can only be advanced to a later time."
        raise StripeError(message, param="frozen_time")
    details = {"advancing": {"target_frozen_time": to}}
    advancing = clock | {"status": "advancing", "status_details": details}
    world.emit(f"{KIND}.advancing", advancing, now=call.now)
    tick(world, now=to, clock=clock["id"])
    ready = world.put(clock | {"frozen_time": to})
    world.emit(f"{KIND}.ready", ready, now=call.now)
    return call.show(advancing)
