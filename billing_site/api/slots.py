"""Slots over HTTP, the same for customers and for the platform: how they are asked for, and how the answer reads."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from typing import Any, Final

from django.core.validators import RegexValidator
from django.http import HttpRequest
from drf_spectacular.utils import PolymorphicProxySerializer, extend_schema
from rest_framework import serializers, status
from rest_framework.exceptions import ParseError
from rest_framework.parsers import JSONParser
from rest_framework.request import Request
from rest_framework.response import Response

from entitlements import bulk, provisioning, slots
from entitlements.bulk import MOST_DEVICES, Outcome, Wish
from entitlements.errors import TooMany
from subscriptions.audit import Actor
from subscriptions.errors import DomainError, SubscriptionNotFound
from subscriptions.models import Subscription, Tenant

LARGEST_BODY: Final = 1024 * 1024  # bytes; 1,000 devices under the longest ids are a fifth of it
ALL_OR_NOTHING, PER_ITEM = MODES = ("all_or_nothing", "per_item")
CODE = RegexValidator(r"^[-a-zA-Z0-9_]{0,63}\Z", "Letters, digits, - and _.")
SOURCE = re.compile(r"[\x21-\x7e]{1,255}")


# --- what is asked ---------------------------------------------------------------------------------------------------


class Json(JSONParser):
    """A body of a bounded size. DRF's own reads whatever comes, and one that is nested too deeply ends in a 500."""

    def parse(self, stream: Any, media_type: Any = None, parser_context: Any = None) -> Any:
        body = stream.read(LARGEST_BODY + 1)
        if len(body) > LARGEST_BODY:
            raise TooMany("The body is too large.", limit_bytes=LARGEST_BODY)
        try:
            return super().parse(BytesIO(body), media_type, parser_context)
        except RecursionError:
            raise ParseError("The body is nested too deeply.") from None


class Text(serializers.CharField):
    """A string as it was sent: DRF's own would take a number, and cut spaces off."""

    def __init__(self, **more: Any) -> None:
        super().__init__(trim_whitespace=False, **more)

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            raise serializers.ValidationError("This is not a string.", code="invalid")
        return data


class Whole(serializers.IntegerField):
    """A whole number as JSON has it: DRF's own would take a string, too."""

    def to_internal_value(self, data: Any) -> int:
        if type(data) is not int:  # True is an int, too
            raise serializers.ValidationError("This is not a whole number.", code="invalid")
        return int(super().to_internal_value(data))


class Strict(serializers.Serializer[Any]):
    """An object that has no member which is not known here: a misspelt tier must not become the default one."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, dict) and (unknown := sorted(map(str, data.keys() - self.fields.keys()))):
            raise serializers.ValidationError({name: ["There is no such member here."] for name in unknown})
        return super().to_internal_value(data)


class WishSerializer(Strict):
    device_id = Text(allow_blank=True)  # whether it is one, the verb says
    tier = Text(
        required=False, default="", allow_blank=True, validators=[CODE],
        help_text="The code of a device tier. Left out: the default one.",
    )  # fmt: skip


class OneDeviceSerializer(WishSerializer):
    subscription = Text(
        required=False, validators=[CODE], help_text="The number of the subscription whose slot it shall be."
    )


class ManyDevicesSerializer(Strict):
    devices = serializers.ListField(
        child=WishSerializer(), allow_empty=False, max_length=MOST_DEVICES, help_text="Of one named twice, the first."
    )
    mode = serializers.ChoiceField(
        MODES, required=False, default=ALL_OR_NOTHING, help_text="per_item: whoever can gets one."
    )
    subscription = Text(required=False, validators=[CODE])


@dataclass(frozen=True)
class Order:
    """What a body asks for: slots for these devices."""

    wishes: list[Wish]
    is_one: bool
    all_or_nothing: bool
    subscription: str | None  # its number


def order(body: Any) -> Order:
    """Raises ValidationError, TooMany."""
    is_many = isinstance(body, dict) and "devices" in body
    if is_many and isinstance(body["devices"], list) and len(body["devices"]) > MOST_DEVICES:
        raise TooMany(f"{len(body['devices'])} devices, where up to {MOST_DEVICES} are taken.", limit=MOST_DEVICES)
    asked = ManyDevicesSerializer(data=body) if is_many else OneDeviceSerializer(data=body)
    asked.is_valid(raise_exception=True)
    found: dict[str, Any] = asked.validated_data
    wishes = [Wish(wish["device_id"], wish["tier"]) for wish in found.get("devices", [found])]
    return Order(wishes, not is_many, found.get("mode", ALL_OR_NOTHING) == ALL_OR_NOTHING, found.get("subscription"))


def source_of(request: Request | HttpRequest) -> str:
    """What an assignment says caused it: the caller's Idempotency-Key, or the request's id. Slots need no more of that
    key: to ask for one again is safe.
    """
    key: str = request.headers.get("Idempotency-Key", "")
    return key if SOURCE.fullmatch(key) else getattr(request, "request_id", "")


# --- what is answered ------------------------------------------------------------------------------------------------


class SlotSerializer(serializers.Serializer[slots.Slot]):
    device_id = serializers.CharField()
    tier = serializers.CharField()
    subscription = serializers.CharField(help_text="The number of the subscription whose slot it is.")
    assigned_at = serializers.DateTimeField()
    is_new = serializers.BooleanField(help_text="False: it had this slot already.")


class ReasonSerializer(serializers.Serializer[DomainError]):
    """Why there is none: what a problem would say, and its numbers."""

    code = serializers.CharField()
    detail = serializers.CharField()

    def to_representation(self, error: DomainError) -> dict[str, Any]:
        return {"code": error.code, "detail": error.detail, **error.facts}


class OutcomeSerializer(serializers.Serializer[Outcome]):
    device_id = serializers.CharField()
    slot = SlotSerializer(allow_null=True)
    error = ReasonSerializer(allow_null=True)


class OutcomesSerializer(serializers.Serializer[Any]):
    results = OutcomeSerializer(many=True, help_text="One for each device that was named, in their order.")


_ANSWER = PolymorphicProxySerializer(
    component_name="SlotsGiven", serializers=[SlotSerializer, OutcomesSerializer], resource_type_field_name=None
)
described = extend_schema(
    request=PolymorphicProxySerializer(
        component_name="SlotsWanted",
        serializers=[OneDeviceSerializer, ManyDevicesSerializer],
        resource_type_field_name=None,
    ),
    responses={201: _ANSWER, 200: _ANSWER},
)


@dataclass(frozen=True)
class Door:
    """The verbs that give one device a slot, and many."""

    one: Callable[..., slots.Slot]
    many: Callable[..., list[Outcome]]


# A tenant's device ids are its own: whoever speaks for one tenant is not told what another one has.
OF_A_TENANT = Door(slots.assign, bulk.assign_many)
OF_THE_PLATFORM = Door(provisioning.claim, provisioning.claim_many)


def claim(
    tenant: Tenant, body: Any, *, door: Door = OF_A_TENANT, actor: Actor, now: datetime, source_id: str
) -> Response:
    """Give the devices that a body names slots. 201 where one is new, 200 where all had theirs; 200 with an outcome
    each where they were asked for per item. Safe to repeat.

    Raises ValidationError, SubscriptionNotFound, and what the door's verbs raise.
    """
    asked = order(body)
    only = subscription_id(tenant, asked.subscription)
    if asked.is_one:
        (wish,) = asked.wishes
        slot = door.one(
            tenant.pk, wish.device_id, wish.tier, subscription_id=only, actor=actor, now=now, source_id=source_id
        )
        return Response(SlotSerializer(slot).data, status.HTTP_201_CREATED if slot.is_new else status.HTTP_200_OK)
    outcomes = door.many(
        tenant.pk, asked.wishes, all_or_nothing=asked.all_or_nothing, subscription_id=only,
        actor=actor, now=now, source_id=source_id,
    )  # fmt: skip
    is_new = asked.all_or_nothing and any(outcome.slot and outcome.slot.is_new for outcome in outcomes)
    answer = OutcomesSerializer({"results": outcomes}).data
    return Response(answer, status.HTTP_201_CREATED if is_new else status.HTTP_200_OK)


def subscription_id(tenant: Tenant, number: str | None) -> int | None:
    """The tenant's subscription of this number. Raises SubscriptionNotFound."""
    if number is None:
        return None
    found: int | None = Subscription.objects.filter(tenant=tenant, number=number).values_list("pk", flat=True).first()
    if found is None:
        raise SubscriptionNotFound
    return found
