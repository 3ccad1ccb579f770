"""A disk with too little space delays only the work that needs too much of it."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from treadle.server.errors import StatusError, from_exception
from treadle.server.failures import NoSpaceError
from treadle.server.jobs import manager as jobs_module
from treadle.server.jobs.manager import JobManager
from treadle.server.storage.data_dir import DataDir
from treadle.server.storage.database.sqlite_engine import SqliteEngine
from treadle.server.storage.files import DiskSpace, SpareSpace
from treadle.server.storage.job_files import LAST_FILE, STATE_FILE
from treadle.server.storage.model_version import MODEL_FILE
from treadle.server.storage.retention import RetentionPeriods, apply_retention
from treadle.server.storage.upload_files import UploadFiles

from .harness import until
from .samples import job_row, put_model, tiny_model
from .test_jobs import FakeWorker, FakeWorkerPool, StubbornWorker, follow, make_manager, submit

KEPT = 1000


class SmallDisk:
    """The free bytes of a disk, as a test sets them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = 1 << 40
        monkeypatch.setattr(DiskSpace, "free", lambda _: self.free)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SmallDisk:
    monkeypatch.setattr(jobs_module, "_SPACE_S", 0.01)
    return SmallDisk(monkeypatch)


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[DataDir]:
    data_dir = DataDir(tmp_path, KEPT)
    yield data_dir
    data_dir.close()


class WaitingWorker(FakeWorker):
    """Pauses at once, for want of 5,000 bytes."""

    async def receive(self) -> Any:
        return {"event": "paused", "reason": "the disk is full", "needs_bytes": 5000}


def test_an_upload_looks_for_space_as_it_goes(data_dir: DataDir, disk: SmallDisk) -> None:
    files = UploadFiles(data_dir.corpora)
    writer = files.writer()
    disk.free = KEPT + 100
    writer.write(b"x" * 100)
    disk.free = KEPT + 99
    with pytest.raises(NoSpaceError) as caught:
        writer.write(b"x" * 100)
    assert writer.finish()[1] == 100
    error = from_exception(caught.value, "an upload")
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.message == (
        "the server's disk is full: 1,099 bytes of it are free, of which 1,000 are to stay so"
    )
    files.close()
    disk.free = KEPT - 1
    with pytest.raises(NoSpaceError):
        UploadFiles(data_dir.corpora).writer()


def test_what_running_jobs_need_for_their_states_is_no_space_for_others(
    data_dir: DataDir, disk: SmallDisk
) -> None:
    async def run() -> None:
        manager = make_manager(data_dir, FakeWorkerPool(StubbornWorker))
        job = await submit(manager, data_dir)
        manager.open()
        await until(lambda: manager.queue.running_count)
        (data_dir.jobs.directory(job) / STATE_FILE).write_bytes(b"x" * 300)
        disk.free = KEPT + 399
        with pytest.raises(NoSpaceError):
            data_dir.space.require(100)
        data_dir.space.require_least()  # its own checkpoint has the space
        disk.free += 1
        data_dir.space.require(100)
        await manager.close("the test ended")

    asyncio.run(run())


def test_a_model_is_published_where_there_is_space_for_it(
    data_dir: DataDir, disk: SmallDisk
) -> None:
    draft = data_dir.models.new_draft()
    disk.free = KEPT + 100
    with pytest.raises(NoSpaceError):
        tiny_model().save(draft / MODEL_FILE, data_dir.space.require)
    assert list(draft.iterdir()) == []
    disk.free = KEPT + (1 << 20)
    tiny_model().save(draft / MODEL_FILE, data_dir.space.require)
    assert data_dir.models.claim("m", draft).version == 1


async def paused_for_space(manager: JobManager, data_dir: DataDir, disk: SmallDisk) -> str:
    """Returns a job that waits for space, of which there is too little."""
    job = await submit(manager, data_dir)
    disk.free = KEPT + 5000  # enough, but not for a while
    manager.open()
    with pytest.raises(StatusError, match="continues by itself once there is space"):
        await follow(manager, job)
    assert (await manager.registry.row(job)).waits_for_bytes == 5000
    return job


def test_a_job_goes_on_by_itself_once_there_is_space(data_dir: DataDir, disk: SmallDisk) -> None:
    async def run() -> None:
        made: list[FakeWorker] = [StubbornWorker(), WaitingWorker()]
        manager = make_manager(data_dir, FakeWorkerPool(lambda: made.pop()))
        job = await paused_for_space(manager, data_dir, disk)
        await asyncio.sleep(0.1)
        assert (await manager.registry.row(job)).state == "paused"
        assert len(made) == 1
        disk.free = 1 << 40
        await until(lambda: manager.queue.running_count)
        while (row := await manager.registry.row(job)).state == "queued":
            await asyncio.sleep(0.005)
        assert (row.state, row.waits_for_bytes) == ("running", 0)
        await manager.close("the test ended")

    asyncio.run(run())


def test_it_does_so_under_the_next_server(data_dir: DataDir, disk: SmallDisk) -> None:
    async def run() -> None:
        manager = make_manager(data_dir, FakeWorkerPool(WaitingWorker))
        job = await paused_for_space(manager, data_dir, disk)
        await manager.close("the test ended")
        following = make_manager(data_dir, FakeWorkerPool(StubbornWorker))
        await following.recover()
        following.open()
        await asyncio.sleep(0.1)
        assert (await following.registry.row(job)).state == "paused"
        disk.free = 1 << 40
        await until(lambda: following.queue.running_count)
        await following.close("the test ended")

    asyncio.run(run())


def test_what_its_user_paused_waits_for_its_user(data_dir: DataDir, disk: SmallDisk) -> None:
    async def run() -> None:
        manager = make_manager(data_dir, FakeWorkerPool(WaitingWorker))
        job = await paused_for_space(manager, data_dir, disk)
        row = await manager.decisions.pause(job)
        assert (row.state, row.reason, row.waits_for_bytes) == ("paused", "paused on request", 0)
        disk.free = 1 << 40
        await asyncio.sleep(0.1)
        assert (await manager.registry.row(job)).state == "paused"
        await manager.decisions.resume(job)
        await until(
            lambda: manager.queue.running_count or manager.registry.live[job].row.waits_for_bytes
        )
        await manager.close("the test ended")

    asyncio.run(run())


def test_a_job_that_soon_lacks_space_again_waits_longer_each_time(
    data_dir: DataDir, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        workers = FakeWorkerPool(WaitingWorker)
        manager = make_manager(data_dir, workers)
        job = await paused_for_space(manager, data_dir, disk)
        monkeypatch.setattr(jobs_module, "_SPACE_S", 1000.0)
        manager.registry.live[job].space_tries = 1
        disk.free = 1 << 40
        await manager.resume_for_space()
        await until(lambda: workers.given == 2 and not manager.queue.running_count)
        await until(lambda: manager.registry.live[job].row.waits_for_bytes)
        await manager.resume_for_space()  # it is not due
        assert manager.registry.live[job].row.state == "paused"
        await manager.close("the test ended")

    asyncio.run(run())


def test_a_job_can_be_deleted_on_a_full_disk(
    data_dir: DataDir, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete = data_dir.database.delete_job

    def unless_full(job: str, fence: int | None = None) -> None:
        if (data_dir.jobs.root / job).exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        delete(job, fence=fence)

    async def run() -> None:
        manager = make_manager(data_dir, FakeWorkerPool(WaitingWorker))
        job = await paused_for_space(manager, data_dir, disk)
        (data_dir.jobs.directory(job) / STATE_FILE).write_bytes(b"large")
        monkeypatch.setattr(data_dir.database, "delete_job", unless_full)
        await manager.decisions.delete(job)
        assert data_dir.database.job(job) is None
        assert not (data_dir.jobs.root / job).exists()

    asyncio.run(run())


def test_a_job_that_is_cancelled_on_a_full_disk_keeps_what_it_published(
    data_dir: DataDir, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("treadle.server.jobs.completion._FULL_RETRY_S", 0.01)
    append = data_dir.database.append_event

    def unless_full(job: str, payload: bytes, time_s: float, /, **changes: Any) -> int:
        if (data_dir.jobs.directory(job) / STATE_FILE).exists() and changes.get(
            "state"
        ) == "cancelled":
            raise OSError(errno.ENOSPC, "No space left on device")
        return append(job, payload, time_s, **changes)

    async def run() -> None:
        manager = make_manager(data_dir, FakeWorkerPool(WaitingWorker))
        job = await paused_for_space(manager, data_dir, disk)
        (data_dir.jobs.directory(job) / STATE_FILE).write_bytes(b"large")
        tiny_model().save(data_dir.jobs.directory(job) / LAST_FILE)
        disk.free = 0
        monkeypatch.setattr(data_dir.database, "append_event", unless_full)
        await manager.decisions.cancel(job)
        await until(lambda: job not in manager.registry.live)
        row = await manager.registry.row(job)
        assert (row.state, row.version) == ("cancelled", 1)
        assert data_dir.models.versions("m") == [1]

    asyncio.run(run())


def test_the_spare_space_lets_things_end_on_a_full_disk(data_dir: DataDir) -> None:
    """SQLite's own limit on pages gives the very error that a full disk does."""
    database = data_dir.database
    for job in ("a", "b"):
        database.add_job(job_row(job))
    spare = data_dir.jobs.root.parent / "spare"

    class Freeing(SpareSpace):
        def release(self) -> bool:
            released = super().release()
            if released:
                database.engine.rows("PRAGMA max_page_count = 1000000")
            return released

    engine = database.engine
    assert isinstance(engine, SqliteEngine)
    engine.spare = Freeing(spare, data_dir.space, 1 << 16)
    for urgent in (
        lambda: database.append_event("a", bytes(1 << 20), 2.0, state="cancelled"),
        lambda: database.update_job("a", reason="x" * (1 << 20)),
    ):
        engine.spare.fill()
        assert spare.stat().st_blocks * 512 >= 1 << 16
        (pages,) = database.engine.rows("PRAGMA page_count")[0]
        database.engine.rows(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(OSError, match="No space left"):
            database.append_event("b", bytes(1 << 20), 2.0)  # events about a run can wait
        assert spare.exists()
        urgent()
        assert not spare.exists()


def test_the_spare_space_is_taken_where_there_is_enough(data_dir: DataDir, disk: SmallDisk) -> None:
    path = data_dir.jobs.root.parent / "spare"
    assert data_dir.spare is not None
    disk.free = KEPT + (8 << 20)
    data_dir.spare.fill()
    assert not path.exists()
    disk.free *= 2
    apply_retention(data_dir, RetentionPeriods(0, 0))
    assert path.stat().st_size == 8 << 20
    assert data_dir.spare.release()
    assert not data_dir.spare.release()


def test_a_version_can_be_deleted_on_a_full_disk(
    data_dir: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        put_model(data_dir, "m")
    mkdir = Path.mkdir

    def unless_full(path: Path, *arguments: Any, **named: Any) -> None:
        if any((data_dir.jobs.root.parent / "tmp").iterdir()):
            raise OSError(errno.ENOSPC, "No space left on device")
        mkdir(path, *arguments, **named)

    monkeypatch.setattr(Path, "mkdir", unless_full)
    assert data_dir.models.delete("m", 2) == [2]
    assert not list((data_dir.jobs.root.parent / "tmp").iterdir())
    monkeypatch.undo()
    assert put_model(data_dir, "m").version == 3  # its number does not come again
