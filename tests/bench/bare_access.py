"""What the access check is measured beside: a bare view with the same prepared statement, and DRF with the ORM."""

import json
from hashlib import sha256
from typing import Any

import psycopg
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from rest_framework import serializers
from rest_framework.exceptions import PermissionDenied
from rest_framework.generics import get_object_or_404
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from billing_site.api.access import _ONE
from billing_site.api.authentication import ApiKeyHeader
from entitlements.models import Feature, SlotAssignment, TierFeature
from subscriptions import serving


def floor(request: HttpRequest, tenant: str, device_id: str) -> HttpResponse:
    """One statement, its row as JSON."""
    secret = request.META["HTTP_AUTHORIZATION"][7:]
    asked: dict[str, Any] = {"tenant": tenant, "device": device_id, "now": timezone.now(), **serving.windows()}
    asked["sha256"] = sha256(secret.encode()).hexdigest()
    connection.ensure_connection()
    with psycopg.Cursor(connection.connection) as cursor:
        row = cursor.execute(_ONE, asked, prepare=True).fetchone()
    body = json.dumps(row, default=str).encode()
    return HttpResponse(body, content_type="application/json", headers={"Content-Length": str(len(body))})


class Served(serializers.Serializer[Any]):
    tenant = serializers.CharField(source="tenant.slug")
    device_id = serializers.CharField(source="device.device_id")
    allowed = serializers.BooleanField()
    tier = serializers.CharField(source="tier.code")
    features = serializers.DictField()
    subscription = serializers.CharField(source="allocation.subscription.number")
    valid_until = serializers.DateTimeField()


class WithTheOrm(APIView):
    """As the framework's tutorial would have it, with as few queries as that takes: the key, the slot, the features."""

    authentication_classes = (ApiKeyHeader,)
    permission_classes = ()

    def get(self, request: Request, tenant: str, device_id: str) -> Response:
        key: Any = request.auth
        if "access:read" not in key.scopes:
            raise PermissionDenied
        slots = SlotAssignment.objects.select_related(
            "tenant", "device", "tier", "allocation__subscription__plan", "allocation__subscription__parent"
        )
        slot: Any = get_object_or_404(slots, tenant__slug=tenant, device__device_id=device_id, released_at=None)
        slot.allowed = serving.serves(slot.allocation.subscription, timezone.now())
        slot.valid_until = serving.serves_until(slot.allocation.subscription)
        slot.features = {
            has.feature.code: has.amount > 0 if has.feature.kind == Feature.Kind.SWITCH else has.amount
            for has in TierFeature.objects.filter(tier=slot.tier_id).select_related("feature")
        }
        return Response(Served(slot).data)
