"""What a tenant may use, for itself and for services; and how services use quotas."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

from django.http.response import HttpResponseBase
from django.utils import timezone
from django.utils.cache import get_conditional_response
from django.utils.http import quote_etag
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers, views
from rest_framework.request import Request
from rest_framework.response import Response

from billing_site.api.permissions import tenant_of
from billing_site.api.platform import PlatformView
from entitlements import quotas
from entitlements.features import MOST, Entitlements, entitlements_of
from subscriptions.models import Tenant


class SlotsOfTierSerializer(serializers.Serializer[Any]):
    tier = serializers.CharField(help_text="The tier's code.")
    name = serializers.CharField()
    limit = serializers.IntegerField(help_text="In all subscriptions that serve now.")
    used = serializers.IntegerField()
    available = serializers.IntegerField()


class QuotaSerializer(serializers.Serializer[Any]):
    code = serializers.CharField()
    name = serializers.CharField()
    limit = serializers.IntegerField(help_text="0 where no subscription that serves now grants it.")
    used = serializers.IntegerField()
    available = serializers.IntegerField(help_text="Never negative, also where a gauge stands above its limit.")


class EntitlementsSerializer(serializers.Serializer[Any]):
    """What a tenant may use now. Of the catalogue's features all are named, also those that it does not have."""

    tenant = serializers.CharField(help_text="The tenant's slug.")
    slots = SlotsOfTierSerializer(many=True, help_text="In the tiers' order; only tiers that the tenant holds.")
    features = serializers.DictField(child=serializers.BooleanField(), source="switches", help_text="On, or off.")
    quotas = QuotaSerializer(many=True)
    valid_until = serializers.DateTimeField(
        allow_null=True, help_text="The next instant at which this may change by the clock alone. Other things may "
        "change it sooner.",
    )  # fmt: skip


def summary(tenant: Tenant) -> dict[str, Any]:
    """What the tenant may use now, as the API says it: nothing in it tells when it was read."""
    return said(tenant.slug, entitlements_of(tenant.pk, timezone.now()))


def said(tenant: str, its: Entitlements) -> dict[str, Any]:
    of = {"tenant": tenant, "slots": its.slots, "switches": its.switches, "quotas": its.quotas}
    return dict(EntitlementsSerializer(of | {"valid_until": its.valid_until}).data)


def tagged(request: Request, body: dict[str, Any]) -> HttpResponseBase:
    """The body under a strong ETag that is its own; 304 for whoever has it already (RFC 9110, 13.1.2)."""
    etag = quote_etag(hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:32])
    response = Response(body, headers={"ETag": etag, "Cache-Control": "private, no-cache"})
    return get_conditional_response(request._request, etag=etag, response=response) or response


IF_NONE_MATCH = OpenApiParameter(
    "If-None-Match", str, OpenApiParameter.HEADER, description="ETags of earlier answers: 304 if one is still right."
)
ENTITLEMENTS_SCHEMA = extend_schema(
    parameters=[IF_NONE_MATCH], responses={200: EntitlementsSerializer, (304, "application/json"): None}
)


class OwnEntitlements(views.APIView):
    """What the tenant may use now: slots per tier, features, quotas."""

    @ENTITLEMENTS_SCHEMA
    def get(self, request: Request) -> HttpResponseBase:
        return tagged(request, summary(tenant_of(request)))


class TenantEntitlements(PlatformView):
    """What a tenant may use now: slots per tier, features, quotas."""

    scope = "entitlements:read"

    @ENTITLEMENTS_SCHEMA
    def get(self, request: Request, tenant: str) -> HttpResponseBase:
        return tagged(request, summary(self.tenant(tenant)))


# --- quotas ----------------------------------------------------------------------------------------------------------


class AmountSerializer(serializers.Serializer[Any]):
    amount = serializers.IntegerField(
        min_value=0, max_value=MOST, help_text="How much is consumed or released, at least 1; or, to set, is in use."
    )


class UseSerializer(serializers.Serializer[Any]):
    limit = serializers.IntegerField()
    used = serializers.IntegerField(help_text="Afterwards.")
    available = serializers.IntegerField()
    allowed = serializers.BooleanField(help_text="Whether what is in use is within the limit.")


QUOTA_SCHEMA = extend_schema(
    request=AmountSerializer,
    responses=UseSerializer,
    parameters=[
        OpenApiParameter(
            "Idempotency-Key", str, OpenApiParameter.HEADER,
            description="Up to 255 printable ASCII characters. The same again within a week is answered the same and "
            "does nothing; a refusal keeps no key.",
        )
    ],
)  # fmt: skip


class QuotaView(PlatformView):
    """A use of one quota of a tenant."""

    scope = "quotas:write"

    def done(self, verb: Callable[..., quotas.Use], tenant: str, feature: str) -> Response:
        body = self.request.data
        amount = body.get("amount") if isinstance(body, dict) else None
        key = self.request.headers.get("Idempotency-Key", "")
        use = verb(self.tenant(tenant).pk, feature, amount, now=timezone.now(), key=key)
        return Response(UseSerializer(use).data)


class Consume(QuotaView):
    """Use so much more of a quota. What does not fit is refused whole, with 409 and the numbers."""

    @QUOTA_SCHEMA
    def post(self, request: Request, tenant: str, feature: str) -> Response:
        return self.done(quotas.consume, tenant, feature)


class Release(QuotaView):
    """Use so much less of a quota. More than is in use is refused whole, with 409."""

    @QUOTA_SCHEMA
    def post(self, request: Request, tenant: str, feature: str) -> Response:
        return self.done(quotas.release, tenant, feature)


class SetGauge(QuotaView):
    """Say how much of a quota is in use. It is kept also above the limit, and is not `allowed` then."""

    @QUOTA_SCHEMA
    def post(self, request: Request, tenant: str, feature: str) -> Response:
        return self.done(quotas.set_gauge, tenant, feature)
