"""What the home page's buttons do; each answers where to go."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from .. import control
from ..clock_routes import KIND as CLOCK
from ..errors import ControlError
from ..periods import add_interval
from ..world import World
from .asking import ask
from .invoice import PAY_SAID, pay_invoice
from .knob_board import turn_knobs

INTERVALS = ("day", "month", "year")

SAID = PAY_SAID | {
    "turned": ("The knobs are turned.", "good"),
    "rest": ("All knobs are at rest.", "good"),
    "time": ("The time is set, and what fell due is done.", "good"),
    "refunded": ("The money is given back.", "good"),
    "expired": ("The checkout is expired.", "good"),
}


def _turn(world: World, given: Mapping[str, str]) -> str:
    turn_knobs(world, given)
    return "/?said=turned#knobs"


def _rest(world: World, given: Mapping[str, str]) -> str:
    world.turn({}, onto_present=False)
    return "/?said=rest#knobs"


def _advance(world: World, given: Mapping[str, str]) -> str:
    now = world.now()
    return _set_clock(world, add_interval(now, _interval(given), 1) - now)


def _interval(given: Mapping[str, str]) -> str:
    if given.get("interval") not in INTERVALS:
        raise ControlError("the time goes on by a day, a month or a year", status=400)
    return given["interval"]


def _set_time(world: World, given: Mapping[str, str]) -> str:
    try:
        wanted = datetime.fromisoformat(given.get("at", ""))
    except ValueError:
        raise ControlError("a time looks like 2027-01-31T12:00", status=400) from None
    if wanted.tzinfo is None:
        wanted = wanted.replace(tzinfo=UTC)
    return _set_clock(world, int(wanted.timestamp()) - world.now())


def _real_time(world: World, given: Mapping[str, str]) -> str:
    return _set_clock(world, -world.clock_offset)


def _set_clock(world: World, step: int) -> str:
    control.answer(world, "POST", "/clock", {"offset_seconds": world.clock_offset + step})
    return "/?said=time#time"


def _pay(world: World, given: Mapping[str, str]) -> str:
    return f"/?said={pay_invoice(world, given.get('invoice', ''))}#invoices"


def _refund(world: World, given: Mapping[str, str]) -> str:
    ask(world, "POST", "/v1/refunds", charge=given.get("charge", ""))
    return "/?said=refunded#invoices"


def _advance_clock(world: World, given: Mapping[str, str]) -> str:
    clock = world.store.get(CLOCK, given.get("clock", ""))
    if clock is None:
        raise ControlError("there is no such test clock", status=404)
    to = add_interval(clock["frozen_time"], _interval(given), 1)
    ask(world, "POST", f"/v1/test_helpers/test_clocks/{clock['id']}/advance", frozen_time=to)
    return "/?said=time#time"


def _expire(world: World, given: Mapping[str, str]) -> str:
    ask(world, "POST", f"/v1/checkout/sessions/{given.get('session', '')}/expire")
    return "/?said=expired#checkouts"


def _open_portal(world: World, given: Mapping[str, str]) -> str:
    made = ask(
        world, "POST", "/v1/billing_portal/sessions", customer=given.get("customer", ""), return_url=world.base_url
    )
    return f"/portal/{made['id']}"


VERBS: dict[str, Callable[[World, Mapping[str, str]], str]] = {
    "knobs": _turn,
    "rest": _rest,
    "advance": _advance,
    "set_time": _set_time,
    "real_time": _real_time,
    "pay": _pay,
    "expire": _expire,
    "refund": _refund,
    "advance_clock": _advance_clock,
    "portal": _open_portal,
}
