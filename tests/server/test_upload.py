from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from treadle.server.errors import StatusError, unavailable
from treadle.server.jobs.submissions.upload import Upload
from treadle.server.resources.upload_pace import Pace, UploadLimits
from treadle.server.storage.data_dir import DataDir
from treadle.server.storage.upload_files import UploadFiles
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
    folder: Path,
    *messages: pb.TrainRequest,
    limit: int = 1 << 30,
    idle_s: float = 60.0,
    silent: bool = False,
    closing: bool = False,
) -> list[bytes]:
    """Reads a whole upload and returns the bytes of its files; nothing else may stay."""

    async def run(data_dir: DataDir) -> list[bytes]:
        closed: asyncio.Future[StatusError] = asyncio.get_running_loop().create_future()
        source = stream(*messages, silent=silent)
        reader = Upload(source, UploadLimits(limit, idle_s, spec_s=idle_s), closed)
        await reader.spec()
        if closing:
            closed.set_result(unavailable("closing"))
        stored = UploadFiles(data_dir.corpora)
        try:
            files = await reader.receive(stored)
            stored.store()
            stored.keep()
        finally:
            stored.close()
        return [data_dir.corpora.path(file.sha256).read_bytes() for file in files]

    data_dir = DataDir(folder)
    try:
        return asyncio.run(run(data_dir))
    finally:
        data_dir.close()
        assert not list((folder / "tmp").iterdir())


@pytest.mark.parametrize("sizes", [(), (1, 2, 3), (5 << 20,), (1 << 20, 1), (1,) * 500])
def test_a_corpus_arrives_whole(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    parts = [bytes([number % 251]) * size for number, size in enumerate(sizes)]
    assert upload(tmp_path, SPEC, *map(chunk, parts), end(sum(sizes))) == [b"".join(parts)]


def test_files_arrive_one_by_one(tmp_path: Path) -> None:
    files = [b"first" * 300_000, b"", b"third"]
    messages = []
    for number, data in enumerate(files):
        messages.append(pb.TrainRequest(corpus_file=pb.CorpusFile(name=str(number))))
        messages += [chunk(data)] if data else []
    assert upload(tmp_path, SPEC, *messages, end(sum(map(len, files)))) == files


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
        upload(tmp_path, *messages, limit=10)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_the_limit_itself_is_allowed(tmp_path: Path) -> None:
    assert upload(tmp_path, SPEC, chunk(b"1" * 10), end(10), limit=10) == [b"1" * 10]


def test_nothing_is_awaited_after_the_end(tmp_path: Path) -> None:
    assert upload(tmp_path, SPEC, chunk(b"1"), end(1), silent=True) == [b"1"]


def test_a_silent_client_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(StatusError, match="no message for") as caught:
        upload(tmp_path, SPEC, chunk(b"x"), silent=True, idle_s=0.05)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_client_that_sends_no_spec_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(StatusError, match=r"no spec for 0\.05 seconds") as caught:
        upload(tmp_path, silent=True, idle_s=0.05)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


class Passing:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def sent(pace: Pace, clock: Passing, *pieces: tuple[float, int]) -> None:
    """Lets messages come, each after some seconds and of some bytes, as `Upload` sees them."""
    for seconds, size in pieces:
        pace.wait()
        end = clock.now + seconds
        while (left := pace.left()) < end - clock.now:
            clock.now += left
            pace.check()
        clock.now = end
        pace.came(size)


def begun(total_s: float = 1000.0) -> tuple[Pace, Passing]:
    clock = Passing()
    pace = Pace(UploadLimits(1 << 30, idle_s=60.0, min_rate=100.0, total_s=total_s), clock)
    sent(pace, clock, (5.0, 0))
    pace.begin()
    return pace, clock


def test_a_byte_a_second_is_too_slow() -> None:
    pace, clock = begun()
    with pytest.raises(
        StatusError, match=r"at 1.0 bytes a second, and 100 are the least"
    ) as caught:
        sent(pace, clock, *[(1.0, 1)] * 100)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert clock.now == 50 + 5 + 60


def test_a_slow_message_is_not_waited_for() -> None:
    pace, clock = begun()
    with pytest.raises(StatusError, match="the least"):
        sent(pace, clock, (20.0, 1), (50.0, 1 << 20))
    assert clock.now == 50 + 5 + 60


def test_the_least_rate_is_enough_for_as_long_as_an_upload_may_take() -> None:
    pace, clock = begun(total_s=500.0)
    with pytest.raises(StatusError, match="not whole after 500 seconds") as caught:
        sent(pace, clock, *[(30.0, 3000)] * 100)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert clock.now == 50 + 5 + 500


def test_what_the_server_takes_is_not_the_clients_time() -> None:
    pace, clock = begun()
    for _ in range(5):
        sent(pace, clock, (1.0, 100))
        clock.now += 100.0  # it writes to a slow disk
    assert clock.now > 500


def test_silence_is_told_before_slowness() -> None:
    pace, clock = begun()
    with pytest.raises(StatusError, match="no message for 60 seconds"):
        sent(pace, clock, (61.0, 1))


def test_a_closing_server_ends_uploads(tmp_path: Path) -> None:
    with pytest.raises(StatusError, match="closing") as caught:
        upload(tmp_path, SPEC, chunk(b"x"), silent=True, closing=True)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
