from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from clocks import DayClock

from treadle.model.atomic_files import temporary_path
from treadle.server.failures import DatabaseError
from treadle.server.storage.data_dir import DataDir
from treadle.server.storage.retention import (
    MAX_DELETIONS,
    ORPHAN_S,
    RetentionPeriods,
    RetentionReport,
    apply_retention,
    delete_expired,
    run_retention,
)
from treadle.server.storage.trusted_clock import CONFIRM_S, TrustedClock

from .harness import PATIENCE_S
from .samples import job_row

NOW = 1_000_000.0


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[DataDir]:
    data_dir = DataDir(tmp_path)
    yield data_dir
    data_dir.close()


def deleted(
    data_dir: DataDir, job_s: float, corpus_s: float, *keep: str, now_s: float = NOW
) -> RetentionReport:
    periods = RetentionPeriods(job_s, corpus_s)
    return delete_expired(
        data_dir.database, data_dir.corpora, data_dir.jobs.root, periods, now_s, set(keep)
    )


def put(data_dir: DataDir, data: bytes, used_s: float) -> str:
    writer = data_dir.corpora.writer()
    writer.write(data)
    sha256, size = writer.claim()
    data_dir.database.touch_corpus(sha256, size, used_s)
    return sha256


def add(
    data_dir: DataDir, job: str, state: str, ended_s: float | None = None, corpus: str = ""
) -> None:
    files = f'[{{"sha256": "{corpus}"}}]' if corpus else "[]"
    row = job_row(job, state=state, ended_s=ended_s, files=files, queued_s=NOW - 1e5)
    data_dir.database.add_job(row)
    data_dir.database.append_event(job, b"x", 1.0)
    (data_dir.jobs.directory(job) / "state.safetensors").write_bytes(b"state")


def jobs(data_dir: DataDir) -> set[str]:
    return {row.id for row in data_dir.database.jobs()}


def test_jobs_go_once_they_have_been_over_for_long_enough(data_dir: DataDir) -> None:
    add(data_dir, "old", "succeeded", NOW - 101)
    add(data_dir, "failed", "failed", NOW - 5000)
    add(data_dir, "cancelled", "cancelled", NOW - 102)
    add(data_dir, "new", "succeeded", NOW - 99)
    add(data_dir, "kept", "failed", NOW - 101)
    for state in ("queued", "running", "paused"):
        add(data_dir, state, state)
    assert set(deleted(data_dir, 100, 0, "kept").jobs) == {"old", "failed", "cancelled"}
    left = {"new", "kept", "queued", "running", "paused"}
    assert jobs(data_dir) == left
    assert {path.name for path in data_dir.jobs.root.iterdir()} == left
    assert data_dir.database.events("old", 0) == []
    assert deleted(data_dir, 100, 0, "kept") == RetentionReport()


def test_a_pass_deletes_a_little_and_the_oldest_first(data_dir: DataDir) -> None:
    for number in range(MAX_DELETIONS + 50):
        row = job_row(f"j{number}", state="failed", ended_s=float(1000 - number))
        data_dir.database.add_job(row)
        put(data_dir, b"%d" % number, 1.0)
    kept = {f"j{number}" for number in range(50)}
    found = deleted(data_dir, 100, 100)
    assert (len(found.jobs), len(found.corpora)) == (MAX_DELETIONS, MAX_DELETIONS)
    assert jobs(data_dir) == kept
    found = deleted(data_dir, 100, 100, *kept)
    assert (len(found.jobs), len(found.corpora)) == (0, 50)
    assert len(deleted(data_dir, 100, 100).jobs) == 50


def test_what_is_of_the_future_stays(data_dir: DataDir) -> None:
    add(data_dir, "ahead", "succeeded", NOW + 40 * 86_400)
    corpus = put(data_dir, b"abc", NOW + 40 * 86_400)
    assert deleted(data_dir, 100, 100) == RetentionReport()
    assert data_dir.corpora.has(corpus)


def test_a_start_with_a_clock_far_ahead_deletes_nothing(tmp_path: Path) -> None:
    clock = DayClock(NOW)
    data_dir = DataDir(tmp_path)
    add(data_dir, "done", "succeeded", NOW - 60)
    corpus = put(data_dir, b"abc", NOW - 60)
    data_dir.close()
    clock.now_s += 40 * 86_400
    data_dir = DataDir(tmp_path)
    try:
        newest = data_dir.database.newest_s()
        data_dir.trusted_clock = TrustedClock(
            tmp_path / "clock", newest, clock.time, clock.monotonic
        )
        periods = RetentionPeriods(30 * 86_400, 7 * 86_400)
        assert apply_retention(data_dir, periods) == RetentionReport()
        assert jobs(data_dir) == {"done"}
        assert data_dir.corpora.has(corpus)
        assert (data_dir.jobs.root / "done" / "state.safetensors").exists()
        clock.pass_s(CONFIRM_S)
        assert apply_retention(data_dir, periods).jobs == ("done",)  # it was no mistake
    finally:
        data_dir.close()


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path)
    names = [temporary_path(Path("final.safetensors")).name for _ in range(2)]
    for name in (*names, "final.safetensors"):
        (data_dir.jobs.directory("job") / name).write_bytes(b"a part")
    data_dir.database.add_job(job_row("job", state="paused"))
    old = time.time() - 3 * 86_400
    os.utime(data_dir.jobs.directory("job") / names[0], (old, old))
    os.utime(data_dir.jobs.directory("job") / "final.safetensors", (old, old))
    assert apply_retention(data_dir, RetentionPeriods(0, 0)).leftovers == 1
    assert {path.name for path in data_dir.jobs.directory("job").iterdir()} == {
        names[1],
        "final.safetensors",
    }
    data_dir.close()
    DataDir(tmp_path).close()
    assert [path.name for path in (tmp_path / "jobs" / "job").iterdir()] == ["final.safetensors"]


def test_0_keeps_for_ever(data_dir: DataDir) -> None:
    add(data_dir, "old", "succeeded", 1.0)
    corpus = put(data_dir, b"abc", 1.0)
    assert deleted(data_dir, 0, 0) == RetentionReport()
    assert jobs(data_dir) == {"old"}
    assert data_dir.corpora.has(corpus)


def test_corpora_go_once_nobody_wanted_them_for_long_enough(data_dir: DataDir) -> None:
    old, new, kept = (
        put(data_dir, data, used_s)
        for data, used_s in ((b"old", NOW - 101), (b"new", NOW - 99), (b"kept", NOW - 101))
    )
    assert deleted(data_dir, 0, 100, kept).corpora == (old,)
    assert not data_dir.corpora.has(old)
    assert data_dir.corpora.has(new)
    assert data_dir.corpora.has(kept)


@pytest.mark.parametrize("state", ["queued", "running", "paused"])
def test_a_corpus_stays_while_a_job_needs_it_and_its_time_begins_then(
    data_dir: DataDir, state: str
) -> None:
    corpus = put(data_dir, b"abc", 1.0)
    add(data_dir, "a", state, corpus=corpus)
    assert deleted(data_dir, 0, 100) == RetentionReport()
    data_dir.database.update_job("a", state="succeeded", ended_s=NOW)
    assert deleted(data_dir, 0, 100, now_s=NOW + 100).corpora == ()
    assert data_dir.corpora.has(corpus)
    assert deleted(data_dir, 0, 100, now_s=NOW + 101).corpora == (corpus,)
    assert not data_dir.corpora.has(corpus)


def test_orphans_are_taken_in_or_deleted(data_dir: DataDir) -> None:
    corpus = put(data_dir, b"abc", 1.0)
    data_dir.database.forget_corpus(corpus)
    data_dir.database.touch_corpus("f" * 64, 3, NOW)
    (data_dir.jobs.directory("left") / "state.safetensors").write_bytes(b"state")
    (data_dir.jobs.directory("making") / "init.safetensors").write_bytes(b"init")
    for name, age_s in (("left", ORPHAN_S + 1), ("making", ORPHAN_S - 1)):
        os.utime(data_dir.jobs.root / name, (NOW - age_s, NOW - age_s))
    expected = RetentionReport(orphans=("left",), adopted=(corpus,), forgotten=("f" * 64,))
    assert deleted(data_dir, 0, 100) == expected
    assert [path.name for path in data_dir.jobs.root.iterdir()] == ["making"]
    assert data_dir.database.corpora() == [(corpus, 3, NOW)]
    assert deleted(data_dir, 0, 100) == RetentionReport()


def test_the_retention_continues_after_a_pass_that_failed(
    data_dir: DataDir, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = put(data_dir, b"abc", 1.0)

    def fail() -> None:
        raise DatabaseError("the database cannot be used")

    async def keep() -> None:
        monkeypatch.setattr(data_dir.database, "corpora_in_use", fail)
        running = asyncio.create_task(
            run_retention(data_dir, RetentionPeriods(0, 100), every_s=0.01)
        )
        while "could not be deleted" not in caplog.text:
            await asyncio.sleep(0.01)
        assert data_dir.corpora.has(corpus)
        monkeypatch.undo()
        while data_dir.corpora.has(corpus):
            await asyncio.sleep(0.01)
        running.cancel()

    asyncio.run(asyncio.wait_for(keep(), PATIENCE_S))
