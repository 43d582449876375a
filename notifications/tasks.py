"""The clock's jobs for notices."""

import logging

from celery import shared_task
from django.utils import timezone

from notifications.delivery import deliver
from notifications.schedule import make_notices

log = logging.getLogger(__name__)


@shared_task
def schedule_notices() -> None:
    if made := make_notices(now=timezone.now()):
        log.info("%d notices to send.", made)
        deliver_notices.delay()


@shared_task
def deliver_notices() -> None:
    for notice in deliver(now=timezone.now):
        log.info("Notice %s (%s): %s", notice.pk, notice.kind, notice.state)
