"""Stripe events and links: what came in, what became of it, and trying again."""

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.html import format_html_join
from unfold.admin import ModelAdmin
from unfold.decorators import display

from billing_site.admin.strangers import GivesCustomers
from billing_site.admin.views import BADGES, Found, ReadOnly, link, when, yes_or_no
from subscriptions.models import AuditEntry
from webhooks import inbox, poke
from webhooks.models import StripeEvent, StripeLink, StripePrice


@admin.register(StripeEvent)
class StripeEventAdmin(GivesCustomers, ReadOnly, Found):
    list_display = ("event_id", "type", "shown_state", "received", "attempts", "outcome", "error_code", "next_try")
    list_filter = ("state", "type", "error_code")
    search_fields = ("event_id", "object_id", "stripe_subscription_id")
    search_help_text = "Id of the event, its object or its subscription"
    actions = ("replay",)
    readonly_fields = ("shown_state", "about", "caused", "live")
    live = yes_or_no("livemode", "Live mode")
    fields = (
        "event_id", "type", "object_id", "about", "live", "created_at", "received_at", "shown_state", "attempts",
        "replays", "next_attempt_at", "done_at", "outcome", "error_code", "error", "caused",
    )  # fmt: skip

    @display(description="State", ordering="state", label=BADGES)
    def shown_state(self, event: StripeEvent) -> str:
        return event.state

    @display(description="Received (UTC)", ordering="received_at")
    def received(self, event: StripeEvent) -> str:
        return when(event.received_at)

    @display(description="Next try (UTC)")
    def next_try(self, event: StripeEvent) -> str:
        return when(event.next_attempt_at) if event.state == StripeEvent.State.PENDING else "–"

    @display(description="Stripe subscription")
    def about(self, event: StripeEvent) -> str:
        known = StripeLink.objects.filter(pk=event.stripe_subscription_id).first()
        return link(known) if known else event.stripe_subscription_id or "–"

    @display(description="What it changed here")
    def caused(self, event: StripeEvent) -> str:
        """Also by earlier replays: each is a source of its own."""
        sources = [StripeEvent(pk=event.pk, replays=number).source_id for number in range(event.replays + 1)]
        entries = AuditEntry.objects.filter(source_id__in=sources).select_related("subscription").order_by("id")
        rows = [(link(entry.subscription), entry.get_action_display()) for entry in entries[:20]]
        return format_html_join("", "<div>{}: {}</div>", rows) or "–"

    def has_replay_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("webhooks.change_stripeevent")

    @admin.action(description="Ask Stripe again and apply (replay)", permissions=["replay"])
    def replay(self, request: HttpRequest, events: QuerySet[StripeEvent]) -> None:
        count = inbox.replay(list(events.values_list("pk", flat=True)), now=timezone.now())
        poke.inbox()
        told = f"{count} {'event' if count == 1 else 'events'} will be tried again in a moment."
        self.message_user(request, told, messages.SUCCESS)


@admin.register(StripeLink)
class StripeLinkAdmin(ReadOnly, Found):
    list_display = ("stripe_subscription_id", "ours", "ticket", "applied_ticket")
    search_fields = ("stripe_subscription_id", "subscription__number")
    list_select_related = ("subscription",)
    fields = readonly_fields = ("stripe_subscription_id", "ours", "ticket", "applied_ticket")

    @display(description="Our subscription")
    def ours(self, known: StripeLink) -> str:
        return link(known.subscription)


@admin.register(StripePrice)
class StripePriceAdmin(ModelAdmin):
    """Which Stripe price sells what. Added once, then fixed: what was sold at it must stay true."""

    list_display = ("stripe_price_id", "plan_price")
    search_fields = ("stripe_price_id",)
    list_select_related = ("plan_price__plan",)

    def has_change_permission(self, request: HttpRequest, obj: StripePrice | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: StripePrice | None = None) -> bool:
        return False
