from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from clocks import DayClock

from treadle.model.temporary_files import temporary_path
from treadle.server.failures import DatabaseError
from treadle.server.storage.data_dir import Store
from treadle.server.storage.observed_time import CONFIRM_S, ObservedTime
from treadle.server.storage.retention import MOST, ORPHAN_S, Rules, Swept, keep_house, sweep, tidy

from .harness import PATIENCE_S
from .samples import job_row

NOW = 1_000_000.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path)
    yield store
    store.close()


def swept(store: Store, job_s: float, corpus_s: float, *keep: str, now_s: float = NOW) -> Swept:
    rules = Rules(job_s, corpus_s)
    return sweep(store.database, store.corpora, store.jobs_root, rules, now_s, set(keep))


def put(store: Store, data: bytes, used_s: float) -> str:
    writer = store.corpora.writer()
    writer.write(data)
    sha256, size = writer.claim()
    store.database.touch_corpus(sha256, size, used_s)
    return sha256


def add(store: Store, job: str, state: str, ended_s: float | None = None, corpus: str = "") -> None:
    files = f'[{{"sha256": "{corpus}"}}]' if corpus else "[]"
    row = job_row(job, state=state, ended_s=ended_s, files=files, queued_s=NOW - 1e5)
    store.database.add_job(row)
    store.database.append_event(job, b"x", 1.0)
    (store.job_dir(job) / "state.safetensors").write_bytes(b"state")


def jobs(store: Store) -> set[str]:
    return {row.id for row in store.database.jobs()}


def test_jobs_go_once_they_have_been_over_for_long_enough(store: Store) -> None:
    add(store, "old", "succeeded", NOW - 101)
    add(store, "failed", "failed", NOW - 5000)
    add(store, "cancelled", "cancelled", NOW - 102)
    add(store, "new", "succeeded", NOW - 99)
    add(store, "kept", "failed", NOW - 101)
    for state in ("queued", "running", "paused"):
        add(store, state, state)
    assert set(swept(store, 100, 0, "kept").jobs) == {"old", "failed", "cancelled"}
    left = {"new", "kept", "queued", "running", "paused"}
    assert jobs(store) == left
    assert {path.name for path in store.jobs_root.iterdir()} == left
    assert store.database.events("old", 0) == []
    assert swept(store, 100, 0, "kept") == Swept()


def test_a_sweep_deletes_a_little_and_the_oldest_first(store: Store) -> None:
    for number in range(MOST + 50):
        row = job_row(f"j{number}", state="failed", ended_s=float(1000 - number))
        store.database.add_job(row)
        put(store, b"%d" % number, 1.0)
    kept = {f"j{number}" for number in range(50)}
    found = swept(store, 100, 100)
    assert (len(found.jobs), len(found.corpora)) == (MOST, MOST)
    assert jobs(store) == kept
    found = swept(store, 100, 100, *kept)
    assert (len(found.jobs), len(found.corpora)) == (0, 50)
    assert len(swept(store, 100, 100).jobs) == 50


def test_what_is_of_the_future_stays(store: Store) -> None:
    add(store, "ahead", "succeeded", NOW + 40 * 86_400)
    corpus = put(store, b"abc", NOW + 40 * 86_400)
    assert swept(store, 100, 100) == Swept()
    assert store.corpora.has(corpus)


def test_a_start_with_a_clock_far_ahead_deletes_nothing(tmp_path: Path) -> None:
    clock = DayClock(NOW)
    store = Store(tmp_path)
    add(store, "done", "succeeded", NOW - 60)
    corpus = put(store, b"abc", NOW - 60)
    store.close()
    clock.now_s += 40 * 86_400
    store = Store(tmp_path)
    try:
        newest = store.database.newest_s()
        store.observed_time = ObservedTime(tmp_path / "clock", newest, clock.time, clock.monotonic)
        rules = Rules(30 * 86_400, 7 * 86_400)
        assert tidy(store, rules) == Swept()
        assert jobs(store) == {"done"}
        assert store.corpora.has(corpus)
        assert (store.jobs_root / "done" / "state.safetensors").exists()
        clock.pass_s(CONFIRM_S)
        assert tidy(store, rules).jobs == ("done",)  # it was no mistake
    finally:
        store.close()


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    names = [temporary_path(Path("final.safetensors")).name for _ in range(2)]
    for name in (*names, "final.safetensors"):
        (store.job_dir("job") / name).write_bytes(b"a part")
    store.database.add_job(job_row("job", state="paused"))
    old = time.time() - 3 * 86_400
    os.utime(store.job_dir("job") / names[0], (old, old))
    os.utime(store.job_dir("job") / "final.safetensors", (old, old))
    assert tidy(store, Rules(0, 0)).leftovers == 1
    assert {path.name for path in store.job_dir("job").iterdir()} == {names[1], "final.safetensors"}
    store.close()
    Store(tmp_path).close()
    assert [path.name for path in (tmp_path / "jobs" / "job").iterdir()] == ["final.safetensors"]


def test_0_keeps_for_ever(store: Store) -> None:
    add(store, "old", "succeeded", 1.0)
    corpus = put(store, b"abc", 1.0)
    assert swept(store, 0, 0) == Swept()
    assert jobs(store) == {"old"}
    assert store.corpora.has(corpus)


def test_corpora_go_once_nobody_wanted_them_for_long_enough(store: Store) -> None:
    old, new, kept = (
        put(store, data, used_s)
        for data, used_s in ((b"old", NOW - 101), (b"new", NOW - 99), (b"kept", NOW - 101))
    )
    assert swept(store, 0, 100, kept).corpora == (old,)
    assert not store.corpora.has(old)
    assert store.corpora.has(new)
    assert store.corpora.has(kept)


@pytest.mark.parametrize("state", ["queued", "running", "paused"])
def test_a_corpus_stays_while_a_job_needs_it_and_its_time_begins_then(
    store: Store, state: str
) -> None:
    corpus = put(store, b"abc", 1.0)
    add(store, "a", state, corpus=corpus)
    assert swept(store, 0, 100) == Swept()
    store.database.update_job("a", state="succeeded", ended_s=NOW)
    assert swept(store, 0, 100, now_s=NOW + 100).corpora == ()
    assert store.corpora.has(corpus)
    assert swept(store, 0, 100, now_s=NOW + 101).corpora == (corpus,)
    assert not store.corpora.has(corpus)


def test_orphans_are_taken_in_or_deleted(store: Store) -> None:
    corpus = put(store, b"abc", 1.0)
    store.database.forget_corpus(corpus)
    store.database.touch_corpus("f" * 64, 3, NOW)
    (store.job_dir("left") / "state.safetensors").write_bytes(b"state")
    (store.job_dir("making") / "init.safetensors").write_bytes(b"init")
    for name, age_s in (("left", ORPHAN_S + 1), ("making", ORPHAN_S - 1)):
        os.utime(store.jobs_root / name, (NOW - age_s, NOW - age_s))
    expected = Swept(orphans=("left",), adopted=(corpus,), forgotten=("f" * 64,))
    assert swept(store, 0, 100) == expected
    assert [path.name for path in store.jobs_root.iterdir()] == ["making"]
    assert store.database.corpora() == [(corpus, 3, NOW)]
    assert swept(store, 0, 100) == Swept()


def test_the_house_is_kept_again_after_a_sweep_that_failed(
    store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = put(store, b"abc", 1.0)

    def fail() -> None:
        raise DatabaseError("the database cannot be used")

    async def keep() -> None:
        monkeypatch.setattr(store.database, "corpora_in_use", fail)
        house = asyncio.create_task(keep_house(store, Rules(0, 100), every_s=0.01))
        while "could not be swept" not in caplog.text:
            await asyncio.sleep(0.01)
        assert store.corpora.has(corpus)
        monkeypatch.undo()
        while store.corpora.has(corpus):
            await asyncio.sleep(0.01)
        house.cancel()

    asyncio.run(asyncio.wait_for(keep(), PATIENCE_S))
