"""`PriorityExecutor` runs one kind of work in a few threads, the smallest piece first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from treadle.server.resources.fair_queue import FairQueue
from treadle.server.resources.work_owner import work_owner

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class PriorityExecutor:
    """Runs pieces of work, small ones first, and pieces of equal size in order.

    Where several callers have work, they take turns. Sizes that differ by less than a factor of two
    count as equal.

    Args:
        name: The name of its threads.
        threads: How many pieces run at once.
    """

    def __init__(self, name: str, threads: int) -> None:
        self._executor = ThreadPoolExecutor(threads, name)
        self._free = threads
        self._waiting: FairQueue[asyncio.Future[None]] = FairQueue()

    async def run(
        self,
        size: int,
        work: Callable[Arguments, Result],
        *arguments: Arguments.args,
        **named: Arguments.kwargs,
    ) -> Result:
        """Runs a piece of work in one of the threads.

        Args:
            size: Its approximate size.
            work: The function. It does not start once the caller is cancelled, and is never
                interrupted.
            arguments: Its positional arguments.
            named: Its keyword arguments.

        Returns:
            What the work returned.

        Raises:
            BaseException: What the work raised.
        """
        await self._enter(size)
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(self._executor, lambda: work(*arguments, **named))
        running.add_done_callback(self._finish)
        return await asyncio.shield(running)

    async def _enter(self, size: int) -> None:
        if self._free:
            self._free -= 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.put(work_owner(), place, size.bit_length())
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():  # it got the place at the same time
                self._leave()
            raise

    def _finish(self, work: asyncio.Future[Any]) -> None:
        """Gives up the place of a piece of work that has ended."""
        if not work.cancelled():
            work.exception()  # else Python would log it where the caller has left meanwhile
        self._leave()

    def _leave(self) -> None:
        """Gives the place to the next piece that still waits."""
        while self._waiting:
            place = self._waiting.pop()
            if not place.done():
                place.set_result(None)
                return
        self._free += 1
