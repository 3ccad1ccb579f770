"""`Scheduler` shares a few threads fairly among everything that generates, scores or learns.

Kernels release Python's lock, so threads are enough, and the event loop stays free. Work is done
in turns of a few milliseconds. The task that has used the least time gets the next one; sequences
that decode together count as many tasks. So a caller waits for as many turns as there are other
callers, whatever these do, and a cancelled call is gone within a turn.
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
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import suppress
from contextvars import copy_context
from typing import Any, Final, TypeVar

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Item = TypeVar("Item")

TURN_S = 0.005
"""About as long as one turn takes while other tasks wait for theirs."""

LONG_TURN_S = 0.02
"""The same while no task waits: fewer switches between threads."""

_NICE = 6
"""How much the niceness of the scheduler's threads is raised; that of training processes is
higher."""


class Task(ABC):
    """Work that is done in turns."""

    used_s = 0.0
    """Seconds of turns so far, each divided by the weight it had; the scheduler's own."""
    weight = 1
    """How many callers it works for."""

    @abstractmethod
    def take_turn(self, turn_s: float) -> bool:
        """Works in one of the scheduler's threads.

        Args:
            turn_s: Seconds that it should take at most.

        Returns:
            Whether it wants another turn; if not, `Scheduler.wake` gives it one later.
        """


class Scheduler:
    """Threads that tasks take turns on.

    Args:
        threads: How many turns run at once.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        """How many turns run at once."""
        self._ready: list[tuple[float, int, Task]] = []
        self._numbers = itertools.count()  # of tasks with equal times, the first one goes first
        self._changed = threading.Condition()
        self._clock_s = 0.0
        self._closed = False
        for number in range(threads):
            threading.Thread(target=self._serve, name=f"turn-{number}", daemon=True).start()

    def caller(self) -> Caller:
        """Returns a task for a new call, which gets a fair share from now on."""
        return Caller(self)

    def wake(self, task: Task) -> None:
        """Gives a turn to a task that has none coming; unused time of the past is lost."""
        with self._changed:
            task.used_s = max(task.used_s, self._clock_s)
            self._push(task)

    def close(self) -> None:
        """Ends the threads after their current turns, whose results are dropped."""
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()

    def _push(self, task: Task) -> None:
        if not self._closed:
            heapq.heappush(self._ready, (task.used_s, next(self._numbers), task))
            self._changed.notify()

    def _serve(self) -> None:
        _lower_priority()
        while (turn := self._next()) is not None:
            task, turn_s = turn
            weight = task.weight
            began_s = time.monotonic()
            again = False
            try:
                again = task.take_turn(turn_s)
            except BaseException:  # the thread serves other tasks as well, and must not end
                logger.exception("a turn failed; its task gets no other")
            task.used_s += (time.monotonic() - began_s) / weight
            if again:
                with self._changed:
                    self._push(task)
            del task, turn  # a thread that waits must not keep a task alive

    def _next(self) -> tuple[Task, float] | None:
        with self._changed:
            while not self._ready and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            used_s, _, task = heapq.heappop(self._ready)
            self._clock_s = max(self._clock_s, used_s)
            return task, TURN_S if self._ready else LONG_TURN_S


def _lower_priority() -> None:
    """Lets the event loop and gRPC's threads run before this thread on a busy processor.

    They need the processor often but for moments only. If they had to wait for the time slice of
    a kernel to end, every call would wait. On Linux a thread has a niceness of its own; elsewhere
    nothing is done.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, 0) + _NICE)


class _End:
    """Marks the end of an iterator."""


_END: Final = _End()


class Caller(Task):
    """The task of one call, which does one piece of work at a time."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._context = copy_context()  # what the work logs shows the id of the call
        self._work: Callable[[float], Any]
        self._future: asyncio.Future[Any]

    async def run(self, work: Callable[[float], Result]) -> Result:
        """Does a piece of work in a thread, in a turn of this call.

        Args:
            work: Gets the seconds that it should take at most, and returns soon after them. It
                never begins once the call is cancelled.

        Returns:
            What the work returned.

        Raises:
            BaseException: The error of the work.
        """
        self._work = work
        self._future = asyncio.get_running_loop().create_future()
        self._scheduler.wake(self)
        result: Result = await self._future
        return result

    async def run_steps(self, steps: Iterator[object]) -> None:
        """Takes all steps of an iterator, in turns of this call; see `iterate`.

        Args:
            steps: Takes a step of a few milliseconds each time.

        Raises:
            BaseException: The error of a step.
        """
        async for _ in self.iterate(None for _ in steps):
            pass

    async def iterate(self, steps: Iterator[Item | None]) -> AsyncGenerator[Item]:
        """Yields the items of an iterator, whose steps are taken in turns of this call.

        No step is taken ahead: the reader gets an item before the next step begins.

        Args:
            steps: Takes a step of a few milliseconds each time, and gives an item, or None. Once
                this call is cancelled it takes no more steps, and may be dropped.

        Raises:
            BaseException: The error of a step.
        """
        gone = threading.Event()

        def take_steps(turn_s: float) -> Item | _End | None:
            until = time.monotonic() + turn_s
            while not gone.is_set():
                item = next(steps, _END)
                if item is not None or time.monotonic() >= until:
                    return item
            return None

        try:
            while not isinstance(item := await self.run(take_steps), _End):
                if item is not None:
                    yield item
        finally:
            gone.set()

    def take_turn(self, turn_s: float) -> bool:
        """Does the work; see `Task`."""
        work = self._work
        future = self._future
        if future.cancelled():
            return False
        result: Any = None
        error: BaseException | None = None
        try:
            result = self._context.run(work, turn_s)
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
