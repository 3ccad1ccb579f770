"""`CallTask` does the work of one call, one piece at a time, in turns of its caller."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import suppress
from contextvars import copy_context
from typing import Any, Final, TypeVar

from treadle.server.inference.scheduler import Scheduler
from treadle.server.inference.sharing.share import Task

Result = TypeVar("Result")
Item = TypeVar("Item")


class _End:
    """Marks the end of an iterator."""


_END: Final = _End()


class CallTask(Task):
    """The task of one call, which does one piece of work at a time.

    Args:
        scheduler: Gives the turns.
        caller: The name of the caller, whose time it takes.
    """

    def __init__(self, scheduler: Scheduler, caller: str) -> None:
        self.share = scheduler.share(caller)
        self._scheduler = scheduler
        self.asked_s = 0.0
        """When it asked for its first turn, by `time.monotonic`; 0 before."""
        self.began_s = 0.0
        """When that began; 0 before."""
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
        self.asked_s = self.asked_s or time.monotonic()
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
        self.began_s = self.began_s or time.monotonic()
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
