from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from treadle.server.database import DatabaseError
from treadle.server.housekeeping import ORPHAN_S, Rules, Swept, keep_house, sweep
from treadle.server.store import Store

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


def test_many_old_jobs_go_in_one_sweep(store: Store) -> None:
    for number in range(450):
        store.database.add_job(job_row(f"j{number}", state="failed", ended_s=1.0))
    assert len(swept(store, 100, 0).jobs) == 450
    assert jobs(store) == set()


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
