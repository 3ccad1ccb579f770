"""`Upload` reads the stream of a Train call: the spec, the files of the corpus, and its end.

It holds at most one message and one buffer of the corpus in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

from treadle.server.errors import (
    StatusError,
    corpus_not_found,
    invalid,
)
from treadle.server.messages.enums import word_of
from treadle.server.resources import thread_pools
from treadle.server.resources.upload_pace import PacedStream, UploadLimits
from treadle.server.storage.upload_files import UploadedFile
from treadle.v1 import sequence_pb2 as pb

_BUFFER_BYTES = 1 << 20
"""Small chunks are gathered up to this size, since each write is a call in another thread."""

MAX_FILES = 1000
MAX_SPEC_BYTES = 16 << 10
MAX_WEIGHT = 100.0
_MAX_NAME = 255
_MAX_NAMES_BYTES = 128 << 10
"""The most bytes of the names of all files of a corpus, which are stored with the job."""


class FileSink(Protocol):
    """Takes the bytes of one file; `CorpusWriter` is one."""

    def write(self, data: bytes) -> None:
        """Takes the next bytes."""

    def finish(self) -> tuple[str, int]:
        """Ends the file; returns its SHA-256 and its size in bytes."""


class CorpusSink(Protocol):
    """Takes the files of a corpus; `UploadFiles` is one."""

    def find(self, sha256: str) -> int | None:
        """Returns the size of a stored file in bytes; None where it is not stored."""

    def writer(self) -> FileSink:
        """Returns a writer of a new file."""


class Upload:
    """One stream of TrainRequest messages.

    Args:
        requests: The stream.
        limits: Its limits.
        closing: Done when the server is closing; its result is the error of the upload.
    """

    def __init__(
        self,
        requests: AsyncIterator[pb.TrainRequest],
        limits: UploadLimits,
        closing: asyncio.Future[StatusError],
    ) -> None:
        self._limits = limits
        self._stream = PacedStream(
            requests, limits, closing, _corpus_size, "corpus", "nothing was trained"
        )
        self._ahead: list[pb.TrainRequest] = []

    async def spec(self) -> pb.TrainSpec:
        """Returns the first message.

        Raises:
            StatusError: INVALID_ARGUMENT: it is not a spec, or the stream is empty; and as
                `receive`.
        """
        request = await self._next()
        self._stream.begin()
        if request is None:
            raise invalid([("spec", "the stream ended before its first message, the spec")])
        if request.WhichOneof("message") != "spec":
            raise invalid([("spec", "the first message must be the spec")])
        if (size := request.spec.ByteSize()) > MAX_SPEC_BYTES:
            text = (
                f"the spec has {size:,} bytes, and may have {MAX_SPEC_BYTES:,}: shorten its texts"
            )
            raise invalid([("spec", text)])
        return request.spec

    async def ends_with_spec(self) -> bool:
        """Returns whether the stream ends after the spec; called after `spec`."""
        request = await self._next()
        if request is not None:
            self._ahead.append(request)
        return request is None

    async def receive(self, corpora: CorpusSink) -> list[UploadedFile]:
        """Reads the files of the corpus.

        Args:
            corpora: Takes the files.

        Returns:
            The files, in the order of the stream.

        Raises:
            StatusError: INVALID_ARGUMENT for a second spec, an empty message or chunk, a wrong
                file, too large a corpus, or one without its end or of another size than that
                says; NOT_FOUND for a file that should be stored already; DEADLINE_EXCEEDED for
                a client that is silent, or slower than it may be; what `closing` holds.
            OSError: The disk failed or is full.
        """
        receiver = _Receiver(corpora)
        async for message in self._messages():
            if isinstance(message, bytes):
                await receiver.write(message)
            else:
                await receiver.begin(message)
        return await receiver.end()

    async def _messages(self) -> AsyncIterator[pb.CorpusFile | bytes]:
        """Yields the starts of files and their chunks, up to the message that ends the corpus."""
        size = 0
        while (request := await self._next()) is not None:
            match request.WhichOneof("message"):
                case "corpus_file":
                    yield request.corpus_file
                case "corpus_chunk":
                    if not request.corpus_chunk:  # empty chunks would keep a silent upload alive
                        raise invalid([("corpus_chunk", "a chunk is empty")])
                    size += len(request.corpus_chunk)
                    if size > self._limits.most_bytes:
                        most = f"at most {self._limits.most_bytes:,} bytes here"
                        raise invalid([("corpus_chunk", f"the corpus may have {most}")])
                    yield request.corpus_chunk
                case "corpus_end":
                    expected = request.corpus_end.size_bytes
                    if expected != size:
                        wrong = f"the corpus should have {expected:,} bytes, but {size:,} arrived"
                        raise invalid([("corpus_end.size_bytes", wrong)])
                    return
                case "spec":
                    raise invalid([("spec", "only the first message may be the spec")])
                case _:
                    raise invalid([("corpus_chunk", "a message is empty")])
        # gRPC ends a stream that is being cancelled in the same way.
        raise invalid([("corpus_end", "the stream ended without it, so the corpus is not whole")])

    async def _next(self) -> pb.TrainRequest | None:
        """Returns the next message, or None at the end of the stream."""
        return self._ahead.pop() if self._ahead else await self._stream.next()


class _Receiver:
    """Receives the files of one upload, one after the other."""

    def __init__(self, corpora: CorpusSink) -> None:
        self._corpora = corpora
        self._files: list[UploadedFile] = []
        self._about: pb.CorpusFile | None = None
        self._writer: FileSink | None = None
        self._buffer = bytearray()

    async def begin(self, about: pb.CorpusFile) -> None:
        """Begins a file; one that is stored already is complete at once."""
        await self._finish_file()
        names = sum(len(file.name.encode()) for file in self._files)
        _check(about, len(self._files), names)
        self._about = about
        if about.sha256:
            size = await thread_pools.UPLOADS.run(self._corpora.find, about.sha256)
            if size is None:
                raise corpus_not_found(about.sha256)
            self._add(about.sha256, size)
        else:
            self._writer = await thread_pools.UPLOADS.run(self._corpora.writer)

    async def write(self, chunk: bytes) -> None:
        """Takes the next bytes of the file; a corpus of one file needs no `corpus_file` message."""
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
        """Ends the last file and returns all files; an empty corpus is one empty file."""
        if self._about is None and not self._files:
            await self.begin(pb.CorpusFile())
        await self._finish_file()
        if all(file.role != "train" for file in self._files):
            raise invalid([("corpus_file.role", "no file of the corpus has the role train")])
        return self._files

    async def _finish_file(self) -> None:
        if self._writer is None:
            return
        await self._flush()
        sha256, size = await thread_pools.UPLOADS.run(self._writer.finish)
        self._writer = None
        self._add(sha256, size)

    def _add(self, sha256: str, size: int) -> None:
        about = self._about
        assert about is not None
        role = str(word_of(pb.CorpusRole.DESCRIPTOR, about.role)) if about.role else "train"
        weight = about.weight if about.HasField("weight") else 1.0
        name = about.name or "corpus"
        self._files.append(UploadedFile(sha256, name, role, weight, size))

    async def _flush(self) -> None:
        if self._buffer:
            data = bytes(self._buffer)
            self._buffer = bytearray()
            await self._write(data)

    async def _write(self, data: bytes) -> None:
        assert self._writer is not None
        await thread_pools.UPLOADS.run(self._writer.write, data)


def _corpus_size(request: pb.TrainRequest) -> int:
    return len(request.corpus_chunk)


def _check(about: pb.CorpusFile, before: int, names_bytes: int) -> None:
    """Checks the start of a file.

    Args:
        about: The `corpus_file` message.
        before: The number of files before it.
        names_bytes: Bytes of the names of these files.

    Raises:
        StatusError: INVALID_ARGUMENT with every field at fault.
    """
    faults = []
    if before >= MAX_FILES:
        faults.append(("corpus_file", f"a corpus may have at most {MAX_FILES:,} files"))
    if len(about.name) > _MAX_NAME:
        faults.append(("corpus_file.name", f"a name may have at most {_MAX_NAME} characters"))
    elif names_bytes + len(about.name.encode()) > _MAX_NAMES_BYTES:
        most = f"at most {_MAX_NAMES_BYTES:,} bytes together"
        faults.append(("corpus_file.name", f"the names of a corpus' files may have {most}"))
    if about.role not in pb.CorpusRole.values():
        faults.append(("corpus_file.role", f"{about.role} is no role of the contract"))
    if about.HasField("weight") and not 0 < about.weight <= MAX_WEIGHT:
        form = f"a number above 0 and at most {MAX_WEIGHT:g}"
        faults.append(("corpus_file.weight", f"a weight must be {form}, not {about.weight:g}"))
    if about.sha256 and not _is_sha256(about.sha256):
        faults.append(("corpus_file.sha256", "it must be 64 lower-case hexadecimal digits"))
    if faults:
        raise invalid(faults)


def _is_sha256(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")
