"""What the pages of the back office share."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from django.db.models import Model
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from unfold.admin import ModelAdmin, TabularInline
from unfold.decorators import display
from unfold.paginator import InfinitePaginator

from subscriptions.models import AuditEntry, Plan, PlanPrice

INSTANT = re.compile(r"\d{4}-\d\d-\d\dT")
Names = dict[str, dict[int, str]]  # what the audit knows by key: column → key → name
BADGES = {
    "ACTIVE": "success", "DONE": "success", "SENT": "success", "TRIAL": "info", "PENDING": "info", "GRACE": "warning",
    "SUSPENDED": "danger", "PARKED": "danger", "FAILED": "danger",
    "STUCK": "danger",
}  # fmt: skip


class Found(ModelAdmin):
    """Lists that stay fast however long they grow: pages are not counted."""

    paginator = InfinitePaginator
    show_full_result_count = False
    list_per_page = 50


class ReadOnly:
    """Looked at, never edited: changes go through verbs, which write their evidence."""

    def has_add_permission(self, request: HttpRequest, *args: Any) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


class ReadOnlyRows(ReadOnly, TabularInline):
    """The newest rows of something that belongs to the object on the page."""

    extra = 0
    max_num = 0
    can_delete = False
    per_page = 20
    tab = True
    hide_title = True
    show_change_link = False


def link(to: Model | None, text: object = None) -> str:
    """A link to an object's own page."""
    if to is None:
        return "–"
    url = reverse(f"admin:{to._meta.app_label}_{to._meta.model_name}_change", args=[to.pk])
    return format_html('<a class="text-primary-600 underline" href="{}">{}</a>', url, text or to)


def yes_or_no(column: str, description: str) -> Callable[[Any, Model], str]:
    """A column of a page, in words: Django's red cross beside "on hold" would look like an error."""

    def said(self: Any, row: Model) -> str:
        return "yes" if getattr(row, column) else "no"

    described: Callable[[Any, Model], str] = display(description=description)(said)
    return described


def when(instant: datetime | None) -> str:
    """An instant as staff read it: UTC, to the second."""
    return f"{instant.astimezone(UTC):%Y-%m-%d %H:%M:%S}" if instant else "–"


def names() -> Names:
    prices = PlanPrice.objects.select_related("plan")
    return {
        "plan_id": dict(Plan.objects.values_list("pk", "name")),
        "price_id": {price.pk: str(price) for price in prices},
    }


def changes(entry: AuditEntry, names: Names) -> str:
    """What moved, a line a column; plans and prices by name. What merely began as "no" is left out."""
    rows = [
        (column.removesuffix("_id"), *(shown(names.get(column, {}).get(value, value)) for value in (old, new)))
        for column, (old, new) in entry.changes.items()
        if (old, new) != (None, False)
    ]
    return format_html_join("", "<div><b>{}</b>: {} → {}</div>", rows)


def shown(value: object) -> str:
    """A value as staff read it."""
    if value in (None, ""):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = str(value)
    return when(datetime.fromisoformat(text)) if INSTANT.match(text) else text
