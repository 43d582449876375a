"""The customer API: what a tenant may see of itself. Another tenant's objects do not exist here."""

from typing import Any

import django_filters
from django.db.models import QuerySet
from django.utils import timezone
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import generics, serializers, views
from rest_framework.request import Request
from rest_framework.response import Response

from billing_site.api import schema  # noqa: F401  (importing it registers it)
from billing_site.api.permissions import tenant_of
from billing_site.banner import banner
from subscriptions.forecast import next_step
from subscriptions.models import PlanPrice, Subscription, Tenant
from subscriptions.states import Status, Type


class PriceSerializer(serializers.ModelSerializer[PlanPrice]):
    class Meta:
        model = PlanPrice
        fields = ("amount_minor", "currency", "interval", "interval_count")


class NextStepSerializer(serializers.Serializer[Any]):
    at = serializers.DateTimeField()
    status = serializers.ChoiceField(Status.choices)


class SubscriptionSerializer(serializers.ModelSerializer[Subscription]):
    plan = serializers.SlugRelatedField[Any](slug_field="code", read_only=True)
    parent = serializers.SlugRelatedField[Any](  # type: ignore[assignment]  # a serializer has a parent, too
        slug_field="number", read_only=True, allow_null=True
    )
    price = PriceSerializer(read_only=True, allow_null=True)
    grants_access = serializers.SerializerMethodField()
    next_step = serializers.SerializerMethodField(
        help_text="What happens by itself, and when, if nobody does anything."
    )

    class Meta:
        model = Subscription
        fields = (
            "number", "type", "status", "plan", "parent", "price", "term_start", "term_end", "grace_end",
            "suspension_end", "on_hold", "auto_renews", "cancel_at_term_end", "ended_at", "end_reason",
            "grants_access", "next_step",
        )  # fmt: skip

    def get_grants_access(self, subscription: Subscription) -> bool:
        return subscription.serves(timezone.now())

    @extend_schema_field(NextStepSerializer(allow_null=True))
    def get_next_step(self, subscription: Subscription) -> dict[str, Any] | None:
        step = next_step(subscription)
        return None if step is None else dict(NextStepSerializer(step).data)


@extend_schema_field(bool)
class YesOrNo(django_filters.TypedChoiceFilter):
    """`true` or `false`: django-filter's own would read every other word as neither."""

    def __init__(self, **more: Any) -> None:
        choices = [("true", "true"), ("false", "false")]
        super().__init__(choices=choices, coerce=lambda word: word == "true", empty_value=False, **more)


class SubscriptionFilter(django_filters.FilterSet):
    status = django_filters.ChoiceFilter(choices=Status.choices)
    type = django_filters.ChoiceFilter(choices=Type.choices)
    include_expired = YesOrNo(method="keep", label="Also those that are over (default: no).")

    class Meta:
        model = Subscription
        fields = ("status", "type", "include_expired")

    def keep(self, queryset: QuerySet[Subscription], name: str, value: bool) -> QuerySet[Subscription]:
        return queryset

    def filter_queryset(self, queryset: QuerySet[Subscription]) -> QuerySet[Subscription]:
        found: QuerySet[Subscription] = super().filter_queryset(queryset)
        asked_for = self.form.cleaned_data["include_expired"] or self.form.cleaned_data["status"] == Status.EXPIRED
        return found if asked_for else found.exclude(status=Status.EXPIRED)


def subscriptions_of(tenant: Tenant) -> QuerySet[Subscription]:
    return tenant.subscriptions.select_related("plan", "price", "parent")


class SubscriptionList(generics.ListAPIView[Subscription]):
    """The tenant's subscriptions, newest first; those that are over only when asked for."""

    serializer_class = SubscriptionSerializer
    filterset_class = SubscriptionFilter
    queryset = Subscription.objects.none()  # for the schema; the tenant's own come below

    def get_queryset(self) -> QuerySet[Subscription]:
        if getattr(self, "swagger_fake_view", False):
            return super().get_queryset()
        return subscriptions_of(tenant_of(self.request))


class AccountSerializer(serializers.ModelSerializer[Tenant]):
    class Meta:
        model = Tenant
        fields = ("slug", "name", "billing_email")


class BannerSerializer(serializers.Serializer[Any]):
    level = serializers.ChoiceField(["error", "warning", "info"])
    code = serializers.CharField()
    message = serializers.CharField()
    subscription = serializers.CharField()
    until = serializers.DateTimeField(allow_null=True)


class MonthlyTotalSerializer(serializers.Serializer[Any]):
    amount_minor = serializers.IntegerField()
    currency = serializers.CharField()


class StatusSerializer(serializers.Serializer[Any]):
    account = AccountSerializer()
    subscriptions = SubscriptionSerializer(many=True)
    banner = BannerSerializer(many=True, help_text="What to tell the tenant first; most urgent first.")
    monthly_total = MonthlyTotalSerializer(many=True, help_text="What live subscriptions cost per month, per currency.")


class BillingStatus(views.APIView):
    """Where the tenant stands: its live subscriptions, what to know first, what it costs a month."""

    @extend_schema(responses=StatusSerializer)
    def get(self, request: Request) -> Response:
        tenant = tenant_of(request)
        live = list(subscriptions_of(tenant).exclude(status=Status.EXPIRED))
        answer = {
            "account": tenant,
            "subscriptions": live,
            "banner": banner(live, now=timezone.now()),
            "monthly_total": monthly_total(live),
        }
        return Response(StatusSerializer(answer).data)


def monthly_total(live: list[Subscription]) -> list[dict[str, Any]]:
    """What renewals cost per month, in whole minor units per currency; a year counts a twelfth, rounded half up."""
    months = {PlanPrice.Interval.MONTH: 1, PlanPrice.Interval.YEAR: 12}
    totals: dict[str, int] = {}
    renewing = [s for s in live if not s.cancel_at_term_end and not (s.parent and s.parent.cancel_at_term_end)]
    for price in (s.price for s in renewing if s.price):
        per = months[PlanPrice.Interval(price.interval)] * price.interval_count
        totals[price.currency] = totals.get(price.currency, 0) + (2 * price.amount_minor + per) // (2 * per)
    return [{"amount_minor": amount, "currency": currency} for currency, amount in sorted(totals.items())]
