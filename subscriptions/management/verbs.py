"""The verbs of `manage.py subscription`, which the back office offers as forms, too: for each its words, its own
arguments, and the verb of `lifecycle` that it calls.

To add one, add a row to VERBS.
"""

from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connection, transaction
from django.db.models import QuerySet, Subquery

from subscriptions import families, lifecycle, terms
from subscriptions.audit import Actor
from subscriptions.errors import DomainError, InvalidTerm, SubscriptionNotFound, TenantNotFound
from subscriptions.lifecycle import CancelAt, Purchase
from subscriptions.management.arguments import instant, number, text
from subscriptions.models import MOST_UNITS, THIS_TRANSACTION, AuditEntry, Plan, PlanPrice, Subscription, Tenant
from subscriptions.states import EndReason

Options = Mapping[str, Any]  # what the command line says, or a form, with its plan and price found
GRANT = "subscriptions.grant_another_trial"  # the permission that `another_trial` takes: edges ask for it


class NotWritten(DomainError):
    """The database did not take it."""

    code = "not_written"


@dataclass(frozen=True)
class Found:
    """What a number names, or a tenant's slug; and the latest entry of the audit when it was looked for."""

    pk: int
    tenant_id: int
    latest_entry: int | None
    term_end: datetime | None = None


@dataclass(frozen=True)
class By:
    """Who does it, when, why, and what caused it: what every verb of `lifecycle` is told."""

    actor: Actor
    now: datetime
    reason: str
    source_id: str = ""


def of_subscription(number: str) -> Found:
    row = Subscription.objects.filter(number=number).values_list("pk", "tenant_id", _latest(), "term_end").first()
    if row is None:
        raise SubscriptionNotFound(f"There is no subscription {number}.")
    return Found(*row)


def of_tenant(slug: str) -> Found:
    row = Tenant.objects.filter(slug=slug).values_list("pk", "pk", _latest()).first()
    if row is None:
        raise TenantNotFound(f"There is no tenant {slug}.")
    return Found(*row)


def _latest() -> Subquery:
    return Subquery(AuditEntry.objects.order_by("-pk").values("pk")[:1])


def _nothing(parser: ArgumentParser) -> None:
    pass


def _says_nothing(options: Options, found: Found, by: By) -> dict[str, object]:
    return {}


@dataclass(frozen=True)
class Verb:
    help: str
    example: str
    does: Callable[..., AuditEntry | None]
    arguments: Callable[[ArgumentParser], None] = _nothing
    says: Callable[[Options, Found, By], dict[str, object]] = _says_nothing  # the arguments of the verb of its own
    of: Callable[[str], Found] = of_subscription

    def carry_out(
        self,
        name: str,
        options: Options,
        by: By,
        *,
        then: Callable[[list[AuditEntry]], bool] = lambda entries: False,
        dry_run: bool = False,
    ) -> list[AuditEntry]:
        """Do it, and what follows from the entries that it wrote, in one transaction; every entry that was written,
        those of the add-ons that follow too. Empty where there was nothing to change. `then` says whether it wrote any.

        A dry run does the same and takes it back. Raises what the verb raises, and `then`.
        """
        with transaction.atomic():
            found = self.of(name)
            self.does(found.pk, **self.says(options, found, by), **vars(by))
            entries = [*_written_since(found)]
            if then(entries):
                entries = [*_written_since(found)]
            if dry_run:
                connection.check_constraints()  # a commit would
                transaction.set_rollback(True)
        return entries


def _written_since(found: Found) -> QuerySet[AuditEntry]:
    """Ours alone: what others commit meanwhile has another transaction."""
    written = AuditEntry.objects.filter(transaction_id=THIS_TRANSACTION, pk__gt=found.latest_entry or 0)
    return written.select_related("subscription").order_by("pk")


# --- what is sold ----------------------------------------------------------------------------------------------------


class NoSuchPlan(DomainError):
    """There is no such plan, or no such price of it."""

    code = "no_such_plan"


def sold(code: str, interval: str | None, price_id: int | None) -> tuple[Plan, PlanPrice | None]:
    """A plan and the price of it that the command line means; None where the plan has none. Raises NoSuchPlan."""
    plan = Plan.objects.filter(code=code).first()
    if plan is None:
        raise NoSuchPlan(
            f"There is no plan {code}: there are {', '.join(Plan.objects.values_list('code', flat=True))}."
        )
    prices = [*PlanPrice.objects.filter(plan=plan).select_related("plan").order_by("pk")]
    meant = [p for p in prices if interval in (None, p.interval) and price_id in (None, p.pk)]
    if len(meant) == 1:
        return plan, meant[0]
    if not prices and interval is None and price_id is None:
        return plan, None
    listed = "; ".join(f"--price {price.pk} is {price}" for price in prices) or "none"
    raise NoSuchPlan(f"Which price of the plan {code}? It has {listed}.")


def _add_plan(parser: ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument("--plan", type=text, required=required, metavar="CODE", help="the plan, by its code")
    parser.add_argument(
        "--interval", choices=PlanPrice.Interval.values, help="its price: the one per month or per year"
    )
    parser.add_argument(
        "--price", type=int, metavar="ID", help="its price, where the interval does not tell them apart"
    )


def _add_change(parser: ArgumentParser) -> None:
    _add_plan(parser)
    parser.add_argument(
        "--quantity", type=units, metavar="N", help="units of the plan, from 1 on (default: as many as before)"
    )


def units(word: str) -> int:
    if not (word.isascii() and word.isdigit() and 1 <= int(word[:9]) <= MOST_UNITS):
        raise ArgumentTypeError(f"A quantity is a whole number from 1 to {MOST_UNITS:,}.")
    return int(word)


def _add_term_end(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--term-end", type=instant, metavar="ISO", help="the first instant that is not paid for (default: by the price)"
    )


def _purchase(options: Options, found: Found, by: By) -> Purchase:
    plan, price = options["plan"], options["price"]
    term_start = options.get("term_start") or by.now
    term_end = options["term_end"] or lifecycle.first_term_end(found.tenant_id, plan, price, term_start)
    return Purchase(plan, term_start, term_end, price)


# --- what the verbs ask ----------------------------------------------------------------------------------------------


def _add_start(parser: ArgumentParser) -> None:
    _add_plan(parser)
    parser.add_argument(
        "--term-start",
        type=instant,
        metavar="ISO",
        help="the first instant that is paid for, also to come (default: now)",
    )
    _add_term_end(parser)
    parser.add_argument(
        "--parent", type=number, metavar="NUMBER", help="of an add-on: its main subscription, with which it ends"
    )
    parser.add_argument(
        "--converts", type=number, metavar="NUMBER", help="the trial that it takes over from, which ends at once"
    )
    parser.add_argument("--another-trial", action="store_true", help="grant a trial to a tenant that had one")


def _start(options: Options, tenant: Found, by: By) -> dict[str, object]:
    parent = of_subscription(options["parent"]) if options["parent"] else None
    trial = of_subscription(options["converts"]) if options["converts"] else None
    if parent and parent.term_end and parent.term_end <= (options["term_start"] or by.now):
        raise InvalidTerm("The term of its main subscription is over by then: renew that first.")
    if parent and not options["term_end"]:
        options = {**options, "term_end": parent.term_end}
    return {
        "purchase": _purchase(options, tenant, by),
        "parent_id": parent and parent.pk,
        "converts_id": trial and trial.pk,
        "another_trial": options["another_trial"],
    }


def _add_activate(parser: ArgumentParser) -> None:
    _add_plan(parser, required=False)
    _add_term_end(parser)


def _activate(options: Options, found: Found, by: By) -> dict[str, object]:
    return {"purchase": _purchase(options, found, by) if options["plan"] else None}


def _add_until(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--until",
        type=instant,
        metavar="ISO",
        help="the end of the new term (default: one interval of its price later)",
    )


def _add_hold(parser: ArgumentParser) -> None:
    parser.add_argument("--hold", action="store_true", help="until lift-hold: neither the clock nor a payment ends it")


def _add_at(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--at", choices=["now", "term-end"], default="term-end", help="when it ends (default: %(default)s)"
    )


def _add_why(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--why", choices=[EndReason.CANCELLED.value, EndReason.NEVER_PAID.value], default=EndReason.CANCELLED.value,
        help="what its end is called (default: %(default)s)",
    )  # fmt: skip


def _add_grace_end(parser: ArgumentParser) -> None:
    until = parser.add_mutually_exclusive_group(required=True)
    until.add_argument("--until", type=instant, metavar="ISO", help="its new end")
    until.add_argument("--days", type=_days, metavar="N", help="so many days more than it has")


def _days(given: str) -> int:
    if not (given.isascii() and given.isdigit() and 0 < int(given) <= 3650):
        raise ArgumentTypeError(f"{given!a} is no number of days between 1 and 3650.")
    return int(given)


def _extend_grace(options: Options, found: Found, by: By) -> dict[str, object]:
    if options["until"]:
        return {"until": options["until"]}
    with families.locked(found.pk, by.now, "") as family:  # which stays locked: two who add days add both
        grace_end, time_zone = family.subject.grace_end, family.subject.time_zone
    return {"until": terms.days_later(grace_end, options["days"], time_zone) if grace_end else by.now}


def _add_new_term_end(parser: ArgumentParser) -> None:
    parser.add_argument("--term-end", type=instant, required=True, metavar="ISO", help="the first instant not paid for")


VERBS: dict[str, Verb] = {
    "start": Verb(
        "Begin a subscription of a tenant.",
        "start acme --plan fleet --interval year --reason 'PO 4711'",
        lifecycle.start,
        _add_start,
        _start,
        of_tenant,
    ),
    "activate": Verb(
        "Make a trial what was bought, or go on with what is left of a term.",
        "activate SUB-20260101-7KX2M --plan fleet --interval month --reason 'PO 4711'",
        lifecycle.activate,
        _add_activate,
        _activate,
    ),
    "renew": Verb(
        "Extend the term; the reason is the reference of what was paid. The anniversary is kept.",
        "renew SUB-20260101-7KX2M --reason 'transfer of 2 March, invoice 1702'",
        lifecycle.renew,
        _add_until,
        lambda options, found, by: {"term_end": options["until"]},
    ),
    "grace": Verb(
        "Let full service go on while payment is awaited.",
        "grace SUB-20260101-7KX2M --reason 'cheque bounced'",
        lifecycle.enter_grace,
    ),
    "suspend": Verb(
        "Withhold service and remember everything.",
        "suspend SUB-20260101-7KX2M --hold --reason 'fraud case 12'",
        lifecycle.suspend,
        _add_hold,
        lambda options, found, by: {"hold": options["hold"]},
    ),
    "lift-hold": Verb(
        "Return what is on hold to what its dates say now.",
        "lift-hold SUB-20260101-7KX2M --reason 'fraud case 12 closed'",
        lifecycle.lift_hold,
    ),
    "cancel": Verb(
        "End it when its term ends, or now.",
        "cancel SUB-20260101-7KX2M --at term-end --reason 'letter of 3 March'",
        lifecycle.cancel,
        _add_at,
        lambda options, found, by: {"at": CancelAt(options["at"].replace("-", "_"))},
    ),
    "resume": Verb(
        "Undo a cancellation at term end.",
        "resume SUB-20260101-7KX2M --reason 'they called: they stay'",
        lifecycle.resume,
    ),
    "expire": Verb(
        "End it for good, now.",
        "expire SUB-20260101-7KX2M --why never_paid --reason 'written off, invoice 1702'",
        lifecycle.expire,
        _add_why,
        lambda options, found, by: {"why": EndReason(options["why"])},
    ),
    "extend-grace": Verb(
        "Let a grace period last longer.",
        "extend-grace SUB-20260101-7KX2M --days 7 --reason 'payment announced for Friday'",
        lifecycle.extend_grace,
        _add_grace_end,
        _extend_grace,
    ),
    "amend-term": Verb(
        "Move the end of the term and nothing else: a date that was wrong, a trial that lasts longer.",
        "amend-term SUB-20260101-7KX2M --term-end 2026-03-01 --reason 'typing error in PO 4711'",
        lifecycle.amend_term,
        _add_new_term_end,
        lambda options, found, by: {"term_end": options["term_end"]},
    ),
    "change-plan": Verb(
        "Sell another plan of the same type from now on, or another quantity of it; the term stays.",
        "change-plan SUB-20260101-7KX2M --plan fleet-pro --interval month --quantity 3 --reason 'PO 4712'",
        lifecycle.change_plan,
        _add_change,
        lambda options, found, by: {name: options.get(name) for name in ("plan", "price", "quantity")},
    ),
}
