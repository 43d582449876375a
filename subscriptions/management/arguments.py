"""Arguments that several commands take."""

import argparse
from datetime import UTC, date, datetime, time

from subscriptions.errors import InvalidTerm
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
