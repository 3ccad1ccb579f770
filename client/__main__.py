"""The `treadle` command, as `python -m treadle.client` too; see `cli`.

What it needs is imported late: Ctrl-C during the imports would otherwise end in a traceback.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

INTERRUPTED = 130


def main() -> int:
    """Runs the command.

    Returns:
        The exit code.
    """
    signal.signal(signal.SIGINT, _end)
    from treadle.client.cli import main as run

    return run()


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"treadle: interrupted\n")
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
