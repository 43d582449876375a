from argparse import ArgumentParser
from collections.abc import Iterator
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from webhooks import inbox
from webhooks.models import StripeEvent


class Command(BaseCommand):
    help = "Apply the Stripe events that are due: what the workers do. With --replay or --failed: those, once more."

    def add_arguments(self, parser: ArgumentParser) -> None:
        which = parser.add_mutually_exclusive_group()
        which.add_argument(
            "--replay", nargs="+", metavar="ID", help="try these events (evt_…) again, whatever became of them"
        )
        which.add_argument("--failed", action="store_true", help="try every parked event again")

    def handle(self, *, replay: list[str] | None, failed: bool, **options: Any) -> None:
        again = inbox.parked() if failed else list(dict.fromkeys(replay or []))
        unknown = set(again) - set(StripeEvent.objects.filter(pk__in=again).values_list("pk", flat=True))
        outcomes = list(self._again(again) if replay or failed else self._due())
        bad = sum(outcome.startswith(("failed", "parked")) for outcome in outcomes)
        events = "event" if len(outcomes) == 1 else "events"
        self.stdout.write(f"{len(outcomes)} {events} tried, {bad} without success.")
        if unknown:
            raise CommandError(f"We know no event {', '.join(sorted(unknown))}.")
        if bad:
            raise CommandError("Not every event could be applied: see their errors in the admin.")

    def _again(self, event_ids: list[str]) -> Iterator[str]:
        inbox.replay(event_ids, now=timezone.now())
        for event_id in event_ids:
            if outcome := inbox.apply(event_id, now=timezone.now()):
                self.stdout.write(f"{event_id}  {outcome}")
                yield outcome

    def _due(self) -> Iterator[str]:
        for event_id, outcome in inbox.drain(now=timezone.now, limit=1_000_000):
            self.stdout.write(f"{event_id}  {outcome}")
            yield outcome
