"""`limit_own` limits the memory of a training process; `most_bytes` is where the server kills it.

Three mechanisms end a process that takes too much memory before it harms the server: an allocation
in it fails (RLIMIT_DATA), the server kills it, or Linux does.
"""

from __future__ import annotations

import resource
from contextlib import suppress

_OWN_BYTES = 256 << 20
"""Bytes that Python, its libraries and the compiled kernels take by themselves."""
_SHARE = 8
"""Estimates may be too low by one part in this many, for copies of arrays."""
_MARGIN_BYTES = 256 << 20
"""Bytes beyond that point at which allocations fail, since the server checks at intervals."""
_THREAD_BYTES = 10 << 20
"""Bytes that a thread reserves for its stack."""


def most_bytes(limit_bytes: int) -> int:
    """Returns the memory at which a process is killed.

    Args:
        limit_bytes: The most memory of its job.
    """
    return limit_bytes + limit_bytes // _SHARE + _OWN_BYTES


def limit_own(limit_bytes: int | None, threads: int) -> None:
    """Makes allocations of this process fail beyond the limit of its job.

    Args:
        limit_bytes: The most memory of its job; None: no limit.
        threads: The threads that it uses.
    """
    if limit_bytes is None:
        return
    size = most_bytes(limit_bytes) + _MARGIN_BYTES + threads * _THREAD_BYTES
    with suppress(OSError, ValueError):  # a lower limit holds already, or the system has none
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))
