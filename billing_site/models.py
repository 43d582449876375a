"""Keys for the platform's own services."""

from typing import ClassVar

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from subscriptions.models import Tenant


class ApiKey(models.Model):
    """A key of a service or of a tenant. Only its hash is kept."""

    prefix = models.CharField(max_length=16, unique=True, help_text="The part that may be shown and searched for.")
    sha256 = models.CharField(max_length=64, help_text="Hex digest of the whole key.")
    name = models.CharField(max_length=200, help_text="Who holds it: ingest gateway, eu-west.")
    tenant = models.ForeignKey(
        Tenant, null=True, blank=True, on_delete=models.CASCADE, related_name="api_keys",
        help_text="Whose devices it is for. Empty: every tenant's.",
    )  # fmt: skip
    scopes = models.JSONField(default=list)
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    expires_at = models.DateTimeField(null=True, blank=True, help_text="Then it opens nothing any more. Empty: never.")
    revoked_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        db_table = "api_keys"
        verbose_name = "API key"
        constraints: ClassVar = [
            models.UniqueConstraint(name="one_key_per_hash", fields=["sha256"]),
            models.CheckConstraint(name="a_key_is_kept_as_its_hash", condition=Q(sha256__regex="^[0-9a-f]{64}$")),
        ]

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"
