from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from webhooks import inbox


class Command(BaseCommand):
    help = "Apply the Stripe events that are due: what the workers do. With --replay or --failed, ask Stripe again first."

    def add_arguments(self, parser: ArgumentParser) -> None:
        which = parser.add_mutually_exclusive_group()
        which.add_argument("--replay", nargs="+", metavar="ID", help="try these events again, whatever became of them")
        which.add_argument("--failed", action="store_true", help="try every parked event again")

    def handle(self, *, replay: list[str] | None, failed: bool, **options: Any) -> None:
        wanted = inbox.parked() if failed else replay or []
        found = inbox.replay(wanted, now=timezone.now())
        outcomes = list(self._apply(wanted)) if replay or failed else list(self._drain())
        bad = sum(outcome.startswith(("failed", "parked")) for outcome in outcomes)
        self.stdout.write(f"{len(outcomes)} {'event' if len(outcomes) == 1 else 'events'} tried, {bad} without success.")
        if replay and found < len(set(replay)):
            raise CommandError(f"{len(set(replay)) - found} of these ids are unknown.")
        if bad:
            raise CommandError("Not every event could be applied: see their errors in the admin.")

    def _apply(self, event_ids: list[str]) -> Any:
        for event_id in event_ids:
            outcome = inbox.apply(event_id, now=timezone.now())
            if outcome:
                self.stdout.write(f"{event_id}  {outcome}")
                yield outcome

    def _drain(self) -> Any:
        for event_id, outcome in inbox.drain(now=timezone.now, limit=1_000_000):
            self.stdout.write(f"{event_id}  {outcome}")
            yield outcome
