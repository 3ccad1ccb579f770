"""`main` becomes another command that Linux kills when the server dies, such as mpirun.

    python -m treadle.server.jobs.executors.bound_command COMMAND ...

mpirun by itself would continue without the server, and so would the processes that it has started.
"""

from __future__ import annotations

import os
import sys

from treadle.server.jobs.worker import die_with_parent


def main() -> int:
    """Becomes the command; returns an exit code only where that fails."""
    die_with_parent()
    command = sys.argv[1:]
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"--mpirun: {command[0]} cannot be run: {error.strerror}", file=sys.stderr)
        return 127


if __name__ == "__main__":
    sys.exit(main())
