"""Whose turn it is: everything that generates, scores or learns shares the same few threads.

Kernels let go of Python's lock, so threads are enough, and the event loop stays free. Work is done
in turns of a few milliseconds; whoever has used the least time gets the next one, those that
decode together being as many as they are. So a caller waits for as many turns as there are others,
whatever they do, and one who is cancelled is gone within a turn.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import os
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

TURN_S = 0.005
"""About as long as one turn takes while others wait for theirs."""

_NICE = 6
"""How far threads that take turns stand back; training processes stand back further."""

LONG_TURN_S = 0.02
"""The same while nobody waits: fewer trips between threads."""


class Taker(ABC):
    """One who takes turns."""

    used_s = 0.0
    """Seconds of turns so far, each divided by the weight it had; the scheduler's own."""
    weight = 1
    """How many callers it stands for."""

    @abstractmethod
    def take_turn(self, turn_s: float) -> bool:
        """Works in one of the scheduler's threads.

        Args:
            turn_s: Seconds that it should take at most.

        Returns:
            Whether it wants another turn; if not, `Scheduler.wake` gives it one later.
        """


class Scheduler:
    """Threads that callers take turns on.

    Args:
        threads: How many turns run at once.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        """How many turns run at once."""
        self._ready: list[tuple[float, int, Taker]] = []
        self._numbers = itertools.count()  # of equals, who came first
        self._changed = threading.Condition()
        self._clock_s = 0.0
        self._closed = False
        for number in range(threads):
            threading.Thread(target=self._serve, name=f"turn-{number}", daemon=True).start()

    def caller(self) -> Caller:
        """Returns a new caller, who gets a fair share from now on."""
        return Caller(self)

    def wake(self, taker: Taker) -> None:
        """Gives a turn to one who has none coming; time that it did not ask for is lost."""
        with self._changed:
            taker.used_s = max(taker.used_s, self._clock_s)
            self._push(taker)

    def close(self) -> None:
        """Lets go of the threads; what they are at is finished but goes nowhere."""
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()

    def _push(self, taker: Taker) -> None:
        if not self._closed:
            heapq.heappush(self._ready, (taker.used_s, next(self._numbers), taker))
            self._changed.notify()

    def _serve(self) -> None:
        _step_back()
        while (turn := self._next()) is not None:
            taker, turn_s = turn
            weight, began_s = taker.weight, time.monotonic()
            again = False
            try:
                again = taker.take_turn(turn_s)
            except BaseException:  # a thread serves everybody, and must not end with one of them
                logger.exception("a turn failed, and who took it gets no other")
            taker.used_s += (time.monotonic() - began_s) / weight
            if again:
                with self._changed:
                    self._push(taker)
            del taker, turn  # while it waits, a thread must keep nobody alive

    def _next(self) -> tuple[Taker, float] | None:
        with self._changed:
            while not self._ready and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            used_s, _, taker = heapq.heappop(self._ready)
            self._clock_s = max(self._clock_s, used_s)
            return taker, TURN_S if self._ready else LONG_TURN_S


def _step_back() -> None:
    """Lets the event loop and gRPC's threads go first on a processor that this thread wants, too.

    They need it often and for moments only; where they wait for a time slice of a kernel's to end,
    every call does. On Linux a thread has a niceness of its own; elsewhere nothing is done.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, 0) + _NICE)


class Caller(Taker):
    """A call that has one piece of work done at a time."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._work: Callable[[float], Any]
        self._future: asyncio.Future[Any]

    async def run(self, work: Callable[[float], Result]) -> Result:
        """Does a piece of work in a thread, when it is this caller's turn.

        Args:
            work: Gets the seconds that it should take at most, and returns soon after them. It
                is never begun once the call is cancelled.

        Raises:
            BaseException: What the work raised.
        """
        self._work, self._future = work, asyncio.get_running_loop().create_future()
        self._scheduler.wake(self)
        result: Result = await self._future
        return result

    def take_turn(self, turn_s: float) -> bool:
        """Does the work; see `Taker`."""
        work, future = self._work, self._future
        if future.cancelled():
            return False
        result: Any = None
        error: BaseException | None = None
        try:
            result = work(turn_s)
        except BaseException as raised:
            error = raised
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            future.get_loop().call_soon_threadsafe(_settle, future, result, error)
        return False


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
