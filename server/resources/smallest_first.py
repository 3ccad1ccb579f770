"""`Lane`: a few threads for one kind of work, the smallest piece of it first."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class SmallestFirstPool:
    """Does pieces of work, small ones first, and of equal ones who came first.

    Sizes are equal that differ by less than a factor of two.

    Args:
        name: What its threads are called.
        threads: How many pieces are worked at once.
    """

    def __init__(self, name: str, threads: int) -> None:
        self._executor = ThreadPoolExecutor(threads, name)
        self._free = threads
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    async def run(
        self,
        size: int,
        work: Callable[Arguments, Result],
        *arguments: Arguments.args,
        **named: Arguments.kwargs,
    ) -> Result:
        """Does a piece of work in one of the threads.

        Args:
            size: About how large it is.
            work: What to do. It is not begun once the caller is cancelled, and never broken off.
            arguments: What it is called with.
            named: The same, by name.

        Returns:
            What the work returned.

        Raises:
            BaseException: What the work raised.
        """
        await self._enter(size)
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(self._executor, lambda: work(*arguments, **named))
        running.add_done_callback(lambda _: self._leave())
        return await asyncio.shield(running)

    async def _enter(self, size: int) -> None:
        if self._free:
            self._free -= 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (size.bit_length(), next(self._numbers), place))
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():  # it was given the place at the same time
                self._leave()
            raise

    def _leave(self) -> None:
        """Gives the place to the next one who still waits."""
        while self._waiting:
            _, _, place = heapq.heappop(self._waiting)
            if not place.done():
                place.set_result(None)
                return
        self._free += 1
