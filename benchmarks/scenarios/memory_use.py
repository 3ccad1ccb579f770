"""`MemorySampler`: the resident memory of a server and of the processes that it starts."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MIB = 1 << 20

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_PAUSE_S = 0.05
_CHILDREN_EVERY = 4
"""Processes are looked for at every so many samples: it reads a file a thread."""


class MemorySampler:
    """Samples memory until it is closed.

    Args:
        pid: The server's process.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.peak_bytes = 0
        """The most that the server's own process had."""
        self.peak_worker_bytes = 0
        """The most that one training process had."""
        self.peak_helper_bytes = 0
        """The most that all other children, such as those for expressions, had together."""
        self.seen: dict[int, str] = {}
        """Every descendant that was seen, with its start time, since process ids are used again."""
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the sampling."""
        self._closed.set()
        self._thread.join()

    def _sample(self) -> None:
        rounds = 0
        while not self._closed.wait(_PAUSE_S):
            # The kernel's own peak misses nothing between two samples.
            self.peak_bytes = max(self.peak_bytes, resident_bytes(self._pid), _peak(self._pid))
            rounds += 1
            if rounds % _CHILDREN_EVERY == 0:
                self._sample_children()

    def _sample_children(self) -> None:
        helpers = 0
        for pid in descendants(self._pid):
            self.seen.setdefault(pid, start_time(pid))
            size = resident_bytes(pid)
            if is_training_worker(pid):
                self.peak_worker_bytes = max(self.peak_worker_bytes, size)
            else:
                helpers += size
        self.peak_helper_bytes = max(self.peak_helper_bytes, helpers)


def resident_bytes(pid: int) -> int:
    """Returns the resident memory of a process; 0 where there is no such process."""
    with suppress(OSError, IndexError, ValueError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    return 0


def _peak(pid: int) -> int:
    with suppress(OSError, ValueError):
        for row in Path(f"/proc/{pid}/status").read_text().splitlines():
            if row.startswith("VmHWM:"):
                return int(row.split()[1]) * 1024
    return 0


def descendants(pid: int) -> Iterator[int]:
    """Yields the ids of the processes below a process."""
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                for child in (task / "children").read_text().split():
                    yield int(child)
                    yield from descendants(int(child))


def is_training_worker(pid: int) -> bool:
    """Returns whether a process trains, by its command line."""
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return any(word.startswith(b"treadle.server") and b"worker" in word for word in words)
    return False


def start_time(pid: int) -> str:
    """Returns when a process began, in the kernel's clock; empty if there is no such process."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""
