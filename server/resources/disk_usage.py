"""`DiskUsage` measures what a data directory takes on its disk, in a thread and not too often.

A directory of many models takes long to walk. So scrapes get the last sizes that are known, and
walks take a twentieth of one thread's time at most.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from treadle.server.resources import thread_pools

_LEAST_S = 5.0
"""Seconds between two walks."""

_RATIO = 20
"""Times as long as a walk took until the next one begins, at least."""

_PATIENCE_S = 0.25
"""Seconds that a scrape waits for a walk."""

_FOLDERS = ("corpora", "jobs", "models")
_CACHE = "cache"
"""The folder of copies of blobs, which only a server has that shares its data with others."""
_DATABASE = "treadle.db"


class DiskUsage:
    """The sizes of what a data directory holds.

    Args:
        root: The directory.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._walking: asyncio.Task[None] | None = None
        self._closed = threading.Event()
        self._due_s = 0.0
        self.sizes: Mapping[str, float] = {}
        """Bytes by what they hold: corpora, jobs, models, database, other; cache, if any."""
        self.free = 0.0
        """Bytes that are free on the disk."""

    async def refresh(self) -> None:
        """Measures again where that is due, and waits a moment for it."""
        if self._walking is None and time.monotonic() >= self._due_s:
            self._walking = asyncio.create_task(self._measure())
        if self._walking is not None:
            await asyncio.wait([self._walking], timeout=_PATIENCE_S)

    def close(self) -> None:
        """Ends a walk soon."""
        self._closed.set()

    async def _measure(self) -> None:
        began_s = time.monotonic()
        try:
            self.sizes, self.free = await thread_pools.DISK_USAGE.run(self._walk)
        except OSError:  # the disk fails; the sizes of before stay
            pass
        finally:
            ended_s = time.monotonic()
            self._due_s = ended_s + max(_LEAST_S, _RATIO * (ended_s - began_s))
            self._walking = None

    def _walk(self) -> tuple[Mapping[str, float], float]:
        sizes = dict.fromkeys((*_FOLDERS, "database", "other"), 0.0)
        with os.scandir(self._root) as entries:
            for entry in entries:
                if entry.name in (*_FOLDERS, _CACHE):
                    kind = entry.name
                else:  # with the files that SQLite keeps next to it
                    kind = "database" if entry.name.startswith(_DATABASE) else "other"
                sizes[kind] = sizes.get(kind, 0.0) + self._size(entry)
        disk = os.statvfs(self._root)
        return sizes, float(disk.f_bavail * disk.f_frsize)

    def _size(self, entry: os.DirEntry[str]) -> int:
        """Returns the bytes of a file, or of all files in a folder; links are not followed."""
        size = 0
        waiting = [entry]
        while waiting and not self._closed.is_set():
            place = waiting.pop()
            with suppress(OSError):  # it was just deleted
                if place.is_dir(follow_symlinks=False):
                    with os.scandir(place.path) as entries:
                        waiting.extend(entries)
                else:
                    size += place.stat(follow_symlinks=False).st_size
        return size
