"""The knobs as a person turns them: a name, a line on what it does, the present value, and a way back to rest."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from ..errors import ControlError
from ..knobs import Fault, Knobs
from ..periods import DAY
from ..world import World

API_DOWN = Fault(status=503, times=0)
_DOWN, _DAYS = "api", "dunning_days"  # fields of the form that are no knobs themselves


@dataclass(frozen=True)
class Dial:
    name: str
    label: str
    about: str
    options: tuple[tuple[str, str], ...] = ()  # (value, words); none: a number is typed
    kind: str = 'type="number" min="0" step="1"'


_SHARE = 'type="number" min="0" max="1" step="any"'
_RETRIES = 'type="text" pattern="stripe|[0-9., ]+"'
_SPAN = 'type="text" inputmode="decimal" pattern="[0-9., ]+"'
_GROUPS: tuple[tuple[str, tuple[Dial, ...]], ...] = (
    (
        "Webhooks",
        (
            Dial(
                "deliver",
                "Delivery",
                "Held ones go out when this is on again.",
                (("true", "on"), ("false", "off: held")),
            ),
            Dial("duplicate", "Duplicate", "How many times each one is sent.", kind='type="number" min="1" max="64"'),
            Dial("delay_seconds", "Delay", "Seconds before each; 1, 5 draws one between.", kind=_SPAN),
            Dial("reorder", "Reorder", "So many are gathered and sent shuffled; 0 keeps the order."),
            Dial("retry", "Retries", "Seconds before each, or: stripe (three days, in its time).", kind=_RETRIES),
            Dial("drop", "Drop", "Share lost for good, 0 to 1.", kind=_SHARE),
            Dial("corrupt", "Corrupt", "Share with a wrong signature, 0 to 1.", kind=_SHARE),
            Dial(
                "timestamp_offset",
                "Signature's clock",
                "Seconds added to the signed time.",
                kind='type="number" step="1"',
            ),
        ),
    ),
    (
        "API",
        (
            Dial(_DOWN, "Answers", "Down: 503 for every request.", (("up", "up"), ("down", "down: 503"))),
            Dial("latency_seconds", "Slow", "Seconds before each answer; 1, 5 draws one between.", kind=_SPAN),
            Dial("rate_limit_reads", "Read limit", "GETs in any second, then 429; 0 is no limit."),
            Dial("rate_limit_writes", "Write limit", "POSTs and DELETEs in any second; 0 is no limit."),
        ),
    ),
    (
        "Customers and money",
        (
            Dial(
                "card",
                "Cards",
                "Of customers who chose none on a page.",
                (("ok", "work"), ("declined", "are declined"), ("none", "there is none")),
            ),
            Dial(_DAYS, "Dunning lasts", "Days from the first failed payment."),
            Dial(
                "after_dunning",
                "After dunning",
                "What then becomes of the subscription.",
                (("unpaid", "unpaid"), ("cancel", "canceled"), ("past_due", "stays past due")),
            ),
            Dial(
                "auto_renew", "The clock bills", "Off: nothing falls due by itself.", (("true", "on"), ("false", "off"))
            ),
        ),
    ),
)


def knob_board(knobs: Knobs) -> str:
    values, resting = _words(knobs), _words(Knobs())
    groups = "".join(
        f'<h3>{name}</h3><div class="knobs">{"".join(_dial(dial, values, resting) for dial in dials)}</div>'
        for name, dials in _GROUPS
    )
    others = [fault for fault in knobs.errors if fault != API_DOWN]
    faults = f"<p>{len(others)} further API fault(s) are set by a program.</p>" if others else ""
    return f"""<form method="post" action="/">{groups}{faults}
<p><button class="main" name="do" value="knobs">Turn the knobs</button>
<button name="do" value="rest" formnovalidate>All at rest</button></p></form>"""


def turn_knobs(world: World, given: Mapping[str, str]) -> None:
    """What the form says; what it does not name stays. Raises ControlError naming a bad value."""
    changes: dict[str, Any] = {name: value.strip() for name, value in given.items() if name not in ("do", _DOWN, _DAYS)}
    if _DOWN in given:
        others = [asdict(fault) for fault in world.knobs.errors if fault != API_DOWN]
        changes["errors"] = others + ([asdict(API_DOWN)] if given[_DOWN] == "down" else [])
    if changes.get("retry", "stripe") != "stripe":
        changes["retry"] = changes["retry"].replace(",", " ").split()
    if _DAYS in given:
        try:
            changes["dunning_seconds"] = round(float(given[_DAYS]) * DAY)
        except ValueError:
            raise ControlError(f"dunning cannot last {given[_DAYS]!r} days", status=400) from None
    world.turn(changes, onto_present=True)


def _dial(dial: Dial, values: dict[str, str], resting: dict[str, str]) -> str:
    value, named = values[dial.name], f'id="{dial.name}" name="{dial.name}" aria-describedby="{dial.name}-about"'
    turned = value != resting[dial.name]
    if dial.options:
        options = "".join(
            f'<option value="{word}"{" selected" if word == value else ""}>{text}</option>'
            for word, text in dial.options
        )
        control = f"<select {named}>{options}</select>"
    else:
        control = f'<input {named} {dial.kind} required value="{escape(value)}">'
    mark = f'<span class="turned-word">at rest: {escape(_spoken(dial, resting[dial.name]))}</span>' if turned else ""
    return f"""<div class="knob{" turned" if turned else ""}">
<div><label for="{dial.name}">{dial.label}</label>{mark}</div>
<span class="hint" id="{dial.name}-about">{dial.about}</span>{control}</div>"""


def _spoken(dial: Dial, value: str) -> str:
    return dict(dial.options).get(value, value)


def _words(knobs: Knobs) -> dict[str, str]:
    """Every knob as the form writes it."""
    words = {name: _word(value) for name, value in knobs.plain().items() if name != "errors"}
    words[_DOWN] = "down" if API_DOWN in knobs.errors else "up"
    words[_DAYS] = _word(knobs.dunning_seconds / DAY)
    return words


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ", ".join(_word(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
