import csv
import json
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from subscriptions.management.acting import acting, add_as
from subscriptions.management.arguments import add_dry_run, text
from subscriptions.management.progress import on_terminal, until_nobody_reads
from webhooks import poke
from webhooks.adopting import adoption, adoption_files
from webhooks.adopting.adoption import Line
from webhooks.adopting.adoption_files import Map, Prices, Wrong
from webhooks.reconciling.comparing import Asker, By
from webhooks.reconciling.pace import Pacer
from webhooks.stripe_api import StripeError

WHY = "moved in from Stripe"
FILES = """files, CSV in UTF-8 with a header:
  --map     customer,tenant[,subscription]   cus_…, the tenant's slug, the number of the live main subscription of ours
                                             that goes on with what Stripe bills
  --prices  stripe_price,plan,currency,interval,interval_count   or   stripe_price,slot_pack

Without a file metadata["tenant"] of a customer, and lookup_key or metadata["plan"] or metadata["slot_pack"] of a price
say the same. They are trusted: they are your own account's."""


class Command(BaseCommand):
    help = (
        "Take over an existing Stripe account: match its customers and prices, and serve what was bought there. Do "
        "--dry-run first. Safe to repeat and to interrupt. Exits non-zero if something is left that nothing matches."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.formatter_class = RawDescriptionHelpFormatter
        parser.epilog = FILES
        parser.add_argument("--map", type=text, metavar="CSV", help="whose customers are whose")
        parser.add_argument("--prices", type=text, metavar="CSV", help="what prices sell")
        add_dry_run(parser)
        parser.add_argument(
            "--report",
            type=text,
            metavar="FILE",
            help="write a line for every object: CSV for a name in .csv, else JSON",
        )
        parser.add_argument("--reason", type=text, default=WHY, metavar="WHY", help="for the audit trail")
        add_as(parser)
        parser.add_argument("--json", action="store_true", help="one JSON object a line for each object, counts last")

    def handle(self, *, map: str | None, prices: str | None, report: str | None, **options: Any) -> None:
        if not settings.STRIPE_SECRET_KEY:
            raise CommandError("Stripe is not configured: STRIPE_SECRET_KEY is not set.")
        actor = acting(options["username"])
        whose = adoption_files.read_map(_content(map)) if map else Map()
        sells = adoption_files.read_prices(_content(prices)) if prices else Prices()
        self._refuse(map, whose.wrong, prices, sells.wrong)
        by = By(
            Asker(Pacer(settings.RECONCILE_READS_PER_SECOND, time.monotonic, time.sleep)), timezone.now, "adoption",
            actor, options["reason"], writes=not options["dry_run"],
        )  # fmt: skip
        counts: Counter[tuple[str, str]] = Counter()
        tick = on_terminal()
        try:
            with until_nobody_reads(), _report(report) as keep:
                for line in adoption.adopt(by, whose, sells):
                    counts[line.kind, line.what] += 1
                    keep(line)
                    self._tell(line, as_json=options["json"])
                    tick("objects so far", counts.total())
        except StripeError as error:
            raise CommandError(f"Stripe could not be read: {error.code}. Run it again: it goes on.") from None
        if counts["events", "adopted"]:
            poke.inbox()
        self._conclude(counts, by, as_json=options["json"])
        if counts["subscription", "waits"]:
            raise CommandError(f"{counts['subscription', 'waits']} subscriptions wait: see why above.")

    def _refuse(self, map: str | None, of_map: list[Wrong], prices: str | None, of_prices: list[Wrong]) -> None:
        for name, wrong in ((map, of_map), (prices, of_prices)):
            for each in wrong:
                self.stderr.write(f"{name}, line {each.line}: {each.detail}")
        if count := len(of_map) + len(of_prices):
            raise CommandError(f"{count} {'line is' if count == 1 else 'lines are'} wrong: nothing was done.")

    def _tell(self, line: Line, *, as_json: bool) -> None:
        if as_json:
            self.stdout.write(json.dumps(vars(line), ensure_ascii=False))
        elif line.what != "here":
            about = "  ".join(filter(None, (line.object_id, line.tenant, line.subscription)))
            self.stdout.write(f"{line.kind:<12} {line.what:<8} {about}{f': {line.why}' if line.why else ''}")

    def _conclude(self, counts: Counter[tuple[str, str]], by: By, *, as_json: bool) -> None:
        if as_json:
            told = {f"{kind}s {what}": count for (kind, what), count in sorted(counts.items())}
            self.stdout.write(json.dumps(told | {"reads": by.ask.reads, "written": by.writes}))
            return
        for kind in ("customer", "price", "subscription"):
            done = counts[kind, "matched"] + counts[kind, "adopted"]
            self.stdout.write(f"{kind}s: {done} new, {counts[kind, 'here']} known, {counts[kind, 'waits']} wait.")
        if not by.writes:
            self.stdout.write("Nothing was written.")


def _content(name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise CommandError(f"{name} cannot be read: {error.strerror}.") from None


@contextmanager
def _report(name: str | None) -> Iterator[Callable[[Line], object]]:
    if name is None:
        yield lambda line: None
        return
    try:
        file = open(name, "w", encoding="utf-8", newline="")  # noqa: SIM115
    except OSError as error:
        raise CommandError(f"{name} cannot be written: {error.strerror}.") from None
    with file:
        if name.endswith(".csv"):
            table = csv.DictWriter(file, [field.name for field in fields(Line)])
            table.writeheader()
            yield lambda line: table.writerow(vars(line))
        else:
            yield lambda line: file.write(json.dumps(vars(line), ensure_ascii=False) + "\n")
