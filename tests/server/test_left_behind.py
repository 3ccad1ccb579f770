"""What processes leave that are killed while they write: it goes, and nothing else does."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from treadle.model import kernel_folder, sweep_temporary_kernels
from treadle.model.atomic_files import leftovers, remove_leftovers, temporary_path
from treadle.server.storage.data_dir import DataDir
from treadle.server.storage.job_files import FINAL_FILE, STATE_FILE
from treadle.v1 import sequence_pb2 as pb

from .harness import Server, long_spec, tiny_spec, wait_for
from .test_jobs import DyingWorker, FakeWorkerPool, TellingWorker, follow, make_manager, submit


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[DataDir]:
    data_dir = DataDir(tmp_path)
    yield data_dir
    data_dir.close()


def test_only_temporary_names_are_leftovers(tmp_path: Path) -> None:
    kept = ["model.safetensors", ".hidden", ".model.tmp", ".model.0123456.tmp", "x.01234567.tmp"]
    for name in kept:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / ".folder.01234567.tmp").mkdir()
    left = temporary_path(tmp_path / "model.safetensors")
    left.write_bytes(b"a part")
    assert list(leftovers(tmp_path)) == [left]
    assert remove_leftovers(tmp_path) == 1
    assert {path.name for path in tmp_path.iterdir()} == {*kept, ".folder.01234567.tmp"}
    assert remove_leftovers(tmp_path / "gone") == 0


@pytest.mark.parametrize("dies", [True, False])
def test_a_killed_process_leaves_nothing_in_its_jobs_directory(
    data_dir: DataDir, dies: bool, small_model: bytes
) -> None:
    class Killed(DyingWorker):
        async def receive(self) -> dict[str, object]:
            folder = Path(self.sent[0]["job"]["directory"])
            for name in (FINAL_FILE, STATE_FILE):
                temporary_path(folder / name).write_bytes(b"a part")
            return await super().receive()

    async def run() -> str:
        made = [TellingWorker(small_model), Killed()]
        manager = make_manager(data_dir, FakeWorkerPool((lambda: Killed()) if dies else made.pop))
        job = await submit(manager, data_dir)
        manager.open()
        try:
            await follow(manager, job)
        except Exception:
            assert dies
        await manager.close("the test ended")
        return job

    job = asyncio.run(run())
    assert list(leftovers(data_dir.jobs.root / job)) == []


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    from .samples import tiny_model

    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    tiny_model().save(path)
    return path.read_bytes()


def test_kernels_of_processes_that_ended_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folders = [tmp_path / f"treadle-kernels-{name}" for name in ("killed", "running")]
    for folder in folders:
        folder.mkdir()
        (folder / "lock").write_bytes(b"")
        (folder / "kernel.nbc").write_bytes(b"code")
    (tmp_path / "other").mkdir()
    with (folders[1] / "lock").open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert sweep_temporary_kernels() >= 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", folders[1].name]
    assert (folders[1] / "kernel.nbc").exists()


@pytest.mark.jit
def test_compiled_code_that_was_never_whole_is_removed() -> None:
    home = Path(kernel_folder())
    old, new = (home / f"kernel.nbc.tmp.{name}" for name in ("0" * 16, "1" * 16))
    for path in (old, new):
        path.write_bytes(b"a part")
    days_ago = time.time() - 3 * 86_400
    os.utime(old, (days_ago, days_ago))
    try:
        sweep_temporary_kernels()
        assert (old.exists(), new.exists()) == (False, True)
    finally:
        new.unlink()


@pytest.mark.jit
def test_kernels_of_an_older_version_are_removed() -> None:
    home = Path(kernel_folder())
    old, new = (home / f"module-{name * 16}" for name in "01")
    for path in (old, new):
        path.mkdir()
        (path / "kernel.nbc").write_bytes(b"code")
    months_ago = time.time() - 100 * 86_400
    os.utime(old, (months_ago, months_ago))
    try:
        assert sweep_temporary_kernels() >= 1
        assert (old.exists(), new.exists()) == (False, True)
    finally:
        shutil.rmtree(new)


def test_a_server_that_is_killed_during_an_upload_keeps_nothing_of_it(
    start: Callable[..., Server],
) -> None:
    server = start()
    server.caller.trained(tiny_spec("whole"))
    corpora = sorted((server.data_dir / "corpora").iterdir())

    def endless() -> Iterator[pb.TrainRequest]:
        yield pb.TrainRequest(spec=long_spec("broken"))
        for number in range(900):
            yield pb.TrainRequest(corpus_file=pb.CorpusFile(name=str(number)))
            yield pb.TrainRequest(corpus_chunk=b"%d" % number)
            time.sleep(0.02)

    call = server.caller.stub.Train(endless())
    wait_for(lambda: len(list((server.data_dir / "tmp").iterdir())) > 20)
    server.end(signal.SIGKILL)
    call.cancel()
    again = start()
    assert sorted((again.data_dir / "corpora").iterdir()) == corpora
    # The new server itself writes the time there at intervals, and moves it away.
    left = [path for path in (again.data_dir / "tmp").iterdir() if path.name != "clock"]
    assert left == []
    assert [job.model for job in again.caller.jobs()] == ["whole"]
