from argparse import ArgumentParser
from contextlib import nullcontext
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import transaction
from django.utils import timezone

from notifications.delivery import deliver, outlook
from notifications.models import Notice
from notifications.schedule import pass_milestones, read_audit
from subscriptions.management.arguments import add_dry_run, add_now


class Command(BaseCommand):
    help = "Make notices of what happened and what comes near, and mail those that are due: what the clock does."

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_now(parser)
        add_dry_run(parser)

    def handle(self, *, now: Any, dry_run: bool, **options: Any) -> None:
        now = now or timezone.now()
        failed = count = 0
        with transaction.atomic() if dry_run else nullcontext():
            made = read_audit(now=now) + pass_milestones(now=now)
            for notice in outlook(now=now) if dry_run else deliver(now=now, limit=100_000):
                count += 1
                failed += notice.state == Notice.State.FAILED or bool(notice.error)
                self.stdout.write(line(notice))
            if dry_run:
                transaction.set_rollback(True)
        self.stdout.write(
            f"{made} new {'notice' if made == 1 else 'notices'}; {count} {'would be tried' if dry_run else 'tried'}."
        )
        if failed:
            raise CommandError(f"{failed} could not be sent: see their errors in the admin.")


def line(notice: Notice) -> str:
    to = ", ".join(notice.recipients) or notice.tenant.email or "no address"
    error = f"  {notice.error}" if notice.error else ""
    return f"{notice.subscription.number}  {notice.kind}  {to}  {notice.get_state_display()}{error}"
