"""Lists come in pages behind an opaque cursor: no page is skipped or repeated while rows are added."""

from typing import Any

from rest_framework.exceptions import NotFound, ValidationError
from rest_framework.pagination import Cursor, CursorPagination
from rest_framework.request import Request


class CursorPages(CursorPagination):
    ordering = "-id"
    page_size_query_param = "page_size"
    max_page_size = 200

    def decode_cursor(self, request: Request) -> Cursor | None:
        """Raises ValidationError for a cursor that we never gave out."""
        try:
            cursor = super().decode_cursor(request)
        except NotFound:
            cursor = Cursor(0, False, None)
        if cursor is not None and not _ours(cursor):
            raise ValidationError({"cursor": ["This is not a cursor of this list."]})
        return cursor

    def get_paginated_response_schema(self, schema: dict[str, Any]) -> dict[str, Any]:
        """DRF's own says "nullable", which OpenAPI 3.1 no longer knows."""
        link = {"type": ["string", "null"], "format": "uri"}
        properties = {"next": link, "previous": link, "results": schema}
        return {"type": "object", "required": [*properties], "properties": properties}


def _ours(cursor: Cursor) -> bool:
    """A position is an id; a cursor without one counts from an end of the list."""
    if cursor.position is None:
        return cursor.reverse or cursor.offset > 0
    return len(str(cursor.position)) <= 19 and str(cursor.position).isascii() and str(cursor.position).isdecimal()
