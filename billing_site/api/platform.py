"""The platform API: what services ask with an API key, of any tenant, or of the key's own."""

from typing import Any

from django.http import Http404
from rest_framework import views

from billing_site.api.authentication import ApiKeyHeader
from billing_site.api.permissions import HasScope
from billing_site.models import ApiKey
from subscriptions.models import Tenant


class PlatformView(views.APIView):
    """A view for services. `scope` is what the key must have."""

    authentication_classes = (ApiKeyHeader,)
    permission_classes = (HasScope,)
    scope = ""

    def tenant(self, slug: str) -> Tenant:
        """The tenant that the URL names; 404 where there is none, or where the key is another tenant's."""
        key: Any = self.request.auth
        assert isinstance(key, ApiKey), "HasScope comes first"
        of_key = {} if key.tenant_id is None else {"pk": key.tenant_id}
        found = Tenant.objects.filter(slug=slug, **of_key).first()
        if found is None:
            raise Http404
        return found
