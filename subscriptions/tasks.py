"""The clock's job for subscriptions."""

import logging

from celery import shared_task
from django.utils import timezone

from subscriptions.sweep import advance

log = logging.getLogger(__name__)


@shared_task
def advance_subscriptions() -> None:
    steps = sum(len(batch) for batch in advance(now=timezone.now()))
    if steps:
        log.info("The clock took %d steps.", steps)
