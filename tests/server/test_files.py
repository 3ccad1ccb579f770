"""Files that callers store: they last, count in quotas, and go."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from treadle.server.access.callers.access_token import new_access_token
from treadle.server.inference.admission import Admission
from treadle.server.storage.data_dir import DataDir
from treadle.server.storage.retention import RetentionPeriods, delete_expired
from treadle.server.storage.schema import FileRow
from treadle.server.uploads.file_handler import FileHandler
from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, TEXT, Server, detail_of, fields_of, tiny_spec
from .tenants import drain, stored, upload


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that takes files of up to 5,000 bytes."""
    flags = ("--standby-workers", "0", "--max-corpus-bytes", "5000", "--upload-idle-s", "1")
    server = Server(tmp_path_factory.mktemp("files") / "data", *flags)
    yield server
    server.close()
    assert "Traceback" not in server.log


def put(server: Server, text: str, name: str = "") -> pb.File:
    file: pb.File = server.caller.stub.UploadFile(stored(text, name), timeout=PATIENCE_S).file
    return file


def get(server: Server, file: str) -> pb.File:
    found: pb.File = server.caller.stub.GetFile(pb.GetFileRequest(file=file)).file
    return found


def read(server: Server, file: str) -> bytes:
    replies = server.caller.stub.ReadFile(pb.ReadFileRequest(file=file), timeout=PATIENCE_S)
    return b"".join(reply.chunk for reply in replies)


def delete(server: Server, file: str) -> None:
    server.caller.stub.DeleteFile(pb.DeleteFileRequest(file=file))


def corpora(server: Server) -> set[str]:
    return {path.name for path in (server.data_dir / "corpora").iterdir()}


def test_a_file_comes_back_as_it_was(server: Server) -> None:
    text = "one\r\ntwo\n" * 100
    file = put(server, text, "names.txt")
    assert (file.name, file.size_bytes, file.owner) == ("names.txt", len(text), "")
    assert file.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert abs(file.create_time.seconds - time.time()) < PATIENCE_S
    assert get(server, file.id) == file
    assert read(server, file.id) == text.encode()


def test_a_job_is_trained_from_a_file(server: Server) -> None:
    file = put(server, TEXT.decode())
    spec = tiny_spec("of-a-file")
    events = drain(
        server.caller.stub.Train(
            upload(spec, pb.CorpusFile(sha256=file.sha256)), timeout=PATIENCE_S
        )
    )
    assert events[-1].completed.name == "of-a-file"
    delete(server, file.id)
    assert server.caller.text("of-a-file", max_new_tokens=4)


def test_lists_have_pages_the_newest_first(server: Server) -> None:
    made = [put(server, f"file {number}") for number in range(5)]
    names = [file.id for file in reversed(made)]
    found = list[str]()
    token = ""
    while len(found) < 5:
        request = pb.ListFilesRequest(page_size=2, page_token=token)
        page = server.caller.stub.ListFiles(request)
        assert len(page.files) == 2
        found += [file.id for file in page.files]
        token = page.next_page_token
    assert found[:5] == names
    assert not server.caller.stub.ListFiles(pb.ListFilesRequest()).next_page_token


def test_the_same_bytes_are_stored_once_and_go_with_the_last_file(server: Server) -> None:
    first = put(server, "the same bytes")
    second = put(server, "the same bytes")
    assert first.id != second.id
    delete(server, first.id)
    assert first.sha256 in corpora(server)
    assert read(server, second.id) == b"the same bytes"
    delete(server, second.id)
    assert first.sha256 not in corpora(server)
    for call in (get, read, delete):
        with pytest.raises(grpc.RpcError) as failure:
            call(server, second.id)
        assert failure.value.code() is grpc.StatusCode.NOT_FOUND
        assert detail_of(failure.value, "ResourceInfo").resource_name == second.id  # type: ignore[attr-defined]


SPEC = pb.UploadFileRequest(spec=pb.FileSpec())
CHUNK = pb.UploadFileRequest(chunk=b"abc")


def end(size: int) -> pb.UploadFileRequest:
    return pb.UploadFileRequest(end=pb.FileEnd(size_bytes=size))


REFUSED: dict[str, tuple[list[pb.UploadFileRequest], str]] = {
    "nothing": ([], "spec"),
    "no spec": ([CHUNK, end(3)], "spec"),
    "two specs": ([SPEC, SPEC], "spec"),
    "a long name": ([pb.UploadFileRequest(spec=pb.FileSpec(name="a" * 256))], "spec.name"),
    "an empty chunk": ([SPEC, pb.UploadFileRequest(chunk=b"")], "chunk"),
    "an empty message": ([SPEC, pb.UploadFileRequest()], "chunk"),
    "an empty file": ([SPEC, end(0)], "chunk"),
    "another size": ([SPEC, CHUNK, end(4)], "end.size_bytes"),
    "no end": ([SPEC, CHUNK], "end"),
    "too many bytes": ([SPEC, pb.UploadFileRequest(chunk=b"a" * 5001)], "chunk"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_an_upload_that_is_refused_leaves_nothing(server: Server, fault: str) -> None:
    messages, field = REFUSED[fault]
    before = corpora(server)
    with pytest.raises(grpc.RpcError) as failure:
        server.caller.stub.UploadFile(iter(messages), timeout=PATIENCE_S)
    assert fields_of(failure.value) == [field]
    assert corpora(server) == before
    assert not [*(server.data_dir / "tmp").glob("corpus-*")]


def test_a_silent_upload_is_given_up(server: Server) -> None:
    def silence() -> Iterator[pb.UploadFileRequest]:
        yield SPEC
        time.sleep(3)

    with pytest.raises(grpc.RpcError) as failure:
        server.caller.stub.UploadFile(silence(), timeout=PATIENCE_S)
    assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_file_lasts_and_counts_in_the_quota_of_its_caller(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    token = new_access_token()
    callers = tmp_path / "callers.toml"
    callers.touch(mode=0o600)
    callers.write_text(
        '[callers.ann]\nrole = "trainer"\nwrite_models = ["*"]\n'
        "quotas = { corpus_bytes = 1000 }\n"
        f'[[callers.ann.tokens]]\nid = "{token.id}"\nsha256 = "{token.sha256.hex()}"\n'
    )
    metadata = (("authorization", f"Bearer {token.text}"),)

    def call(server: Server, method: str, request: Any) -> Any:
        return getattr(server.caller.stub, method)(request, metadata=metadata, timeout=PATIENCE_S)

    server = start("--callers-file", str(callers))
    file = call(server, "UploadFile", stored("a" * 800)).file
    use = call(server, "GetServerInfo", pb.GetServerInfoRequest()).caller.use
    assert use.corpus_bytes == 800
    with pytest.raises(grpc.RpcError) as failure:
        call(server, "UploadFile", stored("b" * 300))
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "corpus_bytes" in str(failure.value.details())
    server.end()
    server = start("--callers-file", str(callers))
    assert call(server, "GetFile", pb.GetFileRequest(file=file.id)).file == file
    call(server, "DeleteFile", pb.DeleteFileRequest(file=file.id))
    use = call(server, "GetServerInfo", pb.GetServerInfoRequest()).caller.use
    assert use.corpus_bytes == 0
    call(server, "UploadFile", stored("b" * 300))


def test_a_file_goes_with_its_bytes_after_their_retention(tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path / "data")
    try:
        shas = {}
        for name in ("old", "new"):
            writer = data_dir.corpora.writer()
            writer.write(name.encode())
            shas[name], _ = writer.claim()
            for owner in ("", "ann"):
                row = FileRow(f"file-{name}-{owner}x", owner, name, shas[name], 3, 1e9)
                data_dir.database.add_file(row)
        now_s = time.time()
        data_dir.database.touch_corpus(shas["old"], 3, now_s - 100)
        data_dir.database.touch_corpus_owner(shas["old"], "ann", now_s - 100)
        data_dir.database.touch_corpus_owner(shas["new"], "ann", now_s)
        periods = RetentionPeriods(job_s=0, corpus_s=50)
        report = delete_expired(
            data_dir.database, data_dir.corpora, data_dir.jobs.root, periods, now_s
        )
        assert report.corpora == (shas["old"],)
        assert report.files == 2
        assert [row.name for row in data_dir.database.files()] == ["new", "new"]
    finally:
        data_dir.close()


def test_a_call_that_is_cancelled_while_it_opens_a_file_closes_it(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    row = FileRow("file-x", "", "x", "0" * 64, 3, 1e9)
    data_dir: Any = SimpleNamespace(
        database=SimpleNamespace(files=lambda *_: [row]),
        corpora=SimpleNamespace(
            touch=lambda _: None, open=lambda _: os.open(pipe, os.O_RDONLY | os.O_NOFOLLOW)
        ),
    )
    admission: Any = SimpleNamespace(watchers=Admission(1, "calls"))
    nothing: Any = None
    handler = FileHandler(data_dir, nothing, nothing, nothing, admission, 1 << 20)

    async def read() -> None:
        async for _ in handler.read(pb.ReadFileRequest(file=row.id)):
            pass

    async def test() -> None:
        task = asyncio.create_task(read())
        await asyncio.sleep(0.2)  # until its thread waits for somebody who writes
        task.cancel()
        writer = await asyncio.to_thread(os.open, pipe, os.O_WRONLY)
        try:
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(BrokenPipeError):
                os.write(writer, b"x")
        finally:
            os.close(writer)

    asyncio.run(asyncio.wait_for(test(), PATIENCE_S))
