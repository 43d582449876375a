"""The clock's jobs for entitlements."""

import logging

from celery import shared_task
from django.utils import timezone

from entitlements import quotas
from entitlements.follow import catch_up

log = logging.getLogger(__name__)


@shared_task
def follow_subscriptions() -> None:
    if tenants := catch_up(now=timezone.now()):
        log.info("The slots of %d tenants followed their subscriptions.", tenants)


@shared_task
def forget_quota_keys() -> None:
    if forgotten := quotas.forget_old_keys(timezone.now()):
        log.info("Forgot %d keys of quotas.", forgotten)
