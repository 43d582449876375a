"""The customer API: what a tenant may see of itself. Another tenant's objects do not exist here."""

from datetime import datetime
from typing import Any

import django_filters
from django.db.models import QuerySet
from django.utils import timezone
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import generics, serializers, views
from rest_framework.request import Request
from rest_framework.response import Response

from billing_site import timeline
from billing_site.api import schema  # noqa: F401  (importing it registers it)
from billing_site.api.permissions import tenant_of
from billing_site.banner import banner
from entitlements.models import SlotPack
from subscriptions import terms
from subscriptions.audit import Actor
from subscriptions.forecast import Cancelled, Paid, Renewed, WhatIf, next_step
from subscriptions.models import AuditEntry, Plan, PlanPrice, Subscription, Tenant
from subscriptions.serving import serves
from subscriptions.states import Status, Type


class PriceSerializer(serializers.ModelSerializer[PlanPrice]):
    class Meta:
        model = PlanPrice
        fields = ("amount_minor", "currency", "interval", "interval_count")


class NextStepSerializer(serializers.Serializer[Any]):
    at = serializers.DateTimeField()
    status = serializers.ChoiceField(Status.choices)


class ScheduledSerializer(serializers.Serializer[Any]):
    """A change that is to come. Of one that is not of our catalogue only the instant is known."""

    plan = serializers.CharField(allow_null=True)
    price = PriceSerializer(allow_null=True)
    quantity = serializers.IntegerField(allow_null=True)
    at = serializers.DateTimeField(allow_null=True)


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
    packs = serializers.SerializerMethodField(help_text="Units of slot packs beside the plan, by their codes.")
    scheduled_change = serializers.SerializerMethodField(help_text="What it will be when its term ends.")

    class Meta:
        model = Subscription
        fields = (
            "number", "type", "status", "plan", "parent", "price", "quantity", "packs", "term_start", "term_end",
            "grace_end", "suspension_end", "on_hold", "auto_renews", "cancel_at_term_end", "ended_at", "end_reason",
            "grants_access", "next_step", "scheduled_change",
        )  # fmt: skip

    def get_grants_access(self, subscription: Subscription) -> bool:
        return serves(subscription, timezone.now())

    @extend_schema_field(NextStepSerializer(allow_null=True))
    def get_next_step(self, subscription: Subscription) -> dict[str, Any] | None:
        step = next_step(subscription)
        return None if step is None else dict(NextStepSerializer(step).data)

    @extend_schema_field({"type": "object", "additionalProperties": {"type": "integer"}})
    def get_packs(self, subscription: Subscription) -> dict[str, int]:
        return {held.pack.code: held.quantity for held in subscription.packs.all()}

    @extend_schema_field(ScheduledSerializer(allow_null=True))
    def get_scheduled_change(self, subscription: Subscription) -> dict[str, Any] | None:
        link = getattr(subscription, "stripe_link", None)
        if link is None or not link.schedule_id:
            return None
        price = link.scheduled_price
        coming = {"plan": price and price.plan.code, "price": price, "quantity": link.scheduled_quantity}
        return dict(ScheduledSerializer(coming | {"at": link.scheduled_at}).data)


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
    """All that an answer says of them. Two queries."""
    related = ("plan", "price", "parent__plan", "stripe_link__scheduled_price__plan")
    return tenant.subscriptions.select_related(*related).prefetch_related("packs__pack")


class SubscriptionList(generics.ListAPIView[Subscription]):
    """The tenant's subscriptions, newest first; those that are over only when asked for."""

    serializer_class = SubscriptionSerializer
    filterset_class = SubscriptionFilter
    queryset = Subscription.objects.none()  # for the schema; the tenant's own come below

    def get_queryset(self) -> QuerySet[Subscription]:
        if getattr(self, "swagger_fake_view", False):
            return super().get_queryset()
        return subscriptions_of(tenant_of(self.request))


class SubscriptionDetail(generics.RetrieveAPIView[Subscription]):
    """One of the tenant's subscriptions, also one that is over."""

    serializer_class = SubscriptionSerializer
    lookup_field = "number"
    queryset = Subscription.objects.none()

    def get_queryset(self) -> QuerySet[Subscription]:
        return subscriptions_of(tenant_of(self.request))


# --- what happened, and what will ------------------------------------------------------------------------------------

Changes = dict[str, list[Any]]
CHANGES_SCHEMA = {
    "type": "object",
    "additionalProperties": {
        "type": "array",
        "minItems": 2,
        "maxItems": 2,
        "items": {"type": ["string", "integer", "boolean", "object", "null"]},
    },
}


class AuditSerializer(serializers.ModelSerializer[AuditEntry]):
    """What tenants read of their history: of staff neither who it was nor their words, which are for staff."""

    subscription = serializers.SlugRelatedField[Any](slug_field="number", read_only=True)
    actor = serializers.SerializerMethodField(help_text="staff, member, stripe, clock, apikey.")
    reason = serializers.SerializerMethodField(help_text="Empty where staff acted.")
    changes = serializers.SerializerMethodField(help_text="What changed: before and after.")

    class Meta:
        model = AuditEntry
        fields = ("subscription", "action", "effective_at", "recorded_at", "actor", "reason", "changes")

    def get_actor(self, entry: AuditEntry) -> str:
        return Actor(entry.actor).kind

    def get_reason(self, entry: AuditEntry) -> str:
        return "" if Actor(entry.actor).must_say_why else entry.reason

    @extend_schema_field(CHANGES_SCHEMA)
    def get_changes(self, entry: AuditEntry) -> Changes:
        """Plans by their codes and prices as they are: our keys mean nothing elsewhere."""
        named = self.context["catalogue"]
        return {
            column.removesuffix("_id"): [named.get(column, {}).get(value, value) for value in pair]
            for column, pair in entry.changes.items()
        }


def catalogue() -> dict[str, dict[int, Any]]:
    """What an audit entry knows by key, as customers know it: column → key → name. Two queries."""
    return {
        "plan_id": dict(Plan.objects.values_list("pk", "code")),
        "price_id": {price.pk: dict(PriceSerializer(price).data) for price in PlanPrice.objects.all()},
    }


class AuditOfTenant(generics.ListAPIView[AuditEntry]):
    """Everything that happened to the tenant's subscriptions, newest first."""

    serializer_class = AuditSerializer
    queryset = AuditEntry.objects.none()
    filter_backends = ()

    def get_queryset(self) -> QuerySet[AuditEntry]:
        if getattr(self, "swagger_fake_view", False):
            return super().get_queryset()
        return AuditEntry.objects.filter(tenant=tenant_of(self.request)).select_related("subscription")

    def get_serializer_context(self) -> dict[str, Any]:
        named = {} if getattr(self, "swagger_fake_view", False) else catalogue()
        return {**super().get_serializer_context(), "catalogue": named}


class AuditOfSubscription(AuditOfTenant):
    """Everything that happened to one subscription, newest first."""

    def get_queryset(self) -> QuerySet[AuditEntry]:
        if getattr(self, "swagger_fake_view", False):
            return super().get_queryset()
        return super().get_queryset().filter(subscription=asked_for(self.request, self.kwargs["number"]))


def asked_for(request: Request, number: str) -> Subscription:
    found: Subscription = generics.get_object_or_404(tenant_of(request).subscriptions.all(), number=number)
    return found


class Instant(serializers.DateTimeField):
    """With its zone: DRF would give one to an instant that has none."""

    def enforce_timezone(self, value: datetime) -> datetime:
        if value.utcoffset() is None:
            raise serializers.ValidationError("An instant has a time zone: 2026-11-22T12:00:00Z.")
        return value


class WhatIfSerializer(serializers.Serializer[Any]):
    """What somebody may do that the forecast is to reckon with."""

    paid_on = Instant(required=False, help_text="One more term is paid then.")
    renewed_until = Instant(required=False, help_text="It is renewed until then, now.")
    cancelled_on = Instant(required=False, help_text="It is cancelled then.")
    at_term_end = serializers.BooleanField(
        required=False, default=False, help_text="With cancelled_on: it ends with its term, not at once."
    )

    def validate(self, asked: dict[str, Any]) -> dict[str, Any]:
        if asked["at_term_end"] and "cancelled_on" not in asked:
            raise serializers.ValidationError({"at_term_end": ["Says how it is cancelled: cancelled_on says when."]})
        return asked

    def what_if(self, now: datetime) -> list[WhatIf]:
        asked = self.validated_data
        told: list[WhatIf] = []
        if paid_on := asked.get("paid_on"):
            told.append(Paid(paid_on))
        if renewed_until := asked.get("renewed_until"):
            told.append(Renewed(now, renewed_until))
        if cancelled_on := asked.get("cancelled_on"):
            told.append(Cancelled(cancelled_on, at_term_end=asked["at_term_end"]))
        return told


class EventSerializer(serializers.Serializer[Any]):
    at = serializers.DateTimeField()
    subscription = serializers.CharField()
    what = serializers.CharField(help_text="An action as the audit names it, or the kind of a notice.")
    why = serializers.CharField()
    source = serializers.ChoiceField(  # type: ignore[assignment]  # a serializer has a source, too
        [*timeline.SOURCES]
    )


class ForecastSerializer(serializers.Serializer[Any]):
    as_of = serializers.DateTimeField()
    events = EventSerializer(many=True, help_text="In their order; what is overdue has passed already.")


class Forecast(views.APIView):
    """What will happen to a subscription, and to its add-ons, if nobody does anything but what is asked for."""

    @extend_schema(parameters=[WhatIfSerializer], responses=ForecastSerializer)
    def get(self, request: Request, number: str) -> Response:
        now = timezone.now()
        asked = WhatIfSerializer(data=request.query_params.dict())  # not a form: what is empty is not left out
        asked.is_valid(raise_exception=True)
        subscription = asked_for(request, number)
        events = timeline.of_subscription(subscription, now=now, what_if=asked.what_if(now))
        return Response(ForecastSerializer({"as_of": now, "events": events}).data)


# --- where the tenant stands -----------------------------------------------------------------------------------------


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
    """What renewals cost per month with the packs beside them, in whole minor units per currency; a year counts a
    twelfth, each position rounded half up.
    """
    totals: dict[str, int] = {}
    renewing = [s for s in live if not s.cancel_at_term_end and not (s.parent and s.parent.cancel_at_term_end)]
    positions: list[tuple[PlanPrice | SlotPack, int]] = [(s.price, s.quantity) for s in renewing if s.price]
    positions += [(held.pack, held.quantity) for s in renewing for held in s.packs.all()]
    for price, quantity in positions:
        per = terms.MONTHS[price.interval] * price.interval_count
        amount = (2 * price.amount_minor * quantity + per) // (2 * per)
        totals[price.currency] = totals.get(price.currency, 0) + amount
    return [{"amount_minor": amount, "currency": currency} for currency, amount in sorted(totals.items())]
