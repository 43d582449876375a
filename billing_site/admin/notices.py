"""What tenants were told."""

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from unfold.decorators import display

from billing_site.admin.views import BADGES, Found, ReadOnly, link, when
from notifications import delivery
from notifications.models import Notice


@admin.register(Notice)
class NoticeAdmin(ReadOnly, Found):
    list_display = ("kind", "of_tenant", "of_subscription", "about", "shown_state", "attempts", "sent", "error")
    list_filter = ("state", "kind")
    search_fields = ("tenant__name", "tenant__slug", "subscription__number")
    list_select_related = ("tenant", "subscription")
    actions = ("resend",)
    readonly_fields = ("of_tenant", "of_subscription", "shown_state")
    fields = (
        "kind", "of_tenant", "of_subscription", "anchor", "shown_state", "attempts", "next_attempt_at", "created_at",
        "sent_at", "recipients", "error",
    )  # fmt: skip

    @display(description="Tenant")
    def of_tenant(self, notice: Notice) -> str:
        return link(notice.tenant)

    @display(description="Subscription")
    def of_subscription(self, notice: Notice) -> str:
        return link(notice.subscription)

    @display(description="About (UTC)", ordering="anchor")
    def about(self, notice: Notice) -> str:
        return when(notice.anchor)

    @display(description="State", ordering="state", label=BADGES)
    def shown_state(self, notice: Notice) -> str:
        return notice.state

    @display(description="Sent (UTC)", ordering="sent_at")
    def sent(self, notice: Notice) -> str:
        return when(notice.sent_at)

    def has_resend_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("notifications.change_notice")

    @admin.action(description="Try to send again", permissions=["resend"])
    def resend(self, request: HttpRequest, notices: QuerySet[Notice]) -> None:
        count = delivery.resend(list(notices.values_list("pk", flat=True)), now=timezone.now())
        told = f"{count} {'notice' if count == 1 else 'notices'} will be sent in a moment; others stay as they are."
        self.message_user(request, told, messages.SUCCESS)
