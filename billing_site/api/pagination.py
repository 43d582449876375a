"""Lists come in pages behind an opaque cursor: no page is skipped or repeated while rows are added."""

from rest_framework.pagination import CursorPagination


class CursorPages(CursorPagination):
    ordering = "-id"
    page_size_query_param = "page_size"
    max_page_size = 200
