"""`main` runs the `treadle-bench` command, as `python -m treadle.benchmarks` too; see `cli`.

What it needs is imported late: Ctrl-C during the imports would otherwise end in a traceback.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import NoReturn


def main() -> int:
    """Runs the command; returns its exit code."""
    signal.signal(signal.SIGINT, _end)
    from treadle.benchmarks.cli import main as run

    return run()


def _end(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
