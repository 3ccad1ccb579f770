"""Gives memory back to the system after a burst.

glibc keeps what a program frees for its next allocations, in a heap for each thread or two: after
hundreds of large requests that is as much as they took. Other C libraries return it themselves.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import threading
import time
from pathlib import Path

logger = logging.getLogger(__name__)

_LOOK_S = 1.0

_WASTE_BYTES = 32 << 20
"""So much more memory than is in use is worth the few milliseconds that its return takes."""


def resident_bytes() -> int:
    """Returns the memory that this process takes; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


class _Mallinfo2(ctypes.Structure):
    """What glibc says of its heaps, as `mallinfo2` returns it."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd",
            "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


class Heap:
    """The heaps of this process.

    Raises:
        OSError, AttributeError: The C library is another one than glibc 2.33 or newer.
    """

    def __init__(self) -> None:
        if not sys.platform.startswith("linux"):
            raise OSError("no Linux")
        libc = ctypes.CDLL(None)
        self._info, self._trim = libc.mallinfo2, libc.malloc_trim
        self._info.restype = _Mallinfo2
        self._trim.argtypes = [ctypes.c_size_t]

    def waste(self) -> int:
        """Returns the bytes of memory that this process has beyond those allocated from a heap."""
        info = self._info()
        return resident_bytes() - int(info.uordblks) - int(info.hblkhd)

    def give_back(self) -> None:
        """Gives free pages back; takes some 0.1 s a gigabyte, without Python's lock."""
        self._trim(0)


class MemoryReturn:
    """A thread that gives memory back where much was freed.

    Args:
        heap: The heaps.
        look_s: Seconds after which it looks again.
    """

    def __init__(self, heap: Heap, look_s: float = _LOOK_S) -> None:
        self._heap = heap
        self._look_s = look_s
        self._least = heap.waste()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory-return", daemon=True)

    @classmethod
    def begin(cls) -> MemoryReturn | None:
        """Returns one that is at work; None where the C library needs none or cannot be asked."""
        try:
            made = cls(Heap())
        except (OSError, AttributeError):
            return None
        made._thread.start()
        return made

    def close(self) -> None:
        """Ends it."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join()

    def look(self) -> bool:
        """Gives memory back where that is worth it; returns whether it did.

        What is never given back, such as the program itself, counts as waste as well: how much that
        is shows after each return.

        Returns:
            Whether memory was given back.
        """
        waste = self._heap.waste()
        if waste < self._least + _WASTE_BYTES:
            self._least = min(self._least, waste)
            return False
        began_s = time.monotonic()
        self._heap.give_back()
        took_s = time.monotonic() - began_s
        self._least = self._heap.waste()
        returned = max(0, waste - self._least) >> 20
        logger.debug("%d MiB of memory were returned in %.0f ms", returned, 1000 * took_s)
        return True

    def _run(self) -> None:
        while not self._closing.wait(self._look_s):
            self.look()
