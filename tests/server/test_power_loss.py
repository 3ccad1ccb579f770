"""What a committed row relies on is on disk before the row: a loss of power takes neither alone."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from treadle.server.access.quota_book import QuotaBook
from treadle.server.jobs.submissions.submission import Submission
from treadle.server.resources.memory_budget import MemoryBudget
from treadle.server.resources.upload_pace import UploadLimits
from treadle.server.storage import files
from treadle.server.storage.data_dir import DataDir
from treadle.server.storage.job_files import INIT_FILE
from treadle.v1 import sequence_pb2 as pb

from .harness import TEXT
from .samples import put_model
from .test_jobs import FakeWorker, FakeWorkerPool, make_manager


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[DataDir]:
    data_dir = DataDir(tmp_path)
    yield data_dir
    data_dir.close()


@pytest.fixture
def steps(data_dir: DataDir, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The inodes that were synced and the word "row" for a new job, in their order."""
    steps = list[str]()
    fsync = os.fsync
    add_job = data_dir.database.add_job

    def recorded(handle: int) -> None:
        fsync(handle)
        steps.append(str(os.fstat(handle).st_ino))

    def added(*arguments: Any) -> Any:
        steps.append("row")
        return add_job(*arguments)

    monkeypatch.setattr(os, "fsync", recorded)
    monkeypatch.setattr(data_dir.database, "add_job", added)
    return steps


def no_links(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Has every link fail with an error number."""

    def link(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)


async def _fine_tune(data_dir: DataDir) -> str:
    """Orders a job that continues from model `base`; returns its id."""

    async def requests() -> AsyncIterator[pb.TrainRequest]:
        spec = pb.TrainSpec(model="tuned", init_from="base")
        yield pb.TrainRequest(spec=spec)
        yield pb.TrainRequest(corpus_chunk=TEXT)
        yield pb.TrainRequest(corpus_end=pb.CorpusEnd(size_bytes=len(TEXT)))

    manager = make_manager(data_dir, FakeWorkerPool(FakeWorker))
    budget = MemoryBudget(1 << 30)
    limits = UploadLimits(1 << 20, 60.0)
    submission = Submission(data_dir, manager, limits, None, budget, QuotaBook())
    return await submission.take(requests())


def fine_tune(data_dir: DataDir) -> str:
    return asyncio.run(_fine_tune(data_dir))


@pytest.mark.parametrize("number", [0, errno.EXDEV, errno.EMLINK])
def test_the_base_model_of_a_job_is_synced_before_its_row(
    data_dir: DataDir, steps: list[str], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    base = put_model(data_dir, "base")
    steps.clear()
    if number:
        no_links(monkeypatch, number)
    job = fine_tune(data_dir)
    directory = data_dir.jobs.root / job
    init = directory / INIT_FILE
    assert init.read_bytes() == base.path.read_bytes()
    assert init.samefile(base.path) == (not number)
    before = steps[: steps.index("row")]
    corpora = data_dir.jobs.root.parent / "corpora"
    for path in (init, directory, data_dir.jobs.root, corpora, *corpora.iterdir()):
        assert str(path.stat().st_ino) in before, path


def test_a_link_that_the_disk_fails_is_no_reason_to_copy(
    data_dir: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_model(data_dir, "base")
    no_links(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        fine_tune(data_dir)
    assert data_dir.database.jobs() == []
    assert list(data_dir.jobs.root.iterdir()) == []


def test_a_copy_that_breaks_off_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"bytes")
    no_links(monkeypatch, errno.EXDEV)

    def copy(_: Path, place: Path) -> None:
        place.write_bytes(b"by")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", copy)
    with pytest.raises(OSError, match="No space left"):
        files.link_or_copy(source, tmp_path / "copy", files.DiskSpace(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_name_that_is_taken_stays(tmp_path: Path) -> None:
    for name in ("source", "taken"):
        (tmp_path / name).write_text(name)
    with pytest.raises(FileExistsError):
        files.link_or_copy(tmp_path / "source", tmp_path / "taken", files.DiskSpace(tmp_path))
    assert (tmp_path / "taken").read_text() == "taken"
