"""The OpenAPI document, and whether an answer is what it says."""

import json
from functools import cache
from io import StringIO
from typing import Any

import jsonschema
from django.core.management import call_command


@cache
def document() -> dict[str, Any]:
    """A warning while it is made is an error."""
    out = StringIO()
    call_command("spectacular", "--validate", "--fail-on-warn", "--format", "openapi-json", stdout=out)
    made: dict[str, Any] = json.loads(out.getvalue())
    return made


def validate(path: str, method: str, status: int, answer: object) -> None:
    """Raises jsonschema.ValidationError."""
    response = document()["paths"][path][method]["responses"][str(status)]
    schema = response["content"]["application/json"]["schema"] | {"components": document()["components"]}
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.Draft202012Validator(schema, format_checker=checker).validate(answer)
