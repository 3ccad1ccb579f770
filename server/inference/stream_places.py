"""`StreamPlaces` bounds how many streams are open, and takes back the place of a silent one.

A stream holds its place between two messages as well, and a client may be silent for as long as it
likes while there are places. Once all are taken, the stream that has been silent for longest gives
its place to the next call. So silence alone keeps nobody out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

import grpc

from treadle.server.errors import StatusError, aborted, exhausted

Message = TypeVar("Message")

_RETRY_S = 1.0

_NEXT_S = 0.1
"""Seconds after which another silent stream may end for want of memory."""


class StreamPlaces:
    """Counts the streams of one kind that are open.

    Args:
        limit: How many may be open at once.
        what: What they are, in the plural, as the refusal says it.
        idle_s: Seconds of silence after which a stream gives its place to another call, where
            all places are taken.
        lost: What a client is told to do about a stream that gave up its place, as a clause.
        waits: Whether a call that is given the place of another waits until that one has let go
            of what it held.
        check: Called first; raises a StatusError where nothing may be admitted.
    """

    def __init__(
        self,
        limit: int,
        what: str,
        idle_s: float,
        lost: str = "open it again",
        waits: bool = True,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.limit = limit
        self._what = what
        self._idle_s = idle_s
        self._lost = lost
        self._waits = waits
        self._check = check
        self._places: dict[Place, None] = {}

    @property
    def running(self) -> int:
        """How many streams hold a place."""
        return len(self._places)

    @asynccontextmanager
    async def admit(self) -> AsyncIterator[Place]:
        """Holds a place for as long as it is entered.

        Raises:
            StatusError: RESOURCE_EXHAUSTED: all places are taken, by streams none of which is
                silent for long enough; or what `check` raises.
        """
        self._check()
        silent = None
        if len(self._places) >= self.limit:
            silent = self.give_up_one(f"all {self.limit} places for {self._what} were wanted")
            if silent is None:
                message = f"{self.running} {self._what} are open; 1 more does not fit"
                raise exhausted(message, _RETRY_S)
        place = Place()
        self._places[place] = None
        try:
            if silent is not None and self._waits:
                await silent.left.wait()
            yield place
        finally:
            self._places.pop(place, None)
            place.left.set()

    def give_up_one(self, why: str, idle_s: float | None = None) -> Place | None:
        """Ends the stream that is silent for longest, if that is long enough.

        Args:
            why: Why it has to go, for its client.
            idle_s: Seconds of silence that are long enough; None: those after which a stream gives
                its place to another call.

        Returns:
            Its place; None where no stream is silent for long enough.
        """
        silent = self._longest_silent(self._idle_s if idle_s is None else idle_s)
        if silent is not None:
            del self._places[silent]
            text = f"no message came for {silent.silent_s:.3g} seconds, and {why}; {self._lost}"
            silent.give_up(aborted(text))
        return silent

    def evict(self, reason: StatusError) -> None:
        """Ends every stream that is silent.

        Args:
            reason: What their clients are told.
        """
        for place in [place for place in self._places if place.is_silent]:
            del self._places[place]
            place.give_up(reason)

    def _longest_silent(self, idle_s: float) -> Place | None:
        """Returns the place of the stream that is silent for longest, and for long enough."""
        silent = max(self._places, key=lambda place: place.silent_s, default=None)
        if silent is None or not silent.is_silent or silent.silent_s < idle_s:
            return None
        return silent


class SilentStreams:
    """Ends silent streams where their memory is wanted, one at a time.

    Args:
        kinds: Streams, those first that hold more.
        loop: Where they run.
    """

    def __init__(self, kinds: Sequence[StreamPlaces], loop: asyncio.AbstractEventLoop) -> None:
        self._kinds = kinds
        self._loop = loop
        self._is_asked = False

    def make_way(self, missing: int) -> None:
        """Has one end, unless another one has just done so; may be called from any thread.

        Args:
            missing: Bytes that are wanted.
        """
        # Those that wait for memory ask again and again: what has ended must get time to let go.
        if not self._is_asked:
            self._is_asked = True
            with suppress(RuntimeError):  # the loop is closed: there are no streams any more
                self._loop.call_soon_threadsafe(self._end_one)

    def _end_one(self) -> None:
        for places in self._kinds:
            if places.give_up_one("its memory was wanted") is not None:
                break
        self._loop.call_later(_NEXT_S, self._forget)

    def _forget(self) -> None:
        self._is_asked = False


class Place:
    """The place of one stream."""

    def __init__(self) -> None:
        self._silent_since_s: float | None = None
        self._task: asyncio.Task[object] | None = None
        self._reason: StatusError | None = None
        self.left = asyncio.Event()
        """Set once the stream is over, and has let go of what it held."""

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

        Raises:
            StatusError: ABORTED: the place was given to another call meanwhile.
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

    def give_up(self, reason: StatusError) -> None:
        """Ends the wait for the next message with an error; only while `is_silent`."""
        assert self._task is not None
        self._reason = reason
        # One cancellation here is cheaper than a race of two tasks for every message.
        self._task.cancel()


class Openings:
    """Streams whose first message has not come yet: they hold no place among those that work.

    Args:
        limit: How many may wait at once; the one that has waited for longest goes where more come.
        wait_s: Seconds that the first message may take.
    """

    def __init__(self, limit: int, wait_s: float) -> None:
        self._wait_s = wait_s
        self._places = StreamPlaces(
            limit,
            "calls without their first message",
            idle_s=0.0,
            lost="send the spec as soon as the call is open",
            waits=False,
        )

    @property
    def waiting(self) -> int:
        """How many streams wait for their first message."""
        return self._places.running

    async def first(self, requests: AsyncIterator[Message]) -> Message | None:
        """Waits for the first message of a stream; None where it ends without one.

        Raises:
            StatusError: DEADLINE_EXCEEDED: it did not come in time; ABORTED: too many others
                wait for theirs.
        """
        async with self._places.admit() as place:
            try:
                async with asyncio.timeout(self._wait_s):
                    return await place.next(requests)
            except TimeoutError:
                raise StatusError(
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                    f"the first message, the spec, did not come within {self._wait_s:g} seconds; "
                    "the call was given up",
                ) from None
