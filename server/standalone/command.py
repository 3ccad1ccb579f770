"""`run` is the program `treadle-train`; its command is `main`.

Everything else is imported after the handler is set, since Ctrl-C during the imports would end in a
traceback.
"""

from __future__ import annotations

import signal
import sys


def run() -> int:
    """Runs the command as the process; returns its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is something to keep
    from treadle.server.standalone.main import main

    return main()


if __name__ == "__main__":
    sys.exit(run())
