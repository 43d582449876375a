import json
import time
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from subscriptions.errors import DomainError
from subscriptions.management.acting import acting, add_as
from subscriptions.management.arguments import text
from subscriptions.management.progress import on_terminal, until_nobody_reads
from subscriptions.models import Tenant
from webhooks.models import Drift, Reconciliation
from webhooks.reconciling import reconcile, repairs
from webhooks.reconciling.comparing import Asker, By, Found
from webhooks.reconciling.differences import REPAIRED_TOGETHER, RULES
from webhooks.reconciling.pace import Pacer
from webhooks.stripe_api import StripeError

WHY = "reconcile_stripe found that Stripe says otherwise"


class Command(BaseCommand):
    help = (
        "Compare everything at Stripe with everything here, and record where the two differ. Goes on with a run that "
        "was stopped. Exits non-zero if a difference is left that needs a person, or Stripe could not be read."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        how = parser.add_mutually_exclusive_group()
        how.add_argument("--dry-run", action="store_true", help="print what differs, and write nothing at all")
        how.add_argument(
            "--repair", action="store_true",
            help="bring here what Stripe says, and end at Stripe what is over here; what is bought twice or unknown at "
            "Stripe is repaired one by one, in the back office",
        )  # fmt: skip
        parser.add_argument("--tenant", type=text, metavar="SLUG", help="only what is this tenant's")
        parser.add_argument(
            "--reason", type=text, metavar="WHY", help=f"with --repair: why, for the audit trail (default: {WHY})"
        )
        add_as(parser)
        parser.add_argument(
            "--json", action="store_true", help="one JSON object a line for each difference, and the counts last"
        )

    def handle(self, *, tenant: str | None, reason: str | None, username: str | None, **options: Any) -> None:
        if reason and not options["repair"]:
            raise CommandError("--reason says why it is repaired: it goes with --repair.")
        if not settings.STRIPE_SECRET_KEY:
            raise CommandError("Stripe is not configured: STRIPE_SECRET_KEY is not set.")
        whose = self._tenant(tenant)
        self.as_json, self.tick = options["json"], on_terminal()
        self.left, self.repaired = 0, 0
        self.by = By(
            Asker(Pacer(settings.RECONCILE_READS_PER_SECOND, time.monotonic, time.sleep)), timezone.now,
            "reconciliation", acting(username), reason or WHY, options["repair"], not options["dry_run"],
        )  # fmt: skip
        began = timezone.now()
        try:
            with until_nobody_reads():
                if options["dry_run"] or whose:
                    for found in reconcile.look(self.by, whose):
                        for each in found:
                            self._tell(each)
                else:
                    self._run()
                if options["repair"]:
                    self._repair_what_is_left(whose, began)
                self._conclude(dry_run=options["dry_run"])
        except StripeError as error:
            raise CommandError(f"Stripe could not be read: {error.code}. Nothing is lost: run it again.") from None
        if self.left:
            raise CommandError(self._what_next(dry_run=options["dry_run"], repair=options["repair"]))

    def _what_next(self, *, dry_run: bool, repair: bool) -> str:
        if repair:
            return "Not all of it could be mended: see the drift in the back office."
        kept = "Nothing was written: reconcile_stripe records it" if dry_run else "It is recorded in the back office"
        return f"{self.left} differ. {kept}, reconcile_stripe --repair mends what can be mended from here."

    def _tenant(self, slug: str | None) -> Tenant | None:
        found = Tenant.objects.filter(slug=slug).first() if slug else None
        if slug and found is None:
            raise CommandError(f"There is no tenant {slug}.")
        return found

    def _run(self) -> None:
        def of(run: Reconciliation) -> By:
            return By(**vars(self.by) | {"source": f"reconciliation:{run.pk}"})

        run = reconcile.go_on(
            of, now=timezone.now, tell=self._tell, tick=lambda run: self.tick("subscriptions compared", run.compared)
        )
        if run is None:
            raise CommandError("Another comparison is under way: try again later.")
        if run.error_code:
            raise CommandError(f"Stripe could not be read: {run.error_code}. Run it again: it goes on where it was.")
        self._say(f"{run.compared} compared in {run.reads} reads.", {"compared": run.compared, "reads": run.reads})

    def _repair_what_is_left(self, tenant: Tenant | None, began: Any) -> None:
        """Found by an earlier run, too: a person asked for it."""
        drifts = Drift.objects.filter(resolved_at=None, kind__in=sorted(REPAIRED_TOGETHER))
        for drift in drifts.filter(tenant=tenant) if tenant else drifts:
            try:
                done = repairs.repair(drift, self.by)
            except (DomainError, StripeError) as error:
                self._say(f"{drift.object_id}  not repaired: {error.code}: {error.detail}", None)
                continue
            self._say(f"{drift.object_id}  {drift.get_kind_display()}: {done}", {"drift": drift.pk, "done": done})
            self.repaired += 1
            self.left -= drift.seen_at >= began

    def _tell(self, found: Found) -> None:
        difference = found.difference
        if found.resolution:
            self.repaired += 1
        else:
            self.left += bool(RULES[difference.kind].severity != Drift.Severity.LOW)
        if self.as_json:
            self.stdout.write(json.dumps(found.row() | {"tenant": found.tenant, "subscription": found.number}))
            return
        whose = " ".join(filter(None, (found.tenant, found.number)))
        self.stdout.write(f"{difference.severity:<6} {difference.kind.label}: {found.object_id} {whose}".rstrip())
        for name in dict.fromkeys((*difference.ours, *difference.theirs)):
            ours, theirs = difference.ours.get(name, "–"), difference.theirs.get(name, "–")
            self.stdout.write(f"       {name}: {ours} here, {theirs} at Stripe")
        if found.resolution:
            self.stdout.write(f"       {found.resolution}")

    def _conclude(self, *, dry_run: bool) -> None:
        counts = {"left": self.left, "repaired": self.repaired, "reads": self.by.ask.reads, "written": not dry_run}
        words = f"{self.left} left, {self.repaired} repaired." + (" Nothing was written." if dry_run else "")
        self._say(words, counts)

    def _say(self, words: str, fact: dict[str, Any] | None) -> None:
        if not self.as_json:
            self.stdout.write(words)
        elif fact:
            self.stdout.write(json.dumps(fact))
