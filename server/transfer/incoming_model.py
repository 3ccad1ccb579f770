"""`IncomingModel` reads the stream of an ImportModel call: spec, vocabulary, file, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from treadle.server.errors import StatusError, invalid
from treadle.server.messages.import_request import hash_violations, too_large
from treadle.server.resources import thread_pools
from treadle.server.resources.upload_pace import PacedStream, UploadLimits
from treadle.v1 import sequence_pb2 as pb

if TYPE_CHECKING:
    from treadle.server.transfer.model_draft import ModelDraft
    from treadle.server.transfer.vocabulary import Vocabulary

_BUFFER_BYTES = 1 << 20
"""Small chunks are gathered up to this size, since each write is a call in another thread."""

MAX_SPEC_BYTES = 16 << 10


class IncomingModel:
    """One stream of ImportModelRequest messages.

    Args:
        requests: The stream.
        limits: Its limits.
        closing: Done when the server is closing; its result is the error of the import.
    """

    def __init__(
        self,
        requests: AsyncIterator[pb.ImportModelRequest],
        limits: UploadLimits,
        closing: asyncio.Future[StatusError],
    ) -> None:
        self._most_bytes = limits.most_bytes
        self._stream = PacedStream(
            requests, limits, closing, pb.ImportModelRequest.ByteSize, "model", "nothing was stored"
        )
        self._size = 0
        self._buffer = bytearray()

    async def spec(self) -> pb.ImportModelSpec:
        """Returns the first message.

        Raises:
            StatusError: INVALID_ARGUMENT: it is not a spec, or the stream is empty; and as
                `receive`.
        """
        request = await self._stream.next()
        self._stream.begin()
        if request is None:
            raise invalid([("spec", "the stream ended before its first message, the spec")])
        if request.WhichOneof("message") != "spec":
            raise invalid([("spec", "the first message must be the spec")])
        if (size := request.spec.ByteSize()) > MAX_SPEC_BYTES:
            text = f"the spec has {size:,} bytes, and may have {MAX_SPEC_BYTES:,}"
            raise invalid([("spec", text)])
        return request.spec

    async def receive(
        self, spec: pb.ImportModelSpec, vocabulary: Vocabulary, draft: ModelDraft
    ) -> str:
        """Reads the rest of the stream.

        Args:
            spec: The spec.
            vocabulary: Takes the tokens.
            draft: Takes the file; it is open.

        Returns:
            The SHA-256 of the file.

        Raises:
            StatusError: INVALID_ARGUMENT for a message in the wrong place, an empty chunk, too
                large a file, or one without its end or of another size or hash;
                DEADLINE_EXCEEDED for a client that is silent, or slower than it may be; a quota;
                the server is closing.
            OSError: The disk failed or is full.
        """
        while (request := await self._stream.next()) is not None:
            match request.WhichOneof("message"):
                case "chunk":
                    await self._write(request.chunk, draft)
                case "end":
                    return await self._finish(spec, request.end, draft)
                case "vocabulary":
                    self._check_vocabulary(spec)
                    vocabulary.add(request.vocabulary.tokens)
                case "spec":
                    raise invalid([("spec", "only the first message may be the spec")])
                case _:
                    raise invalid([("chunk", "a message is empty")])
        # gRPC ends a stream that is being cancelled in the same way.
        raise invalid([("end", "the stream ended without it, so the file is not whole")])

    def _check_vocabulary(self, spec: pb.ImportModelSpec) -> None:
        if not spec.HasField("state_dict"):
            text = "a model of Treadle contains its vocabulary: send none, or set spec.state_dict"
            raise invalid([("vocabulary", text)])
        if self._size:
            raise invalid([("vocabulary", "the vocabulary comes before the first chunk")])

    async def _write(self, chunk: bytes, draft: ModelDraft) -> None:
        if not chunk:  # empty chunks would keep a silent upload alive
            raise invalid([("chunk", "a chunk is empty")])
        self._size += len(chunk)
        if self._size > self._most_bytes:
            raise invalid([("chunk", too_large(self._size, self._most_bytes))])
        if not self._buffer and len(chunk) >= _BUFFER_BYTES // 2:
            await thread_pools.UPLOADS.run(draft.write, chunk)
            return
        self._buffer += chunk
        if len(self._buffer) >= _BUFFER_BYTES:
            await self._flush(draft)

    async def _flush(self, draft: ModelDraft) -> None:
        if self._buffer:
            data = bytes(self._buffer)
            self._buffer = bytearray()
            await thread_pools.UPLOADS.run(draft.write, data)

    async def _finish(
        self, spec: pb.ImportModelSpec, end: pb.ImportModelEnd, draft: ModelDraft
    ) -> str:
        found = hash_violations(end.sha256, "end.sha256")
        sizes = {"end.size_bytes": end.size_bytes}
        if spec.size_bytes:
            sizes["spec.size_bytes"] = spec.size_bytes
        for field, size in sizes.items():
            if size != self._size:
                text = f"the file should have {size:,} bytes, but {self._size:,} arrived"
                found.append((field, text))
        if found:
            raise invalid(found)
        await self._flush(draft)
        sha256, _ = await thread_pools.UPLOADS.run(draft.finish)
        hashes = {"end.sha256": end.sha256}
        if spec.sha256:
            hashes["spec.sha256"] = spec.sha256
        for field, expected in hashes.items():
            if expected != sha256:
                text = f"the file should have the SHA-256 {expected}, but what arrived has {sha256}"
                found.append((field, f"{text}: send it again"))
        if found:
            raise invalid(found)
        return sha256
