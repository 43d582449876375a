"""In the composition root: the keys of its APIs."""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from datetime import UTC, datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError, DjangoHelpFormatter
from django.utils import timezone
from django.views.decorators.debug import sensitive_variables

from billing_site.api import keys
from billing_site.models import ApiKey
from subscriptions.errors import DomainError
from subscriptions.management.arguments import WHAT_IT_IS, instant, text
from subscriptions.models import Tenant

EXAMPLES = """examples:
  manage.py api_key create "ingest gateway" --scope access:read --scope changes:read
  manage.py api_key create "acme's factory" --scope customer --tenant acme --expires 2027-01-01
  manage.py api_key list
  manage.py api_key revoke 4fzyo82mvyr1

scopes:
"""


class Help(DjangoHelpFormatter, RawDescriptionHelpFormatter):
    pass


class Command(BaseCommand):
    help = "Make API keys, list them, revoke one. A key is printed once, when it is made; only its hash is kept."

    def create_parser(self, prog_name: str, subcommand: str, **more: Any) -> Any:
        scopes = "\n".join(f"  {scope:<20}{meaning}" for scope, meaning in keys.SCOPES.items())
        return super().create_parser(prog_name, subcommand, epilog=EXAMPLES + scopes, formatter_class=Help, **more)

    def add_arguments(self, parser: ArgumentParser) -> None:
        does = parser.add_subparsers(dest="does", metavar="create|list|revoke", required=True, title="what to do")

        def add(name: str, says: str) -> Any:
            return does.add_parser(name, help=says, description=says)

        create = add("create", "Make a key, and print it: the only time that it can be seen.")
        create.add_argument("name", type=text, metavar="NAME", help="who holds it")
        create.add_argument(
            "--scope", action="append", default=[], dest="scopes", metavar="S", help="what it opens; may be repeated"
        )
        create.add_argument(
            "--tenant", type=text, metavar="SLUG", help="whose devices it is for (default: every tenant's)"
        )
        create.add_argument(
            "--expires",
            type=instant,
            metavar="ISO",
            help=f"when it ends (default: never): {WHAT_IT_IS}",
        )
        add("list", "List the keys: prefix, state, name, tenant, scopes, when they expire and were last used.")
        revoke = add("revoke", "Revoke a key: it opens nothing from the next request on. Safe to repeat.")
        revoke.add_argument("prefix", type=text, metavar="PREFIX", help="the part of the key between its underscores")

    def handle(self, *, does: str, **options: Any) -> None:
        now = timezone.now()
        match does:
            case "create":
                self._create(options, now)
            case "list":
                self._list(now)
            case _:
                self._revoke(options["prefix"], now)

    @sensitive_variables("secret")
    def _create(self, options: dict[str, Any], now: datetime) -> None:
        tenant = None
        if (slug := options["tenant"]) and (tenant := Tenant.objects.filter(slug=slug).first()) is None:
            raise CommandError(f"There is no tenant {slug}.")
        try:
            key, secret = keys.issue(
                options["name"], options["scopes"], tenant=tenant, expires_at=options["expires"], now=now
            )
        except DomainError as error:
            raise CommandError(error.detail) from None
        self.stderr.write(f"{key.name} ({key.prefix}): shown once, and kept nowhere.", style_func=str)
        self.stdout.write(secret)  # alone, so that a script can take it as it is

    def _list(self, now: datetime) -> None:
        rows = ApiKey.objects.select_related("tenant").order_by("pk")
        for key in rows:
            whose = key.tenant.slug if key.tenant else "every tenant"
            self.stdout.write(
                f"{key.prefix}  {keys.state(key, now=now):<8}  {key.name}  {whose}  {','.join(key.scopes)}"
                f"  expires {_day(key.expires_at)}  last used {_day(key.last_used_at)}"
            )
        self.stdout.write(f"{len(rows)} keys")

    def _revoke(self, prefix: str, now: datetime) -> None:
        key = ApiKey.objects.filter(prefix=prefix).first()
        if key is None:
            raise CommandError(f"There is no key {prefix}: manage.py api_key list shows what there is.")
        done = keys.revoke(key.pk, now=now)
        self.stdout.write(f"{key.name} ({prefix}) {'is revoked' if done else 'was revoked before'}.")


def _day(at: datetime | None) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}" if at else "never"
