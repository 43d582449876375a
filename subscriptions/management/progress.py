"""How far a long run is: one line on a terminal, rewritten; nothing where nobody looks."""

import sys
from collections.abc import Callable
from typing import TextIO


def on_terminal(stream: TextIO | None = None) -> Callable[[str, int], None]:
    """To be told what is done and how much; writes to standard error if that is a terminal."""
    out = stream or sys.stderr

    def tick(what: str, count: int) -> None:
        if out.isatty():
            out.write(f"\r{count} {what}\033[K")
            out.flush()

    return tick
