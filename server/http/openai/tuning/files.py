"""`upload_file`, `list_files` and their neighbours answer the requests to `/v1/files`."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse, Response

from treadle.server.errors import StatusError
from treadle.server.http.openai.openai_error import invalid
from treadle.server.http.openai.rpc_errors import from_status
from treadle.server.http.openai.tuning.cursor_page import cursor_page, read_cursor
from treadle.server.http.openai.tuning.upload_form import PURPOSE, UploadForm
from treadle.v1 import sequence_pb2 as pb

if TYPE_CHECKING:
    from treadle.server.http.openai.exchange import Exchange

_NAMES = {"chunk": "file", "spec": "file", "end": "file"}
"""The fields of the form by those of UploadFile."""

_PAGE = 1000
_MOST = 10_000
"""The most files of a list."""


async def upload_file(exchange: Exchange) -> Response:
    """Returns the response to `POST /v1/files`.

    Raises:
        OpenAIError: The file is refused.
        StatusError: The body is no form.
    """
    headers = dict(exchange.scope["headers"])
    content_type = headers.get(b"content-type", b"").decode("latin-1")
    form = UploadForm(exchange.body, content_type)
    try:
        async with aclosing(form.messages()) as messages:
            reply = await exchange.service.unary("UploadFile", messages, exchange.origin)
    except StatusError as error:
        raise from_status(error, _NAMES) from None
    return JSONResponse(file_object(reply.file))


async def list_files(exchange: Exchange) -> Response:
    """Returns the response to `GET /v1/files`.

    Raises:
        OpenAIError: The query is wrong.
        StatusError: The call failed.
    """
    cursor = read_cursor(exchange.query, _MOST, _MOST, ("purpose", "order"))
    order = cursor.others.get("order", "desc")
    if order not in ("asc", "desc"):
        raise invalid("order", f"order must be 'asc' or 'desc', not {order[:40]!r}")
    found = list[pb.File]()
    token = ""
    while len(found) < _MOST and cursor.others.get("purpose", PURPOSE) == PURPOSE:
        request = pb.ListFilesRequest(page_size=_PAGE, page_token=token)
        page = await exchange.call("ListFiles", request)
        found += page.files
        token = page.next_page_token
        if not token:
            break
    if order == "asc":
        found.reverse()
    return JSONResponse(cursor_page([file_object(file) for file in found], cursor))


async def get_file(exchange: Exchange) -> Response:
    """Returns the response to `GET /v1/files/ID`.

    Raises:
        StatusError: There is no such file.
    """
    return JSONResponse(file_object(await _find(exchange)))


async def read_file(exchange: Exchange) -> None:
    """Sends the bytes of a file: `GET /v1/files/ID/content`.

    Raises:
        StatusError: There is no such file.
    """
    file = await _find(exchange)
    request = pb.ReadFileRequest(file=file.id)
    headers = [
        (b"content-type", b"application/octet-stream"),
        (b"content-length", str(file.size_bytes).encode()),
        (b"content-disposition", b"attachment"),
    ]
    begun = False
    try:
        async with exchange.service.stream("ReadFile", request, exchange.origin) as replies:
            async for reply in replies:
                if not begun:
                    begun = True
                    await exchange.send(
                        {"type": "http.response.start", "status": 200, "headers": headers}
                    )
                body = {"type": "http.response.body", "body": reply.chunk, "more_body": True}
                await exchange.send(body)
    except StatusError:
        if not begun:
            raise
        return  # the connection ends before the bytes that were promised
    await exchange.send({"type": "http.response.body", "body": b"", "more_body": False})


async def delete_file(exchange: Exchange) -> Response:
    """Returns the response to `DELETE /v1/files/ID`.

    Raises:
        StatusError: There is no such file.
    """
    file = exchange.path["file"]
    await exchange.call("DeleteFile", pb.DeleteFileRequest(file=file))
    return JSONResponse({"id": file, "object": "file", "deleted": True})


async def _find(exchange: Exchange) -> pb.File:
    request = pb.GetFileRequest(file=exchange.path["file"])
    found: pb.File = (await exchange.call("GetFile", request)).file
    return found


def file_object(file: pb.File) -> dict[str, Any]:
    """Returns a file as OpenAI's API describes it, with its hash."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": file.create_time.seconds,
        "filename": file.name,
        "purpose": PURPOSE,
        "status": "processed",
        "sha256": file.sha256,
    }
