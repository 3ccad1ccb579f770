"""`main` runs the `treadle-server` command, also as `python -m treadle.server`; see `cli`.

Everything else is imported after the signal handlers are set, since a signal during the imports
would end in a traceback.
"""

from __future__ import annotations

import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn


def main() -> int:
    """Runs the command.

    Returns:
        The exit code; 130 after Ctrl-C and 143 after SIGTERM, before the server
        handles them itself.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    from treadle.server.cli import main as run

    return run()


def _end(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
