from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from webhooks.models import Telling
from webhooks.outgoing import outbound, telling


class Command(BaseCommand):
    help = "Tell Stripe what changed here: what the workers do. With --again: what is stuck, once more."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--dry-run", action="store_true", help="list what waits and what is stuck, and tell nothing"
        )
        parser.add_argument("--again", action="store_true", help="try everything that is stuck again")

    def handle(self, *, dry_run: bool, again: bool, **options: Any) -> None:
        if dry_run:
            self._list()
            return
        if again:
            outbound.again(outbound.stuck(), now=timezone.now())
        telling.catch_up(now=timezone.now())
        tried = bad = 0
        for which, outcome in outbound.deliver(now=timezone.now, limit=1_000_000):
            self.stdout.write(f"{which}  {outcome}")
            tried, bad = tried + 1, bad + outcome.startswith(("failed", "stuck"))
        self.stdout.write(f"{tried} tried, {bad} without success.")
        if bad:
            raise CommandError("Stripe could not be told everything: see the errors in the admin.")

    def _list(self) -> None:
        waiting = Telling.objects.exclude(state=Telling.State.DONE).order_by("pk")
        for row in waiting.iterator():
            about = row.link_id or f"tenant {row.tenant_id}"
            self.stdout.write(f"{row.pk} {row.aspect} {about}  {row.state.lower()}  {row.error_code}".rstrip())
        self.stdout.write(f"{waiting.count()} to tell.")
