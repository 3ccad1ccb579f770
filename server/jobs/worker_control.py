"""What the server, or a signal, wants of a run; and the way out where nothing would be lost.

While there is something to do, a thread of its own says that the process is alive: it needs the
interpreter lock for a moment only, which kernels do not hold.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from treadle.server.jobs import worker_protocol


class Replies:
    """Messages to the server, from any thread.

    Args:
        pipe: Where they go.
    """

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()

    def send(self, **message: Any) -> None:
        """Sends one message whole."""
        with self._lock:
            self._pipe.write(worker_protocol.encode(message))


HEARTBEAT_S = 1.0
"""Seconds between two signs of life."""


@contextmanager
def heartbeat(replies: Replies) -> Iterator[None]:
    """While within, says again and again that the process is alive."""
    over = threading.Event()

    def beat() -> None:
        with suppress(OSError):  # the server is gone, which the main thread finds out itself
            while not over.wait(HEARTBEAT_S):
                replies.send(event="alive")

    threading.Thread(target=beat, name="treadle-heartbeat", daemon=True).start()
    try:
        yield
    finally:
        over.set()


class RunControl:
    """What is wanted of the run; the trainer looks between shards of batches, too.

    Args:
        replies: Where the server hears of a process that ends at once.
    """

    def __init__(self, replies: Replies) -> None:
        self.stop_reason = ""
        self.pause_reason = ""
        self.threads = 0
        """Threads to use from the next step on; 0: as they are."""
        self.heeded = False
        """True once the trainer was told to stop; it may also have ended before."""
        self._replies = replies
        self._lock = threading.Lock()
        self._at_once = False
        self._free_to_pause = self._free_to_stop = self._preparing = False

    def stop(self, reason: str, at_once: bool = False) -> None:
        """Asks the run to end for good; the first reason stays.

        Args:
            reason: Why.
            at_once: Whether what the run has published will do.
        """
        with self._lock:
            self.stop_reason = self.stop_reason or reason
            self._at_once = self._at_once or at_once
            self._leave()

    def pause(self, reason: str) -> None:
        """Asks the run to keep its state and leave; the first reason stays."""
        with self._lock:
            self.pause_reason = self.pause_reason or reason
            self._leave()

    def stopping(self) -> bool:
        """Tells the trainer whether the run should end."""
        self.heeded = bool(self.stop_reason)
        return self.heeded

    def leaving(self) -> bool:
        """Tells the trainer whether to drop the step that it is at."""
        return bool(self.stop_reason or self.pause_reason)

    @contextmanager
    def nothing_to_lose(self, *, by_stop: bool, preparing: bool = False) -> Iterator[None]:
        """While within, whatever the disk lacks is made again: a pause ends the process at once.

        It does not wait for a long kernel or for a reader, and is no worse than a kill.

        Args:
            by_stop: Whether a stop does so, too.
            preparing: Whether a stop does so that may be at once.
        """
        with self._lock:
            self._free_to_pause, self._free_to_stop = True, by_stop
            self._preparing = preparing
            self._leave()
        try:
            yield
        finally:
            with self._lock:
                self._free_to_pause = self._free_to_stop = self._preparing = False

    def _leave(self) -> None:
        """Ends the process if that is wanted and free."""
        free_to_stop = self._free_to_stop or (self._at_once and self._preparing)
        if self.stop_reason and free_to_stop:
            self._replies.send(event="stopped", reason=self.stop_reason)
        elif self.pause_reason and self._free_to_pause:
            self._replies.send(event="paused", reason=self.pause_reason, needs_bytes=0)
        else:
            return
        sys.stderr.flush()
        os._exit(0)
