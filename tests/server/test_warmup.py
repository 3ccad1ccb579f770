"""A server whose kernels are not ready yet, and the errors that its callers get."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from treadle.model import compiled_for, kernel_folder
from treadle.model.warmup.groups import KernelGroup
from treadle.server import warmup
from treadle.v1 import sequence_pb2 as pb

from .harness import (
    PATIENCE_S,
    TEXT,
    Caller,
    Server,
    detail_of,
    first_progress,
    long_spec,
    tiny_spec,
    wait_for,
)
from .test_start import AS_USER, as_root, shared

Start = Callable[..., Server]

SLOW = """
import sys, time
from pathlib import Path
from treadle.server import warmup
gate = Path(sys.argv.pop(1))
def warm(groups):
    while not gate.exists():
        time.sleep(0.02)
warmup.warm = warm
warmup.all_compiled = lambda: True
warmup.kernels_ready = lambda: (12, 99)
warmup._REPORT_S = 0.05
from treadle.server.cli import main
sys.exit(main())
"""

COMPILING = "is compiling its kernels (12 of 99)"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose name is short enough for a socket in it."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def slow(folder: Path, *flags: str) -> subprocess.Popen[str]:
    """Starts a server whose kernels are ready once there is a file `gate`."""
    return subprocess.Popen(
        [sys.executable, "-c", SLOW, str(folder / "gate"), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def treadle(address: str, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "treadle.client", "--server", address, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_calls_to_a_server_that_compiles_are_refused_with_the_reason(folder: Path) -> None:
    address = f"unix:{folder}/socket"
    flags = ("--address", address, "--data-dir", str(folder / "data"), "--standby-workers", "0")
    with slow(folder, *flags) as process:
        caller = Caller(address)
        try:
            info = caller.stub.GetServerInfo(
                pb.GetServerInfoRequest(), timeout=PATIENCE_S, wait_for_ready=True
            )
            assert (info.kernels_ready, info.kernels_total) == (12, 99)
            assert not caller.serving()
            assert not caller.serving("treadle.v1.SequenceService")
            calls: list[Callable[[], object]] = [
                lambda: caller.generate("m"),
                lambda: caller.score("m", ["x"]),
                lambda: caller.stub.Embed(pb.EmbedRequest(model="m", texts=["x"])),
                lambda: list(
                    caller.stub.ScoreStream(
                        iter([pb.ScoreStreamRequest(spec=pb.ScoreStreamSpec(model="m"))])
                    )
                ),
                lambda: list(
                    caller.stub.LearnStream(
                        iter([pb.LearnStreamRequest(spec=pb.LearnStreamSpec(model="m"))])
                    )
                ),
            ]
            for call in calls:
                with pytest.raises(grpc.RpcError) as caught:
                    call()
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
                assert f"the server {COMPILING}" in (caught.value.details() or "")
                assert detail_of(caught.value, "RetryInfo")
            training = caller.train(tiny_spec("m"), TEXT)
            for _ in range(2):  # at once, and again every few seconds
                state = next(training).state
                assert state.state == pb.JOB_STATE_QUEUED
                assert state.reason == f"the server {COMPILING}"
            done = treadle(address, "health").communicate(timeout=PATIENCE_S)
            assert done == (
                "",
                f"treadle: the server at {address} is up but not serving: it {COMPILING}\n",
            )
            assert "12 of 99" in treadle(address, "info").communicate(timeout=PATIENCE_S)[0]
            with treadle(address, "health", "--wait", f"{PATIENCE_S:g}s") as waiting:
                assert waiting.stderr is not None
                line = waiting.stderr.readline()
                assert line == f"treadle: waiting for the server at {address}: it {COMPILING}\n"
                (folder / "gate").touch()
                assert waiting.communicate(timeout=PATIENCE_S)[0] == "serving\n"
            assert list(training)[-1].completed.version == 1
            assert caller.serving()
            wait_for(lambda: caller.info().kernels_total == 0)
            process.terminate()
            assert f"the server {COMPILING}" in process.communicate(timeout=PATIENCE_S)[1]
        finally:
            caller.close()
            process.kill()


LATE = """
import sys, time
from pathlib import Path
from treadle.server import warmup
gates = Path(sys.argv.pop(1))
def warm(groups):
    for group in groups:
        if group.name != "INFERENCE":
            while not (gates / group.name).exists():
                time.sleep(0.02)
            if fault := (gates / group.name).read_text():
                raise OSError(fault)
warmup.warm = warm
warmup.all_compiled = lambda: True
warmup._FOR_PROCESSES = ()
warmup._REPORT_S = 0.05
warmup._PATIENCE_S = float(sys.argv.pop(1))
from treadle.server.cli import main
sys.exit(main())
"""


@contextmanager
def late(
    folder: Path, patience_s: float, *more: str
) -> Iterator[tuple[Caller, subprocess.Popen[str]]]:
    """Starts a server that serves, and whose other groups are ready once there is a file."""
    address = f"unix:{folder}/socket"
    flags = ("--address", address, "--data-dir", str(folder / "data"), "--standby-workers", "0")
    command = [sys.executable, "-c", LATE, str(folder), str(patience_s), *flags, *more]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        caller = Caller(address)
        try:
            caller.stub.GetServerInfo(
                pb.GetServerInfoRequest(), timeout=PATIENCE_S, wait_for_ready=True
            )
            wait_for(caller.serving)
            yield caller, process
        finally:
            caller.close()
            process.kill()


def open_group(folder: Path, *groups: str) -> None:
    for group in groups:
        (folder / group).touch()


def test_calls_wait_for_the_kernels_that_they_need_and_take_no_place(folder: Path) -> None:
    one = ("--inference-limit", "1", "--session-limit", "1")
    with late(folder, PATIENCE_S, *one) as (caller, _), ThreadPoolExecutor() as threads:
        training = caller.train(tiny_spec("m"), TEXT)
        assert "is compiling its kernels" in next(training).state.reason
        open_group(folder, "TRAINING")
        assert list(training)[-1].completed.version == 1
        assert caller.generate("m")  # while others wait
        ranks = pb.GenerateRequest(model="m", ranks=True, max_new_tokens=1)
        waiting = threads.submit(lambda: list(caller.stub.Generate(ranks, timeout=PATIENCE_S)))
        int8 = pb.ScoreRequest(
            model="m", texts=["x"], inference_precision=pb.INFERENCE_PRECISION_INT8
        )
        second = threads.submit(caller.stub.Score, int8, timeout=PATIENCE_S)
        assert caller.score("m", ["x"])
        assert caller.info().kernels_total
        assert not waiting.done()
        open_group(folder, "BF16", "DETAILS")
        assert waiting.result(PATIENCE_S)
        assert not second.done()
        open_group(folder, "LEARNING", "INT8", "NOVELTY")
        assert second.result(PATIENCE_S)
        wait_for(lambda: caller.info().kernels_total == 0)


def test_a_call_that_has_waited_long_is_told_to_come_again(folder: Path) -> None:
    with late(folder, 0.1) as (caller, process):
        open_group(folder, "TRAINING")
        assert list(caller.train(tiny_spec("m"), TEXT))[-1].completed.version == 1
        learning = pb.LearnStreamRequest(spec=pb.LearnStreamSpec(model="m"))
        calls: list[Callable[[], object]] = [
            lambda: caller.stub.Score(pb.ScoreRequest(model="m", texts=["x"], ranks=True)),
            lambda: list(caller.stub.LearnStream(iter([learning]))),
        ]
        for call in calls:
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "is compiling its kernels" in (caught.value.details() or "")
            assert detail_of(caught.value, "RetryInfo")
        process.terminate()
        errors = process.communicate(timeout=PATIENCE_S)[1]
        assert process.returncode == 0, errors
        assert "a call waits for the kernels of learning" in errors
        assert "Traceback" not in errors


def test_kernels_that_cannot_be_made_ready_keep_nothing_waiting(folder: Path) -> None:
    (folder / "fault").write_text("the disk is full")
    for group in ("TRAINING", "LEARNING"):
        (folder / group).hardlink_to(folder / "fault")
    with late(folder, PATIENCE_S) as (caller, process):
        assert list(caller.train(tiny_spec("m"), TEXT))[-1].completed.version == 1
        open_group(folder, "BF16", "DETAILS", "INT8", "NOVELTY")
        spec = pb.LearnStreamRequest(spec=pb.LearnStreamSpec(model="m"))
        text = pb.LearnStreamRequest(predict=pb.TextPiece(text="x"))
        assert list(caller.stub.LearnStream(iter([spec, text])))
        wait_for(lambda: caller.info().kernels_total == 0)
        process.terminate()
        errors = process.communicate(timeout=PATIENCE_S)[1]
        assert process.returncode == 0, errors
        for group in ("training", "learning from a stream"):
            assert f"the kernels of {group} cannot be made ready" in errors
        assert errors.count("OSError: the disk is full") == 2


def test_novelty_waits_for_its_kernels(folder: Path) -> None:
    with late(folder, PATIENCE_S) as (caller, _), ThreadPoolExecutor() as threads:
        open_group(folder, "TRAINING")
        spec = tiny_spec("m")
        spec.data.novelty_index = True
        assert list(caller.train(spec, TEXT))[-1].completed.version == 1
        request = pb.GenerateRequest(model="m", novelty=True, max_new_tokens=1)
        waiting = threads.submit(lambda: list(caller.stub.Generate(request, timeout=PATIENCE_S)))
        open_group(folder, "BF16", "DETAILS", "LEARNING", "INT8")
        assert caller.score("m", ["x"])
        assert not waiting.done()
        open_group(folder, "NOVELTY")
        assert waiting.result(PATIENCE_S)[-1].result.HasField("novelty")


def test_progress_ends_only_with_the_last_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel counts from its first compiled form on, but there are others."""
    monkeypatch.setattr(warmup, "kernels_ready", lambda: (99, 99))
    warming = warmup.Warmup()
    *first, last = KernelGroup
    assert warming.progress == (99 - len(KernelGroup), 99)
    for group in first:
        warming._ready[group].set()
    assert warming.progress == (98, 99)
    assert warming.reason(last) == "the server is compiling its kernels (98 of 99)"
    warming._ready[last].set()
    assert warming.progress == (0, 0)
    warming.close()


def test_a_server_stopped_while_it_compiles_ends_with_0(folder: Path) -> None:
    address = f"unix:{folder}/socket"
    with slow(folder, "--address", address, "--data-dir", str(folder / "data")) as process:
        wait_for((folder / "socket").exists)
        process.terminate()
        process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0


def test_an_end_while_other_processes_compile_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = warmup.Warmup()

    class Ended:
        def __init__(self, count: int) -> None: ...

        def wait(self, group: KernelGroup) -> None:
            stopped.close()
            raise CancelledError

        def close(self) -> None: ...

    monkeypatch.setattr(warmup, "Compilers", Ended)
    monkeypatch.setattr(warmup, "all_compiled", lambda: False)
    monkeypatch.setattr(warmup, "warm", lambda groups: pytest.fail("loads kernels after its end"))
    stopped._load(KernelGroup.INFERENCE)


def test_what_only_training_processes_call_is_loaded_where_it_is_not_compiled_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded: list[KernelGroup] = []
    monkeypatch.setattr(warmup, "warm", loaded.extend)
    for compiled, left_out in (
        (True, {KernelGroup.TRAINING, KernelGroup.BF16}),
        (False, set[KernelGroup]()),
    ):
        monkeypatch.setattr(warmup, "all_compiled", lambda answer=compiled: answer)
        monkeypatch.setattr(warmup, "_compilers", lambda: None)
        loaded.clear()
        warming = warmup.Warmup()
        for group in KernelGroup:
            warming._load(group)
        warming.close()
        assert set(loaded) == set(KernelGroup) - left_out


def test_warm_reports_its_progress(folder: Path) -> None:
    with slow(folder, "--warm") as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first == f"compiling kernels for {compiled_for()} into {kernel_folder()}\n"
        assert re.fullmatch(r"12 of 99 kernels, \d+ s\n", process.stdout.readline())
        (folder / "gate").touch()
        rest = process.communicate(timeout=PATIENCE_S)[0].splitlines()
        assert re.fullmatch(r"every kernel is ready after \d+\.\d s", rest[-1])
        assert process.returncode == 0


ALONE = """
import sys
from treadle.server import warmup
def none(count):
    raise BlockingIOError("no more processes")
warmup.Compilers = none
warmup.all_compiled = lambda: False
warmup.warm = lambda groups: None
warmup.note_all_compiled = lambda: None
from treadle.server.cli import main
sys.exit(main())
"""


def test_one_process_warms_alone_where_no_other_can_be_started() -> None:
    command = [sys.executable, "-c", ALONE, "--warm"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert "this process alone compiles the kernels: no more processes" in done.stderr
    assert done.stdout.splitlines()[-1].startswith("every kernel is ready")


def test_ctrl_c_ends_warming_at_once(folder: Path) -> None:
    with slow(folder, "--warm") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode in (130, -signal.SIGINT)
        assert "gate" not in errors


def kernel_files(folder: Path) -> set[tuple[str, int]]:
    """Returns the compiled kernels below a folder, and when each was written."""
    return {(path.name, path.stat().st_mtime_ns) for path in folder.rglob("*.nb?")}


def wait_for_variable(process: int, variable: bytes) -> None:
    """Waits for a variable, NAME=VALUE, of a process.

    It has other variables, or none, until its own program has begun.
    """
    variables = Path(f"/proc/{process}/environ")
    wait_for(lambda: variable in variables.read_bytes().split(b"\0"))


@as_root
def test_one_copy_of_the_kernels_serves_a_server_and_its_workers(
    start: Start, folder: Path, tmp_path: Path
) -> None:
    """As where a container's user has no home, and its cache is another user's."""
    folder.chmod(0o1777)
    shared(tmp_path)
    cache = Path(kernel_folder())
    environment = {
        "NUMBA_CACHE_DIR": str(cache.parent),
        "TMPDIR": str(folder),
        "HOME": "/nonexistent",
        "XDG_CACHE_HOME": "",
    }
    as_user = {"prefix": [word.format("12345") for word in AS_USER], "environment": environment}
    for end in (signal.SIGTERM, signal.SIGKILL, signal.SIGINT):
        server = start("--standby-workers", "1", **as_user)
        (copy,) = folder.glob("treadle-kernels-*")  # what the killed one left is gone
        before = kernel_files(copy)
        assert len(before) == len(kernel_files(cache))
        wait_for(server.workers)
        running = server.caller.train(long_spec("m"), TEXT)
        job = first_progress(running).job
        wait_for(lambda s=server: len(s.workers()) == 2)  # type: ignore[misc]
        for worker in server.workers():
            wait_for_variable(worker, f"NUMBA_CACHE_DIR={copy}".encode())
        server.caller.stub.CancelJob(pb.CancelJobRequest(job=job))
        wait_for(lambda s=server: s.caller.info().training_running == 0)  # type: ignore[misc]
        assert list(folder.glob("treadle-kernels-*")) == [copy]
        assert kernel_files(copy) == before
        server.end(end)
        assert list(folder.glob("treadle-kernels-*")) == ([copy] if end is signal.SIGKILL else [])
