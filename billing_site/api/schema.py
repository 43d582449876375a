"""What drf-spectacular has to be told to describe the API."""

from typing import Any

from drf_spectacular.authentication import SessionScheme
from drf_spectacular.extensions import OpenApiAuthenticationExtension


class MemberSessionScheme(SessionScheme):  # type: ignore[no-untyped-call]
    target_class = "billing_site.api.authentication.MemberSession"


class ApiKeyScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = "billing_site.api.authentication.ApiKeyHeader"
    name = "apiKey"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer", "description": "An API key: tk_…"}
