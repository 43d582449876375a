"""`python -m tests.shifted FILE MODULE ARGUMENT…`: MODULE as a program whose clock is ahead by the seconds in FILE.

What Django calls now is moved, and with it every edge of ours. The file is read again each time: whoever writes it
moves all these processes together.
"""

import runpy
import sys
from datetime import timedelta
from pathlib import Path

from django.utils import timezone


def main() -> None:
    clock, module, *arguments = sys.argv[1:]
    real, seconds = timezone.now, Path(clock)
    timezone.now = lambda: real() + timedelta(seconds=float(seconds.read_text()))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
