"""How far a long run is: one line on a terminal, rewritten; nothing where nobody looks."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO


def on_terminal(stream: TextIO | None = None) -> Callable[[str, int], None]:
    """To be told what is done and how much; writes to standard error if that is a terminal."""
    out = stream or sys.stderr

    def tick(what: str, count: int) -> None:
        if out.isatty():
            out.write(f"\r{count} {what}\033[K")
            out.flush()

    return tick


@contextmanager
def until_nobody_reads() -> Iterator[None]:
    """`| head` has seen enough: what has been done is done, the rest is not. Ends the command with status 1."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
