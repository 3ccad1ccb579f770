"""`UploadForm` reads the form of `POST /v1/files` while it arrives, as messages of UploadFile.

Nothing of the file is kept here: each part of it is passed to the upload, which counts it, and
limits its size and its time.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from treadle.server.errors import invalid
from treadle.v1 import sequence_pb2 as pb

if TYPE_CHECKING:
    from treadle.server.http.request_body import RequestBody

PURPOSE = "fine-tune"
"""The only purpose of a file."""

_MAX_FIELD = 1024
"""Bytes of the longest field besides the file, and of its headers."""

_MAX_NAME = 255


class UploadForm:
    """A form with a file and its purpose, in any order.

    Args:
        body: The body of the request.
        content_type: What its header says.

    Raises:
        StatusError: INVALID_ARGUMENT: the body is no form.
    """

    def __init__(self, body: RequestBody, content_type: str) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not 0 < len(boundary) <= _MAX_FIELD:
            text = "send the file as a form: multipart/form-data with file and purpose"
            raise invalid([("file", text)])
        self._body = body
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._take_header_name,
                "on_header_value": self._take_header_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._take_data,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
        )
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._header_bytes = 0
        self._disposition = b""
        self._field = ""
        self._value = bytearray()
        self._purpose: str | None = None
        self._has_file = False
        self._is_whole = False
        self._size = 0
        self._begun = False
        """Whether the file has begun, and its upload has not."""
        self._name = ""
        self._data = bytearray()
        """Bytes of the file that are not passed to the upload yet."""

    async def messages(self) -> AsyncGenerator[pb.UploadFileRequest, None]:
        """Yields the messages of the upload.

        Raises:
            StatusError: INVALID_ARGUMENT: the form is malformed, or a field of it is wrong.
        """
        async for chunk in self._body.chunks():
            try:
                self._parser.write(chunk)
            except FormParserError as error:
                raise invalid([("file", f"the form is malformed: {error}"[:200])]) from None
            if self._begun:
                self._begun = False
                yield pb.UploadFileRequest(spec=pb.FileSpec(name=self._name))
            # One message for what may have come as many small pieces.
            if self._data:
                self._size += len(self._data)
                yield pb.UploadFileRequest(chunk=bytes(self._data))
                self._data.clear()
        if not self._is_whole:
            raise invalid([("file", "the form is not whole: its last boundary is missing")])
        if not self._has_file:
            raise invalid([("file", "the form has no file")])
        if self._purpose is None:
            raise invalid([("purpose", f"purpose is missing: it must be {PURPOSE!r}")])
        yield pb.UploadFileRequest(end=pb.FileEnd(size_bytes=self._size))

    # The parser calls these.

    def _begin_part(self) -> None:
        self._header_bytes = 0
        self._disposition = b""
        self._value.clear()

    def _take_header_name(self, data: bytes, start: int, end: int) -> None:
        self._count_header(end - start)
        self._header_name += data[start:end]

    def _take_header_value(self, data: bytes, start: int, end: int) -> None:
        self._count_header(end - start)
        self._header_value += data[start:end]

    def _count_header(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > _MAX_FIELD:
            raise invalid([("file", "a part of the form has too long headers")])

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._field = options.get(b"name", b"").decode(errors="replace")
        if self._field == "file":
            self._begin_file(options)
        elif self._field.startswith("expires_after"):
            text = "expires_after cannot be served: the server's retention decides; leave it out"
            raise invalid([("expires_after", text)])
        elif self._field != "purpose":
            raise invalid([(self._field, f"unrecognized field of the form: {self._field[:40]}")])

    def _begin_file(self, options: dict[bytes, Any]) -> None:
        if self._has_file:
            raise invalid([("file", "the form has two files: upload one after the other")])
        self._has_file = True
        self._begun = True
        self._name = options.get(b"filename", b"").decode(errors="replace")[:_MAX_NAME]

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        if self._field == "file":
            self._data += data[start:end]
            return
        self._value += data[start:end]
        if len(self._value) > _MAX_FIELD:
            raise invalid([(self._field, f"{self._field} is too long")])

    def _end_part(self) -> None:
        if self._field != "purpose":
            return
        self._purpose = self._value.decode(errors="replace")
        if self._purpose != PURPOSE:
            text = f"purpose must be {PURPOSE!r}, not {self._purpose[:40]!r}"
            raise invalid([("purpose", text)])

    def _end(self) -> None:
        self._is_whole = True
