"""Every fault and every policy that can be switched on, with its resting position."""

import random
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from .errors import DECLINES, FAULTS, ControlError, named

# Stripe says "up to three days with an exponential back-off"; seconds before each further attempt, 63 hours together
STRIPE_RETRIES = tuple(3600.0 * 2**n for n in range(6))

Span = float | tuple[float, float]  # seconds, or [least, most] to draw from


@dataclass
class Fault:
    """What to do to requests under ``path_prefix`` with ``method`` (any if empty), ``times`` times (0: always)."""

    path_prefix: str = "/v1/"
    method: str = ""
    status: int = 0  # 0: the true answer, after hanging perhaps
    error: str = ""  # one of those Stripe documents, by name (``errors.FAULTS``, ``errors.DECLINES``), with its status
    times: int = 1
    body: str = "json"  # json | garbage | empty
    hang_seconds: float = 0.0
    close: bool = False  # drop the connection instead of answering
    after: bool = False  # carry the request out first and lose only the answer
    retry_after: int = 0  # sent as Retry-After, if not 0


@dataclass
class Knobs:
    # webhooks
    deliver: bool = True  # off: deliveries are held until it is on again or someone flushes
    duplicate: int = 1  # copies of each delivery, sent at the same moment
    delay_seconds: Span = 0.0
    reorder: int = 0  # hold so many deliveries, then send them one by one in shuffled order
    drop: float = 0.0  # probability that a delivery is lost for good
    corrupt: float = 0.0  # probability that the signature of an attempt is wrong
    # seconds before each further attempt; "stripe": as Stripe does live, for three days of the sandbox's own time
    retry: list[float] | str = field(default_factory=lambda: [0.5, 2.0, 5.0])
    timestamp_offset: int = 0  # added to the t= of signatures
    timestamp_clock: str = "real"  # real | sandbox: whose time that is
    workers: int = 8  # deliveries under way at once; 1 keeps them in order
    delivery_timeout_seconds: float = 10.0
    # API
    errors: list[Fault] = field(default_factory=list)
    latency_seconds: Span = 0.0
    rate_limit_reads: int = 0  # GETs in any second; 0 is no limit. Stripe's own: 100 live, 25 in test mode
    rate_limit_writes: int = 0  # and POSTs and DELETEs
    # policies of the account
    card: str = "ok"  # ok | declined | none, for customers whose metadata do not say
    after_dunning: str = "unpaid"  # unpaid | cancel | past_due
    dunning_seconds: int = 14 * 86_400
    auto_renew: bool = True  # let the clock bill; off: only the control surface moves periods
    seed: int = 0

    def plain(self) -> dict[str, Any]:
        return asdict(self)


_WORDS: dict[Any, bool] = {True: True, False: False, "true": True, "false": False}  # forms have only words
_CHOICES = {
    "card": ("ok", "declined", "none"),
    "timestamp_clock": ("real", "sandbox"),
    "after_dunning": ("unpaid", "cancel", "past_due"),
    "body": ("json", "garbage", "empty"),
    "error": ("", *FAULTS, *DECLINES),
}


def knobs_from(given: Any, base: Knobs | None = None) -> Knobs:
    """Knobs with ``given`` on top of ``base`` (the resting positions if None). Raises ControlError naming a bad one."""
    if not isinstance(given, dict):
        raise ControlError("knobs are a JSON object", status=400)
    start = (base or Knobs()).plain()
    unknown = sorted(set(given) - set(start))
    if unknown:
        raise ControlError(f"no such knob: {', '.join(unknown)}; there are {', '.join(sorted(start))}", status=400)
    merged = start | given
    faults = merged.pop("errors")
    if not isinstance(faults, list):
        raise ControlError("errors is a list of faults", status=400)
    values = {
        spec.name: _fit(spec.name, spec.default, merged[spec.name]) for spec in fields(Knobs) if spec.name in merged
    }
    return Knobs(**values, errors=[_fault_from(fault) for fault in faults])


def _fault_from(given: Any) -> Fault:
    known = {spec.name: spec.default for spec in fields(Fault)}
    if not isinstance(given, dict) or set(given) - set(known):
        raise ControlError(f"a fault is an object with {', '.join(known)}", status=400)
    values = {name: _fit(name, known[name], value) for name, value in given.items()}
    fault = Fault(**values)
    if fault.error:
        fault.status = fault.status or named(fault.error).status
    return fault


def _fit(name: str, default: Any, value: Any) -> Any:
    try:
        match name:
            case "delay_seconds" | "latency_seconds":
                return _span(value)
            case "retry" if value == "stripe":
                return value
            case "retry":
                return [float(pause) for pause in value]
            case "drop" | "corrupt":
                return min(1.0, max(0.0, float(value)))
            case "times" if value is None:
                return 0
        if isinstance(default, bool):
            return _WORDS[value]
        fitted = type(default)(value)
        if name in _CHOICES and fitted not in _CHOICES[name]:
            raise ControlError(f"{name} is one of {', '.join(_CHOICES[name])}, not {value!r}", status=400)
        if name in ("duplicate", "workers"):
            return max(1, min(64, fitted))
        return fitted
    except (KeyError, TypeError, ValueError):
        raise ControlError(f"{name} cannot be {value!r}", status=400) from None


def _span(value: Any) -> Span:
    """A number, a pair, or what a form makes of a pair: "(0.1, 0.5)"."""
    if isinstance(value, str) and "," in value:
        value = value.strip("()[] ").split(",")
    if isinstance(value, list | tuple):
        least, most = value
        return float(least), float(most)
    return float(value)


def draw(span: Span, dice: random.Random) -> float:
    return dice.uniform(*span) if isinstance(span, tuple) else span
