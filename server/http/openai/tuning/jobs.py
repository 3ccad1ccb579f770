"""`create_job`, `list_jobs` and their neighbours answer the requests to `/v1/fine_tuning/jobs`."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse, Response

from treadle.server.errors import StatusError
from treadle.server.http.openai.openai_error import invalid
from treadle.server.http.openai.rpc_errors import from_status
from treadle.server.http.openai.tuning.corpus import TuningCorpus, describe_file
from treadle.server.http.openai.tuning.cursor_page import cursor_page, read_cursor
from treadle.server.http.openai.tuning.objects import (
    checkpoint_objects,
    event_object,
    files_mark,
    job_object,
)
from treadle.server.http.openai.tuning.request import NAMES, TuningRequest, read_tuning_request
from treadle.v1 import sequence_pb2 as pb

if TYPE_CHECKING:
    from treadle.server.http.openai.exchange import Exchange

_PAGE = 100
_MOST = 10_000
"""The most jobs that are looked through for one page."""


async def create_job(exchange: Exchange) -> Response:
    """Returns the response to `POST /v1/fine_tuning/jobs`.

    Raises:
        OpenAIError: The request is refused.
        StatusError: The caller is not known, or the body is not there.
    """
    request = await exchange.read(read_tuning_request)
    try:
        job = await _train(exchange, request)
        return JSONResponse(job_object(await _job(exchange, job)))
    except StatusError as error:
        raise from_status(error, NAMES) from None


async def _train(exchange: Exchange, request: TuningRequest) -> str:
    """Starts a job; returns its id."""
    base = None
    if not request.network:
        reference = pb.GetModelRequest(**request.base.fields())
        base = (await exchange.call("GetModel", reference)).model
    spec = request.spec(base)
    files = [
        await describe_file(exchange, request.training_file, "training_file", pb.CORPUS_ROLE_TRAIN)
    ]
    if request.validation_file:
        files.append(
            await describe_file(
                exchange, request.validation_file, "validation_file", pb.CORPUS_ROLE_VALID
            )
        )
    corpus = TuningCorpus(
        exchange, files, base is not None and base.layout != pb.CORPUS_LAYOUT_LINES
    )
    corpus.settle(spec)
    spec.request_id = files_mark(request.training_file, request.validation_file, _nonce(exchange))
    async with (
        aclosing(corpus.messages(spec)) as messages,
        exchange.service.stream("Train", messages, exchange.origin) as events,
    ):
        async for event in events:
            return str(event.job)  # from now on it belongs to the server
    raise invalid("training_file", "no job was made")


def _nonce(exchange: Exchange) -> str:
    """Returns what distinguishes a job from others with the same files."""
    key = dict(exchange.scope["headers"]).get(b"idempotency-key")
    return hashlib.sha256(key).hexdigest()[:16] if key else secrets.token_hex(8)


async def list_jobs(exchange: Exchange) -> Response:
    """Returns the response to `GET /v1/fine_tuning/jobs`.

    Raises:
        OpenAIError: The query is wrong.
        StatusError: The call failed.
    """
    cursor = read_cursor(exchange.query, 20, 100)
    found = list[dict[str, Any]]()
    token = ""
    while len(found) < _MOST:
        page = await exchange.call(
            "ListJobs", pb.ListJobsRequest(page_size=_PAGE, page_token=token)
        )
        found += [job_object(job) for job in page.jobs if not job.damage]
        token = page.next_page_token
        if not token or _is_enough(found, cursor.after, cursor.limit):
            break
    return JSONResponse(cursor_page(found, cursor))


def _is_enough(found: list[dict[str, Any]], after: str, limit: int) -> bool:
    """Returns whether the entries contain a page, and one more."""
    ids = [job["id"] for job in found]
    start = ids.index(after) + 1 if after in ids else 0
    return (after == "" or start > 0) and len(ids) > start + limit


async def get_job(exchange: Exchange) -> Response:
    """Returns the response to `GET /v1/fine_tuning/jobs/ID`.

    Raises:
        StatusError: There is no such job.
    """
    return JSONResponse(job_object(await _job(exchange, exchange.path["job"])))


def changes_job(method: str) -> Callable[[Exchange], Awaitable[Response]]:
    """Returns what answers `POST /v1/fine_tuning/jobs/ID/VERB`.

    Args:
        method: The RPC, such as `CancelJob`.
    """

    async def change(exchange: Exchange) -> Response:
        request = getattr(pb, f"{method}Request")(job=exchange.path["job"])
        reply = await exchange.call(method, request)
        return JSONResponse(job_object(reply.job))

    return change


async def list_events(exchange: Exchange) -> Response:
    """Returns the response to `GET /v1/fine_tuning/jobs/ID/events`, the newest event first.

    Raises:
        OpenAIError: The query is wrong.
        StatusError: There is no such job.
    """
    cursor = read_cursor(exchange.query, 20, 100)
    job = await _job(exchange, exchange.path["job"])
    last = job.last_sequence
    if cursor.after:
        prefix, _, number = cursor.after.rpartition("-")
        known = number.isascii() and number.isdecimal() and prefix == f"ftevent-{job.id}"
        if not known or not 1 <= int(number[:18]) <= last:
            raise invalid("after", f"there is no event {cursor.after[:80]!r} of this job")
        last = int(number) - 1
    first = max(0, last - cursor.limit)
    found = list[dict[str, Any]]()
    request = pb.WatchJobRequest(job=job.id, after_sequence=first)
    if last > first:
        async with exchange.service.stream("WatchJob", request, exchange.origin) as replies:
            async for reply in replies:
                found.append(event_object(reply.event, job))
                if reply.event.sequence >= last:
                    break
    found.reverse()
    return JSONResponse({"object": "list", "data": found, "has_more": first > 0})


async def list_checkpoints(exchange: Exchange) -> Response:
    """Returns the response to `GET /v1/fine_tuning/jobs/ID/checkpoints`.

    Raises:
        OpenAIError: The query is wrong.
        StatusError: There is no such job.
    """
    cursor = read_cursor(exchange.query, 10, 100)
    job = await _job(exchange, exchange.path["job"])
    return JSONResponse(cursor_page(checkpoint_objects(job), cursor))


async def _job(exchange: Exchange, job: str) -> pb.Job:
    found: pb.Job = (await exchange.call("GetJob", pb.GetJobRequest(job=job))).job
    return found
