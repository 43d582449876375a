"""Arguments that several commands take."""

import argparse
from datetime import UTC, date, datetime, time

from subscriptions.errors import InvalidTerm
from subscriptions.models import AuditEntry
from subscriptions.numbers import LOOKS_LIKE
from subscriptions.terms import aware

WHAT_IT_IS = "an ISO 8601 instant, 2026-11-22T12:00:00Z, or a day, 2026-11-22, which begins at midnight UTC"


def instant(text: str) -> datetime:
    """An instant as ISO 8601 writes it, or a day, which begins at midnight UTC. A time of day needs its zone."""
    try:
        return aware(_parsed(text), text)
    except InvalidTerm as error:
        raise argparse.ArgumentTypeError(error.detail) from None
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not {WHAT_IT_IS}.") from None


def _parsed(text: str) -> datetime:
    try:
        return datetime.combine(date.fromisoformat(text), time(), tzinfo=UTC)
    except ValueError:
        return datetime.fromisoformat(text)


def add_now(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--now", type=instant, metavar="ISO", help=f"act as if it were this instant: {WHAT_IT_IS}")


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="print exactly what would happen, and change nothing")


def add_reason(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--reason", type=text, required=True, metavar="WHY",
        help="why, for whoever reads the audit trail: an order, a ticket, the reference of a payment",
    )  # fmt: skip


def add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source", type=source, metavar="ID",
        help="what causes it, so that it is safe to repeat: the same source does the same thing to a subscription once",
    )  # fmt: skip


def text(given: str) -> str:
    """What says something, in UTF-8."""
    try:
        given.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{given!a} is not UTF-8.") from None
    if "\0" in given or not given.strip():
        raise argparse.ArgumentTypeError("it must not be blank.")
    return given.strip()


def source(given: str) -> str:
    longest = AuditEntry._meta.get_field("source_id").max_length or 0
    if len(text(given)) > longest:
        raise argparse.ArgumentTypeError(f"it is longer than {longest} characters.")
    return text(given)


def number(given: str) -> str:
    if not LOOKS_LIKE.fullmatch(given):
        raise argparse.ArgumentTypeError(f"{given!a} is no number: they look like SUB-20260101-7KX2M.")
    return given
