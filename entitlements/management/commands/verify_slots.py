import json
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import Error, connection
from django.utils import timezone

from entitlements.verify import CHECKS, Broken, repair, verify
from subscriptions.management.acting import acting, add_as
from subscriptions.management.arguments import text
from subscriptions.management.progress import on_terminal, until_nobody_reads
from subscriptions.models import Tenant

WHY = "verify_slots found rows that break a rule"
SENTENCES = {check.name: check.sentence for check in CHECKS}


class Command(BaseCommand):
    help = (
        "Find every row that breaks a rule of slots: counters, limits, devices in slots that are not theirs. Takes no "
        "locks: safe beside a busy service. Exits non-zero if there is any, or, with --repair, if any is left."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.formatter_class = RawDescriptionHelpFormatter
        parser.epilog = "rules, and how they are repaired:\n" + "\n".join(
            f"  {check.name:<24} {check.sentence} ({check.repaired})" for check in CHECKS
        )
        parser.add_argument("--tenant", type=text, metavar="SLUG", help="only of this tenant")
        parser.add_argument(
            "--repair", action="store_true", help="bring them back, with an entry in the audit trail, and look again"
        )
        parser.add_argument(
            "--reason", type=text, metavar="WHY", help=f"with --repair: why, for the audit trail (default: {WHY})"
        )
        add_as(parser)
        parser.add_argument("--json", action="store_true", help="one JSON object a line for each row, and nothing else")

    def handle(self, *, tenant: str | None, reason: str | None, username: str | None, **options: Any) -> None:
        if reason and not options["repair"]:
            raise CommandError("--reason says why it is repaired: it goes with --repair.")
        self.as_json = options["json"]
        self.tenant_id = self._tenant(tenant)
        actor = acting(username)
        with until_nobody_reads():
            count, tenant_ids = self._look()
            if options["repair"] and count:
                tick = on_terminal()
                for done, tenant_id in enumerate(sorted(tenant_ids), 1):
                    try:
                        repair(tenant_id, actor=actor, now=timezone.now(), reason=reason or WHY)
                    except Error as error:  # one tenant's; what is left of it is told below
                        connection.close_if_unusable_or_obsolete()
                        self.stderr.write(f"Not repaired: {str(error).partition(chr(10))[0]}")
                    tick(f"of {len(tenant_ids)} tenants repaired", done)
                self._say(f"{_rows(count)} found, {len(tenant_ids)} tenants repaired. Looking again.")
                count, _ = self._look()
            left = " left" if options["repair"] else ""
            self._say(
                f"{_rows(count)}{left} where a rule of slots is broken." if count else "Every rule of slots holds."
            )
        if count:
            raise CommandError(f"{_rows(count)}{left}.")

    def _tenant(self, slug: str | None) -> int | None:
        if slug is None:
            return None
        pk = Tenant.objects.filter(slug=slug).values_list("pk", flat=True).first()
        if pk is None:
            raise CommandError(f"There is no tenant {slug}.")
        return pk

    def _look(self) -> tuple[int, set[int]]:
        """Tell each row; how many, and of which tenants."""
        count, tenant_ids = 0, set[int]()
        for row in verify(now=timezone.now(), tenant_id=self.tenant_id, tick=on_terminal()):
            self.stdout.write(json.dumps(_as_json(row), ensure_ascii=False) if self.as_json else _line(row))
            tenant_ids.add(row.tenant_id)
            count += 1
        return count, tenant_ids

    def _say(self, words: str) -> None:
        if not self.as_json:
            self.stdout.write(words)


def _rows(count: int) -> str:
    return f"{count} {'row' if count == 1 else 'rows'}"


def _line(row: Broken) -> str:
    """`SUB-20260101-ABCDE  basic  d-1  is deleted, and has a slot  (deleted_in_a_slot)`"""
    which = "  ".join(word or "–" for word in (row.number, row.tier, row.device))
    return f"{which}  {row.how}  ({row.check})"


def _as_json(row: Broken) -> dict[str, Any]:
    return {
        "check": row.check,
        "rule": SENTENCES[row.check],
        "tenant_id": row.tenant_id,
        "subscription": row.number or None,
        "tier": row.tier or None,
        "device_id": row.device or None,
        "how": row.how,
    }
