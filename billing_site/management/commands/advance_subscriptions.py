from argparse import ArgumentParser
from contextlib import nullcontext
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import transaction
from django.utils import timezone

from entitlements.follow import catch_up
from subscriptions.management.arguments import add_dry_run, add_now
from subscriptions.management.lines import line
from subscriptions.sweep import advance, set_aside


class Command(BaseCommand):
    help = (
        "Take every step of a subscription's life whose deadline has passed, and let the slots follow: what the clock "
        "does every minute."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_now(parser)
        add_dry_run(parser)

    def handle(self, *, now: Any, dry_run: bool, **options: Any) -> None:
        now = now or timezone.now()
        count, lines = 0, list[str]()
        tell = lines.append if dry_run else self.stdout.write  # nobody waits for a reader of what is taken back
        with transaction.atomic() if dry_run else nullcontext():  # each batch commits by itself
            for steps in advance(now=now):
                count += len(steps)
                for entry in steps.entries():
                    tell(line(entry))
            stuck = [*set_aside()]
            if dry_run:
                transaction.set_rollback(True)
        if not dry_run:
            catch_up(now=now)
        for told in lines:
            self.stdout.write(told)
        did = "would be taken" if dry_run else "taken"
        self.stdout.write(f"{count} {'step' if count == 1 else 'steps'} {did} as of {now.isoformat()}.")
        for family in stuck:
            self.stderr.write(f"{family.root.number} is set aside since {family.since.isoformat()}: {family.error}")
        if stuck:
            raise CommandError(f"{len(stuck)} {'family' if len(stuck) == 1 else 'families'} could not be moved.")
