"""The clock's jobs for subscriptions."""

import logging

from celery import shared_task
from django.utils import timezone

from subscriptions.seals import seal
from subscriptions.sweep import advance

log = logging.getLogger(__name__)


@shared_task
def advance_subscriptions() -> None:
    steps = sum(len(batch) for batch in advance(now=timezone.now()))
    if steps:
        log.info("The clock took %d steps.", steps)


@shared_task
def seal_audit() -> None:
    sealed = 0
    while made := seal(now=timezone.now()):
        sealed += made.count
    if sealed:
        log.info("Sealed %d entries of the audit.", sealed)
