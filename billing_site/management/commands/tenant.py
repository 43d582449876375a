from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from billing_site.verbs import close_tenant, reopen_tenant
from subscriptions.errors import DomainError
from subscriptions.management import lines
from subscriptions.management.acting import acting, add_as
from subscriptions.management.arguments import add_dry_run, add_reason, text
from subscriptions.management.verbs import of_tenant

HELP = {
    "close": "It is no customer any more: everything it has ends, here and at Stripe, and nothing can be started.",
    "reopen": "It was closed by mistake: it can buy again. What ended stays ended.",
}


class Command(BaseCommand):
    help = "Close a tenant, or reopen it."

    def add_arguments(self, parser: ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, title="verbs")
        for name, says in HELP.items():
            one = verbs.add_parser(name, help=says, description=says)
            one.add_argument("slug", type=text, metavar="SLUG", help="the tenant, by its slug")
            add_reason(one)
            add_as(one)
            add_dry_run(one)

    def handle(self, *, verb: str, slug: str, reason: str, username: str | None, dry_run: bool, **_: Any) -> None:
        actor = acting(username, permission="subscriptions.close_tenant", to=f"{verb} a tenant")
        try:
            tenant_id = of_tenant(slug).pk
            if verb == "close":
                by: dict[str, Any] = {"actor": actor, "now": timezone.now(), "reason": reason}
                entries = close_tenant(tenant_id, dry_run=dry_run, **by)
                self.stdout.writelines(f"{lines.line(entry)}\n" for entry in entries)
                ended = f"{len(entries)} {'subscription' if len(entries) == 1 else 'subscriptions'}"
                self.stdout.write(f"{slug}: {ended} {'would end' if dry_run else 'ended'}.")
            else:
                was_closed = reopen_tenant(tenant_id, actor=actor, reason=reason, dry_run=dry_run)
                again = "would be a customer again" if dry_run else "is a customer again"
                self.stdout.write(f"{slug} {again if was_closed else 'is open'}.")
        except DomainError as error:
            raise CommandError(f"{error.code}: {error.detail}") from None
