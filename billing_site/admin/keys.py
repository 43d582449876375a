"""API keys: made here, shown once, looked at, revoked. What a key may do is never edited: it is in somebody's hands."""

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html_join
from django.views.decorators.debug import sensitive_variables
from unfold.decorators import action, display
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget

from billing_site.admin.verbs import Instant
from billing_site.admin.views import Found
from billing_site.api import keys
from billing_site.models import ApiKey

MADE = (
    "name", "prefix", "tenant", "opens", "is_good", "created_at", "expires_at", "revoked_at", "last_used_at",
)  # fmt: skip
STATES = {"good": "success", "expired": "warning", "revoked": "danger"}


class NewKey(forms.ModelForm):  # type: ignore[type-arg]
    scopes = forms.MultipleChoiceField(
        choices=[(scope, f"{scope}: {meaning}") for scope, meaning in keys.SCOPES.items()],
        widget=UnfoldAdminCheckboxSelectMultipleWidget,
        help_text="What it opens, and nothing else.",
    )
    expires_at = Instant(required=False, help_text="Then it opens nothing any more. Empty: never.")

    class Meta:
        model = ApiKey
        fields = ("name", "tenant", "scopes", "expires_at")

    @sensitive_variables("secret")
    def save(self, commit: bool = True) -> ApiKey:
        """The key is written, and its secret hangs on the form until the page is answered."""
        key, self.secret = keys.issue(**self._wanted())
        self.instance = key
        return key

    def save_m2m(self) -> None:
        """There is none."""

    def clean(self) -> dict[str, Any]:
        found = super().clean() or self.cleaned_data
        if not self.errors:
            try:
                keys.check(**self._wanted())
            except keys.InvalidKey as error:
                self.add_error(None, error.detail)
        # A page that is loaded anew sends its form again: it must not make a second key that nobody sees.
        same = ApiKey.objects.filter(name=found.get("name"), tenant=found.get("tenant"), revoked_at=None)
        if same.exists():
            self.add_error("name", "A key of this name is there already: revoke it, or choose another name.")
        return found

    def _wanted(self) -> dict[str, Any]:
        return {**self.cleaned_data, "now": timezone.now()}


@admin.register(ApiKey)
class ApiKeyAdmin(Found):
    list_display = ("name", "prefix", "tenant", "opens", "is_good", "expires_at", "last_used_at")
    list_select_related = ("tenant",)
    search_fields = ("name", "prefix", "tenant__slug")
    autocomplete_fields = ("tenant",)
    actions_detail = ("revoke",)
    form = NewKey

    def get_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return MADE if obj else NewKey.Meta.fields

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return self.get_fields(request, obj) if obj else ()

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False  # what it did stands in the audit under its number

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        user = request.user
        return any(user.has_perm(f"billing_site.{may}_apikey") for may in ("view", "add", "change"))

    @display(description="Opens")
    def opens(self, key: ApiKey) -> str:
        return format_html_join("", "<div>{}</div>", ([scope] for scope in key.scopes))

    @display(description="State", label=STATES)
    def is_good(self, key: ApiKey) -> str:
        return keys.state(key, now=timezone.now())

    # --- shown once ---

    def save_form(self, request: HttpRequest, form: Any, change: bool) -> ApiKey:
        key: ApiKey = super().save_form(request, form, change)
        request.secret = form.secret  # type: ignore[attr-defined]  # for the page that answers this very request
        return key

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """The form has written it, with the secret that nobody can show again."""

    def response_add(self, request: HttpRequest, obj: Any, post_url_continue: str | None = None) -> HttpResponse:
        """The secret, in the answer itself: a redirect would have to keep it somewhere until it is followed."""
        context = {
            **self.admin_site.each_context(request),
            "title": f"The key of {obj.name}",
            "secret": request.secret,  # type: ignore[attr-defined]
            "page": _page_of(obj),
        }
        return TemplateResponse(request, "admin/new_key.html", context)

    # --- revoked ---

    @action(description="Revoke", url_path="revoke", permissions=["revoke"])
    def revoke(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """GET asks whether it is meant; POST does it."""
        key = self.get_object(request, object_id)
        if key is None:
            raise Http404
        if not self.has_revoke_permission(request):
            raise PermissionDenied
        if request.method == "POST":
            if keys.revoke(key.pk, now=timezone.now()):
                self.log_change(request, key, "Revoked.")
                messages.success(request, f"{key.name} ({key.prefix}…) opens nothing any more.")
            else:
                messages.info(request, f"{key.name} ({key.prefix}…) was revoked before.")
            return redirect(_page_of(key))
        context = {**self.admin_site.each_context(request), "title": "Revoke", "key": key, "page": _page_of(key)}
        return TemplateResponse(request, "admin/revoke_key.html", context)

    def has_revoke_permission(self, request: HttpRequest, object_id: Any = None) -> bool:
        return request.user.has_perm("billing_site.change_apikey")


def _page_of(key: ApiKey) -> str:
    return reverse("admin:billing_site_apikey_change", args=[key.pk])
