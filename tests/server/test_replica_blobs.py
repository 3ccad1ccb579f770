"""Servers that share an object store: what they find there, and what they do where it fails."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from services.s3 import S3Server

from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, TEXT, Caller, Server, detail_of, tiny_spec
from .replicas import ERRORS

pytestmark = pytest.mark.shared

PREFIX = "blobs"


class Pair:
    """Starts servers over one database and one store."""

    def __init__(self, tmp_path: Path, database_url: str, s3: S3Server) -> None:
        self._tmp_path = tmp_path
        self._flags = ("--database-url", database_url, "--blobs-url", s3.url(PREFIX))
        self._environment = s3.environment
        self.servers: list[Server] = []

    def start(self, name: str) -> Server:
        flags = (*self._flags, "--standby-workers", "0")
        server = Server(self._tmp_path / name, *flags, environment=self._environment)
        self.servers.append(server)
        return server


@pytest.fixture
def pair(tmp_path: Path, postgresql_url: str, own_s3_server: S3Server) -> Iterator[Pair]:
    pair = Pair(tmp_path, postgresql_url, own_s3_server)
    yield pair
    for server in pair.servers:
        server.close()
        for sign in ERRORS:
            assert sign not in server.log, server.log[-5000:]


def exported(caller: Caller, model: str) -> bytes:
    request = pb.ExportModelRequest(model=model)
    return b"".join(reply.chunk for reply in caller.stub.ExportModel(request, timeout=PATIENCE_S))


def uploaded(caller: Caller, data: bytes) -> str:
    messages = (
        pb.UploadFileRequest(spec=pb.FileSpec(name="file")),
        pb.UploadFileRequest(chunk=data),
        pb.UploadFileRequest(end=pb.FileEnd(size_bytes=len(data))),
    )
    return caller.stub.UploadFile(iter(messages), timeout=PATIENCE_S).file.id


def read(caller: Caller, file: str) -> bytes:
    replies = caller.stub.ReadFile(pb.ReadFileRequest(file=file), timeout=PATIENCE_S)
    return b"".join(reply.chunk for reply in replies)


def copies(server: Server) -> list[Path]:
    return [path for path in (server.data_dir / "cache").iterdir() if path.is_file()]


def test_a_server_finds_everything_in_the_store_also_without_its_own_directory(
    pair: Pair, own_s3_server: S3Server
) -> None:
    one = pair.start("one")
    two = pair.start("two")
    one.caller.trained(tiny_spec("base"), TEXT)
    file = uploaded(one.caller, b"bytes of a file")
    assert read(two.caller, file) == b"bytes of a file"
    assert exported(two.caller, "base") == exported(one.caller, "base")

    # Training on the other server begins with a model and a corpus that came from this one.
    spec = tiny_spec("tuned")
    spec.init_from = "base"
    two.caller.trained(spec, TEXT)
    texts = [server.caller.text("tuned", max_new_tokens=5, seed=1) for server in (one, two)]
    assert texts[0] == texts[1]

    # What is damaged on this machine is fetched again, and the machine may be lost.
    before = exported(two.caller, "base")
    for path in copies(two):
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert exported(two.caller, "base") == before
    assert read(two.caller, file) == b"bytes of a file"
    assert two.end() == 0
    shutil.rmtree(two.data_dir)
    again = pair.start("two")
    assert exported(again.caller, "base") == before
    assert again.caller.text("tuned", max_new_tokens=5) is not None

    # What is deleted leaves nothing in the store.
    again.caller.stub.DeleteFile(pb.DeleteFileRequest(file=file))
    for model in ("base", "tuned"):
        gone = pb.DeleteModelRequest(model=model, all_versions=True)
        one.caller.stub.DeleteModel(gone)
    for job in list(one.caller.jobs()):
        one.caller.stub.DeleteJob(pb.DeleteJobRequest(job=job.id))
    kept = own_s3_server.file(PREFIX, "corpora")
    found = [path for path in own_s3_server.file(PREFIX, "").rglob("*") if path.is_file()]
    assert [path for path in found if path.parent != kept] == []
    assert len(found) == 1  # the corpus stays for as long as the retention says


def test_a_damaged_or_missing_blob_is_data_loss(pair: Pair, own_s3_server: S3Server) -> None:
    one = pair.start("one")
    for model in ("damaged", "missing", "whole"):
        one.caller.trained(tiny_spec(model), TEXT)
    for model in ("damaged", "missing"):
        folder = own_s3_server.file(PREFIX, f"models/{model}/1")
        [path] = folder.glob("*.safetensors")
        data = path.read_bytes()
        if model == "damaged":
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        else:
            path.unlink()
    own_s3_server.stop()
    own_s3_server.start()  # it remembers which files there were
    two = pair.start("two")
    for model in ("damaged", "missing"):
        for call in (
            lambda model=model: two.caller.text(model, max_new_tokens=2),
            lambda model=model: exported(two.caller, model),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert caught.value.code() is grpc.StatusCode.DATA_LOSS, caught.value
    assert two.caller.text("whole", max_new_tokens=2, seed=1) == one.caller.text(
        "whole", max_new_tokens=2, seed=1
    )


def test_what_is_here_is_served_while_the_store_is_away(
    pair: Pair, own_s3_server: S3Server
) -> None:
    one = pair.start("one")
    for model in ("loaded", "cached", "elsewhere"):
        one.caller.trained(tiny_spec(model), TEXT)
    two = pair.start("two")  # not before, or it might have run one of the jobs
    two.caller.text("loaded", max_new_tokens=5)
    exported(two.caller, "cached")
    own_s3_server.stop()
    for model in ("loaded", "cached"):
        assert two.caller.text(model, max_new_tokens=5) is not None
    spec = tiny_spec("new")
    calls: dict[str, Callable[[], object]] = {
        "generate": lambda: two.caller.text("elsewhere", max_new_tokens=2),
        "export": lambda: exported(two.caller, "elsewhere"),
        "upload": lambda: uploaded(two.caller, b"more"),
        "train": lambda: list(two.caller.train(spec, b"another text. " * 50)),
    }
    for name, call in calls.items():
        with pytest.raises(grpc.RpcError) as caught:
            print(name, call())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE, caught.value
        assert detail_of(caught.value, "RetryInfo")
    own_s3_server.start()
    assert two.caller.text("elsewhere", max_new_tokens=2) is not None
    assert read(one.caller, uploaded(two.caller, b"more")) == b"more"
    two.caller.trained(spec, b"another text. " * 50)
