"""`progress_since_now` reports on standard error what is being measured."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

Say = Callable[[str], None]
"""Takes a few words on what comes next."""


def progress_since_now() -> Say:
    """Returns what prints a line with the seconds that have passed since this call."""
    begin = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - begin:6.0f} s  {text}", file=sys.stderr, flush=True)

    return say
