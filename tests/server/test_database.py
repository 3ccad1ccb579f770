from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from treadle.server.failures import DamagedDatabaseError, DatabaseError
from treadle.server.storage.database import Database, migrations
from treadle.server.storage.files import shared_with_group
from treadle.server.storage.schema import (
    SCHEMA_VERSION,
    UNKNOWN_VERSION,
    JobRow,
    NewerDatabaseError,
    NoSuchJobError,
)

from .samples import job_row


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "treadle.db")
    yield database
    database.close()


def test_a_row_comes_back_as_it_went_in(database: Database) -> None:
    full = JobRow(
        id="a",
        model="m",
        state="running",
        reason="it trains 'so' \N{SNOWMAN}",
        spec=b"\x00\xff",
        config='{"seed": 1}',
        files='[{"sha256": "aa"}]',
        corpus_bytes=1 << 40,
        request_id="r",
        init_from="/x",
        created_s=0.1,
        queued_s=1763853476.123456,
        started_s=1e-9,
        ended_s=None,
        last_sequence=0,
        restarts=2,
        started=b"s",
        progress=b"",
        version=3,
        claim=4,
        error_code=15,
        error=b"\x01",
        ran_s=1 / 3,
        init_from_version=2,
        owner="ann",
        call_id="c",
    )
    assert database.add_job(full) == full
    assert database.job("a") == full
    assert database.job("b") is None


def test_a_row_is_there_when_the_file_is_opened_again(tmp_path: Path, sqlite: Database) -> None:
    sqlite.add_job(job_row("a", queued_s=1763853476.123456))
    sqlite.close()
    again = Database(tmp_path / "treadle.db")
    assert again.job("a") == job_row("a", queued_s=1763853476.123456)
    again.close()


def test_a_request_id_gives_one_job_from_many_threads(database: Database) -> None:
    given: list[str] = []

    def add(number: int) -> None:
        given.append(database.add_job(job_row(f"j{number}", request_id="same")).id)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(given) == 8
    assert len(set(given)) == 1
    assert [row.id for row in database.jobs()] == given[:1]
    found = database.job_of_request("", "same")
    assert found is not None
    assert found.id == given[0]


def test_jobs_without_a_request_id_are_jobs_of_their_own(database: Database) -> None:
    for name in ("a", "b"):
        assert database.add_job(job_row(name)).id == name
    assert database.job_of_request("", "") is None
    with pytest.raises(DatabaseError, match=r"(?i)unique"):
        database.add_job(job_row("a"))


def test_pages_go_from_new_to_old_and_see_each_job_once(database: Database) -> None:
    for number in range(7):  # pairs of the same moment
        database.add_job(
            job_row(f"j{number}", created_s=float(number // 2), model=f"m{number % 2}")
        )
    seen: list[str] = []
    after: tuple[float, str] | None = None
    while page := database.jobs(after=after, limit=2):
        seen += [row.id for row in page]
        after = page[-1].place
    assert seen == ["j6", "j5", "j4", "j3", "j2", "j1", "j0"]
    assert [row.id for row in database.jobs(model="m1")] == ["j5", "j3", "j1"]
    database.update_job("j3", state="paused")
    assert [row.id for row in database.jobs(("paused", "failed"))] == ["j3"]
    database.delete_job("j3")
    assert [row.id for row in database.jobs(after=(1.0, "j3"))] == ["j2", "j1", "j0"]


def test_events_are_numbered_without_gaps_from_many_threads(database: Database) -> None:
    database.add_job(job_row("a"))
    numbers: list[int] = []

    def add() -> None:
        numbers.extend(database.append_event("a", b"x", 1.0, restarts=1) for _ in range(20))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 81))
    assert [number for number, _, _ in database.events("a", 0)] == list(range(1, 81))
    assert [number for number, _, _ in database.events("a", 77)] == [78, 79, 80]
    assert [number for number, _, _ in database.events("a", 3, limit=2)] == [4, 5]
    row = database.job("a")
    assert row is not None
    assert (row.last_sequence, row.restarts) == (80, 1)


def test_an_event_and_its_changes_are_one(database: Database) -> None:
    database.add_job(job_row("a"))
    assert database.append_event("a", b"one", 1.5, state="running", started_s=1.5) == 1
    before = database.job("a")
    with pytest.raises(DatabaseError, match=r"(?i)not.null"):
        database.append_event("a", b"two", 2.5, reason=None)
    assert database.job("a") == before
    assert database.events("a", 0) == [(1, 1.5, b"one")]


@pytest.mark.parametrize(
    "name", ["id", "last_sequence", "holder", "lease_until_s", "colour", "state = '', id"]
)
def test_what_is_no_field_to_change_is_refused(database: Database, name: str) -> None:
    database.add_job(job_row("a"))
    changes: dict[str, Any] = {name: "b"}
    with pytest.raises(TypeError, match="not a field"):
        database.update_job("a", **changes)
    with pytest.raises(TypeError, match="not a field"):
        database.append_event("a", b"", 1.0, **changes)
    assert database.job("a") == job_row("a")


def test_jobs_that_are_not_there_cannot_change(database: Database) -> None:
    with pytest.raises(NoSuchJobError, match="'a'"):
        database.update_job("a", state="paused")
    with pytest.raises(NoSuchJobError, match="'a'"):
        database.append_event("a", b"", 1.0)
    database.delete_job("a")


def test_events_go_with_their_job(database: Database) -> None:
    for name in ("a", "b"):
        database.add_job(job_row(name))
        database.append_event(name, b"x", 1.0)
    database.delete_job("a")
    assert database.job("a") is None
    assert database.events("a", 0) == []
    assert database.events("b", 0) == [(1, 1.0, b"x")]


def test_aliases(database: Database) -> None:
    database.set_alias("m", "prod", 1)
    database.set_alias("m", "beta", 2)
    database.set_alias("n", "prod", 7)
    database.set_alias("m", "prod", 2)
    assert database.aliases("m") == {"beta": 2, "prod": 2}
    assert database.all_aliases() == [("m", "beta", 2), ("m", "prod", 2), ("n", "prod", 7)]
    assert database.delete_alias("m", "beta")
    assert not database.delete_alias("m", "beta")
    database.forget_aliases("m", [1, 2])
    assert database.aliases("m") == {}
    assert database.aliases("n") == {"prod": 7}


def test_corpora_and_who_needs_them(database: Database) -> None:
    database.touch_corpus("aa", 5, 1.0)
    database.touch_corpus("bb", 6, 2.0)
    database.touch_corpus("aa", 5, 3.0)
    assert database.corpora() == [("aa", 5, 3.0), ("bb", 6, 2.0)]
    database.forget_corpus("bb")
    assert database.corpora() == [("aa", 5, 3.0)]
    states = ("queued", "running", "paused", "succeeded", "failed", "cancelled")
    for state in states:
        database.add_job(job_row(state, state=state, files=f'[{{"sha256": "{state}"}}]'))
    assert database.corpora_in_use() == {"queued", "running", "paused"}
    database.update_job("paused", files="{")
    # What cannot be read keeps nothing, and keeps nobody from the rest.
    assert database.corpora_in_use() == {"queued", "running"}


def test_pending_claims_are_those_of_unfinished_jobs(database: Database) -> None:
    database.add_job(job_row("a", state="running", claim=3))
    database.add_job(job_row("b", state="failed", claim=4))
    database.add_job(job_row("c", state="paused", claim=5, version=5))
    database.add_job(job_row("d", state="running", claim=6, model="n"))
    assert database.pending_claims("m") == [3]


@pytest.mark.parametrize(("folder_mode", "mode"), [(0o700, 0o600), (0o770, 0o660)])
def test_it_is_durable_and_closed_to_others(tmp_path: Path, folder_mode: int, mode: int) -> None:
    home = tmp_path / "data"
    home.mkdir()
    home.chmod(folder_mode)
    with shared_with_group(home):
        database = Database(home / "treadle.db")
        database.add_job(job_row("a"))
    modes = {path.name: path.stat().st_mode & 0o777 for path in home.iterdir()}
    assert modes == dict.fromkeys(["treadle.db", "treadle.db-wal", "treadle.db-shm"], mode)
    with sqlite3.connect(home / "treadle.db") as other:
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    other.close()
    assert database.engine.rows("PRAGMA synchronous") == [(2,)]
    assert database.engine.rows("PRAGMA foreign_keys") == [(1,)]
    database.close()


def test_a_newer_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "treadle.db"
    with sqlite3.connect(path) as newer:
        newer.execute("PRAGMA user_version = 99")
        newer.execute("CREATE TABLE other (x)")
    newer.close()
    before = path.read_bytes()
    with pytest.raises(NewerDatabaseError, match=r"version 99.*use a newer Treadle"):
        Database(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
def test_a_database_of_an_older_version_is_brought_up_to_date(tmp_path: Path, version: int) -> None:
    path = tmp_path / "treadle.db"
    with sqlite3.connect(path) as older:
        for number in range(1, version + 1):
            for statement in migrations.statements(number):
                older.execute(statement)
        old = [name for _, name, *_ in older.execute("PRAGMA table_info(jobs)")]
        row = job_row("a", request_id="r", init_from="m")
        places = ", ".join("?" * len(old))
        values = [getattr(row, name) for name in old]
        older.execute(f"INSERT INTO jobs ({', '.join(old)}) VALUES ({places})", values)
        older.execute(f"PRAGMA user_version = {version}")
    older.close()
    for _ in range(2):
        database = Database(path)
        asked = UNKNOWN_VERSION if version == 1 else 0
        assert database.job("a") == replace(row, init_from_version=asked)
        assert database.engine.rows("PRAGMA user_version") == [(SCHEMA_VERSION,)]
        assert database.check() == []
        database.close()
    database = Database(path)
    for owner in ("", "ann", "bob"):  # the index is that of a new database
        added = database.add_job(job_row(f"of-{owner}", request_id="r", owner=owner))
        assert added.id == (f"of-{owner}" if owner else "a")
    database.close()


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\x00"])
def test_what_is_no_database_is_said(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "treadle.db"
    path.write_bytes(content)
    with pytest.raises(DatabaseError, match="--fsck"):
        Database(path)


@pytest.mark.parametrize(
    "script",
    [
        "PRAGMA user_version = -1",
        "CREATE TRIGGER t AFTER UPDATE ON jobs BEGIN DELETE FROM events; END",
        "ALTER TABLE aliases RENAME TO kept; CREATE VIEW aliases AS WITH RECURSIVE c(n) AS "
        "(SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT n AS model, n AS alias, n AS version "
        "FROM c",
    ],
)
def test_a_database_that_does_more_than_hold_rows_is_refused(script: str, tmp_path: Path) -> None:
    path = tmp_path / "treadle.db"
    Database(path).close()
    with sqlite3.connect(path) as other:
        other.executescript(script)
    other.close()
    with pytest.raises(DatabaseError, match="--fsck"):
        Database(path)


def test_a_row_that_is_too_large_is_damage_and_takes_no_memory(
    tmp_path: Path, sqlite: Database
) -> None:
    sqlite.add_job(job_row("a"))
    with sqlite3.connect(tmp_path / "treadle.db") as other:
        other.execute("UPDATE jobs SET reason = zeroblob(?)", (1 << 27,))
    other.close()
    tracemalloc.start()
    with pytest.raises(DamagedDatabaseError):
        sqlite.jobs()
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["treadle.db", "treadle.db-wal", "treadle.db-shm"])
def test_a_pipe_in_place_of_a_file_is_refused(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(OSError, match="not a regular file"):
        Database(tmp_path / "treadle.db")


def test_a_full_disk_changes_nothing_and_passes(tmp_path: Path, sqlite: Database) -> None:
    """SQLite's own limit on pages gives the very error that a full disk does."""
    sqlite.add_job(job_row("a"))
    sqlite.append_event("a", b"first", 1.0)
    before = sqlite.job("a")
    (pages,) = sqlite.engine.rows("PRAGMA page_count")[0]
    sqlite.engine.rows(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(OSError, match="No space left") as caught:
        sqlite.append_event("a", bytes(1 << 20), 2.0, state="running")
    assert caught.value.errno == errno.ENOSPC
    assert sqlite.job("a") == before
    assert sqlite.events("a", 0) == [(1, 1.0, b"first")]
    assert sqlite.check() == []
    sqlite.engine.rows("PRAGMA max_page_count = 1000000")
    assert sqlite.append_event("a", bytes(1 << 20), 3.0, state="running") == 2
    assert sqlite.check() == []


def test_a_change_that_did_not_end_is_not_there(tmp_path: Path, sqlite: Database) -> None:
    """A copy of the files in the middle of a transaction is what a kill leaves."""
    sqlite.add_job(job_row("a"))
    copy = tmp_path / "copy"
    copy.mkdir()
    with sqlite.engine.transaction() as transaction:
        transaction.run("UPDATE jobs SET state = 'running'")
        for path in tmp_path.glob("treadle.db*"):
            (copy / path.name).write_bytes(path.read_bytes())
    after_a_kill = Database(copy / "treadle.db")
    assert after_a_kill.job("a") == job_row("a")
    assert sqlite.job("a") == replace(job_row("a"), state="running")
    assert after_a_kill.check() == []
    after_a_kill.close()


_APPENDER = """
import pathlib, sys
from treadle.server.storage.database import Database
database = Database(pathlib.Path(sys.argv[1]))
while True:
    number = database.append_event("a", b"x" * 1000, 1.0)
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
"""


@pytest.mark.parametrize("count", [1, 7, 40])
def test_a_published_event_outlives_a_kill(tmp_path: Path, sqlite: Database, count: int) -> None:
    sqlite.add_job(job_row("a"))
    sqlite.close()
    command = [sys.executable, "-c", _APPENDER, str(tmp_path / "treadle.db")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        numbers = [int(process.stdout.readline()) for _ in range(count)]
        process.kill()
        numbers += [int(line) for line in process.stdout.read().splitlines()]
    again = Database(tmp_path / "treadle.db")
    events = [number for number, _, _ in again.events("a", 0)]
    row = again.job("a")
    assert row is not None
    assert numbers == list(range(1, len(numbers) + 1))
    # The event that was being published during the kill may be there as well, whole.
    assert len(numbers) <= len(events) <= len(numbers) + 1
    assert events == list(range(1, row.last_sequence + 1))
    assert again.check() == []
    assert again.append_event("a", b"x", 2.0) == row.last_sequence + 1
    again.close()
