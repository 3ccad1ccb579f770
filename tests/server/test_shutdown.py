"""Starts and ends: SIGTERM at every moment, restarts, busy ports, crashes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]

from treadle.server.storage.model_version import MODEL_FILE
from treadle.v1 import sequence_pb2 as pb

from .harness import (
    PATIENCE_S,
    TEXT,
    Server,
    first_progress,
    is_running,
    long_spec,
    tiny_spec,
    wait_for,
)
from .test_training import SlowUpload, done_models, tmp_files

Start = Callable[..., Server]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a server that cannot start."""
    command = [sys.executable, "-m", "treadle.server", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_ends_with_0(start: Start, number: signal.Signals) -> None:
    server = start("--standby-workers", "1")
    wait_for(server.workers)
    workers = server.workers()
    assert server.end(number) == 0
    assert not any(map(is_running, workers))
    assert "WARNING" not in server.log


def test_the_ready_line_names_version_and_port(start: Start) -> None:
    server = start()
    program, version, *words, address = server.line.split()
    assert (program, words) == ("treadle-server", ["listening", "on"])
    assert version[0].isdigit()
    assert int(address.rpartition(":")[2]) > 0


def test_sigterm_ends_uploads_and_loses_no_job(start: Start) -> None:
    server = start()
    running = server.caller.train(long_spec("running"), TEXT)
    first_progress(running)
    waiting = server.caller.train(tiny_spec("waiting"), TEXT)
    next(waiting)
    upload = SlowUpload(tiny_spec("uploading"))
    uploading = server.caller.train(pb.TrainSpec(), source=upload)
    wait_for(lambda: server.caller.info().training_queued == 2)
    server.process.send_signal(signal.SIGTERM)
    continues = "continues when it has started"
    lost = "nothing was trained"
    for call, said in ((waiting, continues), (uploading, lost)):
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert said in (caught.value.details() or "")
    upload.end()
    assert server.wait() == 0
    assert tmp_files(server) == []
    again = start()
    wait_for(lambda: again.caller.info().training_running == 1)
    assert again.caller.info().training_queued == 1


def test_sigterm_lets_a_generation_finish(start: Start) -> None:
    server = start("--grace-s", str(PATIENCE_S))
    server.caller.trained(tiny_spec("m"))
    request = pb.GenerateRequest(model="m", max_new_tokens=20_000)
    call = server.caller.stub.Generate(request, timeout=PATIENCE_S)
    replies = [next(call)]
    server.process.send_signal(signal.SIGTERM)
    replies += list(call)
    assert replies[-1].result.new_tokens == 20_000
    assert server.wait() == 0


def test_what_outlasts_the_grace_is_told_why_it_ended(start: Start) -> None:
    server = start("--grace-s", "0.2", "--max-new-tokens-limit", "4000000000")
    server.caller.trained(tiny_spec("m"))
    request = pb.GenerateRequest(model="m", max_new_tokens=4_000_000_000)
    call = server.caller.stub.Generate(request, timeout=PATIENCE_S)
    next(call)
    server.process.send_signal(signal.SIGTERM)
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "did not end within 0.15 seconds" in (caught.value.details() or "")
    assert server.wait() == 0


def test_a_health_watcher_does_not_hold_up_the_end(start: Start) -> None:
    server = start("--grace-s", str(10 * PATIENCE_S))
    watch = server.caller.health.Watch(health_pb2.HealthCheckRequest())
    serving = health_pb2.HealthCheckResponse.SERVING
    assert next(watch).status == serving
    server.process.send_signal(signal.SIGTERM)
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert server.wait() == 0


def test_a_restart_keeps_models_and_gives_the_same_text(start: Start) -> None:
    first = start()
    model = first.caller.trained(tiny_spec("m"))
    text = first.caller.text("m", seed=4)
    assert first.end() == 0
    second = start()
    assert second.caller.stub.GetModel(pb.GetModelRequest(model="m")).model == model
    assert second.caller.text("m", seed=4) == text
    assert second.caller.trained(tiny_spec("m")).version == 2


def test_a_server_that_is_killed_takes_its_processes_along(start: Start) -> None:
    first = start("--standby-workers", "1")
    running = first.caller.train(long_spec("kept"), TEXT)
    first_progress(running)
    wait_for(lambda: len(first.workers()) == 2)
    workers = first.workers()
    os.kill(first.process.pid, signal.SIGKILL)
    with pytest.raises(grpc.RpcError):
        list(running)
    first.wait()
    wait_for(lambda: not any(map(is_running, workers)))
    second = start()
    wait_for(lambda: second.caller.info().training_running == 1)
    assert tmp_files(second) == []
    assert done_models(second.caller) == []


def test_a_garbage_data_directory_is_survived(start: Start, tmp_path: Path) -> None:
    models = tmp_path / "data" / "models"
    (models / "damaged" / "1").mkdir(parents=True)
    (models / "damaged" / "1" / MODEL_FILE).write_bytes(b"\0" * 1000)
    (models / "file").write_text("x")
    (models / ".hidden").mkdir()
    (tmp_path / "data" / "tmp").mkdir()
    (tmp_path / "data" / "tmp" / "left").write_text("x")
    server = start()
    caller = server.caller
    assert done_models(caller) == ["damaged"]  # listed, and said to be damaged
    with pytest.raises(grpc.RpcError) as caught:
        caller.generate("damaged")
    assert caught.value.code() is grpc.StatusCode.DATA_LOSS
    with pytest.raises(grpc.RpcError) as caught:
        list(caller.train(tiny_spec("file"), TEXT))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert caller.trained(tiny_spec("damaged")).version == 2
    assert tmp_files(server) == []


def test_a_busy_port_is_said(start: Start, tmp_path: Path) -> None:
    server = start()
    done = run("--address", server.address, "--data-dir", str(tmp_path / "other"))
    assert done.returncode == 1
    assert f"treadle-server: cannot listen on {server.address}" in done.stderr
    assert "Traceback" not in done.stderr
    assert server.caller.serving()


def test_a_busy_data_directory_is_said(start: Start) -> None:
    server = start()
    done = run("--address", "127.0.0.1:0", "--data-dir", str(server.data_dir))
    assert done.returncode == 1
    assert f"in use by another server (process {server.process.pid})" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_data_directory_that_cannot_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run("--address", "127.0.0.1:0", "--data-dir", str(tmp_path / "file"))
    assert done.returncode == 1
    assert "cannot be used" in done.stderr
    assert "Traceback" not in done.stderr


def test_sigterm_before_the_server_is_ready(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "treadle.server", "--address", "127.0.0.1:0"]
    # No kernels in the cache: the start takes long enough to come between.
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    process = subprocess.Popen(
        [*command, "--data-dir", str(tmp_path / "data")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for(lambda: (tmp_path / "data" / "tmp").exists())
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    assert "Traceback" not in output
