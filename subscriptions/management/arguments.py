"""Arguments that several commands take."""

import argparse
from datetime import datetime

from django.utils import timezone


def instant(text: str) -> datetime:
    """An ISO 8601 instant: `2026-11-22T12:00:00Z`, or a day, which begins at midnight UTC. A time of day needs its zone."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an ISO 8601 instant: 2026-11-22 or 2026-11-22T12:00:00Z"
        ) from None
    if parsed.tzinfo is None and "T" not in text and " " not in text:
        return parsed.replace(tzinfo=timezone.get_default_timezone())
    if parsed.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!r} has no time zone: end it with Z or +01:00")
    return parsed


def add_now(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--now", type=instant, metavar="ISO", help="act as if it were this instant, 2026-11-22 or 2026-11-22T12:00:00Z"
    )


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="print exactly what would happen, and change nothing")
