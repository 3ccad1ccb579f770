"""`OpenStreams` bounds how many streams are open, and closes a silent one for a new one.

A stream counts between two messages as well, and a client may be silent for as long as it likes
while fewer streams are open than may be. At the limit, the stream that has been silent for longest
is closed for the next call. So silence alone keeps no other client out. The caller that has most
streams loses one first, so that nobody loses one to a caller who has more.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

import grpc

from treadle.server.access.caller import current_caller
from treadle.server.errors import StatusError, aborted, exhausted

Message = TypeVar("Message")

_RETRY_S = 1.0

_NEXT_CLOSE_S = 0.1
"""Seconds after which another silent stream may be closed for want of memory."""


class OpenStreams:
    """Counts the open streams of one kind.

    Args:
        limit: How many may be open at once.
        what: What they are, in the plural, as the refusal says it.
        idle_s: Seconds of silence after which a stream may be closed for another one, at the
            limit.
        remedy: What the client of a closed stream should do, as a clause.
        waits: Whether a call that takes the place of another stream waits until that one has
            released its memory.
        check: Called first; raises a StatusError where nothing may be admitted.
    """

    def __init__(
        self,
        limit: int,
        what: str,
        idle_s: float,
        remedy: str = "open it again",
        waits: bool = True,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.limit = limit
        self._what = what
        self._idle_s = idle_s
        self._remedy = remedy
        self._waits = waits
        self._check = check
        self._streams: dict[OpenStream, None] = {}

    @property
    def running(self) -> int:
        """How many streams are open."""
        return len(self._streams)

    @asynccontextmanager
    async def admit(self) -> AsyncIterator[OpenStream]:
        """Counts a stream as open for as long as the context is entered.

        Yields:
            The open stream.

        Raises:
            StatusError: RESOURCE_EXHAUSTED: as many streams are open as may be, and none is silent
                for long enough; or the error that `check` raises.
        """
        self._check()
        closed = None
        if len(self._streams) >= self.limit:
            reason = f"all {self.limit} places for {self._what} are taken"
            closed = self.close_silent(reason, caller=current_caller().name)
            if closed is None:
                message = (
                    f"at most {self.limit} {self._what} are open at once; 1 more does not fit now"
                )
                raise exhausted(message, _RETRY_S)
        stream = OpenStream(current_caller().name)
        self._streams[stream] = None
        try:
            if closed is not None and self._waits:
                await closed.left.wait()
            yield stream
        finally:
            self._streams.pop(stream, None)
            stream.left.set()

    def close_silent(
        self, reason: str, idle_s: float | None = None, caller: str | None = None
    ) -> OpenStream | None:
        """Closes the stream that is silent for longest, if that is long enough.

        Args:
            reason: Why a stream has to go, for its client.
            idle_s: Seconds of silence that are long enough; None: those of the constructor.
            caller: The caller to whom its place is given, who must not have more streams than the
                one who loses it; None: nobody in particular.

        Returns:
            The stream; None where none is silent for long enough.
        """
        silent = self._longest_silent(self._idle_s if idle_s is None else idle_s, caller)
        if silent is not None:
            del self._streams[silent]
            text = f"no message came for {silent.silent_s:.3g} seconds, and {reason}"
            silent.close(aborted(f"{text}; {self._remedy}"))
        return silent

    def close_all_silent(self, reason: StatusError) -> None:
        """Closes every silent stream with an error for its client."""
        for stream in [stream for stream in self._streams if stream.is_silent]:
            del self._streams[stream]
            stream.close(reason)

    def _longest_silent(self, idle_s: float, caller: str | None) -> OpenStream | None:
        counts = Counter(stream.caller for stream in self._streams)
        silent = [
            stream
            for stream in self._streams
            if stream.is_silent
            and stream.silent_s >= idle_s
            and (caller in (None, stream.caller) or counts[stream.caller] > counts[caller])
        ]
        return max(
            silent, key=lambda stream: (counts[stream.caller], stream.silent_s), default=None
        )


class SilentStreamCloser:
    """Closes silent streams where their memory is needed, one at a time.

    Args:
        kinds: The streams, those first that hold more memory.
        loop: The event loop of the streams.
    """

    def __init__(self, kinds: Sequence[OpenStreams], loop: asyncio.AbstractEventLoop) -> None:
        self._kinds = kinds
        self._loop = loop
        self._is_asked = False

    def close_one(self, missing: int) -> None:
        """Closes a silent stream, unless another was closed just now; from any thread.

        Args:
            missing: Bytes that are needed.
        """
        # Those that wait for memory ask repeatedly: a closed stream needs time to release its own.
        if not self._is_asked:
            self._is_asked = True
            with suppress(RuntimeError):  # the loop is closed: there are no streams any more
                self._loop.call_soon_threadsafe(self._close_one)

    def _close_one(self) -> None:
        for streams in self._kinds:
            if streams.close_silent("its memory was needed") is not None:
                break
        self._loop.call_later(_NEXT_CLOSE_S, self._forget)

    def _forget(self) -> None:
        self._is_asked = False


class OpenStream:
    """One open stream.

    Args:
        caller: The name of its caller.
    """

    def __init__(self, caller: str = "") -> None:
        self.caller = caller
        """The name of its caller."""
        self._silent_since_s: float | None = None
        self._task: asyncio.Task[object] | None = None
        self._reason: StatusError | None = None
        self.left = asyncio.Event()
        """Set once the stream is over and has released its memory."""

    @property
    def is_silent(self) -> bool:
        """Whether the server waits for the client's next message."""
        return self._silent_since_s is not None

    @property
    def silent_s(self) -> float:
        """Seconds that the server has waited for the next message by now; 0 where it does not."""
        since_s = self._silent_since_s
        return 0.0 if since_s is None else asyncio.get_running_loop().time() - since_s

    async def next(self, requests: AsyncIterator[Message]) -> Message | None:
        """Waits for the next message of the stream; None where there are no more.

        Returns:
            The message, or None.

        Raises:
            StatusError: ABORTED: the stream was closed meanwhile.
        """
        self._task = asyncio.current_task()
        self._silent_since_s = asyncio.get_running_loop().time()
        try:
            return await anext(requests, None)
        except asyncio.CancelledError:
            if self._reason is None:
                raise
            if self._task is not None:
                self._task.uncancel()
            raise self._reason from None
        finally:
            self._silent_since_s = None

    def close(self, reason: StatusError) -> None:
        """Ends the wait for the next message with an error; only while `is_silent`."""
        assert self._task is not None
        self._reason = reason
        # One cancellation here is cheaper than a race of two tasks for every message.
        self._task.cancel()


class PendingStreams:
    """Streams whose first message has not come yet, which do not count as open.

    Args:
        limit: How many may wait at once; the one that has waited for longest is closed where more
            come.
        wait_s: Seconds that the first message may take.
    """

    def __init__(self, limit: int, wait_s: float) -> None:
        self._wait_s = wait_s
        self._streams = OpenStreams(
            limit,
            "calls without their first message",
            idle_s=0.0,
            remedy="send the spec as soon as the call is open",
            waits=False,
        )

    @property
    def waiting(self) -> int:
        """How many streams wait for their first message."""
        return self._streams.running

    async def first(self, requests: AsyncIterator[Message]) -> Message | None:
        """Waits for the first message of a stream; None where it ends without one.

        Returns:
            The message, or None.

        Raises:
            StatusError: DEADLINE_EXCEEDED: it did not come in time; ABORTED: too many other
                streams wait for theirs.
        """
        async with self._streams.admit() as stream:
            try:
                async with asyncio.timeout(self._wait_s):
                    return await stream.next(requests)
            except TimeoutError:
                raise StatusError(
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                    f"the first message, the spec, did not come within {self._wait_s:g} seconds; "
                    "open the call again and send it at once",
                ) from None
