"""`PacedStream` reads the messages of an upload, and `Pace` ends one that is too slow.

A silent client, or one that sends a byte now and then, would hold its place and its files for ever.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc

from treadle.server.errors import StatusError, unavailable

Request = TypeVar("Request")


@dataclass(frozen=True)
class UploadLimits:
    """Limits of an upload. Seconds that the server itself takes do not count as idle."""

    most_bytes: int
    """The most bytes of what is uploaded."""
    idle_s: float
    """The most seconds without a new message."""
    min_rate: float = 0.0
    """The least bytes a second, over every `idle_s` seconds of waiting for them."""
    total_s: float = math.inf
    """The most seconds from the first message to the last one."""
    spec_s: float = 10.0
    """The most seconds to the first message, the spec."""


class PacedStream(Generic[Request]):
    """The messages of one upload.

    Args:
        requests: The stream.
        limits: Its limits.
        closing: Done when the server is closing; its result is the error of the upload.
        size_of: Returns the bytes of a message that count.
        what: What is uploaded, in messages.
        lost: What follows where the server is closing, as a clause.
    """

    def __init__(
        self,
        requests: AsyncIterator[Request],
        limits: UploadLimits,
        closing: asyncio.Future[StatusError],
        size_of: Callable[[Request], int],
        what: str,
        lost: str,
    ) -> None:
        self._requests = aiter(requests)
        self._closing = closing
        self._size_of = size_of
        self._lost = lost
        self._pace = Pace(limits, what=what)

    def begin(self) -> None:
        """Starts to measure the pace: the first message, the spec, has arrived."""
        self._pace.begin()

    async def next(self) -> Request | None:
        """Returns the next message, or None at the end of the stream.

        Raises:
            StatusError: DEADLINE_EXCEEDED for a client that is silent, or slower than it may be;
                UNAVAILABLE: the server is closing.
        """
        reading = asyncio.ensure_future(anext(self._requests, None))
        waiting: set[asyncio.Future[Any]] = {reading, self._closing}
        self._pace.wait()
        try:
            while not reading.done():
                left = self._pace.left()
                await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                if reading.done():
                    break
                if self._closing.done():
                    reason = self._closing.result().message
                    raise unavailable(f"{reason}; {self._lost}")
                self._pace.check()
            request = reading.result()
        finally:
            reading.cancel()
        self._pace.came(0 if request is None else self._size_of(request))
        return request


class Pace:
    """Measures how fast a client sends or reads, and ends a call that is too slow.

    Args:
        limits: The limits of the call.
        clock: Returns seconds that never go back.
        what: What is sent, in messages.
    """

    def __init__(
        self,
        limits: UploadLimits,
        clock: Callable[[], float] = time.monotonic,
        what: str = "corpus",
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._what = what
        self._ends = math.inf
        self._begun = False
        self._since = self._counted = clock()
        self._waited_s = 0.0
        """Seconds of the current window in which the server waited for the client."""
        self._bytes = 0
        """Bytes that arrived in the window."""

    def begin(self) -> None:
        """Starts the measurement: the spec has arrived."""
        self._begun = True
        self._ends = self._clock() + self._limits.total_s
        self._waited_s = 0.0
        self._bytes = 0

    def wait(self) -> None:
        """Notes that the server waits for a message from now on."""
        self._since = self._counted = self._clock()

    def came(self, size: int) -> None:
        """Notes that a message has arrived.

        Args:
            size: The bytes in it that count.

        Raises:
            StatusError: DEADLINE_EXCEEDED: it arrived too late.
        """
        self._bytes += size
        self._check_pace()

    def left(self) -> float:
        """Returns the seconds after which `check` is to be called, unless a message arrives."""
        now = self._clock()
        silent = self._since + self._silence - now
        window = self._counted + self._limits.idle_s - self._waited_s - now
        return max(0.0, min(silent, window, self._ends - now))

    def check(self) -> None:
        """Checks a client that has sent nothing for the seconds that `left` returned.

        Raises:
            StatusError: DEADLINE_EXCEEDED: it was silent for too long, or is too slow.
        """
        if self._clock() - self._since >= self._silence:
            if self._begun:
                raise _given_up(f"no message for {self._limits.idle_s:g} seconds")
            raise _given_up(f"no spec for {self._limits.spec_s:g} seconds")
        self._check_pace()

    @property
    def _silence(self) -> float:
        """The most seconds before the next message."""
        return self._limits.idle_s if self._begun else self._limits.spec_s

    def _check_pace(self) -> None:
        now = self._clock()
        limits = self._limits
        if now >= self._ends:
            raise _given_up(f"the {self._what} was not whole after {limits.total_s:,g} seconds")
        self._waited_s += now - self._counted
        self._counted = now
        if self._waited_s < limits.idle_s:
            return
        if self._begun and self._bytes < limits.min_rate * self._waited_s:
            rate = self._bytes / self._waited_s
            least = f"{limits.min_rate:,g} are the least"
            raise _given_up(f"the {self._what} came at {rate:,.1f} bytes a second, and {least}")
        self._waited_s = 0.0
        self._bytes = 0


def _given_up(why: str) -> StatusError:
    return StatusError(grpc.StatusCode.DEADLINE_EXCEEDED, f"{why}; the upload was given up")
