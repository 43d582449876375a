"""Devices and tiers in the customer API. A device id that the tenant does not have is 404, whoever else may have it.

What a call here does is done once however often it is sent: an `Idempotency-Key` is taken, and nothing depends on it.
"""

from typing import Any

import django_filters
from django.db.models import F, FilteredRelation, Q, QuerySet
from django.utils import timezone
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_field
from rest_framework import generics, serializers, status, views
from rest_framework.request import Request
from rest_framework.response import Response

from billing_site.api import slots as over_http
from billing_site.api.customer import Instant, PriceSerializer, asked_for
from billing_site.api.permissions import tenant_of
from billing_site.api.slots import CODE, Json, Strict, Text, source_of
from billing_site.provenance import caller_of
from entitlements import room, slots
from entitlements.access import Reason, access
from entitlements.errors import DeviceNotFound
from entitlements.explain import Step, explain
from entitlements.models import Device, DeviceTier, Feature, SlotAssignment
from subscriptions.models import Tenant

SAFE = OpenApiParameter(
    "Idempotency-Key",
    str,
    OpenApiParameter.HEADER,
    description="Taken, and not needed: to send this again does nothing more, and is answered with how things stand.",
)


FEATURES = {"type": "object", "additionalProperties": {"type": ["boolean", "integer"]}}


class State:
    """Where a device is: in a slot, waiting for the one that it lost, or neither."""

    ASSIGNED, PARKED, UNASSIGNED = ALL = ("assigned", "parked", "unassigned")


# --- how a device reads ----------------------------------------------------------------------------------------------


class DeviceSerializer(serializers.Serializer[Any]):
    device_id = serializers.CharField()
    state = serializers.ChoiceField(State.ALL)
    tier = serializers.CharField(allow_null=True, help_text="Of its slot, or of the slot that it waits for.")
    subscription = serializers.CharField(allow_null=True, help_text="The number of the one whose slot it is.")
    assigned_at = serializers.DateTimeField(allow_null=True)
    parked_at = serializers.DateTimeField(allow_null=True, help_text="Since when it waits for a slot that it lost.")
    registered_at = serializers.DateTimeField()


class RegisteredSerializer(DeviceSerializer):
    """Of one of `devices_of`."""

    def to_representation(self, device: Any) -> dict[str, Any]:
        where = State.ASSIGNED if device.slot_tier else State.PARKED if device.parked_at else State.UNASSIGNED
        read = {
            "device_id": device.device_id,
            "state": where,
            "tier": device.slot_tier or device.waits_for,
            "subscription": device.slot_subscription,
            "assigned_at": device.slot_since,
            "parked_at": device.parked_at,
            "registered_at": device.created_at,
        }
        return super().to_representation(read)

    class Meta:
        ref_name = "Device"


class InSlotSerializer(DeviceSerializer):
    """Of an open assignment."""

    def to_representation(self, assignment: SlotAssignment) -> dict[str, Any]:
        read = {
            "device_id": assignment.device.device_id,
            "state": State.ASSIGNED,
            "tier": assignment.tier.code,
            "subscription": assignment.allocation.subscription.number,
            "assigned_at": assignment.assigned_at,
            "parked_at": None,
            "registered_at": assignment.device.created_at,
        }
        return super().to_representation(read)


def devices_of(tenant: Tenant) -> QuerySet[Device]:
    """Its registered devices, each with its slot. One query."""
    return tenant.devices.filter(deleted_at=None).annotate(
        slot=FilteredRelation("assignments", condition=Q(assignments__released_at=None)),
        slot_tier=F("slot__tier__code"),
        slot_subscription=F("slot__allocation__subscription__number"),
        slot_since=F("slot__assigned_at"),
        waits_for=F("parked_tier__code"),
    )


def device_of(tenant: Tenant, device_id: str) -> Device:
    """Raises DeviceNotFound."""
    device = devices_of(tenant).filter(device_id=known(device_id)).first()
    if device is None:
        raise DeviceNotFound
    return device


def known(device_id: str) -> str:
    """An id that may be one: the database is not asked for others. Raises DeviceNotFound."""
    if not slots.DEVICE_ID.fullmatch(device_id):
        raise DeviceNotFound
    return device_id


# --- the list --------------------------------------------------------------------------------------------------------


class DeviceFilter(django_filters.FilterSet):
    tier = django_filters.CharFilter(validators=[CODE], method="of_tier", label="The code of a tier.")
    state = django_filters.ChoiceFilter(choices=[(state, state) for state in State.ALL], method="in_state")
    search = django_filters.CharFilter("device_id", "startswith", max_length=128, label="How a device id begins.")

    class Meta:
        model = Device
        fields = ("tier", "state", "search")

    def of_tier(self, queryset: QuerySet[Device], name: str, code: str) -> QuerySet[Device]:
        return queryset.filter(Q(slot__tier__code=code) | Q(parked_tier__code=code))

    def in_state(self, queryset: QuerySet[Device], name: str, state: str) -> QuerySet[Device]:
        if state == State.PARKED:
            return queryset.filter(parked_at__isnull=False)
        if state == State.ASSIGNED:
            return queryset.filter(Q(slot__isnull=False))
        return queryset.filter(Q(slot__isnull=True), parked_at__isnull=True)


class DeviceList(generics.ListAPIView[Device]):
    """The tenant's devices, the last registered first."""

    serializer_class = RegisteredSerializer
    filterset_class = DeviceFilter
    parser_classes = (Json,)
    queryset = Device.objects.none()  # for the schema; the tenant's own come below

    def get_queryset(self) -> QuerySet[Device]:
        if getattr(self, "swagger_fake_view", False):
            return super().get_queryset()
        return devices_of(tenant_of(self.request))

    @extend_schema(parameters=[SAFE])
    @over_http.described
    def post(self, request: Request) -> Response:
        """Register devices, one or up to 1,000, each with a slot. One that has such a slot keeps it."""
        now, actor = timezone.now(), caller_of(request)
        return over_http.claim(tenant_of(request), request.data, actor=actor, now=now, source_id=source_of(request))


class DevicesOfSubscription(generics.ListAPIView[SlotAssignment]):
    """The devices in the slots of one subscription, the last assigned first."""

    serializer_class = InSlotSerializer
    queryset = SlotAssignment.objects.none()
    filter_backends = ()

    def get_queryset(self) -> QuerySet[SlotAssignment]:
        if getattr(self, "swagger_fake_view", False):
            return super().get_queryset()
        subscription = asked_for(self.request, self.kwargs["number"])
        # By their keys: with one allocation, and most have one, its index has the order of the pages.
        allocations = [*subscription.allocations.filter(is_open=True).values_list("pk", flat=True)]
        in_slots = SlotAssignment.objects.filter(allocation__in=allocations, released_at=None)
        return in_slots.select_related("device", "tier", "allocation__subscription")


# --- one device ------------------------------------------------------------------------------------------------------


class DeviceDetail(views.APIView):
    """One of the tenant's devices."""

    @extend_schema(responses=RegisteredSerializer)
    def get(self, request: Request, device_id: str) -> Response:
        """Where it is."""
        return Response(RegisteredSerializer(device_of(tenant_of(request), device_id)).data)

    @extend_schema(parameters=[SAFE], responses={204: None})
    def delete(self, request: Request, device_id: str) -> Response:
        """Forget it, and release its slot. It can be registered again."""
        was_there = slots.delete(
            tenant_of(request).pk, known(device_id),
            actor=caller_of(request), now=timezone.now(), source_id=source_of(request),
        )  # fmt: skip
        if not was_there:
            raise DeviceNotFound
        return Response(status=status.HTTP_204_NO_CONTENT)


class TierWishSerializer(Strict):
    tier = Text(validators=[CODE], help_text="The code of a device tier.")
    subscription = Text(
        required=False, validators=[CODE], help_text="The number of the subscription whose slot it shall be."
    )


class TierOfDevice(views.APIView):
    """The slot of one of the tenant's devices."""

    parser_classes = (Json,)

    @extend_schema(parameters=[SAFE], request=TierWishSerializer, responses=RegisteredSerializer)
    def put(self, request: Request, device_id: str) -> Response:
        """Give it a slot of this tier, whatever it had; of this subscription, if one is named. Where there is no room
        it keeps what it had.
        """
        asked = TierWishSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        tenant = tenant_of(request)
        only = over_http.subscription_id(tenant, asked.validated_data.get("subscription"))
        slots.change_tier(
            tenant.pk, known(device_id), asked.validated_data["tier"], subscription_id=only,
            actor=caller_of(request), now=timezone.now(), source_id=source_of(request),
        )  # fmt: skip
        return Response(RegisteredSerializer(device_of(tenant, device_id)).data)

    @extend_schema(parameters=[SAFE], responses={204: None})
    def delete(self, request: Request, device_id: str) -> Response:
        """Take its slot away, or its place among those that wait for one. It stays registered."""
        slots.release(
            tenant_of(request).pk, known(device_id),
            actor=caller_of(request), now=timezone.now(), source_id=source_of(request),
        )  # fmt: skip
        return Response(status=status.HTTP_204_NO_CONTENT)


# --- why -------------------------------------------------------------------------------------------------------------


@extend_schema_field(FEATURES)
class FeaturesField(serializers.JSONField):
    """Code → whether, or how much."""


NOT_TOLD = (Reason.WRONG_TENANT, Reason.UNKNOWN_TENANT)  # a tenant asks for its own devices
UNKNOWN = (Reason.UNKNOWN_DEVICE, *NOT_TOLD)


class OwnAccessSerializer(serializers.Serializer[Any]):
    device_id = serializers.CharField()
    allowed = serializers.BooleanField()
    reason = serializers.ChoiceField([reason.value for reason in Reason if reason not in UNKNOWN])
    tier = serializers.CharField(allow_null=True)
    subscription = serializers.CharField(allow_null=True)
    features = FeaturesField(help_text="Of its tier: a switch is true or false, a quota a number. None where denied.")
    valid_until = serializers.DateTimeField(
        allow_null=True, help_text="When this may change though nobody does anything."
    )


class AccessOfDevice(views.APIView):
    """Whether one of the tenant's devices may be served now."""

    @extend_schema(responses=OwnAccessSerializer)
    def get(self, request: Request, device_id: str) -> Response:
        """The same answer as the platform gets."""
        found = access(tenant_of(request).slug, device_id, timezone.now())
        if found.reason in UNKNOWN:
            raise DeviceNotFound
        told = {"device_id": device_id, "allowed": found.allowed} | {
            name: getattr(found, name) for name in ("reason", "tier", "subscription", "features", "valid_until")
        }
        return Response(OwnAccessSerializer(told).data)


class AskedSerializer(serializers.Serializer[Any]):
    at = Instant(required=False, help_text="An instant that is not yet to come. Left out: now.")


class FactSerializer(serializers.Serializer[Any]):
    at = serializers.DateTimeField()
    what = serializers.CharField(help_text="assigned, released, moved, parked, deleted; or an action of the audit.")
    by = serializers.ChoiceField(["staff", "member", "apikey", "stripe", "clock"])
    subscription = serializers.CharField()
    tier = serializers.CharField(help_text="Of the slot, where it is about one.")


class HelpSerializer(serializers.Serializer[Any]):
    step = serializers.ChoiceField([step.value for step in Step], source="step.value")
    subscription = serializers.CharField(help_text="The one that is renewed, waited for, or has a free slot.")
    plan = serializers.CharField(help_text="What is bought.")
    price = PriceSerializer(allow_null=True)
    at = serializers.DateTimeField(allow_null=True, help_text="Until when one waits.")


class ExplanationSerializer(serializers.Serializer[Any]):
    device_id = serializers.CharField()
    at = serializers.DateTimeField()
    served = serializers.BooleanField()
    reason = serializers.ChoiceField([reason.value for reason in Reason if reason not in NOT_TOLD])
    tier = serializers.CharField(help_text="Of its slot, or of the slot that it waited for.")
    subscription = serializers.CharField(help_text="Whose slot it had, or had lost.")
    facts = FactSerializer(many=True, help_text="What had happened by then, in its order; of much, the latest.")
    would_help = HelpSerializer(many=True, help_text="What would have it served now, the cheapest first.")


class Explain(views.APIView):
    """Why one of the tenant's devices was served at an instant, or was not."""

    @extend_schema(parameters=[AskedSerializer], responses=ExplanationSerializer)
    def get(self, request: Request, device_id: str) -> Response:
        """From history, a deleted device's too; and what would have it served now."""
        now = timezone.now()
        asked = AskedSerializer(data=request.query_params.dict())  # not a form: what is empty is not left out
        asked.is_valid(raise_exception=True)
        at = asked.validated_data.get("at", now)
        found = explain(tenant_of(request).pk, known(device_id), at, now=now)
        return Response(ExplanationSerializer(found).data)


# --- tiers -----------------------------------------------------------------------------------------------------------


class DeviceTierSerializer(serializers.ModelSerializer[DeviceTier]):
    features = serializers.SerializerMethodField(help_text="A switch is true or false, a quota a number per device.")
    limit = serializers.SerializerMethodField(help_text="The tenant's slots that serve now.")
    used = serializers.SerializerMethodField()
    available = serializers.SerializerMethodField()

    class Meta:
        model = DeviceTier
        fields = ("code", "name", "is_default", "features", "limit", "used", "available")

    @extend_schema_field(FEATURES)
    def get_features(self, tier: DeviceTier) -> dict[str, bool | int]:
        return {
            row.feature.code: bool(row.amount) if row.feature.kind == Feature.Kind.SWITCH else row.amount
            for row in tier.features.all()
        }

    def get_limit(self, tier: DeviceTier) -> int:
        return self._slots(tier)[0]

    def get_used(self, tier: DeviceTier) -> int:
        return self._slots(tier)[1]

    def get_available(self, tier: DeviceTier) -> int:
        limit, used = self._slots(tier)
        return limit - used

    def _slots(self, tier: DeviceTier) -> tuple[int, int]:
        found: tuple[int, int] = self.context["slots"].get(tier.pk, (0, 0))
        return found


class DeviceTiersSerializer(serializers.Serializer[Any]):
    results = DeviceTierSerializer(many=True, help_text="All of them: there are few.")


class DeviceTierList(views.APIView):
    """The classes of device service, and the slots that the tenant has of each."""

    @extend_schema(responses=DeviceTiersSerializer)
    def get(self, request: Request) -> Response:
        tiers = DeviceTier.objects.prefetch_related("features__feature")
        context = {"slots": room.by_tier(tenant_of(request).pk, timezone.now())}
        return Response(DeviceTiersSerializer({"results": tiers}, context=context).data)
