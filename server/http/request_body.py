"""`RequestBody` reads what a client sends, and notices when it leaves; `Bodies` limits its size.

What has arrived is counted in the memory budget before it is kept, and a body larger than a message
of gRPC may be is refused, where possible by its header alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import grpc
from starlette.types import Receive, Scope

from treadle.server.errors import StatusError
from treadle.server.http.errors import HttpError, too_large
from treadle.server.http.guarded_protocol import DISCONNECTED

if TYPE_CHECKING:
    from treadle.server.resources.memory_budget import MemoryBudget, Reservation

READ_S = 60.0
"""Seconds within which a body that is one message must arrive, as for a message of gRPC."""

_STEP_BYTES = 1 << 16
"""Bytes by which the reservation of a body grows."""


class RequestBody:
    """The body of one request, and the connection that it comes from.

    Args:
        scope: The ASGI scope of the request.
        receive: Where its parts arrive. Nothing else may receive from it.
    """

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._receive = receive
        self._is_complete = False
        self._disconnected: asyncio.Event = scope[DISCONNECTED]
        self.length = _content_length(scope)
        """Bytes that it will have, as its header says; None: unknown."""
        self.fault: HttpError | None = None
        """What was wrong with it: an error that passes through a call has a status of gRPC only."""

    @contextmanager
    def noting_faults(self) -> Iterator[None]:
        """Keeps the error of HTTP that the block raises, for the response."""
        try:
            yield
        except HttpError as error:
            self.fault = error
            raise

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yields its parts as they arrive.

        Raises:
            StatusError: CANCELLED: the client left.
        """
        while not self._is_complete:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._is_complete = True
                raise StatusError(grpc.StatusCode.CANCELLED, "the client left")
            self._is_complete = not message.get("more_body", False)
            if message.get("body"):
                yield message["body"]

    @asynccontextmanager
    async def while_connected(self) -> AsyncIterator[None]:
        """Ends the `async with` block early and silently when the client leaves.

        What runs in the block is cancelled, and the code after it continues.
        """
        task = asyncio.current_task()
        assert task is not None
        block = _Block(task)
        # The next message would say so only behind a body that may be read no further.
        watch = asyncio.create_task(self._disconnected.wait())
        watch.add_done_callback(block.end_early)
        try:
            yield
        except asyncio.CancelledError:
            if not block.ended_early or task.uncancel() > 0:
                raise  # the server ends the request
        finally:
            block.is_over = True
            watch.cancel()


class _Block:
    """A block of code that ends when its client leaves.

    Args:
        task: The task that runs it.
    """

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self._task = task
        self.is_over = False
        self.ended_early = False

    def end_early(self, watch: asyncio.Task[Any]) -> None:
        """Cancels the block, unless it is over."""
        if not watch.cancelled() and not self.is_over:
            self.ended_early = True
            self._task.cancel()


class Bodies:
    """Reads bodies that are one message each.

    Args:
        budget: Counts the bytes that have arrived.
        most_bytes: Bytes of the largest body.
    """

    def __init__(self, budget: MemoryBudget, most_bytes: int) -> None:
        self.budget = budget
        """Counts the bytes that have arrived."""
        self.most_bytes = most_bytes
        """Bytes of the largest body."""

    async def read(self, body: RequestBody, held: Reservation) -> bytes:
        """Returns a whole body.

        Args:
            body: The body.
            held: The reservation that grows with it; the caller releases it.

        Raises:
            StatusError: RESOURCE_EXHAUSTED: it is too large, or its bytes do not fit into the
                memory budget; DEADLINE_EXCEEDED: it takes too long; CANCELLED: the client left.
        """
        if body.length is not None and body.length > self.most_bytes:
            raise too_large(self.most_bytes)
        data = bytearray()
        try:
            async with asyncio.timeout(READ_S) as timeout:
                async for chunk in body.chunks():
                    size = len(data) + len(chunk)
                    if size > self.most_bytes:
                        raise too_large(self.most_bytes)
                    if size > _STEP_BYTES and 2 * size > held.size:
                        held.resize(2 * (size + _STEP_BYTES))
                    data += chunk
        except TimeoutError:
            if not timeout.expired():
                raise
            text = f"the body of the request did not arrive within {READ_S:g} seconds"
            raise HttpError(408, grpc.StatusCode.DEADLINE_EXCEEDED, text) from None
        return bytes(data)


def _content_length(scope: Scope | dict[str, Any]) -> int | None:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value)
    return None
