"""`FileWatch` notices that files of settings have changed, so that they can be read again."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

from treadle.server.resources import thread_pools

logger = logging.getLogger(__name__)

_LOOK_S = 1.0
"""Seconds between two looks."""

_Stamp = tuple[int, int, int, int]


class FileWatch:
    """Notices changes of files: of their content, or another file in their place.

    A watch is made before the files are read for the first time, so that it misses no change.

    Args:
        paths: The files. Links are followed, as Kubernetes mounts secrets.
    """

    def __init__(self, *paths: str) -> None:
        self._paths = paths
        self._stamps = self._look()

    def has_changed(self) -> bool:
        """Returns whether a file has changed since the last call."""
        before = self._stamps
        self._stamps = self._look()
        return self._stamps != before

    async def follow(self, reload: Callable[[], None], interval_s: float = _LOOK_S) -> None:
        """Looks until it is cancelled.

        Args:
            reload: Called in a thread after each change. An exception is logged.
            interval_s: Seconds between two looks.
        """
        while True:
            await asyncio.sleep(interval_s)
            await thread_pools.SETTINGS.run(self._reload, reload)

    def _reload(self, reload: Callable[[], None]) -> None:
        if not self.has_changed():
            return
        try:
            reload()
        except Exception:
            logger.exception("%s cannot be read again", ", ".join(self._paths))

    def _look(self) -> list[_Stamp | None]:
        return [_stamp(path) for path in self._paths]


def _stamp(path: str) -> _Stamp | None:
    """Returns what changes with a file; None where there is no file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
