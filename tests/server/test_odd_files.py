"""Pipes, sockets, devices, holes and directories in place of files harm no call to a server."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from treadle.server.errors import StatusError, from_packed, invalid
from treadle.server.fsck.check import check
from treadle.server.storage.data_dir import DataDir
from treadle.server.storage.job_files import BEST_FILE, LAST_FILE
from treadle.server.storage.model_version import HASH_FILE, MODEL_FILE
from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, Server
from .samples import job_row, put_model


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)


def make_directory(path: Path) -> None:
    path.mkdir()


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_loop(path: Path) -> None:
    path.symlink_to(path.name)


def make_holes(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def make_holes_behind_a_header(path: Path) -> None:
    tensor = {"dtype": "F32", "shape": [1 << 37], "data_offsets": [0, 1 << 39]}
    content = {"__metadata__": {"treadle": "{}"}, "output.weight": tensor}
    header = json.dumps(content).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + (1 << 39))


MAKERS: list[Callable[[Path], None]] = [
    make_pipe,
    make_socket,
    make_directory,
    make_device,
    make_loop,
    make_holes,
    make_holes_behind_a_header,
]


@pytest.fixture(scope="module")
def odd_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server among whose files are odd ones; the one model `whole` is as it should be."""
    root = tmp_path_factory.mktemp("odd") / "data"
    data_dir = DataDir(root)
    whole = put_model(data_dir, "whole")
    for maker in MAKERS:
        name = maker.__name__.replace("_", "-")
        path = put_model(data_dir, name).path
        path.unlink()
        maker(path)
        if maker is not make_holes_behind_a_header:
            record = put_model(data_dir, f"hash-{name}").path.with_name(HASH_FILE)
            record.unlink()
            maker(record)
        data_dir.database.add_job(job_row(name, state="paused"))
        directory = data_dir.jobs.directory(name)
        maker(directory / LAST_FILE)
        maker(directory / BEST_FILE)
        data_dir.database.add_job(job_row(f"folder-{name}", state="paused"))
        if maker is not make_directory:
            maker(root / "jobs" / f"folder-{name}")
    data_dir.database.add_job(job_row("damaged-error", state="failed", error=b"\xff"))
    data_dir.close()
    shutil.copy(whole.path, root / "models" / "file-in-place-of-a-model")
    server = Server(root, "--standby-workers", "0")
    yield server
    server.close()
    for sign in ("Traceback", "Fatal", "internal error", "never retrieved"):
        assert sign not in server.log


def ended(call: Callable[[], object]) -> grpc.StatusCode:
    """Returns the status with which a call ends."""
    try:
        call()
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


FINE = {
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


@pytest.mark.parametrize("maker", MAKERS)
def test_calls_that_meet_an_odd_file_end_with_an_error_that_says_so(
    maker: Callable[[Path], None], odd_server: Server
) -> None:
    name = maker.__name__.replace("_", "-")
    caller = odd_server.caller
    stub = caller.stub
    for version in (0, 1):
        get = pb.GetModelRequest(model=name, version=version)
        assert ended(lambda get=get: stub.GetModel(get, timeout=PATIENCE_S)) in FINE  # type: ignore[misc]
        assert ended(lambda v=version: caller.generate(name, version=v)) in FINE  # type: ignore[misc]
        assert ended(lambda v=version: caller.score(name, ["a"], version=v)) in FINE  # type: ignore[misc]
    if maker is not make_holes_behind_a_header:
        assert (
            ended(lambda: caller.generate(f"hash-{name}", max_new_tokens=1)) is grpc.StatusCode.OK
        )
        hashed = pb.GetModelRequest(model=f"hash-{name}")
        assert stub.GetModel(hashed, timeout=PATIENCE_S).model.sha256
    for job in (name, f"folder-{name}"):
        for weights in (pb.JOB_WEIGHTS_LAST, pb.JOB_WEIGHTS_BEST):
            generate = pb.GenerateRequest(job=job, job_weights=weights)
            code = ended(lambda g=generate: list(stub.Generate(g, timeout=PATIENCE_S)))  # type: ignore[misc]
            assert code in FINE


def test_the_rest_is_served(odd_server: Server) -> None:
    caller = odd_server.caller
    listed = caller.stub.ListModels(pb.ListModelsRequest(), timeout=PATIENCE_S).models
    assert "whole" in [model.name for model in listed if not model.damage]
    assert caller.text("whole", max_new_tokens=3, seed=1)
    assert len(list(caller.jobs())) == 2 * len(MAKERS) + 1
    assert caller.serving()


def test_a_failed_job_whose_error_cannot_be_read_is_data_loss(odd_server: Server) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(odd_server.caller.watch("damaged-error"))
    assert caught.value.code() is grpc.StatusCode.DATA_LOSS


def test_only_errors_are_read_as_errors() -> None:
    packed = invalid([("a", "wrong")]).packed()
    assert from_packed(packed, "").code is grpc.StatusCode.INVALID_ARGUMENT
    for damaged in (b"", b"\xff", b"\x08\x63", StatusError(grpc.StatusCode.OK, "").packed()):
        assert from_packed(damaged, "so it was").code is grpc.StatusCode.DATA_LOSS


def test_a_check_does_not_read_holes(tmp_path: Path) -> None:
    root = tmp_path / "data"
    data_dir = DataDir(root)
    data_dir.database.add_job(job_row("j", state="paused"))
    directory = data_dir.jobs.directory("j")
    data_dir.close()
    make_holes(directory / LAST_FILE)
    (root / "models" / "m" / "1").mkdir(parents=True)
    make_holes(root / "models" / "m" / "1" / MODEL_FILE)
    began = time.monotonic()
    assert not check(root, repair=True).clean
    assert time.monotonic() - began < PATIENCE_S  # to read a terabyte takes longer
