"""What Stripe has to be told: what waits, what is stuck and why, and what became of the rest."""

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from unfold.decorators import display

from billing_site.admin.views import BADGES, Found, ReadOnly, link, when
from billing_site.provenance import actor_of
from webhooks.models import Telling
from webhooks.outgoing import outbound


@admin.register(Telling)
class TellingAdmin(ReadOnly, Found):
    list_display = (
        "number", "aspect", "ours", "of_tenant", "shown_state", "actor", "attempts", "outcome", "error_code",
        "next_try",
    )  # fmt: skip
    list_filter = ("state", "aspect", "error_code")
    search_fields = ("link__stripe_subscription_id", "link__subscription__number", "tenant__name", "tenant__slug")
    search_help_text = "Subscription (number, or its id at Stripe), or tenant"
    list_select_related = ("link__subscription", "tenant")
    actions = ("try_again", "give_up")
    fields = readonly_fields = (
        "aspect", "ours", "link", "of_tenant", "version", "actor", "reason", "shown_state", "attempts", "created_at",
        "next_attempt_at", "done_at", "outcome", "error_code", "error",
    )  # fmt: skip

    @display(description="No.", ordering="pk")
    def number(self, telling: Telling) -> int:
        return telling.pk

    @display(description="Subscription")
    def ours(self, telling: Telling) -> str:
        return link(telling.link.subscription if telling.link else None)

    @display(description="Tenant")
    def of_tenant(self, telling: Telling) -> str:
        return link(telling.tenant)

    @display(description="State", ordering="state", label=BADGES)
    def shown_state(self, telling: Telling) -> str:
        return telling.state

    @display(description="Next try (UTC)")
    def next_try(self, telling: Telling) -> str:
        return when(telling.next_attempt_at) if telling.state == Telling.State.PENDING else "–"

    def has_act_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("webhooks.change_telling")

    @admin.action(description="Try again", permissions=["act"])
    def try_again(self, request: HttpRequest, chosen: QuerySet[Telling]) -> None:
        count = outbound.again([*chosen.values_list("pk", flat=True)], now=timezone.now())
        self.message_user(request, f"{_rows(count)} will be tried again in a moment.", messages.SUCCESS)

    @admin.action(description="Give up: tell Stripe nothing", permissions=["act"])
    def give_up(self, request: HttpRequest, chosen: QuerySet[Telling]) -> None:
        by = actor_of(request)
        count = outbound.give_up([*chosen.values_list("pk", flat=True)], by=by, now=timezone.now())
        self.message_user(request, f"{_rows(count)} given up: what Stripe says counts again.", messages.SUCCESS)


def _rows(count: int) -> str:
    return f"{count} {'row' if count == 1 else 'rows'}"
