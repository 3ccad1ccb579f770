"""`FileHandler` answers the calls that store, list, read and delete files."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING

from treadle.server.access.audit.audited_call import audit_change, audit_hidden
from treadle.server.access.caller import current_caller
from treadle.server.access.quota_book import QuotaBook
from treadle.server.errors import StatusError, invalid
from treadle.server.failures import DatabaseError
from treadle.server.jobs.job import outlast
from treadle.server.messages import page_tokens, requests
from treadle.server.messages.page import Page
from treadle.server.resources import thread_pools
from treadle.server.resources.upload_pace import PacedStream, UploadLimits
from treadle.server.storage.upload_files import CountedWriter, UploadFiles
from treadle.server.uploads.stored_files import StoredFiles
from treadle.v1 import sequence_pb2 as pb

if TYPE_CHECKING:
    from treadle.server.inference.admission import ControlAdmission
    from treadle.server.jobs.manager import JobManager
    from treadle.server.storage.data_dir import DataDir
    from treadle.server.storage.schema import FileRow

logger = logging.getLogger(__name__)

_MAX_NAME = 255
_BUFFER_BYTES = 1 << 20
"""Small chunks are gathered up to this size, since each write is a call in another thread."""

_CHUNK_BYTES = 1 << 18
"""Bytes of a file in one reply."""


class FileHandler:
    """Answers the calls about files.

    Args:
        data_dir: Where the files are.
        jobs: Knows the jobs that wait, and when the server is closing.
        limits: The limits of an upload.
        quotas: Counts the uploads and the corpora of each caller.
        admission: Counts calls that list, read and submit.
        max_message_bytes: The largest reply.
    """

    def __init__(
        self,
        data_dir: DataDir,
        jobs: JobManager,
        limits: UploadLimits,
        quotas: QuotaBook,
        admission: ControlAdmission,
        max_message_bytes: int,
    ) -> None:
        self._data_dir = data_dir
        self._files = StoredFiles(data_dir)
        self._jobs = jobs
        self._limits = limits
        self._quotas = quotas
        self._admission = admission
        self._max_message_bytes = max_message_bytes

    async def upload(self, messages: AsyncIterator[pb.UploadFileRequest]) -> pb.UploadFileResponse:
        """Returns the file of the current caller that an upload brought.

        Raises:
            StatusError: The upload is refused, breaks off, or is too large or slow.
            OSError: The disk failed or is full.
            DatabaseError: The database failed.
        """
        caller = current_caller()
        use = self._quotas.current()
        stream = PacedStream(
            messages, self._limits, self._jobs.closing, _size, "file", "nothing was stored"
        )
        name = _name(await stream.next())
        stream.begin()
        waiting = partial((await self._jobs.backlog()).waiting_of, caller.name)
        database = self._data_dir.database
        with use.admit_upload(waiting), self._admission.submissions.admit():
            await thread_pools.DATABASE.run(self._files.check_count, caller.name)
            stored = await thread_pools.DATABASE.run(database.corpus_bytes, caller.name)
            upload = UploadFiles(
                self._data_dir.corpora, partial(use.count_upload, stored=stored), caller.name
            )
            try:
                await thread_pools.UPLOADS.run(self._data_dir.space.require)
                writer = await thread_pools.UPLOADS.run(upload.writer)
                await self._receive(stream, writer)
                sha256, size = await thread_pools.UPLOADS.run(writer.finish)
                # Once begun it runs to its end: a cancelled call leaves no half of it.
                row = await outlast(
                    thread_pools.UPLOADS.run(
                        self._files.add, upload, caller.name, name, sha256, size
                    )
                )
            finally:
                await outlast(_close(upload))
        audit_change(file=row.id, corpora=[row.sha256])
        _end_if_cancelled()
        return pb.UploadFileResponse(file=_message(row))

    async def _receive(
        self, stream: PacedStream[pb.UploadFileRequest], writer: CountedWriter
    ) -> None:
        """Writes the bytes of an upload, up to the message that ends it."""
        size = 0
        buffer = bytearray()
        while (message := await stream.next()) is not None:
            match message.WhichOneof("message"):
                case "chunk":
                    if not message.chunk:  # empty chunks would keep a silent upload alive
                        raise invalid([("chunk", "a chunk is empty")])
                    size += len(message.chunk)
                    if size > self._limits.most_bytes:
                        most = f"at most {self._limits.most_bytes:,} bytes here"
                        raise invalid([("chunk", f"a file may have {most}")])
                    buffer += message.chunk
                    if len(buffer) >= _BUFFER_BYTES:
                        await thread_pools.UPLOADS.run(writer.write, bytes(buffer))
                        buffer.clear()
                case "end":
                    expected = message.end.size_bytes
                    if expected != size:
                        text = f"the file should have {expected:,} bytes, but {size:,} arrived"
                        raise invalid([("end.size_bytes", text)])
                    if not size:
                        raise invalid([("chunk", "the file is empty")])
                    await thread_pools.UPLOADS.run(writer.write, bytes(buffer))
                    return
                case "spec":
                    raise invalid([("spec", "only the first message may be the spec")])
                case _:
                    raise invalid([("chunk", "a message is empty")])
        # gRPC ends a stream that is being cancelled in the same way.
        raise invalid([("end", "the stream ended without it, so the file is not whole")])

    async def list(self, request: pb.ListFilesRequest) -> pb.ListFilesResponse:
        """Returns one page of the files of the current caller.

        Raises:
            StatusError: The page token is wrong, or too many calls list.
        """
        place = page_tokens.read(request.page_token, "files", ())
        after = (place[0], place[1]) if place else None
        size = requests.page_size(request)
        page: Page[pb.File] = Page(size, self._max_message_bytes)
        with self._admission.lists.admit():
            rows = await thread_pools.LISTS.run(self._files.page, _owner(), after, size + 1)
        token = ""
        for row in rows:
            if not page.take(_message(row)):
                token = page_tokens.make("files", (), after or ())
                break
            after = (row.created_s, row.id)
        return pb.ListFilesResponse(files=page.items, next_page_token=token)

    async def get(self, request: pb.GetFileRequest) -> pb.GetFileResponse:
        """Returns a file of the current caller.

        Raises:
            StatusError: NOT_FOUND.
        """
        return pb.GetFileResponse(file=_message(await self._find(request.file)))

    async def read(self, request: pb.ReadFileRequest) -> AsyncIterator[pb.ReadFileResponse]:
        """Yields the bytes of a file of the current caller.

        Raises:
            StatusError: NOT_FOUND, or too many calls read.
        """
        row = await self._find(request.file)
        with self._admission.watchers.admit():
            handle = await outlast(thread_pools.UPLOADS.run(self._files.open, row))
            try:
                _end_if_cancelled()
                while data := await outlast(
                    thread_pools.UPLOADS.run(os.read, handle, _CHUNK_BYTES)
                ):
                    _end_if_cancelled()
                    yield pb.ReadFileResponse(chunk=data)
            finally:
                os.close(handle)

    async def delete(self, request: pb.DeleteFileRequest) -> pb.DeleteFileResponse:
        """Returns the reply to a request that deletes a file of the current caller.

        Raises:
            StatusError: NOT_FOUND.
        """
        row = await self._find(request.file)
        await outlast(thread_pools.UPLOADS.run(self._files.delete, row))
        return pb.DeleteFileResponse()

    async def _find(self, file: str) -> FileRow:
        try:
            return await thread_pools.DATABASE.run(self._files.find, file, _owner())
        except StatusError:
            if not current_caller().is_admin:
                audit_hidden()
            raise


def _end_if_cancelled() -> None:
    """Ends the current call if it was cancelled while `outlast` kept that from its work.

    Raises:
        CancelledError: It was.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _owner() -> str | None:
    """Returns to whom a file must belong so that the current caller may see it; None: to anyone."""
    caller = current_caller()
    return None if caller.is_admin else caller.name


def _size(message: pb.UploadFileRequest) -> int:
    return len(message.chunk)


def _name(message: pb.UploadFileRequest | None) -> str:
    """Returns the name in the first message of an upload."""
    if message is None or message.WhichOneof("message") != "spec":
        raise invalid([("spec", "the first message must be the spec")])
    if len(message.spec.name) > _MAX_NAME:
        raise invalid([("spec.name", f"a name may have at most {_MAX_NAME} characters")])
    return message.spec.name


def _message(row: FileRow) -> pb.File:
    message = pb.File(
        id=row.id, name=row.name, size_bytes=row.size, sha256=row.sha256, owner=row.owner
    )
    message.create_time.FromNanoseconds(round(row.created_s * 1e9))
    return message


async def _close(upload: UploadFiles) -> None:
    try:
        await thread_pools.UPLOADS.run(upload.close)
    except (OSError, DatabaseError) as error:  # the error of the upload itself says more
        logger.warning("an upload left something behind: %s", error)
