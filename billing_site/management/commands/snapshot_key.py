"""A new key for SNAPSHOT_KEYS."""

import base64
import secrets
from typing import Any

from django.core.management.base import BaseCommand


class Command(BaseCommand):
    help = (
        "Print a new key that signs snapshots. Append it to SNAPSHOT_KEYS, after five minutes move it to the front, "
        "and drop the old one when SNAPSHOT_SECONDS have passed."
    )
    requires_system_checks = ()

    def handle(self, **options: Any) -> None:
        self.stdout.write(base64.urlsafe_b64encode(secrets.token_bytes(32)).decode().rstrip("="))
