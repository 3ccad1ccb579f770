"""`RunControl` passes requests to stop or to pause on to a run, or ends its process at once.

`heartbeat` reports from a thread of its own that the process is alive. The thread needs the
interpreter lock only for a moment, and kernels do not hold it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from treadle.server.jobs import worker_protocol


class Replies:
    """Messages to the server, from any thread.

    Args:
        pipe: The pipe to the server.
    """

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()

    def send(self, **message: Any) -> None:
        """Sends one whole message."""
        with self._lock:
            self._pipe.write(worker_protocol.encode(message))


class Phases:
    """Reports to the server what the process did and when, for the trace of the job.

    Args:
        replies: Sends the reports.
        is_on: Whether the job is traced.
    """

    def __init__(self, replies: Replies, is_on: bool) -> None:
        self._replies = replies
        self._is_on = is_on

    def add(self, name: str, began_s: float) -> None:
        """Reports what is over by now.

        Args:
            name: What the process did.
            began_s: When that began, in seconds since the epoch; 0: it did not.
        """
        if self._is_on and began_s:
            self._replies.send(event="phase", name=name, began_s=began_s, ended_s=time.time())

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Reports what happens within, also where it fails."""
        began_s = time.time()
        try:
            yield
        finally:
            self.add(name, began_s)


HEARTBEAT_S = 1.0
"""Seconds between two heartbeats."""


@contextmanager
def heartbeat(replies: Replies) -> Iterator[None]:
    """Reports within, at intervals, that the process is alive."""
    over = threading.Event()

    def beat() -> None:
        with suppress(OSError):  # the server is gone, and the main thread notices that itself
            while not over.wait(HEARTBEAT_S):
                replies.send(event="alive")

    threading.Thread(target=beat, name="treadle-heartbeat", daemon=True).start()
    try:
        yield
    finally:
        over.set()


class RunControl:
    """The requests to a run. The trainer checks them between steps and between shards of batches.

    Args:
        replies: Sends the server a last event where the process ends at once.
    """

    def __init__(self, replies: Replies) -> None:
        self.stop_reason = ""
        """Why the run is to end; empty: it is not to end."""
        self.pause_reason = ""
        """Why the run is to pause; empty: it is not to pause."""
        self.threads = 0
        """Threads to use from the next step on; 0: as they are."""
        self.heeded = False
        """Whether the trainer has seen the request to stop; it may have ended before."""
        self._replies = replies
        self._lock = threading.Lock()
        self._at_once = False
        self._may_pause_at_once = False
        self._may_stop_at_once = False
        self._is_preparing = False

    def stop(self, reason: str, at_once: bool = False) -> None:
        """Asks the run to end for good; the first reason stays.

        Args:
            reason: Why.
            at_once: Whether the weights that the run has published suffice.
        """
        with self._lock:
            self.stop_reason = self.stop_reason or reason
            self._at_once = self._at_once or at_once
            self._leave()

    def pause(self, reason: str) -> None:
        """Asks the run to write its checkpoint and leave; the first reason stays."""
        with self._lock:
            self.pause_reason = self.pause_reason or reason
            self._leave()

    def stopping(self) -> bool:
        """Returns whether the run is to end; for the trainer."""
        self.heeded = bool(self.stop_reason)
        return self.heeded

    def leaving(self) -> bool:
        """Returns whether the trainer is to drop its current step."""
        return bool(self.stop_reason or self.pause_reason)

    @contextmanager
    def nothing_to_lose(self, *, by_stop: bool, preparing: bool = False) -> Iterator[None]:
        """Lets a pause end the process at once within, since nothing there would be lost.

        The end does not wait for a long kernel or for a reader.

        Args:
            by_stop: Whether a stop ends the process at once, too.
            preparing: Whether a stop does so where published weights suffice.
        """
        with self._lock:
            self._may_pause_at_once = True
            self._may_stop_at_once = by_stop
            self._is_preparing = preparing
            self._leave()
        try:
            yield
        finally:
            with self._lock:
                self._may_pause_at_once = False
                self._may_stop_at_once = False
                self._is_preparing = False

    def _leave(self) -> None:
        """Ends the process where that is requested and loses nothing."""
        may_stop = self._may_stop_at_once or (self._at_once and self._is_preparing)
        if self.stop_reason and may_stop:
            self._replies.send(event="stopped", reason=self.stop_reason)
        elif self.pause_reason and self._may_pause_at_once:
            self._replies.send(event="paused", reason=self.pause_reason, needs_bytes=0)
        else:
            return
        sys.stderr.flush()
        os._exit(0)
