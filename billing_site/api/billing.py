"""Buying: what there is to buy, and the pages of Stripe's where it is paid. Only who answers for the money may."""

from collections.abc import Iterable
from typing import Any

from django.conf import settings
from django.db.models import Prefetch
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers, views
from rest_framework.request import Request
from rest_framework.response import Response

from billing_site.api.customer import PriceSerializer
from billing_site.api.permissions import IsOwner, tenant_of
from billing_site.api.slots import CODE, Json, Strict, Text, Whole
from billing_site.provenance import caller_of
from entitlements.models import PlanFeature, PlanSlots, SlotPack
from subscriptions.models import Plan, PlanPrice
from subscriptions.states import Type
from webhooks.buying import checkout, offers
from webhooks.buying.checkout import Ways
from webhooks.buying.return_urls import LONGEST, SESSION_ID, checked

MOST_UNITS = 10_000  # that a customer buys of a plan or a pack; staff may sell more
MOST_PACKS = 19  # beside the plan: Stripe takes twenty lines


# --- what there is to buy ---------------------------------------------------------------------------------------------


class ConfigSerializer(serializers.Serializer[Any]):
    stripe_configured = serializers.BooleanField(help_text="Whether anything can be bought here.")
    publishable_key = serializers.CharField(
        allow_blank=True, help_text="For Stripe's code in a browser. Empty: there is none."
    )


class SlotsSoldSerializer(serializers.ModelSerializer[PlanSlots]):
    tier = serializers.CharField(source="tier.code")

    class Meta:
        model = PlanSlots
        fields = ("tier", "slots")


class FeatureGivenSerializer(serializers.ModelSerializer[PlanFeature]):
    code = serializers.CharField(source="feature.code")
    kind = serializers.CharField(source="feature.kind")

    class Meta:
        model = PlanFeature
        fields = ("code", "kind", "amount")


class PlanSerializer(serializers.ModelSerializer[Plan]):
    prices = PriceSerializer(many=True)
    slots = SlotsSoldSerializer(many=True, help_text="Per unit of the plan.")
    features = FeatureGivenSerializer(many=True)
    trial_days = serializers.SerializerMethodField(help_text="With which a purchase would begin now. Null: none.")

    class Meta:
        model = Plan
        fields = ("code", "name", "type", "prices", "slots", "features", "trial_days")

    @extend_schema_field(serializers.IntegerField(allow_null=True))
    def get_trial_days(self, plan: Plan) -> int | None:
        return plan.trial_days if self.context["may_have_trial"] and plan.type != Type.ADDON else None


class SlotPackSerializer(serializers.ModelSerializer[SlotPack]):
    tier = serializers.CharField(source="tier.code")
    price = PriceSerializer(source="*")

    class Meta:
        model = SlotPack
        fields = ("code", "name", "tier", "slots", "price")


class PlansSerializer(serializers.Serializer[Any]):
    plans = PlanSerializer(many=True)
    slot_packs = SlotPackSerializer(many=True, help_text="Beside a plan of the same interval and currency.")


class Config(views.APIView):
    """Whether anything can be bought here, and the key that a browser needs for it."""

    @extend_schema(responses=ConfigSerializer)
    def get(self, request: Request) -> Response:
        answer = {
            "stripe_configured": bool(settings.STRIPE_SECRET_KEY),
            "publishable_key": settings.STRIPE_PUBLISHABLE_KEY,
        }
        return Response(ConfigSerializer(answer).data)


class Plans(views.APIView):
    """What can be bought, with prices: plans by name, and slot packs."""

    @extend_schema(responses=PlansSerializer)
    def get(self, request: Request) -> Response:
        context = {"may_have_trial": checkout.may_have_trial(tenant_of(request))}
        packs = SlotPack.objects.filter(is_sold=True).select_related("tier").order_by("name", "pk")
        return Response(PlansSerializer({"plans": plans_sold(), "slot_packs": packs}, context=context).data)


def plans_sold() -> Iterable[Plan]:
    """Five queries, however many there are."""
    prices = PlanPrice.objects.order_by("currency", "interval", "interval_count")
    slots = PlanSlots.objects.select_related("tier").order_by("tier__code")
    features = PlanFeature.objects.select_related("feature").order_by("feature__code")
    return (
        Plan.objects.filter(is_sold=True, type__in=sorted(offers.BY_ITSELF | offers.BESIDE_A_MAIN))
        .filter(prices__isnull=False)
        .distinct()
        .order_by("name", "pk")
        .prefetch_related(Prefetch("prices", prices), Prefetch("slots", slots), Prefetch("features", features))
    )


# --- what is asked ----------------------------------------------------------------------------------------------------


class Units(Whole):
    def __init__(self, *, min_value: int = 1, **more: Any) -> None:
        super().__init__(min_value=min_value, max_value=MOST_UNITS, **more)


class Packs(serializers.DictField):
    child = Units()

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, dict) and len(data) > MOST_PACKS:
            raise serializers.ValidationError(f"Up to {MOST_PACKS} slot packs are bought at once.")
        found = super().to_internal_value(data)
        for code in found:
            CODE(code)
        return found


class WaysSerializer(Strict):
    success_url = Text(
        required=False, max_length=LONGEST, help_text=f"Where to go once it is bought; may contain {SESSION_ID}."
    )
    cancel_url = Text(required=False, max_length=LONGEST, help_text="Where to go without having bought.")

    def ways(self, request: HttpRequest | Request) -> Ways:
        """Raises UrlNotAllowed."""
        asked = self.validated_data
        return Ways(
            back=way_back(request),
            success_url=checked(asked["success_url"], name="success_url") if "success_url" in asked else "",
            cancel_url=way_home(request, asked.get("cancel_url"), name="cancel_url"),
        )


class OrderSerializer(WaysSerializer):
    plan = Text(validators=[CODE], help_text="Its code.")
    interval = serializers.ChoiceField(PlanPrice.Interval.choices)
    interval_count = Units(required=False, help_text="Where the plan is sold at several.")
    currency = Text(required=False, max_length=3, help_text="Where the plan is sold in several: EUR.")
    quantity = Units(required=False, default=1)
    packs = Packs(required=False, default=dict, help_text="Slot packs beside it: code → units.")

    def order(self) -> offers.Order:
        asked = self.validated_data
        wanted = ("plan", "interval", "interval_count", "currency", "quantity", "packs")
        return offers.Order(**{name: asked[name] for name in wanted if name in asked})


class AddonOrderSerializer(OrderSerializer):
    parent_subscription = Text(validators=[CODE], help_text="The number of the main subscription.")
    interval = serializers.ChoiceField(PlanPrice.Interval.choices, required=False)


class PortalSerializer(Strict):
    return_url = Text(required=False, max_length=LONGEST)


def way_home(request: HttpRequest | Request, asked: str | None, *, name: str) -> str:
    """The address that was asked for, or our first page. Raises UrlNotAllowed."""
    return request.build_absolute_uri(reverse("home")) if asked is None else checked(asked, name=name)


def way_back(request: HttpRequest | Request) -> str:
    """Our page that applies what was bought."""
    return f"{request.build_absolute_uri(reverse('billing_return'))}?session_id={SESSION_ID}"


# --- where it is paid -------------------------------------------------------------------------------------------------


class PageSerializer(serializers.Serializer[Any]):
    url = serializers.URLField(help_text="A page of Stripe's.")


class AddonPageSerializer(PageSerializer):
    co_terminate_at = serializers.DateTimeField(help_text="When the add-on ends: with its main subscription.")


class BuyingView(views.APIView):
    permission_classes = (IsOwner,)
    parser_classes = (Json,)


class CheckoutSession(BuyingView):
    """Buy a plan: where it is paid. One checkout is open at a time: asking again answers the same page, asking for
    something else ends the page before.
    """

    @extend_schema(request=OrderSerializer, responses=PageSerializer)
    def post(self, request: Request) -> Response:
        asked = OrderSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        url = checkout.buy(
            tenant_of(request), asked.order(), asked.ways(request), actor=caller_of(request), now=timezone.now
        )
        return Response(PageSerializer({"url": url}).data)


class AddonCheckout(BuyingView):
    """Buy an add-on, which ends with its main subscription: where it is paid."""

    @extend_schema(request=AddonOrderSerializer, responses=AddonPageSerializer)
    def post(self, request: Request) -> Response:
        asked = AddonOrderSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        url, ends_at = checkout.buy_addon(
            tenant_of(request), asked.validated_data["parent_subscription"], asked.order(), asked.ways(request),
            actor=caller_of(request), now=timezone.now,
        )  # fmt: skip
        return Response(AddonPageSerializer({"url": url, "co_terminate_at": ends_at}).data)


class PortalSession(BuyingView):
    """Where cards, invoices and subscriptions are looked after."""

    @extend_schema(request=PortalSerializer, responses=PageSerializer)
    def post(self, request: Request) -> Response:
        asked = PortalSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        back = way_home(request, asked.validated_data.get("return_url"), name="return_url")
        return Response(PageSerializer({"url": checkout.portal(tenant_of(request), back)}).data)


class RenewSubscription(BuyingView):
    """Renew a subscription: where that is paid. What renews by itself needs nothing."""

    @extend_schema(request=WaysSerializer, responses=PageSerializer)
    def post(self, request: Request, number: str) -> Response:
        asked = WaysSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        url = checkout.renew(
            tenant_of(request), number, asked.ways(request), actor=caller_of(request), now=timezone.now
        )
        return Response(PageSerializer({"url": url}).data)
