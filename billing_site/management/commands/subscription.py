import json
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from typing import Any, Protocol

from django.core.management.base import BaseCommand, CommandError, DjangoHelpFormatter
from django.db import Error, connection
from django.utils import timezone

from billing_site.verbs import MAY_PARK, carry_out
from entitlements.limits import Park
from subscriptions.errors import DomainError
from subscriptions.management import lines
from subscriptions.management.acting import acting, add_as
from subscriptions.management.arguments import add_dry_run, add_now, add_reason, add_source, text
from subscriptions.management.named import Name, named
from subscriptions.management.portrait import portrait
from subscriptions.management.progress import until_nobody_reads
from subscriptions.management.verbs import GRANT, VERBS, By, NotWritten, Options, of_subscription, sold
from subscriptions.models import AuditEntry

SHOW = "Show subscriptions: status, dates, family, what comes next, and all that happened."
NUMBERS = "subscriptions by their numbers; - or none: from standard input, one a line"
LONG_RUN = 100  # from so many on, and every so many, a person at a terminal is told how far it is


class Outcome(Protocol):
    """What is told of one name."""

    @property
    def changed(self) -> bool: ...
    def lines(self) -> Iterator[str]: ...
    def as_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Changed:
    number: str
    entries: list[AuditEntry]

    @property
    def changed(self) -> bool:
        return bool(self.entries)

    def lines(self) -> Iterator[str]:
        if not self.entries:
            yield f"{self.number}  nothing to change"
        yield from map(lines.line, self.entries)

    def as_json(self) -> dict[str, Any]:
        entries = [lines.as_json(entry) for entry in self.entries]
        return {"number": self.number, "changed": self.changed, "entries": entries}


class Help(DjangoHelpFormatter, RawDescriptionHelpFormatter):
    pass


class Command(BaseCommand):
    help = (
        "Show subscriptions, or change them by the verbs that everything else uses: each in a transaction of its own, "
        "each change with its reason in the audit trail."
    )
    stealth_options = ("standard_input",)

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.epilog = "Each verb explains itself: manage.py subscription renew --help"
        verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, title="verbs")

        def add(name: str, says: str, example: str) -> Any:
            example = f"example:\n  manage.py subscription {example}"
            return verbs.add_parser(name, help=says, description=says, epilog=example, formatter_class=Help)

        show = add("show", SHOW, "show SUB-20260101-7KX2M --json")
        show.add_argument("names", nargs="*", metavar="NUMBER", help=NUMBERS)
        for name, verb in VERBS.items():
            one = add(name, verb.help, verb.example)
            if verb.of is of_subscription:
                one.add_argument("names", nargs="*", metavar="NUMBER", help=NUMBERS)
            else:
                one.add_argument("tenant", type=text, metavar="TENANT", help="the tenant, by its slug")
            verb.arguments(one)
            if name in MAY_PARK:
                one.add_argument(
                    "--park", choices=[park.value for park in Park], default=Park.NOBODY.value,
                    help="who loses a slot where there are fewer then; nobody: it is refused (default: %(default)s)",
                )  # fmt: skip
            add_reason(one)
            add_source(one)
            add_as(one)
            add_dry_run(one)
        for one in verbs.choices.values():
            add_now(one)
            one.add_argument("--json", action="store_true", help="one JSON object a line for each, and nothing else")

    def handle(self, *, verb: str, now: datetime | None, standard_input: Any = None, **options: Any) -> None:
        now = now or timezone.now()
        do = (lambda text: portrait(text, now)) if verb == "show" else self._changing(verb, options, now)
        names = self._names(options, standard_input)
        failures: list[tuple[Name, DomainError]] = []
        changed, done = 0, 0
        with until_nobody_reads():
            try:
                for name in names:
                    outcome = self._one(do, name)
                    done += 1
                    if isinstance(outcome, DomainError):
                        failures.append((name, outcome))
                    else:
                        changed += outcome.changed
                    self._tell(name, outcome, as_json=options["json"])
                    if done % LONG_RUN == 0 and len(names) > LONG_RUN and self.stderr.isatty():
                        self.stderr.write(f"{done} of {len(names)}", style_func=str)
            except KeyboardInterrupt:
                self.stderr.write(f"Stopped: {len(names) - done} of {len(names)} were not done.")
            if verb != "show" and not options["json"]:
                did = "would change" if options["dry_run"] else "changed"
                unchanged = done - changed - len(failures)
                self.stdout.write(f"{changed} {did}, {unchanged} with nothing to change, {len(failures)} failed.")
        for name, error in failures:
            self.stderr.write(f"{name.text}  {error.code}  {error.detail}")
        if failures or done < len(names):
            raise CommandError(f"{len(names) - done + len(failures)} of {len(names)} failed.")

    def _names(self, options: Options, standard_input: Any) -> list[Name]:
        if "tenant" in options:
            return [Name(options["tenant"])]
        from_where = standard_input or (sys.stdin.buffer if sys.stdin else BytesIO())  # a service may start without any
        if not options["names"] and from_where.isatty():
            raise CommandError("Name subscriptions by their numbers, or say - to type them in, one a line.")
        return named(options["names"], from_where)

    def _changing(self, verb: str, options: Options, now: datetime) -> Callable[[str], Changed]:
        """What is done with each name; whatever holds for all of them is looked up here, once."""
        permission = GRANT if options.get("another_trial") else ""
        actor = acting(options["username"], permission=permission, to="grant another trial")
        by = By(actor, now, options["reason"], options["source"] or "")
        options = {**options, **_plan(options)}

        def do(name: str) -> Changed:
            entries = carry_out(verb, name, options, by, dry_run=options["dry_run"])
            return Changed(entries[-1].subscription.number if "tenant" in options and entries else name, entries)

        return do

    def _one(self, do: Callable[[str], Outcome], name: Name) -> Outcome | DomainError:
        try:
            if name.error:
                raise name.error
            return do(name.text)
        except DomainError as error:
            return error
        except Error as error:  # of the database: one family's, or its connection's, which the next one opens anew
            connection.close_if_unusable_or_obsolete()
            return NotWritten(str(error).partition("\n")[0])

    def _tell(self, name: Name, outcome: Outcome | DomainError, *, as_json: bool) -> None:
        """At once: what a killed run has done can be read off what it printed."""
        if as_json:
            self.stdout.write(json.dumps(_as_json(name, outcome), ensure_ascii=False))
        elif not isinstance(outcome, DomainError):
            self.stdout.write("\n".join(outcome.lines()))
        self.stdout.flush()


def _as_json(name: Name, outcome: Outcome | DomainError) -> dict[str, Any]:
    if isinstance(outcome, DomainError):
        failed = {"number": name.text, "changed": False, "entries": []}
        return {**failed, "error": {"code": outcome.code, "detail": outcome.detail}}
    return {**outcome.as_json(), "error": None}


def _plan(options: Options) -> dict[str, Any]:
    """The plan and the price that the command line means, where it takes any."""
    if options.get("plan") is None:
        if stray := [name for name in ("interval", "price", "term_end") if "plan" in options and options[name]]:
            raise CommandError(f"--{stray[0].replace('_', '-')} says something of a purchase: name its --plan, too.")
        return {}
    try:
        plan, price = sold(options["plan"], options["interval"], options["price"])
    except DomainError as error:
        raise CommandError(error.detail) from None
    return {"plan": plan, "price": price}
