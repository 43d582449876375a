"""The clock's jobs for slots."""

import logging

from celery import shared_task
from django.utils import timezone

from entitlements.follow import catch_up

log = logging.getLogger(__name__)


@shared_task
def follow_subscriptions() -> None:
    if tenants := catch_up(now=timezone.now()):
        log.info("The slots of %d tenants followed their subscriptions.", tenants)
