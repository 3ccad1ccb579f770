"""Reads the stream of a Train call: the spec, then the files of the corpus, then its end.

At no time is more of the corpus in memory than one message and one buffer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

import grpc

from treadle.server import pools
from treadle.server.corpora import Corpora
from treadle.server.errors import (
    StatusError,
    corpus_not_found,
    exhausted,
    invalid,
    unavailable,
)
from treadle.server.orders import UploadedFile
from treadle.v1 import sequence_pb2 as pb

_BUFFER_BYTES = 1 << 20
"""Small chunks are gathered up to this size: each write is a trip to another thread."""

_RETRY_S = 60.0
MAX_FILES = 1000
MAX_WEIGHT = 100.0
_MAX_NAME = 255


@dataclass(frozen=True)
class Limits:
    """What an upload must keep to."""

    corpus_bytes: int
    """The largest corpus."""
    idle_s: float
    """Seconds that may pass without a new byte."""
    min_free_bytes: int = 0
    """Bytes of disk to leave free."""


class FileTaker(Protocol):
    """Takes the bytes of one file; see `CorpusWriter`."""

    def write(self, data: bytes) -> None:
        """Takes the next bytes."""

    def claim(self) -> tuple[str, int]:
        """Ends the file; returns its hash and its bytes."""

    def discard(self) -> None:
        """Drops what was not ended."""


class CorpusTaker(Protocol):
    """Takes the files of a corpus; see `Corpora`."""

    def want(self, sha256: str) -> int | None:
        """Returns the bytes of a file that is stored already; None where it is not."""

    def writer(self) -> FileTaker:
        """Returns what takes a new file."""


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
        self._ahead: list[pb.TrainRequest] = []

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

    async def ends_with_spec(self) -> bool:
        """Tells whether the stream ends here, before any of the corpus; after `spec`."""
        request = await self._next()
        if request is not None:
            self._ahead.append(request)
        return request is None

    async def save(self, corpora: Corpora) -> list[UploadedFile]:
        """Stores the files of the corpus, if there is room on the disk; see `receive`."""
        if await pools.UPLOADS.run(corpora.free) < self._limits.min_free_bytes:
            least = f"less than {self._limits.min_free_bytes:,} bytes of disk are free"
            raise exhausted(f"the server takes no corpus: {least}", _RETRY_S)
        return await self.receive(corpora)

    async def receive(self, corpora: CorpusTaker) -> list[UploadedFile]:
        """Reads the files of the corpus.

        Args:
            corpora: What takes them.

        Returns:
            The files, in the order of the stream.

        Raises:
            StatusError: INVALID_ARGUMENT for a second spec, an empty message or chunk, a wrong
                file, too large a corpus, or one without its end or of another size than that
                says; NOT_FOUND for a file that should be stored already; DEADLINE_EXCEEDED for
                a silent client; what `closing` holds.
        """
        receiver = _Receiver(corpora)
        try:
            async for message in self._messages():
                if isinstance(message, bytes):
                    await receiver.write(message)
                else:
                    await receiver.begin(message)
            return await receiver.end()
        finally:
            await receiver.close()

    async def _messages(self) -> AsyncIterator[pb.CorpusFile | bytes]:
        """Yields what begins files and their chunks, up to the message that ends the corpus."""
        size = 0
        while (request := await self._next()) is not None:
            match request.WhichOneof("message"):
                case "corpus_file":
                    yield request.corpus_file
                case "corpus_chunk":
                    if not request.corpus_chunk:  # it would keep a silent upload alive
                        raise invalid([("corpus_chunk", "a chunk is empty")])
                    size += len(request.corpus_chunk)
                    if size > self._limits.corpus_bytes:
                        most = f"at most {self._limits.corpus_bytes:,} bytes here"
                        raise invalid([("corpus_chunk", f"the corpus may have {most}")])
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
        if self._ahead:
            return self._ahead.pop()
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
                reason = self._closing.result().message
                raise unavailable(f"{reason}; nothing was trained")
            silent = f"no message for {self._limits.idle_s:g} seconds; the upload was given up"
            raise StatusError(grpc.StatusCode.DEADLINE_EXCEEDED, silent)
        finally:
            reading.cancel()


class _Receiver:
    """Takes the files of one upload, one after the other."""

    def __init__(self, corpora: CorpusTaker) -> None:
        self._corpora = corpora
        self._files: list[UploadedFile] = []
        self._about: pb.CorpusFile | None = None
        self._writer: FileTaker | None = None
        self._buffer = bytearray()

    async def begin(self, about: pb.CorpusFile) -> None:
        """Begins a file; one that is stored already is whole at once."""
        await self._finish_file()
        _check(about, len(self._files))
        self._about = about
        if about.sha256:
            size = await pools.UPLOADS.run(self._corpora.want, about.sha256)
            if size is None:
                raise corpus_not_found(about.sha256)
            self._add(about.sha256, size)
        else:
            self._writer = await pools.UPLOADS.run(self._corpora.writer)

    async def write(self, chunk: bytes) -> None:
        """Takes the next bytes of the file; of a corpus of one file, without its beginning."""
        if self._writer is None:
            if self._about is not None or self._files:
                raise invalid([("corpus_chunk", "a file that is stored already takes no chunks")])
            await self.begin(pb.CorpusFile())
        if not self._buffer and len(chunk) >= _BUFFER_BYTES // 2:
            await self._write(chunk)
            return
        self._buffer += chunk
        if len(self._buffer) >= _BUFFER_BYTES:
            await self._flush()

    async def end(self) -> list[UploadedFile]:
        """Ends the last file and returns all; a corpus of nothing is one empty file."""
        if self._about is None and not self._files:
            await self.begin(pb.CorpusFile())
        await self._finish_file()
        if all(file.role != "train" for file in self._files):
            raise invalid([("corpus_file.role", "no file of the corpus is there to train on")])
        return self._files

    async def close(self) -> None:
        """Removes what was not finished."""
        if self._writer is not None:
            await pools.UPLOADS.run(self._writer.discard)

    async def _finish_file(self) -> None:
        if self._writer is None:
            return
        await self._flush()
        sha256, size = await pools.UPLOADS.run(self._writer.claim)
        self._writer = None
        self._add(sha256, size)

    def _add(self, sha256: str, size: int) -> None:
        about = self._about
        assert about is not None
        role = {pb.CORPUS_ROLE_VALID: "valid", pb.CORPUS_ROLE_TEST: "test"}.get(about.role, "train")
        weight = about.weight if about.HasField("weight") else 1.0
        name = about.name or "corpus"
        self._files.append(UploadedFile(sha256, name, role, weight, size))

    async def _flush(self) -> None:
        if self._buffer:
            data, self._buffer = bytes(self._buffer), bytearray()
            await self._write(data)

    async def _write(self, data: bytes) -> None:
        assert self._writer is not None
        await pools.UPLOADS.run(self._writer.write, data)


def _check(about: pb.CorpusFile, before: int) -> None:
    """Refuses a file that cannot be."""
    faults = []
    if before >= MAX_FILES:
        faults.append(("corpus_file", f"a corpus may have at most {MAX_FILES:,} files"))
    if len(about.name) > _MAX_NAME:
        faults.append(("corpus_file.name", f"a name may have at most {_MAX_NAME} characters"))
    if about.role not in pb.CorpusRole.values():
        faults.append(("corpus_file.role", f"{about.role} is no role of the contract"))
    if about.HasField("weight") and not 0 < about.weight <= MAX_WEIGHT:
        wanted = f"a number above 0 and at most {MAX_WEIGHT:g}"
        faults.append(("corpus_file.weight", f"a weight must be {wanted}, not {about.weight:g}"))
    if about.sha256 and not _is_sha256(about.sha256):
        faults.append(("corpus_file.sha256", "it must be 64 lower-case hexadecimal digits"))
    if faults:
        raise invalid(faults)


def _is_sha256(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")
