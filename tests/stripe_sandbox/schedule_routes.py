"""Subscription schedules, as their owner's program sees them."""

from . import accepted, schedules, shapes
from .billing import OVER
from .calls import Call, route, within
from .errors import StripeError, missing_param
from .ordering import price_for
from .schedules import KIND
from .store import Obj


@route("POST", "/v1/subscription_schedules", accepted.SCHEDULE_CREATE)
def create(call: Call) -> Obj:
    subscription = call.refer("subscription", call.params["from_subscription"], param="from_subscription")
    if subscription["schedule"]:
        message = (
            f"You cannot migrate a subscription that is already attached to a schedule: `{subscription['schedule']}`."
        )
        raise StripeError(message, param="from_subscription")
    if subscription["status"] in OVER:
        message = f"You cannot create a subscription schedule from a subscription that is {subscription['status']}."
        raise StripeError(message, param="from_subscription")
    metadata = shapes.labels(call.params)
    return call.show(schedules.attach(call.world, subscription, metadata=metadata, now=call.now))


@route("GET", "/v1/subscription_schedules", accepted.SCHEDULE_LIST)
def list_all(call: Call) -> Obj:
    given, dates = call.params, ("canceled_at", "completed_at", "released_at")
    return call.page(
        KIND,
        lambda schedule: (
            given.get("customer") in (None, schedule["customer"])
            and given.get("scheduled") in (None, schedule["status"] == "not_started")
            and all(schedule[name] and within(schedule[name], given[name]) for name in dates if name in given)
        ),
    )


@route("GET", "/v1/subscription_schedules/{}", accepted.PLAIN)
def retrieve(call: Call) -> Obj:
    return call.show(call.find(KIND, call.ids[0]))


@route("POST", "/v1/subscription_schedules/{}", accepted.SCHEDULE_UPDATE)
def update(call: Call) -> Obj:
    schedule, given, now = _live(call), call.params, call.now
    phases = _phases(call, schedule, given["phases"]) if "phases" in given else schedule["phases"]
    schedule |= {"phases": phases, "end_behavior": given.get("end_behavior", schedule["end_behavior"])}
    if "metadata" in given:
        schedule["metadata"] = shapes.relabel(schedule["metadata"], given["metadata"])
    schedules.point_at(schedule, now=now)
    call.world.emit(f"{KIND}.updated", call.world.put(schedule), now=now)
    current = next(phase for phase in phases if phase["start_date"] == schedule["current_phase"]["start_date"])
    behaviour = given.get("proration_behavior", "create_prorations")
    if "phases" in given:
        subscription = call.world.need("subscription", schedule["subscription"])
        schedules.become(call.world, subscription, current, behaviour=behaviour, at=now, now=now)
    return call.show(schedule)


@route("POST", "/v1/subscription_schedules/{}/release", accepted.PLAIN)
def release(call: Call) -> Obj:
    schedule = _live(call)
    subscription = call.world.need("subscription", schedule["subscription"])
    schedules.release(call.world, schedule, subscription, now=call.now)
    return call.show(schedule)


@route("POST", "/v1/subscription_schedules/{}/cancel", accepted.PLAIN)
def cancel(call: Call) -> Obj:
    schedule = _live(call)
    subscription = call.world.need("subscription", schedule["subscription"])
    schedules.abandon(call.world, schedule, subscription, now=call.now)
    return call.show(schedule)


def _live(call: Call) -> Obj:
    schedule = call.find(KIND, call.ids[0])
    if schedule["status"] not in ("active", "not_started"):
        raise StripeError(
            f"You cannot change a subscription schedule that is currently in the `{schedule['status']}` status. "
            "Only schedules that are `not_started` or `active` can be changed."
        )
    return schedule


def _phases(call: Call, schedule: Obj, asked: list[Obj]) -> list[Obj]:
    """The phases one after another. Raises StripeError unless they begin with the current one and leave no gap."""
    start, phases = schedule["current_phase"]["start_date"], []
    currency = schedule["phases"][0]["currency"]
    if not asked:
        raise missing_param("phases")
    for index, given in enumerate(asked):
        where = f"phases[{index}]"
        if given.get("start_date", start if index else None) not in (start, "now" if index else start):
            message = (
                "You can not modify the start date of the current phase."
                if not index
                else ("Phases must be contiguous: each begins where the one before it ends.")
            )
            raise StripeError(message, param=f"{where}[start_date]")
        if not given["items"]:
            raise missing_param(f"{where}[items]")
        for place, item in enumerate(given["items"]):
            param = f"{where}[items][{place}][price]"
            if not item.get("price"):
                raise missing_param(param)
            if price_for(call, item["price"], param=param)["currency"] != currency:
                raise StripeError("All prices of a subscription must have the same currency.", param=param)
        if len({item["price"] for item in given["items"]}) < len(given["items"]):
            message = "Cannot add multiple subscription items with the same price."
            raise StripeError(message, param=f"{where}[items]")
        if "end_date" in given and "duration" in given:
            message = "You may only specify one of these parameters: duration, end_date."
            raise StripeError(message, param=where)
        end = schedules.end_of_phase(call.world, given, start=start)
        if end <= max(start, call.now):
            raise StripeError("A phase must end after it begins, and in the future.", param=f"{where}[end_date]")
        phases.append(schedules.phase_of(given, start=start, end=end, currency=currency))
        start = end
    return phases
