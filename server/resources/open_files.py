"""How many files and connections the process may have open, and what an error says of that.

A connection is an open file as well. Where a process has as many as the operating system allows it,
nothing can be opened until some are closed: not a model, and not a new connection.
"""

from __future__ import annotations

import os
import resource

_ENOUGH = 1 << 16
"""More than a server comes to. Where the most that is allowed is no limit at all, it is this."""


def allow_many() -> int:
    """Raises the number of files that may be open to the most that is allowed; returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # the system's own limit is lower
        return soft
    return wanted


def check() -> None:
    """Checks that a file can be opened, for those whose errors do not say whether that was it.

    Raises:
        OSError: No more may be open.
    """
    os.close(os.open(os.devnull, os.O_RDONLY))
