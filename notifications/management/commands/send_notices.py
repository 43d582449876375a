from argparse import ArgumentParser
from contextlib import nullcontext
from datetime import datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import transaction
from django.utils import timezone

from notifications.delivery import deliver, outlook
from notifications.models import Notice
from notifications.schedule import make_notices
from subscriptions.management.arguments import add_dry_run, add_now


class Command(BaseCommand):
    help = "Make notices of what happened and what comes near, and mail those that are due: what the clock does."

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_now(parser)
        add_dry_run(parser)

    def handle(self, *, now: datetime | None, dry_run: bool, **options: Any) -> None:
        def clock() -> datetime:
            return now or timezone.now()

        failed, count, lines = 0, 0, list[str]()
        tell = lines.append if dry_run else self.stdout.write  # nobody waits for a reader of what is taken back
        with transaction.atomic() if dry_run else nullcontext():
            made = make_notices(now=clock())
            for notice in outlook(now=clock()) if dry_run else deliver(now=clock, limit=100_000):
                count += 1
                failed += bool(notice.error)
                tell(line(notice, "would be sent" if dry_run and notice.state == Notice.State.SENT else ""))
            if dry_run:
                transaction.set_rollback(True)
        for told in lines:
            self.stdout.write(told)
        tried = "would be tried" if dry_run else "tried"
        self.stdout.write(f"{made} new {'notice' if made == 1 else 'notices'}; {count} {tried}.")
        if failed:
            raise CommandError(f"{failed} could not be sent: see their errors in the admin.")


def line(notice: Notice, state: str = "") -> str:
    """`SUB-20260101-ABCDE  renewal_30  billing@acme.example  Sent`"""
    to = ", ".join(notice.recipients) or notice.subscription.tenant.email or "no address"
    error = f"  {notice.error}" if notice.error else ""
    return f"{notice.subscription.number}  {notice.kind}  {to}  {state or notice.get_state_display()}{error}"
