"""What a training process may take in memory, and how it is kept to that.

Three things end a process that takes too much, each before it harms the server: allocating fails in
it (RLIMIT_DATA), the server sees it and kills it, or the kernel does.
"""

from __future__ import annotations

import resource
from contextlib import suppress

_OWN_BYTES = 256 << 20
"""What Python, its libraries and the compiled kernels take by themselves."""
_SHARE = 8
"""One part in so many that estimates are short of what arrays and their copies take."""
_MARGIN_BYTES = 256 << 20
"""How much further allocating goes: the server looks from time to time only."""
_THREAD_BYTES = 10 << 20
"""What a thread reserves for its stack."""


def most_bytes(limit_bytes: int) -> int:
    """Returns the memory at which a process is killed.

    Args:
        limit_bytes: What its job may take.
    """
    return limit_bytes + limit_bytes // _SHARE + _OWN_BYTES


def limit_own(limit_bytes: int | None, threads: int) -> None:
    """Has this process fail to allocate more than its job may take.

    Args:
        limit_bytes: What its job may take; None: whatever there is.
        threads: The threads that it uses.
    """
    if limit_bytes is None:
        return
    size = most_bytes(limit_bytes) + _MARGIN_BYTES + threads * _THREAD_BYTES
    with suppress(OSError, ValueError):  # there is a lower limit, or none is possible here
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))
