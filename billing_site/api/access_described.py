"""The access check, described as the other views are: it is no view of the framework that the schema is made from."""

from typing import Any, NoReturn

from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request

from billing_site.api.platform import PlatformView
from entitlements.access import MOST_QUESTIONS, Reason

FEATURES = {"type": "object", "additionalProperties": {"type": ["boolean", "integer"]}}


@extend_schema_field(FEATURES)
class Features(serializers.DictField):
    """Switches are true or false, quotas are numbers."""


class QuestionSerializer(serializers.Serializer[Any]):
    tenant = serializers.CharField(help_text="Its slug.")
    device_id = serializers.CharField()


class QuestionsSerializer(serializers.Serializer[Any]):
    devices = serializers.ListField(child=QuestionSerializer(), min_length=1, max_length=MOST_QUESTIONS)


class AccessSerializer(QuestionSerializer):
    allowed = serializers.BooleanField()
    reason = serializers.ChoiceField([(reason.value, reason.label) for reason in Reason])
    tier = serializers.CharField(allow_null=True, help_text="Of its slot, or of the one that it waits for.")
    features = Features(help_text="Of its tier; none where it is not served.")
    subscription = serializers.CharField(allow_null=True, help_text="The number of the one whose slot it has.")
    valid_until = serializers.DateTimeField(
        allow_null=True, help_text="The first instant at which this may change though nobody does anything."
    )


class AnswersSerializer(serializers.Serializer[Any]):
    results = AccessSerializer(many=True, help_text="One for each question, in their order.")


class AccessOfDevice(PlatformView):
    scope = "access:read"

    @extend_schema(responses=AccessSerializer)
    def get(self, request: Request, tenant: str, device_id: str) -> NoReturn:
        """Whether a device is served, now. Also that nobody knows it is an answer: 200, and not allowed."""
        raise NotImplementedError


class AccessOfDevices(PlatformView):
    scope = "access:read"

    @extend_schema(request=QuestionsSerializer, responses=AnswersSerializer)
    def post(self, request: Request) -> NoReturn:
        """The same for up to 1,000 devices. The body may also be the bare list."""
        raise NotImplementedError
