"""For gateways that keep a copy: what changed, what a tenant may use as a signed snapshot, and the keys to verify it.

How a copy is kept right with these: docs/edge.md.
"""

from typing import Any, Final

from django.utils import timezone
from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework import serializers, views
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from billing_site.api import signing
from billing_site.api.platform import PlatformView
from entitlements import changes
from entitlements.changes import MOST_CHANGES, Kind
from entitlements.snapshots import snapshot_of

# --- changes ---------------------------------------------------------------------------------------------------------


class ChangeSerializer(serializers.Serializer[Any]):
    kind = serializers.ChoiceField(
        [kind.value for kind in Kind],
        help_text="What to read again. device: that device. subscription: the tenant's entitlements, and the devices "
        "of the subscription and of its add-ons. override: the tenant's entitlements. catalogue: everything.",
    )
    tenant = serializers.CharField(allow_null=True, help_text="Its slug; null: every tenant.")
    device_id = serializers.CharField(allow_null=True)
    subscription = serializers.CharField(allow_null=True, help_text="Its number.")
    action = serializers.CharField(allow_null=True, help_text="What happened to the subscription, as its audit says.")
    feature = serializers.CharField(allow_null=True, help_text="Of which there is an exception, or was.")


class ChangesSerializer(serializers.Serializer[Any]):
    changes = ChangeSerializer(many=True, help_text="Oldest first. What changed twice appears at its later place.")
    cursor = serializers.CharField(help_text="Where to go on. Opaque; it does not age.")
    more = serializers.BooleanField(help_text="Whether there is more by now, even if this page is empty.")


class Asked(serializers.Serializer[Any]):
    after = serializers.CharField(
        required=False,
        max_length=200,
        trim_whitespace=False,
        help_text="The cursor of an earlier answer. Without one: no changes, and the cursor to begin with.",
    )
    limit = serializers.IntegerField(required=False, default=MOST_CHANGES, min_value=1, max_value=MOST_CHANGES)


class Changes(PlatformView):
    """What changed since, in the order of commits, none of them skipped. Take a cursor first, then read what you keep;
    then ask for what changed after it, and read again what is named. 410: read everything anew, after a new cursor.
    """

    scope = "changes:read"

    @extend_schema(parameters=[Asked], responses=ChangesSerializer, operation_id="changes")
    def get(self, request: Request) -> Response:
        asked = Asked(data=request.query_params)
        asked.is_valid(raise_exception=True)
        after, limit = asked.validated_data.get("after"), asked.validated_data["limit"]
        page = changes.changes(after, limit=limit, tenant_id=self.key.tenant_id) if after else changes.beginning()
        return Response(ChangesSerializer(page).data, headers={"Cache-Control": "no-store"})


# --- snapshots -------------------------------------------------------------------------------------------------------


class Jose(JSONRenderer):
    """A token as it is; a problem as JSON."""

    media_type = "application/jose"
    format = "jose"

    def render(self, data: Any, *args: Any, **more: Any) -> bytes:
        return data.encode() if isinstance(data, str) else super().render(data, *args, **more)


class Snapshot(PlatformView):
    """What a tenant may use and which of its devices are served, signed: a compact JWS (EdDSA) that is verified with
    the keys of /.well-known/jwks.json alone. Its claims: docs/edge.md.
    """

    scope = "snapshot:read"
    renderer_classes = (Jose,)

    @extend_schema(
        responses={(200, Jose.media_type): OpenApiResponse(str, "header.payload.signature")}, operation_id="snapshot"
    )
    def get(self, request: Request, tenant: str) -> Response:
        whose, now = self.tenant(tenant), timezone.now()
        token = signing.signed(snapshot_of(whose.pk, now), tenant=whose.slug, now=now)
        return Response(token, content_type=Jose.media_type, headers={"Cache-Control": "no-store"})


# --- keys ------------------------------------------------------------------------------------------------------------

JWKS_TYPE: Final = "application/jwk-set+json"


class JwkSerializer(serializers.Serializer[Any]):
    kty = serializers.ChoiceField(["OKP"])
    crv = serializers.ChoiceField(["Ed25519"])
    use = serializers.ChoiceField(["sig"])
    alg = serializers.ChoiceField(["EdDSA"])
    kid = serializers.CharField(help_text="Its thumbprint (RFC 7638).")
    x = serializers.CharField(help_text="The public key, base64url.")


class JwksSerializer(serializers.Serializer[Any]):
    keys = JwkSerializer(many=True)


class Jwks(views.APIView):
    """The public keys of snapshots (RFC 7517), for everybody; the first one signs now."""

    authentication_classes = ()
    permission_classes = ()

    @extend_schema(responses={(200, JWKS_TYPE): JwksSerializer}, operation_id="jwks", auth=[])
    def get(self, request: Request) -> Response:
        caching = f"public, max-age={signing.PUBLISHED_AHEAD.seconds}"
        return Response(signing.jwks(), content_type=JWKS_TYPE, headers={"Cache-Control": caching})
