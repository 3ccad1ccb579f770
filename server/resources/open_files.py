"""`allow_many` raises the limit of open files; `check` reports whether it is reached.

A connection is an open file as well. A process that has reached the limit can open neither a model
nor a new connection until it closes some.
"""

from __future__ import annotations

import os
import resource

_ENOUGH = 1 << 16
"""More files than a server opens, for a system without a limit."""


def allow_many() -> int:
    """Raises the limit of open files as far as the system allows; returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    new = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft == resource.RLIM_INFINITY or soft >= new:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (new, hard))
    except (OSError, ValueError):  # the system's own limit is lower
        return soft
    return new


def check() -> None:
    """Checks that a file can be opened, for errors that do not name their cause.

    Raises:
        OSError: No more may be open.
    """
    os.close(os.open(os.devnull, os.O_RDONLY))
