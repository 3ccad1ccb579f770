"""`ExportHandler` answers ExportModel: it sends the file of a version, a piece at a time.

The file is open before its first byte is sent, so that it is sent to its end even if the version is
deleted meanwhile.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING

from treadle.server.access.audit.audited_call import audit_note
from treadle.server.access.model_rights import check_read
from treadle.server.errors import aborted, damaged, invalid, precondition
from treadle.server.messages.import_request import hash_violations
from treadle.server.names import check_reference
from treadle.server.resources import thread_pools
from treadle.server.resources.upload_pace import Pace, UploadLimits
from treadle.v1 import sequence_pb2 as pb

if TYPE_CHECKING:
    from pathlib import Path

    from treadle.server.inference.admission import Admission
    from treadle.server.storage.model_version import StoredModel
    from treadle.server.storage.models import ModelStore

_CHUNK_BYTES = 1 << 18
"""Bytes of a piece: a larger one would hold up other calls while it is copied."""

_TRIES = 3
"""How often a version is opened that is deleted and made again meanwhile."""


class _OpenModel:
    """A version whose file is open.

    Args:
        stored: The version.
        path: Its file.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(self, stored: StoredModel, path: Path) -> None:
        self.stored = stored
        """The version."""
        self.model = pb.Model()
        """Its description."""
        self.handle = -1
        """Its file."""
        self.handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def close(self) -> None:
        """Closes the file; may be called again."""
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1

    def __del__(self) -> None:
        # A call that is cancelled while its thread opens the file never gets to see this.
        self.close()


class ExportHandler:
    """Answers the ExportModel calls of a server.

    Args:
        store: The models.
        describe: Returns the description of a version; blocks on the disk.
        limits: How slowly a client may read.
        admission: Limits the files that are sent at once.
        max_message_bytes: Bytes of the largest reply.
    """

    def __init__(
        self,
        store: ModelStore,
        describe: Callable[[StoredModel], pb.Model],
        limits: UploadLimits,
        admission: Admission,
        max_message_bytes: int,
    ) -> None:
        self._store = store
        self._describe = describe
        self._limits = limits
        self._admission = admission
        self._chunk_bytes = min(_CHUNK_BYTES, max_message_bytes // 2)

    async def send(self, request: pb.ExportModelRequest) -> AsyncIterator[pb.ExportModelResponse]:
        """Sends the file of a version.

        Args:
            request: The request.

        Yields:
            The description, and then the bytes.

        Raises:
            StatusError: There is no such version, its file is damaged or another one than was
                expected, or the client reads too slowly.
        """
        check_reference(request.model)
        if request.sha256 and (found := hash_violations(request.sha256, "sha256")):
            raise invalid(found)
        check_read(request.model, request.version)
        with self._admission.admit():
            opened = await self._opened(request)
            try:
                async with aclosing(self._pieces(opened, request.offset)) as pieces:
                    async for piece in pieces:
                        yield piece
            finally:
                opened.close()

    async def _pieces(
        self, opened: _OpenModel, offset: int
    ) -> AsyncGenerator[pb.ExportModelResponse]:
        """Yields the replies, and checks how fast they are read."""
        pace = Pace(self._limits, what="file")
        pace.begin()
        yield pb.ExportModelResponse(model=opened.model)
        while offset < opened.stored.size_bytes:
            data = await thread_pools.EXPORTS.run(self._read, opened, offset)
            offset += len(data)
            reply = pb.ExportModelResponse(chunk=data)
            pace.wait()
            size = len(data)
            del data
            yield reply
            del reply
            pace.came(size)

    async def _opened(self, request: pb.ExportModelRequest) -> _OpenModel:
        """Opens the file of a version as `_open` does, which brings it here first if need be."""
        stored = await thread_pools.EXPORTS.run(self._store.find, request.model, request.version)
        # In other threads, so that files which are here can be sent while the store hangs.
        pool = thread_pools.EXPORTS if self._store.is_local(stored) else thread_pools.FETCHES
        return await pool.run(self._open, request)

    def _open(self, request: pb.ExportModelRequest) -> _OpenModel:
        """Opens the file of the version that a request names.

        Returns:
            The open version.

        Raises:
            StatusError: As `send`.
            OSError: The file cannot be opened.
        """
        for _ in range(_TRIES):
            stored = self._store.find(request.model, request.version)
            # Deleted just now, where the file is not found.
            with suppress(FileNotFoundError), self._store.local_file(stored) as path:
                opened = _OpenModel(stored, path)
                opened.model = self._describe(stored)
                if self._store.is_file_of(stored, opened.handle):
                    self._check(request, opened.model)
                    audit_note(model=stored.name, version=stored.version)
                    return opened
        raise aborted(f"model {request.model!r} changed while it was opened: call again")

    @staticmethod
    def _check(request: pb.ExportModelRequest, model: pb.Model) -> None:
        if request.sha256 and request.sha256 != model.sha256:
            raise precondition(
                f"version {model.version} of model {model.name!r} has the SHA-256 {model.sha256}, "
                "and another one was expected: begin again without offset and sha256"
            )
        if request.offset > model.size_bytes:
            text = (
                f"the file has {model.size_bytes:,} bytes, so offset cannot be {request.offset:,}"
            )
            raise invalid([("offset", text)])

    def _read(self, opened: _OpenModel, offset: int) -> bytes:
        """Returns the next bytes of a file.

        Raises:
            StatusError: DATA_LOSS: it is shorter than it was, or the disk fails.
        """
        stored = opened.stored
        size = min(self._chunk_bytes, stored.size_bytes - offset)
        try:
            data = os.pread(opened.handle, size, offset)
            if not data:
                raise OSError(errno.EIO, "its file has become shorter")
        except OSError as error:
            fault = OSError(error.strerror or "the disk failed")
            raise damaged(stored.name, stored.version, fault) from error
        return data
