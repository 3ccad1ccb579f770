"""`main` runs a training process: `python -m treadle.server.jobs.worker [--warm | --ranks]`.

The process exchanges messages with the server through its standard input and output (see
`worker_protocol`), trains one model and ends. It does not outlive the server: Linux kills it when
the server dies, and the end of its input ends it. It has a lower priority than requests.

With --ranks, mpirun has started several such processes for one job, which share its work: rank 0
exchanges messages with the server, through mpirun, and the others follow it.

The modules for training are imported late, at the lower priority: the import takes most of the
time of a short job.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO

_NICENESS = 10
_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Trains one job.

    Returns:
        The exit code; 0 also where the server got a message that training failed.
    """
    os.nice(_NICENESS)
    be_first_to_go()
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the server ends this process
    replies = private_output()

    ranks = None
    if "--ranks" in sys.argv:
        from treadle.model.training.ranks.follower import follow_to_the_end
        from treadle.model.training.ranks.join import join

        ranks = join()
        if ranks is not None and not ranks.leads:
            for number in (signal.SIGTERM, signal.SIGHUP):  # rank 0 decides
                signal.signal(number, signal.SIG_IGN)
            return follow_to_the_end(ranks)

    from treadle.server.jobs.worker_training import serve

    # Unbuffered: a thread still waits on it when Python ends, and may then hold no lock.
    requests = os.fdopen(0, "rb", buffering=0, closefd=False)
    try:
        return serve(requests, replies, "--warm" in sys.argv, ranks)
    except BrokenPipeError:  # the server is gone
        return 1
    finally:
        if ranks is not None:
            ranks.leave()


def die_with_parent() -> None:
    """Asks Linux to kill this process when the server dies, however it dies."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        print(f"prctl: {os.strerror(ctypes.get_errno())}", file=sys.stderr)


def be_first_to_go() -> None:
    """Asks Linux to take this process, and not the server, when memory runs out."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", "ascii")


def private_output() -> IO[bytes]:
    """Returns the pipe to the server, and redirects printed text to the log."""
    pipe = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return os.fdopen(pipe, "wb", buffering=0)


if __name__ == "__main__":
    sys.exit(main())
