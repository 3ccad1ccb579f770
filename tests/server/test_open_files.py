"""A server whose operating system lets it open no more files says so, and lives on."""

from __future__ import annotations

import resource
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from treadle.server.errors import from_exception
from treadle.server.resources import open_files
from treadle.server.storage import model_version
from treadle.server.storage.data_dir import DataDir
from treadle.server.storage.database.sqlite_engine import SqliteEngine
from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, TEXT, Server, detail_of, requests, tiny_spec, wait_for
from .samples import put_model

MOST = 160


def limited(most: int) -> list[str]:
    """Returns a command that runs another one with so many open files at most."""
    return ["sh", "-c", f'ulimit -n {most}; exec "$@"', "sh"]


def test_a_server_without_a_file_to_open_says_so_and_lives_on(
    start: Callable[..., Server],
) -> None:
    server = start(prefix=limited(MOST))
    caller = server.caller
    caller.trained(tiny_spec("m"))
    host, port = server.address.rsplit(":", 1)
    descriptors = Path(f"/proc/{server.process.pid}/fd")
    train = iter(requests(tiny_spec("n"), TEXT))
    calls: list[Callable[[], object]] = [
        lambda: caller.stub.ListModels(pb.ListModelsRequest(), timeout=PATIENCE_S),
        lambda: caller.stub.GetModel(pb.GetModelRequest(model="none"), timeout=PATIENCE_S),
        lambda: caller.stub.SetAlias(pb.SetAliasRequest(model="o", alias="a"), timeout=PATIENCE_S),
        lambda: caller.generate("none"),
        lambda: list(caller.stub.Train(train, timeout=PATIENCE_S)),
    ]
    with ExitStack() as connections:
        for _ in range(2 * MOST):  # those beyond the limit wait to be taken
            made = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
            connections.enter_context(made)
        wait_for(lambda: len([*descriptors.iterdir()]) >= MOST - 1)
        codes = set()
        for call in calls:
            with pytest.raises(grpc.RpcError) as caught:
                call()
            codes.add(caught.value.code())
            if caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                assert "as many files and connections open as it may" in (
                    caught.value.details() or ""
                )
                assert detail_of(caught.value, "RetryInfo")
            if caught.value.code() is grpc.StatusCode.ABORTED:
                # A descriptor was free for a moment: the job was stored, and its process failed.
                assert "Too many open files" in (caught.value.details() or "")
        assert grpc.StatusCode.RESOURCE_EXHAUSTED in codes
        assert codes <= {
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            grpc.StatusCode.NOT_FOUND,
            grpc.StatusCode.ABORTED,
        }
        assert caller.serving()
    wait_for(lambda: len([*descriptors.iterdir()]) < MOST // 2)
    assert caller.text("m", max_new_tokens=3) is not None
    assert caller.trained(tiny_spec("n")).version == 1


def test_a_server_takes_all_the_files_that_it_may() -> None:
    soft = 100
    hard = 300
    script = (
        "import resource\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
        "from treadle.server.resources import open_files\n"
        f"assert open_files.allow_many() == {hard}\n"
        f"assert resource.getrlimit(resource.RLIMIT_NOFILE) == ({hard}, {hard})\n"
        f"assert open_files.allow_many() == {hard}\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=PATIENCE_S)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] != hard


def test_a_model_is_not_called_damaged_where_no_file_can_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    data_dir = DataDir(tmp_path)
    stored = put_model(data_dir, "m")

    def refuse(_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(model_version, "read_header", refuse)
    with pytest.raises(OSError, match="Too many open files") as caught:
        data_dir.models.describe(stored)
    data_dir.close()
    assert from_exception(caught.value, "x").code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_database_that_cannot_be_opened_for_want_of_files_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = SqliteEngine(tmp_path / "treadle.db")

    def refuse() -> None:
        raise OSError(24, "Too many open files")

    error = sqlite3.OperationalError("unable to open database file")
    error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
    monkeypatch.setattr(open_files, "check", refuse)
    with pytest.raises(OSError, match="Too many open files"), engine.translated():
        raise error
    engine.close()
