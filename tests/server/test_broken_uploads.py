"""Uploads that come to nothing: they leave no file, no descriptor and no place behind."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from treadle.server.errors import StatusError
from treadle.server.jobs.executors.worker_pool import WorkerPool
from treadle.server.storage.data_dir import DataDir
from treadle.server.storage.upload_files import UploadFiles
from treadle.v1 import sequence_pb2 as pb

from .harness import TEXT, Caller, Server, long_spec, tiny_spec, wait_for
from .test_jobs import make_manager

CANCELS = 400


def open_in(process: int, folder: Path) -> list[str]:
    """Returns the files below a folder that a process has open, but for what it always has."""
    found = []
    for handle in Path(f"/proc/{process}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(os.readlink(handle))
    inside = [name for name in found if name.startswith(f"{folder}/")]
    return [name for name in inside if "/treadle.db" not in name and not name.endswith("/lock")]


def kept(folder: Path) -> list[Path]:
    """Returns what uploads have left in a data directory."""
    parts = ("tmp", "corpora")
    return [path for part in parts for path in (folder / part).rglob("*")]


def files_of(number: int, count: int) -> Iterator[pb.TrainRequest]:
    """Yields the messages of an upload of several files that has no end."""
    yield pb.TrainRequest(spec=long_spec(f"m{number}"))
    for part in range(count):
        yield pb.TrainRequest(corpus_file=pb.CorpusFile(name=str(part)))
        yield pb.TrainRequest(corpus_chunk=b"%d %d" % (number, part) * 100)
        time.sleep(0.001)
    time.sleep(0.05)


def cancelled(caller: Caller, number: int) -> None:
    """Begins an upload and cancels it at a random moment."""
    draw = random.Random(number)
    call = caller.stub.Train(files_of(number, draw.randrange(1, 6)))
    time.sleep(draw.uniform(0, 0.02))
    call.cancel()


def test_uploads_that_are_cancelled_at_any_moment_leave_nothing(server: Server) -> None:
    before = kept(server.data_dir)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: cancelled(server.caller, number), range(CANCELS)))
    wait_for(lambda: server.caller.info().training_queued == 0)
    wait_for(lambda: set(kept(server.data_dir)) <= set(before))
    wait_for(lambda: not open_in(server.process.pid, server.data_dir))


def test_an_upload_that_breaks_off_removes_the_files_that_were_whole(server: Server) -> None:
    caller = server.caller
    shared = TEXT + b"shared"
    own = [b"only here %d" % number * 50 for number in range(5)]
    caller.trained(tiny_spec("sharing"), shared)
    before = set(kept(server.data_dir))

    def breaking() -> Iterator[pb.TrainRequest]:
        yield pb.TrainRequest(spec=tiny_spec("breaking"))
        for data in (shared, *own):
            yield pb.TrainRequest(corpus_file=pb.CorpusFile(name="whole"))
            yield pb.TrainRequest(corpus_chunk=data)
        yield pb.TrainRequest(corpus_end=pb.CorpusEnd(size_bytes=1))

    with pytest.raises(grpc.RpcError, match="should have 1 bytes"):
        list(caller.train(tiny_spec("breaking"), source=breaking()))
    wait_for(lambda: set(kept(server.data_dir)) == before)  # the shared one is among them


def test_a_file_may_be_named_by_its_hash_once_it_was_sent(server: Server) -> None:
    data = TEXT + b"sent once"
    named = pb.CorpusFile(
        sha256=hashlib.sha256(data).hexdigest(), role=pb.CORPUS_ROLE_VALID, name="again"
    )
    source = [
        pb.TrainRequest(spec=tiny_spec("sent-once")),
        pb.TrainRequest(corpus_file=pb.CorpusFile(name="first")),
        pb.TrainRequest(corpus_chunk=data),
        pb.TrainRequest(corpus_file=named),
        pb.TrainRequest(corpus_end=pb.CorpusEnd(size_bytes=len(data))),
    ]
    events = list(server.caller.train(tiny_spec("sent-once"), source=source))
    assert events[-1].completed.version == 1


def test_what_two_uploads_brought_goes_with_the_last_of_them(tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path)
    try:
        first, second, third = (UploadFiles(data_dir.corpora) for _ in range(3))
        for files in (first, second, third):
            files.writer().write(b"the same")
            writer = files.writer()
            writer.write(b"own %d" % id(files))
            writer.finish()
            files.store()
        first.close()
        assert len(list(data_dir.corpora.stored())) == 3
        second.keep()
        second.close()
        third.close()
        assert len(list(data_dir.corpora.stored())) == 2  # the second's
        assert not list((tmp_path / "tmp").iterdir())
        again = UploadFiles(data_dir.corpora)
        for sha256, size in data_dir.corpora.stored():
            assert again.find(sha256) == size
        again.close()
        assert len(list(data_dir.corpora.stored())) == 2
    finally:
        data_dir.close()


def test_what_comes_after_the_end_is_removed(tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path)
    try:
        files = UploadFiles(data_dir.corpora)
        files.close()
        files.writer()  # of a thread that was late
        assert not list((tmp_path / "tmp").iterdir())
    finally:
        data_dir.close()


def test_a_call_that_sends_nothing_holds_no_place(start: Callable[..., Server]) -> None:
    server = start("--upload-limit", "1")
    silence = threading.Event()

    def silent() -> Iterator[pb.TrainRequest]:
        silence.wait()
        yield from ()

    calls = [server.caller.stub.Train(silent()) for _ in range(5)]
    assert server.caller.trained(tiny_spec("loud")).version == 1
    silence.set()
    for call in calls:
        call.cancel()


def test_a_slow_upload_ends_and_gives_its_place_back(start: Callable[..., Server]) -> None:
    flags = ("--upload-limit", "1", "--upload-idle-s", "0.5", "--upload-min-rate", "1000")
    server = start(*flags)

    def slow() -> Iterator[pb.TrainRequest]:
        yield pb.TrainRequest(spec=tiny_spec("slow"))
        for _ in range(1000):
            yield pb.TrainRequest(corpus_chunk=b"x")
            time.sleep(0.05)

    with pytest.raises(grpc.RpcError, match="bytes a second, and 1,000 are the least") as caught:
        list(server.caller.train(tiny_spec("slow"), source=slow()))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert server.caller.trained(tiny_spec("quick")).version == 1
    assert [path.name for path in kept(server.data_dir) if "corpus" in path.name] == []


def test_a_corpus_that_is_sent_again_takes_a_place_as_well(tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path)

    async def run() -> None:
        manager = make_manager(data_dir, WorkerPool(standby=0))  # with two places for uploads
        with manager.queue.admit_repeated(), manager.queue.admit():
            assert manager.queue.waiting_count == 1
            for admit in (manager.queue.admit, manager.queue.admit_repeated):
                with pytest.raises(StatusError, match="2 corpora are being uploaded"), admit():
                    pass
        with manager.queue.admit(), manager.queue.admit():
            pass

    try:
        asyncio.run(run())
    finally:
        data_dir.close()
