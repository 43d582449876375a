from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from subscriptions.management.arguments import text
from subscriptions.management.progress import on_terminal, until_nobody_reads
from subscriptions.models import Tenant
from subscriptions.proof import DoesNotFit, export


class Command(BaseCommand):
    help = (
        "Write the audit with its proof to standard output, as JSON Lines: entries in canonical form (all columns, "
        "also the address of staff), and the seals. verify_audit --file verifies it anywhere."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--tenant", type=text, metavar="SLUG",
            help="only this tenant's entries; of others there are digests, from which nothing can be guessed",
        )  # fmt: skip

    def handle(self, *, tenant: str | None, **options: Any) -> None:
        found = Tenant.objects.filter(slug=tenant).first() if tenant is not None else None
        if tenant is not None and not found:
            raise CommandError(f"There is no tenant {tenant!r}.")
        try:
            with until_nobody_reads():
                for line in export(found, tick=on_terminal()):
                    self.stdout.write(line)
        except DoesNotFit as error:
            raise CommandError(f"Nothing more is exported. {error}") from None
