"""The clock's jobs for notices."""

import logging

from celery import shared_task
from django.utils import timezone

from notifications.delivery import deliver
from notifications.schedule import pass_milestones, read_audit

log = logging.getLogger(__name__)


@shared_task
def schedule_notices() -> None:
    now = timezone.now()
    if made := read_audit(now=now) + pass_milestones(now=now):
        log.info("%d notices to send.", made)
        deliver_notices.delay()


@shared_task
def deliver_notices() -> None:
    for notice in deliver(now=timezone.now):
        log.info("Notice %s (%s): %s", notice.pk, notice.kind, notice.state)
