"""`MallocTrimmer` returns free memory to the system after a burst.

glibc keeps freed memory for later allocations, in one heap for each thread or two. After hundreds
of large requests that is as much as they took. Other C libraries return it themselves.
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
"""Bytes of unused memory that are worth the few milliseconds of a return."""


def resident_bytes() -> int:
    """Returns the bytes of memory that this process takes; 0 where that is unknown."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


class _Mallinfo2(ctypes.Structure):
    """The state of glibc's heaps, as `mallinfo2` returns it."""

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
        OSError, AttributeError: The C library is not glibc 2.33 or newer.
    """

    def __init__(self) -> None:
        if not sys.platform.startswith("linux"):
            raise OSError("the system is not Linux")
        libc = ctypes.CDLL(None)
        self._info = libc.mallinfo2
        self._trim = libc.malloc_trim
        self._info.restype = _Mallinfo2
        self._trim.argtypes = [ctypes.c_size_t]

    def waste(self) -> int:
        """Returns the bytes of memory of this process that are not allocated from a heap."""
        info = self._info()
        return resident_bytes() - int(info.uordblks) - int(info.hblkhd)

    def return_free_pages(self) -> None:
        """Returns free pages to the system; takes 0.1 s for a gigabyte, without Python's lock."""
        self._trim(0)


class MallocTrimmer:
    """A thread that returns memory to the system where much was freed.

    Args:
        heap: The heaps.
        look_s: Seconds between two checks.
    """

    def __init__(self, heap: Heap, look_s: float = _LOOK_S) -> None:
        self._heap = heap
        self._look_s = look_s
        self._least = heap.waste()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory-return", daemon=True)

    @classmethod
    def begin(cls) -> MallocTrimmer | None:
        """Starts a thread; returns None where the C library needs none or offers no way."""
        try:
            made = cls(Heap())
        except (OSError, AttributeError):
            return None
        made._thread.start()
        return made

    def close(self) -> None:
        """Ends the thread."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join()

    def look(self) -> bool:
        """Returns memory to the system where that is worth it.

        Memory that is never returned, such as the program itself, counts as waste too. How much it
        is shows after each return.

        Returns:
            Whether it returned memory.

        Returns:
            Whether memory was given back.
        """
        waste = self._heap.waste()
        if waste < self._least + _WASTE_BYTES:
            self._least = min(self._least, waste)
            return False
        began_s = time.monotonic()
        self._heap.return_free_pages()
        took_s = time.monotonic() - began_s
        self._least = self._heap.waste()
        returned = max(0, waste - self._least) >> 20
        logger.debug("%d MiB of memory were returned in %.0f ms", returned, 1000 * took_s)
        return True

    def _run(self) -> None:
        while not self._closing.wait(self._look_s):
            self.look()
