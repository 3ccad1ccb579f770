from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from treadle.server.errors import StatusError, unavailable
from treadle.server.upload import Limits, Upload
from treadle.v1 import sequence_pb2 as pb

SPEC = pb.TrainRequest(spec=pb.TrainSpec(model="m"))


def end(size: int) -> pb.TrainRequest:
    return pb.TrainRequest(corpus_end=pb.CorpusEnd(size_bytes=size))


def chunk(data: bytes) -> pb.TrainRequest:
    return pb.TrainRequest(corpus_chunk=data)


async def stream(
    *messages: pb.TrainRequest, silent: bool = False
) -> AsyncIterator[pb.TrainRequest]:
    for message in messages:
        yield message
    if silent:
        await asyncio.Event().wait()


def upload(
    path: Path,
    *messages: pb.TrainRequest,
    limit: int = 1 << 30,
    idle_s: float = 60.0,
    silent: bool = False,
    closing: bool = False,
) -> int:
    """Reads a whole upload and returns the size of its corpus."""

    async def run() -> int:
        closed: asyncio.Future[StatusError] = asyncio.get_running_loop().create_future()
        source = stream(*messages, silent=silent)
        reader = Upload(source, Limits(limit, idle_s), closed)
        await reader.spec()
        if closing:
            closed.set_result(unavailable("closing"))
        return await reader.save(path)

    return asyncio.run(run())


@pytest.mark.parametrize("sizes", [(), (1, 2, 3), (5 << 20,), (1 << 20, 1), (1,) * 500])
def test_a_corpus_arrives_whole(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    parts = [bytes([number % 251]) * size for number, size in enumerate(sizes)]
    path = tmp_path / "corpus"
    assert upload(path, SPEC, *map(chunk, parts), end(sum(sizes))) == sum(sizes)
    assert path.read_bytes() == b"".join(parts)


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([], "ended before its first message"),
        ([chunk(b"x"), SPEC], "first message must be the spec"),
        ([pb.TrainRequest()], "first message must be the spec"),
        ([SPEC, chunk(b"x"), SPEC], "only the first message may be the spec"),
        ([SPEC, pb.TrainRequest()], "a message is empty"),
        ([SPEC, chunk(b"1"), chunk(b"")], "a chunk is empty"),
        ([SPEC, chunk(b"12345"), chunk(b"123456")], "at most 10 bytes"),
        ([SPEC], "ended without it, so the corpus is not whole"),
        ([SPEC, chunk(b"123")], "ended without it, so the corpus is not whole"),
        ([SPEC, chunk(b"123"), end(4)], "should have 4 bytes, but 3 arrived"),
        ([SPEC, chunk(b"123"), end(0)], "should have 0 bytes, but 3 arrived"),
        ([SPEC, end(1), chunk(b"1")], "should have 1 bytes, but 0 arrived"),
    ],
)
def test_what_is_no_upload(tmp_path: Path, messages: list[pb.TrainRequest], complaint: str) -> None:
    with pytest.raises(StatusError, match=complaint) as caught:
        upload(tmp_path / "corpus", *messages, limit=10)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_the_limit_itself_is_allowed(tmp_path: Path) -> None:
    assert upload(tmp_path / "corpus", SPEC, chunk(b"1" * 10), end(10), limit=10) == 10


def test_nothing_is_awaited_after_the_end(tmp_path: Path) -> None:
    assert upload(tmp_path / "corpus", SPEC, chunk(b"1"), end(1), silent=True) == 1


def test_a_silent_client_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(StatusError, match="no message for") as caught:
        upload(tmp_path / "corpus", SPEC, chunk(b"x"), silent=True, idle_s=0.05)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_closing_server_ends_uploads(tmp_path: Path) -> None:
    with pytest.raises(StatusError, match="closing") as caught:
        upload(tmp_path / "corpus", SPEC, chunk(b"x"), silent=True, closing=True)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
