"""`generate_all` makes one Generate call for each prompt of a request, several at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING

import grpc

from treadle.server.errors import StatusError
from treadle.v1 import sequence_pb2 as pb

if TYPE_CHECKING:
    from treadle.server.access.call_origin import CallOrigin
    from treadle.server.rpc.in_process import InProcessService

_AT_ONCE = 8
"""Calls of one request at the same time."""

_WAITING = 2
"""Replies that wait for the reader of the request."""

Reply = tuple[int, pb.GenerateResponse]
"""The number of a prompt, and a reply of its call."""


async def generate_all(
    service: InProcessService,
    count: int,
    make: Callable[[int], pb.GenerateRequest],
    origin: CallOrigin,
) -> AsyncGenerator[Reply, None]:
    """Yields the replies of the calls for all prompts as they come.

    Args:
        service: The RPCs.
        count: The number of prompts.
        make: Returns the request for a prompt by its number.
        origin: Where the request comes from.

    Yields:
        The number of the prompt and a reply.

    Raises:
        StatusError: A call failed; the others are then ended.
    """
    if count == 1:
        async with service.stream("Generate", make(0), origin) as replies:
            async for reply in replies:
                yield 0, reply
        return
    async with aclosing(_Calls(service, count, make, origin).replies()) as merged:
        async for numbered in merged:
            yield numbered


class _Calls:
    """The calls of one request with several prompts."""

    def __init__(
        self,
        service: InProcessService,
        count: int,
        make: Callable[[int], pb.GenerateRequest],
        origin: CallOrigin,
    ) -> None:
        self._service = service
        self._make = make
        self._origin = origin
        self._pending = deque(range(count))
        self._queue: asyncio.Queue[Reply | StatusError | None] = asyncio.Queue(_WAITING)
        self._workers = 0

    async def replies(self) -> AsyncGenerator[Reply, None]:
        """Yields the replies of all calls."""
        tasks = [
            asyncio.create_task(self._work()) for _ in range(min(_AT_ONCE, len(self._pending)))
        ]
        self._workers = running = len(tasks)
        try:
            while running:
                item = await self._queue.get()
                if isinstance(item, StatusError):
                    raise item
                if item is None:
                    running -= 1
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _work(self) -> None:
        """Makes one call after another."""
        while self._pending:
            number = self._pending.popleft()
            begun = False
            try:
                request = self._make(number)
                async with self._service.stream("Generate", request, self._origin) as replies:
                    async for reply in replies:
                        begun = True
                        await self._queue.put((number, reply))
            except StatusError as error:
                full = error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and not begun
                if not full or self._workers == 1:
                    await self._queue.put(error)
                    return
                # The other calls of this request may be what does not leave space for it.
                self._pending.appendleft(number)
                break
        self._workers -= 1
        await self._queue.put(None)
