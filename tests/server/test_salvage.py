"""A damaged database is served, or repaired with every row that can be read.

`MUTANTS=200 pytest tests/server/test_salvage.py` tries more of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from treadle.server.fsck.check import check
from treadle.server.fsck.salvage import Salvage, _cells, _kind, _record, _table
from treadle.server.messages import responses
from treadle.server.storage.data_dir import DATABASE_FILE, REPAIRED_FILE, DataDir
from treadle.server.storage.database import Database
from treadle.server.storage.files import StoreError
from treadle.server.storage.schema import ADDED, TABLES, read_row
from treadle.v1 import sequence_pb2 as pb

from .samples import job_row, put_model

MUTANTS = int(os.environ.get("MUTANTS", "12"))
PAGE = 4096
STATES = ("succeeded", "failed", "cancelled", "queued", "paused")

Key = tuple[Any, ...]


def event(number: int, size: int) -> bytes:
    reason = f"event {number} " + "x" * size
    return pb.JobEvent(state=pb.JobStateChange(reason=reason)).SerializeToString()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data directory of a server that was killed: a part of its rows is in the log."""
    live = tmp_path_factory.mktemp("live") / "data"
    data_dir = DataDir(live)
    database = data_dir.database
    database.engine.rows("PRAGMA synchronous = OFF")  # no power is lost here
    chance = random.Random(7)
    for number in range(40):
        spec = pb.TrainSpec(model="m", request_id=f"request-{number}")
        spec.data.column = "c" * chance.choice((10, 3000, 9000))
        job = f"job-{number:03}"
        database.add_job(
            job_row(
                job,
                state=STATES[number % len(STATES)],
                spec=spec.SerializeToString(),
                request_id=spec.request_id,
                created_s=1.8e9 + number / 3,
                queued_s=1.8e9 + number,
            ),
            event(1, 10),
        )
        for count in range(chance.randrange(25)):
            size = chance.choice((20, 20, 300, 300, 300, 9000))
            database.append_event(job, event(count + 2, size), 1.8e9 + count / 7)
        if number == 25:
            database.engine.rows("PRAGMA wal_checkpoint(TRUNCATE)")
    for version in (1, 2, 3):
        assert put_model(data_dir, "m").version == version
        database.set_version_owner("m", version, "ann", 100 * version, float(version))
    for number in range(50):
        database.set_alias("m", f"alias-{number}", number % 3 + 1)
        data = f"corpus {number}".encode()
        sha256 = hashlib.sha256(data).hexdigest()
        (live / "corpora" / sha256).write_bytes(data)
        database.touch_corpus(sha256, len(data), float(number))
        # Times in seconds are stored as whole numbers, and so are versions.
        owner = (sha256, f"owner-{number % 3}", len(data), float(number))
        database.load([("corpus_owners", owner)])
        file = (f"file-{number}", "ann", f"name {number}", sha256, len(data), float(number))
        database.load([("files", file)])
    for number in range(0, 40, 7):
        database.delete_job(f"job-{number:03}")
    killed = tmp_path_factory.mktemp("killed") / "data"
    shutil.copytree(live, killed)
    data_dir.close()
    assert (killed / f"{DATABASE_FILE}-wal").stat().st_size > 20 * PAGE
    return killed


def key_of(table: str, values: Any) -> Key:
    size = {"jobs": 1, "corpora": 1, "files": 1}.get(table, 2)
    return table, *values[:size]


def rows_in(path: Path) -> dict[Key, Any]:
    """Returns every row that SQLite finds."""
    database = Database(path, upgrade=False)
    found = {key_of(table, values): tuple(values) for table, values in database.scan()}
    database.close()
    return found


def pages_of(path: Path) -> Iterator[tuple[Key, set[int]]]:
    """Yields the pages of the file that hold each row, its overflow pages included."""
    salvage = Salvage(path)
    for number in range(1, salvage._count() + 1):
        page = salvage._page(number)
        kind = _kind(page, number)
        if kind not in (0x0D, 0x0A, 0x02):
            continue
        for place in _cells(page, number):
            salvage._chains.clear()
            try:
                row = _record(salvage._payload(page, place, kind))
            except (ValueError, LookupError):
                continue
            if table := _table(row):
                yield key_of(table, row), {number, *salvage._chains}


@dataclass
class Original:
    """What is in the template, and where."""

    rows: dict[Key, Any]
    pages: dict[Key, set[int]]
    logged: set[int]
    """Pages that the log has, whatever is in the file."""


@pytest.fixture(scope="module")
def original(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Original:
    path = template / DATABASE_FILE
    pages: dict[Key, set[int]] = {}
    for key, own in pages_of(path):
        pages.setdefault(key, own)
    logged = set(Salvage(path)._log.pages)
    copy = tmp_path_factory.mktemp("copy") / "data"
    shutil.copytree(template, copy)
    return Original(rows_in(copy / DATABASE_FILE), pages, logged)


def test_every_row_of_a_whole_database_is_read_as_sqlite_reads_it(
    template: Path, original: Original
) -> None:
    found = {
        key_of(table, values): values for table, values in Salvage(template / DATABASE_FILE).rows()
    }
    assert found.keys() == original.rows.keys()
    assert found == original.rows  # 1 == 1.0: whole numbers are how real ones are stored
    assert {key[0] for key in found} == set(TABLES)


def flip(data: bytearray, chance: random.Random, count: int = 1) -> set[int]:
    places = [chance.randrange(len(data)) for _ in range(count)]
    for place in places:
        data[place] ^= chance.randrange(1, 256)
    return {place // PAGE + 1 for place in places}


def flip_many(data: bytearray, chance: random.Random) -> set[int]:
    return flip(data, chance, 50)


def zero_pages(data: bytearray, chance: random.Random) -> set[int]:
    pages = {chance.randrange(len(data) // PAGE) + 1 for _ in range(3)}
    for page in pages:
        data[(page - 1) * PAGE : page * PAGE] = bytes(PAGE)
    return pages


def garble_page(data: bytearray, chance: random.Random) -> set[int]:
    page = chance.randrange(1, len(data) // PAGE) + 1
    data[(page - 1) * PAGE : page * PAGE] = chance.randbytes(PAGE)
    return {page}


def damage_header(data: bytearray, chance: random.Random) -> set[int]:
    for _ in range(chance.choice((1, 5, 100))):
        place = chance.choice([*range(60), *range(64, 100)])  # 60: the version of the tables
        data[place] = chance.randrange(256)
    return {1}


def clear_first_page(data: bytearray, chance: random.Random) -> set[int]:
    data[:PAGE] = bytes(PAGE)
    return {1}


def cut(data: bytearray, chance: random.Random) -> set[int]:
    size = chance.randrange(PAGE, len(data))
    gone = set(range(size // PAGE + 1, len(data) // PAGE + 1))
    del data[size:]
    return gone


def lengthen(data: bytearray, chance: random.Random) -> set[int]:
    data += chance.randbytes(chance.randrange(1, 3 * PAGE))
    return set()


MAIN: list[Callable[[bytearray, random.Random], set[int]]] = [
    *(flip, flip_many, zero_pages, garble_page),
    *(damage_header, clear_first_page, cut, lengthen),
]


def mutate_log(root: Path, chance: random.Random) -> None:
    path = root / f"{DATABASE_FILE}-wal"
    how = chance.choice(("gone", "flipped", "cut", "noise"))
    data = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
        return
    if how == "flipped":
        flip(data, chance)
    elif how == "cut":
        del data[chance.randrange(len(data)) :]
    else:
        data[:32] = chance.randbytes(32)
    path.write_bytes(data)


def left_out(root: Path) -> set[Key]:
    """Returns the rows that a repair has written down for a person."""
    path = root / "damaged" / "rows.jsonl"
    lines = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return {
        key_of(line["table"], list(line["values"].values())) for line in lines if "table" in line
    }


def serve(root: Path) -> dict[Key, Any]:
    """Does what a server does with a directory; returns all rows of its database."""
    data_dir = DataDir(root)
    try:
        for row in data_dir.database.jobs(limit=1000):
            listed = responses.listed_job(row, 0, "")
            assert listed.id
            data_dir.database.events(row.id, 0)
        data_dir.database.corpora_in_use()
        return {key_of(table, values): tuple(values) for table, values in data_dir.database.scan()}
    finally:
        data_dir.close()


@pytest.mark.parametrize("number", range(MUTANTS))
def test_a_mutant_is_served_or_repaired_with_every_row_that_can_be_read(
    number: int, template: Path, original: Original, tmp_path: Path
) -> None:
    chance = random.Random(number)
    root = tmp_path / "data"
    shutil.copytree(template, root)
    path = root / DATABASE_FILE
    if number % 6 == 5:
        mutate_log(root, chance)
        shutil.copytree(root, tmp_path / "copy")
        expected = rows_in(tmp_path / "copy" / DATABASE_FILE)
    else:
        data = bytearray(path.read_bytes())
        touched = MAIN[number % len(MAIN)](data, chance) - original.logged
        path.write_bytes(data)
        expected = {
            key: row for key, row in original.rows.items() if not original.pages[key] & touched
        }
    with suppress(StoreError):
        serve(root)
    check(root, repair=True)
    assert not [found for found in check(root, repair=True).findings if found.where == path]
    kept = serve(root)
    aside = left_out(root)
    missing = [key for key in expected if key not in kept and key not in aside]
    assert not missing
    # Events stay with their job, and jobs without fault stay.
    jobs = {key[1] for key in kept if key[0] == "jobs"}
    for key, row in expected.items():
        if key[0] != "events" or key[1] in jobs:
            assert key in kept
            assert list(map(str, kept[key])) == list(map(str, typed(key[0], row)))


def typed(table: str, row: Any) -> Any:
    if table != "jobs":
        return row
    whole = read_row(row)
    return [getattr(whole, name) for name in TABLES["jobs"]]


def test_a_repair_may_be_cut_off_anywhere(
    template: Path, original: Original, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "data"
    shutil.copytree(template, root)
    data = bytearray((root / DATABASE_FILE).read_bytes())
    data[:100] = bytes(100)
    (root / DATABASE_FILE).write_bytes(data)
    renames = [0]
    for name in ("rename", "replace"):
        real = getattr(os, name)

        def dying(*arguments: Any, real: Any = real) -> None:
            if not renames[0]:
                raise KeyboardInterrupt
            renames[0] -= 1
            real(*arguments)

        monkeypatch.setattr(os, name, dying)
    for count in range(4):
        renames[0] = count
        try:
            check(root, repair=True)
        except KeyboardInterrupt:
            if (root / REPAIRED_FILE).exists():
                with pytest.raises(StoreError, match="was interrupted: run treadle-server --fsck"):
                    DataDir(root)
    renames[0] = 10**6
    check(root, repair=True)
    assert serve(root).keys() == original.rows.keys()


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("header", [False, True])
def test_many_rows_in_the_file_and_in_the_log_are_found(
    closed: bool, header: bool, tmp_path: Path
) -> None:
    path = tmp_path / DATABASE_FILE
    database = Database(path)
    names = TABLES["jobs"]
    rows = [job_row(f"job-{number}", created_s=1.5 + number) for number in range(300)]
    database.load(("jobs", [getattr(row, name) for name in names]) for row in rows)
    database.load(
        ("events", (f"job-{job}", number, 2.5, event(number, 60)))
        for job in range(300)
        for number in range(1, 41)
    )
    if closed:
        database.close()
    if not header:
        shutil.copytree(tmp_path, tmp_path / "copy")
        path = tmp_path / "copy" / DATABASE_FILE
        data = bytearray(path.read_bytes())
        data[:100] = bytes(100)
        path.write_bytes(data)
    found = Counter(table for table, _ in Salvage(path).rows())
    database.close()
    assert found == {"jobs": 300, "events": 12_000}


def test_rows_of_deleted_jobs_do_not_come_back(tmp_path: Path) -> None:
    root = tmp_path / "data"
    data_dir = DataDir(root)
    for number in range(40):
        data_dir.database.add_job(job_row(f"j{number}", reason="r" * 3000), event(1, 9000))
    for number in range(39):
        data_dir.database.delete_job(f"j{number}")
    data_dir.close()
    with sqlite3.connect(root / DATABASE_FILE) as connection:
        (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    connection.close()
    assert free > 10
    data = bytearray((root / DATABASE_FILE).read_bytes())
    data[:100] = bytes(100)  # the list of the free pages as well
    (root / DATABASE_FILE).write_bytes(data)
    assert not check(root, repair=True).clean
    assert {key for key in serve(root) if key[0] in ("jobs", "events")} == {
        ("jobs", "j39"),
        ("events", "j39", 1),
    }


@pytest.mark.parametrize("lacking", range(len(ADDED) + 1))
def test_jobs_of_an_older_version_are_completed(lacking: int, tmp_path: Path) -> None:
    database = Database(tmp_path / DATABASE_FILE)
    database.add_job(job_row("j", init_from_version=7))
    database.close()
    added = dict([*ADDED.items()][len(ADDED) - lacking :])
    with sqlite3.connect(tmp_path / DATABASE_FILE) as connection:
        for name in ("jobs_request", "jobs_owner"):
            connection.execute(f"DROP INDEX {name}")
        for name in added:
            connection.execute(f"ALTER TABLE jobs DROP COLUMN {name}")
    connection.close()
    ((_, values),) = Salvage(tmp_path / DATABASE_FILE).rows()
    row = dict(zip(TABLES["jobs"], values, strict=True))
    expected = job_row("j", **({"init_from_version": 7} | added))
    assert row == {name: getattr(expected, name) for name in TABLES["jobs"]}


def test_no_bytes_are_too_strange_to_be_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "some.db"
    chance = random.Random(3)
    for _ in range(30):
        pages = [
            bytes([0x0D, 0, 0, 0, 200, 0, 0, 0]) + chance.randbytes(PAGE - 8) for _ in range(8)
        ]
        path.write_bytes(b"".join(pages))
        for table, row in Salvage(path).rows():
            assert table in TABLES
            assert row


def test_what_looks_like_rows_within_a_row_is_none(tmp_path: Path) -> None:
    """A caller may put any bytes into a text, and so a page into a page."""
    root = tmp_path / "data"
    data_dir = DataDir(root)
    data_dir.database.add_job(job_row("real"), event(1, 10))
    data_dir.close()
    data = (root / DATABASE_FILE).read_bytes()
    (leaf,) = {
        page for key, pages in pages_of(root / DATABASE_FILE) for page in pages if key[0] == "jobs"
    }
    fake = data[(leaf - 1) * PAGE : leaf * PAGE].replace(b"real", b"fake")
    data_dir = DataDir(root)
    data_dir.database.add_job(job_row("holder", error=bytes(5000) + (fake * 3)[4:]))
    for shift in range(0, PAGE, 512):
        data_dir.database.add_job(job_row(f"h{shift}", error=bytes(shift) + fake * 3))
    data_dir.close()
    content = bytearray((root / DATABASE_FILE).read_bytes())
    content[24:28] = b"\xff" * 4
    content[18:20] = b"\xff\xff"  # SQLite refuses the file
    (root / DATABASE_FILE).write_bytes(content)
    assert not check(root, repair=True).clean
    jobs = {key[1] for key in serve(root) if key[0] == "jobs"}
    assert jobs == {"real", "holder", *(f"h{shift}" for shift in range(0, PAGE, 512))}
