"""Stripe's way of writing nested parameters in a form: ``items[0][price]=p&expand[]=customer``."""

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode

from .errors import StripeError

Form = dict[str, Any]

_KEY = re.compile(r"^([^\[\]]+)((?:\[[^\[\]]*\])*)$")
_STEP = re.compile(r"\[([^\[\]]*)\]")


def parse(text: str) -> Form:
    """Nested dicts of strings. List indexes stay keys (``{"0": …}``); ``[]`` takes the next free one."""
    form: Form = {}
    for key, value in parse_qsl(text, keep_blank_values=True):
        match = _KEY.match(key)
        if not match:
            raise StripeError(f"Invalid parameter name: {key}", code="parameter_unknown", param=key)
        steps = [match[1], *_STEP.findall(match[2])]
        place = form
        for step in steps[:-1]:
            place = place.setdefault(step or str(len(place)), {})
            if not isinstance(place, dict):
                raise StripeError(f"Invalid request: {key} is given both as a value and as a group.", param=steps[0])
        last = steps[-1] or str(len(place))
        if isinstance(place.get(last), dict):
            raise StripeError(f"Invalid request: {key} is given both as a value and as a group.", param=steps[0])
        place[last] = value
    return form


def encode(params: Mapping[str, Any]) -> str:
    """The inverse of ``parse``, for callers: booleans become true/false, None becomes the empty string that unsets."""
    return urlencode([pair for key, value in params.items() for pair in _pairs(key, value)])


def _pairs(key: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [pair for step, inner in value.items() for pair in _pairs(f"{key}[{step}]", inner)]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [pair for index, inner in enumerate(value) for pair in _pairs(f"{key}[{index}]", inner)]
    if isinstance(value, bool):
        return [(key, "true" if value else "false")]
    return [(key, "" if value is None else str(value))]
