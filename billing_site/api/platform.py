"""The platform API: what services ask with an API key, of any tenant, or of the key's own."""

from typing import Any

from django.http import Http404
from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import status, views
from rest_framework.request import Request
from rest_framework.response import Response

from billing_site.api import slots as slots_api
from billing_site.api.authentication import ApiKeyHeader
from billing_site.api.permissions import HasScope
from billing_site.models import ApiKey
from billing_site.provenance import caller_of
from entitlements import slots
from subscriptions.models import Tenant


class PlatformView(views.APIView):
    """A view for services. `scope` is what the key must have."""

    authentication_classes = (ApiKeyHeader,)
    permission_classes = (HasScope,)
    parser_classes = (slots_api.Json,)
    scope = ""

    @property
    def key(self) -> ApiKey:
        key: Any = self.request.auth
        assert isinstance(key, ApiKey), "HasScope comes first"
        return key

    def tenant(self, slug: str) -> Tenant:
        """The tenant that the URL names; 404 where there is none, or where the key is another tenant's."""
        of_key = {} if self.key.tenant_id is None else {"pk": self.key.tenant_id}
        found = Tenant.objects.filter(slug=slug, **of_key).first()
        if found is None:
            raise Http404
        return found


class Devices(PlatformView):
    """Where devices are made: each that is registered here has a slot."""

    scope = "devices:write"

    @slots_api.described
    def post(self, request: Request, tenant: str) -> Response:
        """Register devices, which claims their slots; one, or up to 1,000. Safe to repeat.

        With a key of the whole platform, a device that another tenant has in a slot is refused, `still_assigned`, until
        it is released or deleted there. A key of one tenant is told nothing of others.
        """
        door = slots_api.OF_THE_PLATFORM if self.key.tenant_id is None else slots_api.OF_A_TENANT
        return slots_api.claim(
            self.tenant(tenant), request.data, door=door,
            actor=caller_of(request), now=timezone.now(), source_id=slots_api.source_of(request),
        )  # fmt: skip


class Device(PlatformView):
    scope = "devices:write"

    @extend_schema(responses={204: None})
    def delete(self, request: Request, tenant: str, device_id: str) -> Response:
        """Forget a device, which releases its slot. 204 also where there is no such device: whoever did not hear the
        first answer asks again, and wants to be told the same.
        """
        slots.delete(
            self.tenant(tenant).pk, device_id,
            actor=caller_of(request), now=timezone.now(), source_id=slots_api.source_of(request),
        )  # fmt: skip
        return Response(status=status.HTTP_204_NO_CONTENT)
