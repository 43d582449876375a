"""Public subscription numbers: SUB-YYYYMMDD-XXXXX."""

import secrets
from datetime import UTC, datetime

CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # no I, L, O, U: nobody misreads a number over the phone


def new_number(now: datetime) -> str:
    """A random number for a subscription made at `now`. The table's constraint makes it unique: ask again if taken."""
    return f"SUB-{now.astimezone(UTC):%Y%m%d}-" + "".join(secrets.choice(CROCKFORD) for _ in range(5))
