import json
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from entitlements import imports
from entitlements.imports import Failure, Imported
from entitlements.models import DeviceTier
from subscriptions.management.acting import acting, add_as
from subscriptions.management.arguments import add_dry_run, add_reason, number, text
from subscriptions.management.progress import on_terminal, until_nobody_reads
from subscriptions.models import Subscription, Tenant


class Command(BaseCommand):
    help = (
        "Give the devices of a CSV file slots: a line is device_id, or device_id,tier; a header is recognised. The "
        "file is checked whole before anything is written: with any line that cannot be, nothing is. Safe to repeat."
    )
    stealth_options = ("standard_input",)

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("tenant", type=text, metavar="TENANT", help="the tenant, by its slug")
        parser.add_argument("file", type=text, metavar="FILE", help="the file; - is standard input")
        parser.add_argument(
            "--tier", type=text, metavar="CODE",
            help="the tier of lines that name none (default: the default tier)",
        )  # fmt: skip
        parser.add_argument(
            "--subscription", type=number, metavar="NUMBER",
            help="take slots of this one only (default: of any that serves, the most durable first)",
        )  # fmt: skip
        add_reason(parser)
        add_as(parser)
        add_dry_run(parser)
        parser.add_argument(
            "--json", action="store_true",
            help="one JSON object a line for each line that failed, the last one for the file, and nothing else",
        )  # fmt: skip

    def handle(self, *, tenant: str, file: str, tier: str | None, standard_input: Any = None, **options: Any) -> None:
        tenant_id, subscription_id = _whose(tenant, options["subscription"])
        if tier and not DeviceTier.objects.filter(code=tier).exists():
            raise CommandError(f"There is no device tier {tier}.")
        actor = acting(options["username"])
        name = "-" if file == "-" else Path(file).name
        with _opened(file, standard_input) as lines:
            found = imports.read(lines, tier or "")
        told = imports.check(tenant_id, found.lines, now=timezone.now(), subscription_id=subscription_id)
        failures = sorted([*found.failures, *told.failures], key=lambda failure: failure.line)
        total = len(found.lines) + len(found.failures)
        is_done = not failures and not options["dry_run"]
        if is_done:
            tick = partial(on_terminal(), f"of {total} devices")
            told = imports.write(
                tenant_id, found.lines, subscription_id=subscription_id, actor=actor, now=timezone.now,
                source_id=f"file:{name}"[:255], reason=options["reason"], tick=tick,
            )  # fmt: skip
            failures = told.failures
        with until_nobody_reads():
            self._tell(told, failures, is_done=is_done, as_json=options["json"])
        if failures:
            wrote = "the other batches were written" if is_done else "nothing was written"
            raise CommandError(f"{len(failures)} of {total} lines failed: {wrote}.")

    def _tell(self, told: Imported, failures: list[Failure], *, is_done: bool, as_json: bool) -> None:
        for failure in failures:
            if as_json:
                self.stdout.write(json.dumps(vars(failure), ensure_ascii=False))
            else:
                which = f"  {failure.device_id}" if failure.device_id else ""
                self.stderr.write(f"line {failure.line}{which}  {failure.code}  {failure.detail}")
        assigned = told.assigned if is_done or not failures else 0
        if as_json:
            counts = {"assigned": assigned, "unchanged": told.unchanged, "failed": len(failures), "written": is_done}
            self.stdout.write(json.dumps(counts))
        else:
            did = "got a slot" if is_done or failures else "would get a slot"
            self.stdout.write(f"{assigned} {did}, {told.unchanged} have theirs, {len(failures)} failed.")


def _whose(slug: str, number: str | None) -> tuple[int, int | None]:
    """The tenant, and its subscription, if one is named."""
    tenant = Tenant.objects.filter(slug=slug).first()
    if tenant is None:
        raise CommandError(f"There is no tenant {slug}.")
    if number is None:
        return tenant.pk, None
    pk = Subscription.objects.filter(tenant=tenant, number=number).values_list("pk", flat=True).first()
    if pk is None:
        raise CommandError(f"{slug} has no subscription {number}.")
    return tenant.pk, pk


@contextmanager
def _opened(file: str, standard_input: BinaryIO | None) -> Iterator[BinaryIO]:
    if file == "-":
        if standard_input is None and sys.stdin is None:
            raise CommandError("There is no standard input.")
        yield standard_input or sys.stdin.buffer
        return
    try:
        with open(file, "rb") as lines:
            yield lines
    except OSError as error:
        raise CommandError(f"{file} cannot be read: {error.strerror}.") from None
