"""`main` runs the `treadle` command, which is also `python -m treadle.client`.

Other modules are imported late: Ctrl-C during the imports would otherwise end in a traceback.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

INTERRUPTED = 130


def main() -> NoReturn:
    """Runs the command and ends the process with its exit code.

    Python's own shutdown is skipped once everything is written. A thread of gRPC may still hold a
    lock when Python stops it, and the process would then wait for that lock for ever.
    """
    signal.signal(signal.SIGINT, _end)
    from treadle.client.cli.main import main as run

    code = run()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # `cli.main` has reported the error
            if stream is not None:  # closed by the parent process
                stream.flush()
    os._exit(code)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"treadle: interrupted\n")
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
