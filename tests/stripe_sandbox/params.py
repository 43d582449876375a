"""A small language for what a route accepts, and the reader that holds callers to it.

``Group`` of names, ``Many`` of one thing, ``Text``/``Whole``/``Flag`` for the leaves, ``Labels`` for metadata,
``Either`` where Stripe takes several kinds. What a table does not name is refused, as Stripe refuses it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import StripeError, missing_param, unknown_param


@dataclass(frozen=True)
class Text:
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Whole:
    least: int | None = None
    most: int | None = None


@dataclass(frozen=True)
class Flag:
    pass


@dataclass(frozen=True)
class Labels:
    """Metadata: any keys; an empty value removes a key, an empty string removes all."""


@dataclass(frozen=True)
class Many:
    of: "Shape"


@dataclass(frozen=True)
class Either:
    options: tuple["Shape", ...]


@dataclass(frozen=True)
class Group:
    fields: Mapping[str, "Shape"] = field(default_factory=dict)
    required: tuple[str, ...] = ()


Shape = Text | Whole | Flag | Labels | Many | Either | Group


def read(shape: Shape, value: Any, path: str = "") -> Any:
    """The value with its proper types. Raises StripeError naming the parameter the way Stripe writes it."""
    match shape:
        case Group():
            return _read_group(shape, value, path)
        case Many(of):
            if not isinstance(value, dict):
                raise StripeError("Invalid array", param=path)
            if not all(key.isdigit() for key in value):
                raise StripeError("Invalid array", param=path)
            ordered = sorted(value.items(), key=lambda pair: int(pair[0]))
            return [read(of, inner, f"{path}[{index}]") for index, inner in ordered]
        case Either(options):
            return _read_either(options, value, path)
        case Labels():
            return _read_labels(value, path)
    if not isinstance(value, str):
        raise StripeError("Invalid string: a group was given", param=path)
    return _read_leaf(shape, value, path)


def _read_leaf(shape: Text | Whole | Flag, value: str, path: str) -> Any:
    match shape:
        case Text(choices):
            if choices and value not in choices:
                known = ", ".join(choice for choice in choices[:-1] if choice)
                raise StripeError(f"Invalid {path}: must be one of {known}, or {choices[-1]}", param=path)
            if len(value) > 5000:
                raise StripeError(f"Invalid string: {path} is longer than 5000 characters", param=path)
            return value
        case Whole(least, most):
            try:
                number = int(value)
            except ValueError:
                code = "parameter_invalid_integer" if value else "parameter_invalid_empty"
                raise StripeError(f"Invalid integer: {value}", code=code, param=path) from None
            if (least is not None and number < least) or (most is not None and number > most):
                bounds = f"between {least} and {most}" if most is not None else f"at least {least}"
                raise StripeError(
                    f"Invalid integer: {path} must be {bounds}.", code="parameter_invalid_integer", param=path
                )
            return number
        case Flag():
            if value not in ("true", "false"):
                raise StripeError(f"Invalid boolean: {value}", param=path)
            return value == "true"


def _read_group(group: Group, value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise StripeError("Invalid object", param=path)

    def full(name: str) -> str:
        return f"{path}[{name}]" if path else name

    for name in value:
        if name not in group.fields:
            raise unknown_param(full(name))
    for name in group.required:
        if value.get(name) in (None, ""):
            raise missing_param(full(name))
    return {name: read(group.fields[name], inner, full(name)) for name, inner in value.items()}


def _read_either(options: tuple[Shape, ...], value: Any, path: str) -> Any:
    refusal: StripeError | None = None
    for option in options:
        try:
            return read(option, value, path)
        except StripeError as error:
            refusal = error
    raise refusal or StripeError("Invalid value", param=path)


def _read_labels(value: Any, path: str) -> dict[str, str] | str:
    if value == "":
        return ""
    if not isinstance(value, dict) or not all(isinstance(inner, str) for inner in value.values()):
        raise StripeError("Metadata must be a flat hash of strings", param=path)
    if len(value) > 50:
        raise StripeError("You cannot have more than 50 metadata keys", param=path)
    for key, inner in value.items():
        if len(key) > 40 or len(inner) > 500:
            raise StripeError(f"Metadata {key!r} is longer than Stripe keeps (key 40, value 500)", param=path)
    return dict(value)


def names(shape: Shape, path: str = "") -> Iterator[str]:
    """Every parameter a table accepts, dotted; lists are ``[]``. Read by the test that compares them with the spec."""
    match shape:
        case Group(fields):
            for name, inner in fields.items():
                here = f"{path}.{name}" if path else name
                yield here
                yield from names(inner, here)
        case Many(of):
            yield from names(of, path + "[]")
        case Either(options):
            for option in options:
                yield from names(option, path)
        case _:
            return
