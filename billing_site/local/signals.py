"""Ctrl-C, SIGTERM and SIGHUP all mean the same to a supervisor: stop what you started, then go."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_noted: list[int] = []


class Interrupted(BaseException):
    """An ending signal has come, and nothing has to be waited for any more."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


@contextmanager
def noted() -> Iterator[None]:
    """Within it ending signals are only noted, and `check` tells.

    A handler that raised would now and then raise where Python drops exceptions (its hooks around a fork, finalizers),
    and otherwise in the middle of a clean-up.
    """

    def note(signum: int, frame: FrameType | None) -> None:
        _noted.append(signum)

    previous = {each: signal.signal(each, note) for each in ENDING}
    try:
        yield
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
        _noted.clear()


def first() -> int | None:
    """The ending signal that came, if one did."""
    return _noted[0] if _noted else None


def check() -> None:
    """Raise Interrupted if an ending signal came. Called wherever one waits for a start, never while stopping."""
    if (signum := first()) is not None:
        raise Interrupted(signum)


class Starter:
    """The process that started us, usually make. When it goes, nobody is left who could stop us: we go too.

    GNU make passes SIGTERM on, but not a SIGINT or SIGHUP that only make received: it waits for us instead, with the
    signal no longer caught. Linux lets us see that.
    """

    def __init__(self) -> None:
        self._pid = os.getppid()
        self._is_make = "MAKELEVEL" in os.environ
        self._caught = self._caught_signals()

    def left(self) -> int | None:
        """The signal that we should have been sent, if any."""
        if not self._is_make:
            return None
        if os.getppid() != self._pid:
            return signal.SIGTERM
        lost = self._caught & ~self._caught_signals()
        return next((each for each in ENDING if lost & (1 << (each - 1))), None)

    def _caught_signals(self) -> int:
        if sys.platform == "linux":
            with suppress(OSError):
                for line in Path(f"/proc/{self._pid}/status").read_text().splitlines():
                    if line.startswith("SigCgt:"):
                        return int(line.split()[1], 16)
        return 0
