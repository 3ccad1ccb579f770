"""Data directories with odd files in them, and databases with odd rows: `data_dir`, `database`."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import json
import math
import os
import random
import shutil
import socket
import sqlite3
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from treadle.model.config import TrainConfig
from treadle.model.errors import ModelError
from treadle.server.errors import StatusError, from_exception, from_packed, invalid
from treadle.server.failures import DatabaseError
from treadle.server.fsck.check import check as fsck
from treadle.server.jobs.job import _event
from treadle.server.messages import responses
from treadle.server.storage.data_dir import DATABASE_FILE, DataDir
from treadle.server.storage.files import StoreError
from treadle.server.storage.job_damage import damage
from treadle.server.storage.job_files import BEST_FILE, LAST_FILE, STATE_FILE
from treadle.server.storage.model_version import MODEL_FILE
from treadle.server.storage.retention import RetentionPeriods, delete_expired
from treadle.server.storage.schema import TABLES, JobRow
from treadle.v1 import sequence_pb2 as pb

from . import subjects
from .mutate import Mutator

_ODD_NAMES = ("two\nlines", "\udcff\udcfe", "x" * 200, " ", "-rf", "a b", "é", ".hidden")


def _attempt(work: Callable[[], Any]) -> Any:
    """Returns what something returns; None where it ends in an error that may be."""
    try:
        return work()
    except (StoreError, DatabaseError):
        return None
    except (ModelError, StatusError) as error:
        code = from_exception(error, "a fuzz").code.name
        if code in ("OK", "INTERNAL", "UNKNOWN"):
            raise AssertionError(f"{code}: {error}") from error
        return None


@cache
def _template() -> Path:
    """Makes a data directory with something of everything."""
    folder = Path(tempfile.mkdtemp(prefix="treadle-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    root = folder / "data"
    data_dir = DataDir(root)
    for number, model in enumerate(subjects.models()[:3]):
        draft = data_dir.models.new_draft()
        model.save(draft / MODEL_FILE)
        data_dir.models.claim(f"m-{number}", draft)
    data_dir.models.set_alias("m-0", "x", 1)
    writer = data_dir.corpora.writer()
    writer.write(b"abc")
    sha256, _ = writer.claim()
    for number, state in enumerate(("queued", "running", "paused", "succeeded", "failed")):
        row = _row(f"job-{number}", state, sha256)
        data_dir.database.add_job(row, pb.JobEvent().SerializeToString())
        directory = data_dir.jobs.directory(row.id)
        for name in (LAST_FILE, BEST_FILE, STATE_FILE):
            shutil.copy(data_dir.models.find("m-0").path, directory / name)
    data_dir.close()
    return root


_EMPTY: dict[str, object] = {"str": "", "bytes": b"", "int": 0, "float": 1.0}


def _row(job: str, state: str, sha256: str) -> JobRow:
    config = TrainConfig()
    columns = [item for item in dataclasses.fields(JobRow) if item.name in TABLES["jobs"]]
    values: dict[str, Any] = {item.name: _EMPTY.get(str(item.type)) for item in columns}
    values |= {
        "id": job,
        "model": "m-0",
        "state": state,
        "reason": "so it is",
        "spec": responses.spec("m-0", config).SerializeToString(),
        "config": json.dumps(config.to_json()),
        "files": json.dumps([{"sha256": sha256, "name": "a", "role": "train", "size": 3}]),
        "request_id": job,
        "error": invalid([("a_field", "it is wrong")]).packed(),
    }
    return JobRow(**values)


def _copied(folder: str) -> Path:
    root = Path(folder) / "data"
    shutil.copytree(_template(), root, symlinks=True)
    return root


def _use(root: Path) -> None:
    """Does with a data directory what a server does with it, and checks and repairs it."""
    data_dir = _attempt(lambda: DataDir(root))
    if data_dir is not None:
        try:
            _use_models(data_dir)
            _use_jobs(data_dir)
            for sha256, _ in data_dir.corpora.stored():
                _attempt(lambda sha256=sha256: data_dir.corpora.touch(sha256))  # type: ignore[misc]
            _attempt(
                lambda: delete_expired(
                    data_dir.database,
                    data_dir.corpora,
                    data_dir.jobs.root,
                    RetentionPeriods(1, 1),
                    1e9,
                )
            )
        finally:
            data_dir.close()
    _attempt(lambda: fsck(root, repair=False))
    _attempt(lambda: fsck(root, repair=True))
    repaired = _attempt(lambda: DataDir(root))
    if repaired is not None:
        repaired.close()


def _use_models(data_dir: DataDir) -> None:
    models = data_dir.models
    for stored in models.newest():
        _attempt(lambda stored=stored: models.describe(stored))  # type: ignore[misc]
    for name in ("m-0", "m-1", "m-2", "m-0@x"):
        for version in (0, 1):
            stored = _attempt(lambda name=name, v=version: models.find(name, v))  # type: ignore[misc]
            if stored is not None and version:
                _attempt(lambda stored=stored: models.describe(stored))  # type: ignore[misc]
        _attempt(lambda name=name: models.check_new(name))  # type: ignore[misc]
        _attempt(lambda name=name: models.versions(name))  # type: ignore[misc]
        _attempt(lambda name=name: models.aliases.of_version(name, 1))  # type: ignore[misc]


def _use_jobs(data_dir: DataDir) -> None:
    database = data_dir.database
    rows: list[JobRow] = _attempt(lambda: database.jobs()) or []
    _attempt(lambda: database.jobs(("queued", "failed"), "m-0", (2.0, "job-9")))
    for row in rows:
        fault = damage(row)
        _attempt(lambda r=row, f=fault: responses.listed_job(r, 0, f).SerializeToString())  # type: ignore[misc]
        if fault:
            continue
        responses.job(row, 0).SerializeToString()
        if row.state == "failed":
            _attempt(lambda row=row: _raised(from_packed(row.error, row.reason)))  # type: ignore[misc]
        for _, _, payload in _attempt(lambda row=row: database.events(row.id, 0)) or []:  # type: ignore[misc]
            _event(payload)
    for work in (
        database.newest_s,
        database.corpora,
        database.corpora_in_use,
        database.all_aliases,
        lambda: database.over_before(10.0, 10),
        lambda: database.pending_claims("m-0"),
    ):
        _attempt(work)


def _raised(error: StatusError) -> None:
    raise error


# Odd files


def _odd(pick: random.Random, place: Path) -> None:
    """Puts something odd at a place, or next to it."""
    choice = pick.randrange(14)
    if choice < 11 and os.path.lexists(place) and place.name != "data":
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink()
    place.parent.mkdir(parents=True, exist_ok=True)
    if choice == 0:
        os.mkfifo(place)
    elif choice == 1:
        with socket.socket(socket.AF_UNIX) as listening, contextlib.chdir(place.parent):
            listening.bind(place.name)
    elif choice == 2:
        place.mkdir()
    elif choice == 3:
        target = (
            "/dev/zero",
            "/dev/null",
            place.name,
            "nowhere",
            "..",
            "/",
            "../m-1",
            "/etc/hostname",
        )
        place.symlink_to(pick.choice(target))
    elif choice == 4:
        with place.open("wb") as file:
            file.truncate(pick.choice((1, 8, 1 << 20, 1 << 26)))
    elif choice == 5:
        place.write_bytes(b"")
    elif choice == 6:
        place.write_bytes(pick.randbytes(pick.choice((1, 9, 100, 5000))))
    elif choice == 7:
        place.mkdir()
        (place / "inner").write_bytes(b"x")
    elif choice == 8:
        header = b'{"__metadata__":{"treadle":"{}"}}'
        with place.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(1 << 40 if place.suffix == ".safetensors" else 1 << 26)
    elif choice == 11:
        os.mkfifo(place.parent / pick.choice(_ODD_NAMES))
    elif choice == 12:
        (place.parent / pick.choice(_ODD_NAMES)).mkdir(exist_ok=True)
    elif choice == 13:
        (place.parent / pick.choice(_ODD_NAMES)).symlink_to("..")


def data_dir(seed: int) -> None:
    """A data directory with odd files is refused, or used as far as it can be."""
    draw = Mutator(seed)
    pick = draw.random
    with tempfile.TemporaryDirectory() as folder:
        root = _copied(folder)
        places = sorted(path for path in root.rglob("*"))
        more = ("clock", "spare", f"{DATABASE_FILE}-wal", f"{DATABASE_FILE}-shm", "damaged", "lock")
        places += [root / name for name in more]
        for _ in range(pick.choice((1, 1, 2, 4))):
            with contextlib.suppress(FileExistsError, NotADirectoryError, FileNotFoundError):
                _odd(pick, pick.choice(places))
        _use(root)


# Odd rows


_ODD_VALUES: tuple[Any, ...] = (
    None,
    0,
    -1,
    1,
    2**31,
    2**63 - 1,
    -(2**63),
    0.5,
    math.inf,
    -math.inf,
    1e300,
    -1e300,
    b"",
    b"\xff\xfe",
    b"\x08\x80",
    "",
    "\0",
    "..",
    "a/b",
    "x" * 5000,
    "{}",
    "[1]",
    '[{"sha256": 1}]',
    "[" * 5000,
    '{"network": {"hidden_size": 1e999}}',
    "running",
    "cancelled",
    "nothing",
    "NaN",
    b"x" * 2_000_000,
    "y" * 2_000_000,
)


_TRICKS = (
    "CREATE TRIGGER t AFTER UPDATE ON jobs BEGIN DELETE FROM events; END",
    "CREATE TRIGGER t AFTER INSERT ON events BEGIN DELETE FROM jobs; END",
    "ALTER TABLE aliases RENAME TO kept; CREATE VIEW aliases AS SELECT * FROM kept",
    "DROP TABLE corpora",
    "ALTER TABLE jobs ADD more TEXT",
    "ALTER TABLE events RENAME COLUMN payload TO load",
    "PRAGMA user_version = 99",
    "PRAGMA user_version = -1",
    "PRAGMA user_version = 2147483647",
    "DELETE FROM events",
    "INSERT INTO events SELECT 'nobody', 1, 1.0, x''",
    "UPDATE events SET sequence = 9223372036854775807",
    "CREATE TABLE more (a)",
    "ALTER TABLE aliases RENAME TO kept; CREATE VIEW aliases AS WITH RECURSIVE "
    "c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT n AS model, n AS alias, n AS version "
    "FROM c",
)


def database(seed: int) -> None:
    """A database with odd values, or with more in it than tables, is refused or used."""
    draw = Mutator(seed)
    pick = draw.random
    with tempfile.TemporaryDirectory() as folder:
        root = _copied(folder)
        with contextlib.closing(sqlite3.connect(root / DATABASE_FILE)) as connection:
            connection.execute("PRAGMA foreign_keys = OFF")
            connection.execute("PRAGMA ignore_check_constraints = ON")
            for _ in range(pick.choice((1, 1, 2, 5))):
                with contextlib.suppress(sqlite3.Error):
                    if pick.randrange(6) == 0:
                        connection.executescript(pick.choice(_TRICKS))
                        continue
                    table = pick.choice(("jobs", "jobs", "jobs", "events", "aliases", "corpora"))
                    column = pick.choice(TABLES[table])
                    value = pick.choice(_ODD_VALUES)
                    if isinstance(value, bytes) and pick.randrange(2):
                        [stored] = connection.execute(
                            f"SELECT {column} FROM {table}"
                        ).fetchone() or [""]
                        data = stored if isinstance(stored, bytes) else str(stored).encode()
                        value = draw.bytes(data)
                    connection.execute(f"UPDATE {table} SET {column} = ?", (value,))
                    connection.commit()
        _use(root)


def use_database(script: str) -> None:
    """Uses a database after a script of SQL has changed it."""
    with tempfile.TemporaryDirectory() as folder:
        root = _copied(folder)
        with contextlib.closing(sqlite3.connect(root / DATABASE_FILE)) as connection:
            connection.executescript(script)
        _use(root)


CASES = {"data_dir": data_dir, "database": database}
