"""Public subscription numbers: SUB-YYYYMMDD-XXXXX."""

import re
import secrets
from datetime import UTC, datetime

CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # no I, L, O, U: nobody misreads a number over the phone
LOOKS_LIKE = re.compile(rf"SUB-[0-9]{{8}}-[{CROCKFORD}]{{5}}")


def new_number(now: datetime) -> str:
    """A random number for a subscription made at `now`. The table's constraint makes it unique: ask again if taken."""
    return f"SUB-{now.astimezone(UTC):%Y%m%d}-" + "".join(secrets.choice(CROCKFORD) for _ in range(5))
