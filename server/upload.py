"""Reads the stream of a Train call: the spec, then the corpus, which goes to a file, then its end.

At no time is more of the corpus in memory than one message and one buffer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import grpc

from treadle.server.errors import StatusError, invalid
from treadle.v1 import sequence_pb2 as pb

_BUFFER_BYTES = 1 << 20
"""Small chunks are gathered up to this size: each write is a trip to another thread."""


@dataclass(frozen=True)
class Limits:
    """What an upload must keep to."""

    corpus_bytes: int
    """The largest corpus."""
    idle_s: float
    """Seconds that may pass without a new byte."""


class Upload:
    """One stream of TrainRequest messages.

    Args:
        requests: The stream.
        limits: What it must keep to.
        closing: A future that is done when the server wants uploads to end; its result is the
            error that they end with.
    """

    def __init__(
        self,
        requests: AsyncIterator[pb.TrainRequest],
        limits: Limits,
        closing: asyncio.Future[StatusError],
    ) -> None:
        self._requests = aiter(requests)
        self._limits = limits
        self._closing = closing

    async def spec(self) -> pb.TrainSpec:
        """Returns the first message.

        Raises:
            StatusError: INVALID_ARGUMENT where it is no spec or there is none, and as `save`.
        """
        request = await self._next()
        if request is None:
            raise invalid([("spec", "the stream ended before its first message, the spec")])
        if request.WhichOneof("message") != "spec":
            raise invalid([("spec", "the first message must be the spec")])
        return request.spec

    async def save(self, path: Path) -> int:
        """Writes the corpus to a file.

        Args:
            path: The file; what it held is lost.

        Returns:
            Bytes of the corpus.

        Raises:
            StatusError: INVALID_ARGUMENT for a second spec, an empty message or chunk, too
                large a corpus, or one without its end or of another size than that says;
                DEADLINE_EXCEEDED for a silent client; what `closing` holds.
        """
        with await asyncio.to_thread(path.open, "wb", buffering=0) as file:
            return await self._save(file)

    async def _save(self, file: IO[bytes]) -> int:
        buffer, size = bytearray(), 0
        async for chunk in self._chunks():
            size += len(chunk)
            if size > self._limits.corpus_bytes:
                most = f"the corpus may have at most {self._limits.corpus_bytes:,} bytes here"
                raise invalid([("corpus_chunk", most)])
            buffer += chunk
            if len(buffer) >= _BUFFER_BYTES:
                await _write(file.write, bytes(buffer))
                buffer.clear()
        await _write(file.write, bytes(buffer))
        return size

    async def _chunks(self) -> AsyncIterator[bytes]:
        """Yields the chunks up to the message that ends the corpus, and holds it to its size."""
        size = 0
        while (request := await self._next()) is not None:
            match request.WhichOneof("message"):
                case "corpus_chunk":
                    if not request.corpus_chunk:  # it would keep a silent upload alive
                        raise invalid([("corpus_chunk", "a chunk is empty")])
                    size += len(request.corpus_chunk)
                    yield request.corpus_chunk
                case "corpus_end":
                    said = request.corpus_end.size_bytes
                    if said != size:
                        wrong = f"the corpus should have {said:,} bytes, but {size:,} arrived"
                        raise invalid([("corpus_end.size_bytes", wrong)])
                    return
                case "spec":
                    raise invalid([("spec", "only the first message may be the spec")])
                case _:
                    raise invalid([("corpus_chunk", "a message is empty")])
        # gRPC also ends a stream so that is being cancelled.
        raise invalid([("corpus_end", "the stream ended without it, so the corpus is not whole")])

    async def _next(self) -> pb.TrainRequest | None:
        """Returns the next message, or None at the end of the stream."""
        reading = asyncio.ensure_future(anext(self._requests, None))
        try:
            waiting: set[asyncio.Future[Any]] = {reading, self._closing}
            await asyncio.wait(
                waiting,
                timeout=self._limits.idle_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if reading.done():
                return reading.result()
            if self._closing.done():
                raise self._closing.result()
            silent = f"no message for {self._limits.idle_s:g} seconds; the upload was given up"
            raise StatusError(grpc.StatusCode.DEADLINE_EXCEEDED, silent)
        finally:
            reading.cancel()


async def _write(write: Callable[[memoryview], int], data: bytes) -> None:
    """Writes all of `data` in another thread; a raw file may take it in parts."""

    def run() -> None:
        left = memoryview(data)
        while left:
            left = left[write(left) :]

    await asyncio.to_thread(run)
