"""In the composition root: it shows what every part forecasts."""

import json
from argparse import ArgumentParser, ArgumentTypeError
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from billing_site import timeline
from billing_site.timeline import Line
from subscriptions import terms
from subscriptions.errors import DomainError
from subscriptions.forecast import Cancelled, Paid, Renewed, WhatIf
from subscriptions.management.arguments import WHAT_IT_IS, add_now, instant
from subscriptions.management.progress import until_nobody_reads
from subscriptions.models import Subscription, Tenant


class Command(BaseCommand):
    help = "Print what will happen to a subscription, or to all that a tenant has, and why, if nobody does anything."

    def add_arguments(self, parser: ArgumentParser) -> None:
        whose = parser.add_mutually_exclusive_group(required=True)
        whose.add_argument("number", nargs="?", type=name, metavar="NUMBER", help="the number of a subscription")
        whose.add_argument("--tenant", type=name, metavar="SLUG", help="everything that a tenant has")
        parser.add_argument("--days", type=days, metavar="N", help="only the next N days (default: to the end)")
        add_now(parser)
        parser.add_argument("--json", action="store_true", help="a JSON object a line")
        what_if = parser.add_argument_group(
            "what if", f"ISO is {WHAT_IT_IS}; may be combined and, but the last, repeated"
        )
        one_by_one: dict[str, Any] = {"type": instant, "metavar": "ISO", "action": "append", "default": []}
        what_if.add_argument("--paid-on", **one_by_one, help="one more term were paid then")
        what_if.add_argument("--renewed-until", **one_by_one, help="it were renewed until then")
        what_if.add_argument("--on", **one_by_one, help="when it were renewed, for each --renewed-until (default: now)")
        what_if.add_argument("--cancelled-on", type=instant, metavar="ISO", help="it were cancelled then")
        what_if.add_argument("--at-term-end", action="store_true", help="not at once, but to the end of its term")

    def handle(self, *, number: str | None, tenant: str | None, now: datetime | None, **options: Any) -> None:
        now = now or timezone.now()
        until = _until(now, options["days"])
        what_if = _what_if(now, options)
        if number is None and what_if:
            raise CommandError("What if is asked of one subscription: give its number instead of --tenant.")
        try:
            if number is None:
                lines = timeline.of_tenant(_tenant(tenant), now=now, until=until)
            else:
                lines = timeline.of_subscription(_subscription(number), now=now, until=until, what_if=what_if)
        except DomainError as error:
            raise CommandError(error.detail) from error
        with until_nobody_reads():
            for line in lines:
                self.stdout.write(as_json(line) if options["json"] else as_text(line))
            if not options["json"]:
                ends = f" before {until.isoformat()}" if until else ""
                self.stdout.write(
                    f"{len(lines)} {'event' if len(lines) == 1 else 'events'} from {now.isoformat()} on{ends}."
                )


def as_text(line: Line) -> str:
    """`2026-02-01T00:00:00+00:00  SUB-20260101-ABCDE  grace_started  The term is over and not renewed`"""
    what = line.what if line.source == "deadline" else f"{line.source} {line.what}"
    return f"{line.at.isoformat()}  {line.subscription}  {what}  {line.why}"


def as_json(line: Line) -> str:
    return json.dumps(asdict(line) | {"at": line.at.isoformat()})


def name(text: str) -> str:
    """What a number or a slug may be written with: what is no text at all is not asked of the database."""
    if not (text.isascii() and text.isprintable() and text):
        raise ArgumentTypeError(f"{text!r} is no name of anything here.")
    return text


def days(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < len(text) < 8):
        raise ArgumentTypeError(f"{text!r} is not a number of days.")
    return int(text)


def _until(now: datetime, days: int | None) -> datetime | None:
    try:
        return None if days is None else min(now + timedelta(days=days), terms.LATEST)
    except OverflowError:
        return None


def _what_if(now: datetime, options: dict[str, Any]) -> list[WhatIf]:
    renewed_on = options["on"] or [now] * len(options["renewed_until"])
    if len(renewed_on) != len(options["renewed_until"]):
        raise CommandError("--on says when it were renewed: give one for each --renewed-until, or none.")
    if options["at_term_end"] and not options["cancelled_on"]:
        raise CommandError("--at-term-end says how it were cancelled: give --cancelled-on, too.")
    what_if: list[WhatIf] = [Paid(on) for on in options["paid_on"]]
    what_if += [Renewed(on, term_end) for on, term_end in zip(renewed_on, options["renewed_until"], strict=True)]
    if options["cancelled_on"]:
        what_if.append(Cancelled(options["cancelled_on"], at_term_end=options["at_term_end"]))
    return what_if


def _subscription(number: str) -> Subscription:
    found = Subscription.objects.filter(number=number).first()
    if found is None:
        raise CommandError(f"There is no subscription {number}.")
    return found


def _tenant(slug: str | None) -> Tenant:
    found = Tenant.objects.filter(slug=slug).first()
    if found is None:
        raise CommandError(f"There is no tenant {slug}.")
    return found
