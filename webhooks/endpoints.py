"""Signing secrets of the endpoints that staff registered through dj-stripe's admin, kept for a minute per process."""

from uuid import UUID

from django.conf import settings
from djstripe.models import WebhookEndpoint

REMEMBERED_SECONDS = 60.0

_known: dict[UUID, tuple[float, str]] = {}


class UnknownEndpoint(Exception):
    """No endpoint of this mode is enabled under this UUID."""


def secrets(endpoint: UUID, *, now: float) -> list[str]:
    """The endpoint's secret, as `verify` wants them. An unknown UUID is asked of the database each time.

    Raises UnknownEndpoint.
    """
    fresh = _known.get(endpoint)
    if fresh and now - fresh[0] < REMEMBERED_SECONDS:
        return [fresh[1]]
    _known.pop(endpoint, None)
    secret = (
        WebhookEndpoint.objects.filter(djstripe_uuid=endpoint, livemode=settings.STRIPE_LIVE_MODE, status="enabled")
        .exclude(secret="")
        .values_list("secret", flat=True)
        .first()
    )
    if secret is None:
        raise UnknownEndpoint
    _known[endpoint] = (now, secret)
    return [secret]


def forget() -> None:
    """Read every secret anew, for tests and after a rotation."""
    _known.clear()
