"""`Database` stores jobs, events, aliases and owners in one SQLite file, `DATA_DIR/treadle.db`.

Every change is one transaction in a write-ahead log, synced before its method returns: after a
crash or a loss of power it is there whole or not at all. Only one server uses the file, since the
data directory is locked. Every method blocks on the disk and may be called from any thread.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from treadle.server.failures import DamagedDatabaseError, DatabaseError, is_full
from treadle.server.resources import open_files
from treadle.server.storage.files import SpareSpace, check_file
from treadle.server.storage.job_state import FINAL_STATES, UNFINISHED_STATES
from treadle.server.storage.schema import (
    COLUMNS,
    FIXED,
    INSERT,
    SCHEMA,
    SCHEMA_VERSION,
    SELECT,
    TABLES,
    UPGRADES,
    FileRow,
    JobRow,
    NewerDatabaseError,
    NoSuchJobError,
    read_row,
    text,
)

Result = TypeVar("Result")

MAX_INTEGER = (1 << 63) - 1
"""The largest whole number that SQLite holds."""

_NEWER = 1000
"""A schema version that is higher by more than this is damage, not a newer Treadle."""

_LARGEST_ROW = 1 << 26
"""Bytes of the largest row and value that are read or written; what Treadle stores is far smaller.
A larger one is damage."""

_FILE_IS_KEPT = (
    "EXISTS (SELECT 1 FROM corpora WHERE corpora.sha256 = files.sha256) AND (files.owner = '' OR "
    "EXISTS (SELECT 1 FROM corpus_owners WHERE corpus_owners.sha256 = files.sha256 "
    "AND corpus_owners.owner = files.owner))"
)
"""The condition that the corpus of a file is stored, and still its owner's."""

_FILE_TYPES = (str, str, str, str, int, float)
"""The types of the columns of a file."""

_TIMES = ("created_s", "queued_s", "started_s", "ended_s")
"""The columns of a job that are times."""

_UNFINISHED = ", ".join(f"'{state}'" for state in UNFINISHED_STATES)
_FINAL = ", ".join(f"'{state}'" for state in FINAL_STATES)
"""States of jobs, as a statement lists them."""

_DAMAGED = (
    *(sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_CORRUPT_INDEX, sqlite3.SQLITE_CORRUPT_VTAB),
    *(sqlite3.SQLITE_CORRUPT_SEQUENCE, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_TOOBIG),
)
_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)


class Database:
    """The database of one data directory.

    Args:
        path: Its file; made, closed to others, if it is missing.
        upgrade: Whether to upgrade the tables of an older Treadle, which then refuses the file. If
            not, they are upgraded for this object alone, which must only read.

    Raises:
        DatabaseError: It is damaged, of a newer Treadle, or cannot be opened.
        OSError: The disk failed or is full.
    """

    def __init__(self, path: Path, *, upgrade: bool = True) -> None:
        self._path = path
        self.spare: SpareSpace | None = None
        """Space to give up where a full disk prevents a job from ending or being deleted."""
        self._lock = threading.RLock()
        # Made here, since SQLite would make it readable for all; its log gets the same mode.
        for name in (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))):
            check_file(name)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o660))
        with self._translated():
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LARGEST_ROW)
            self._connection.text_factory = text  # one bad byte must not fail a whole list
        try:
            with self._translated():
                self._prepare(upgrade)
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Closes the file, into which SQLite moves the rest of the log."""
        with self._lock:
            self._connection.close()

    def check(self) -> list[str]:
        """Returns the damage that SQLite finds in the file, as sentences; none if it is whole."""
        with self._translated():
            found = [
                str(text) for (text,) in self._connection.execute("PRAGMA integrity_check(20)")
            ]
            if found == ["ok"]:
                found = []
            for table, row, *_ in self._connection.execute("PRAGMA foreign_key_check"):
                found.append(f"row {row} of {table} belongs to no job")
        return found

    def check_structure(self) -> None:
        """Checks that no page is damaged, since writing would make damage worse.

        Raises:
            DatabaseError: Pages are damaged. A row with an invalid value is no error here.
        """
        with self._translated():
            for (found,) in self._connection.execute("PRAGMA quick_check(20)"):
                if found != "ok" and " value in " not in found:
                    raise sqlite3.DatabaseError(str(found).partition("\n")[0])

    def scan(self) -> Iterator[tuple[str, Sequence[Any]]]:
        """Yields the table and the stored values of every row."""
        with self._translated():
            for table, columns in TABLES.items():
                names = ", ".join(columns)
                for values in self._connection.execute(f"SELECT {names} FROM {table} NOT INDEXED"):
                    yield table, values

    def load(self, rows: Iterable[tuple[str, Sequence[Any]]]) -> Counter[str]:
        """Adds rows unchanged, all or none; leaves out a row that exists.

        Args:
            rows: The table and the values of each, in the order of TABLES.

        Returns:
            The number of rows added to each table.
        """
        places = {name: ", ".join("?" * len(columns)) for name, columns in TABLES.items()}
        added = Counter[str]()
        with self._transaction():
            for table, values in rows:
                statement = f"INSERT OR IGNORE INTO {table} VALUES ({places[table]})"
                added[table] += self._connection.execute(statement, values).rowcount
        return added

    def lost_events(self) -> list[tuple[str, int]]:
        """Returns the jobs whose last event is missing, and the number of the last one."""
        return self._rows(
            "SELECT id, last_sequence FROM jobs WHERE last_sequence > 0 AND NOT EXISTS "
            "(SELECT 1 FROM events WHERE job = id AND sequence >= last_sequence)"
        )

    def uncounted_events(self) -> list[tuple[str, int]]:
        """Returns the jobs with events after their last one, and the greatest number of these."""
        return self._rows(
            "SELECT id, MAX(sequence) FROM jobs JOIN events ON job = id "
            "GROUP BY id HAVING MAX(sequence) > last_sequence"
        )

    def count_events(self, job: str, last_sequence: int) -> None:
        """Stores the number of a job's last event."""
        self._do("UPDATE jobs SET last_sequence = ? WHERE id = ?", last_sequence, job)

    def add_lost_event(self, job: str, sequence: int, time_s: float) -> None:
        """Adds an empty event in the place of a job's last one, which is lost."""
        self.load([("events", (job, sequence, time_s, b""))])

    def add_job(self, row: JobRow, first: bytes = b"") -> JobRow:
        """Adds a job, unless its owner has one with the same request id.

        From now on its corpora belong to its owner as well.

        Args:
            row: The job.
            first: Its first event, serialized, stored in the same transaction; empty: none.

        Returns:
            The stored row, or that of the owner's earlier job with the same request id.

        Raises:
            DatabaseError: There is a job with its id.
        """
        with self._transaction():
            earlier = self.job_of_request(row.owner, row.request_id)
            if earlier is not None:
                return earlier
            row = dataclasses.replace(row, last_sequence=1) if first else row
            self._connection.execute(INSERT, [getattr(row, name) for name in COLUMNS])
            if first:
                event = (row.id, 1, row.created_s, first)
                self._connection.execute("INSERT INTO events VALUES (?, ?, ?, ?)", event)
            for sha256, size in row.corpus_sizes().items() if row.owner else ():
                owned = (sha256, row.owner, size, row.created_s)
                self._connection.execute(
                    "INSERT OR REPLACE INTO corpus_owners VALUES (?, ?, ?, ?)", owned
                )
        return row

    def job(self, job: str, /) -> JobRow | None:
        """Returns a job; None where there is no job with that id."""
        return next(iter(self._jobs("WHERE id = ?", job)), None)

    def job_of_request(self, owner: str, request_id: str) -> JobRow | None:
        """Returns the job of an owner with a request id; None where no job has it.

        Args:
            owner: The owner.
            request_id: The request id; no job has an empty one.
        """
        if not request_id:
            return None
        where = "WHERE request_id = ? AND request_id != '' AND owner = ?"
        return next(iter(self._jobs(where, request_id, owner)), None)

    def jobs(
        self,
        states: Sequence[str] = (),
        model: str = "",
        after: tuple[float, str] | None = None,
        limit: int = 100,
        owner: str | None = None,
    ) -> list[JobRow]:
        """Returns jobs, the newest first.

        Args:
            states: Their states; none: all.
            model: The name of their model; empty: any.
            after: The place of the last job of the previous page, which may be deleted by now;
                None: the first page.
            limit: The most jobs to return.
            owner: Their owner; None: any; empty: no job.
        """
        terms = ["1"]
        values = list[object]()
        if owner is not None:
            terms.append("owner = ? AND owner != ''")
            values.append(owner)
        if states:
            terms.append(f"state IN ({', '.join('?' * len(states))})")
            values += states
        if model:
            terms.append("model = ?")
            values.append(model)
        if after is not None:
            terms.append("(created_s, id) < (?, ?)")
            values += after
        where = f"WHERE {' AND '.join(terms)} ORDER BY created_s DESC, id DESC LIMIT ?"
        return self._jobs(where, *values, limit)

    def pending_claims(self, model: str) -> list[int]:
        """Returns the versions of a model that unfinished jobs are about to claim."""
        rows = self._rows(
            "SELECT claim FROM jobs WHERE model = ? AND claim > 0 AND version = 0 "
            f"AND state IN ({_UNFINISHED})",
            model,
        )
        return [claim for (claim,) in rows if isinstance(claim, int)]

    def update_job(self, job: str, /, **changes: Any) -> None:
        """Changes fields of a job.

        Args:
            job: Its id.
            changes: New values by the names of `JobRow`'s fields, except id and last_sequence.

        Raises:
            NoSuchJobError: There is no such job.
            TypeError: There is no such field, or it may not be changed.
        """
        _check(changes)

        def update() -> None:
            with self._transaction():
                self._change(self._known(job).id, changes)

        self._urgent(update)

    def append_event(self, job: str, payload: bytes, time_s: float, /, **changes: Any) -> int:
        """Adds an event to a job and changes its fields in one transaction.

        Args:
            job: Its id.
            payload: The event, serialized.
            time_s: When it happened, in seconds since the epoch.
            changes: As for `update_job`.

        Returns:
            The event's number, one above the last.

        Raises:
            NoSuchJobError: There is no such job.
            TypeError: There is no such field, or it may not be changed.
        """
        _check(changes)

        def append() -> int:
            with self._transaction():
                sequence = self._known(job).last_sequence + 1
                event = (job, sequence, time_s, payload)
                self._connection.execute("INSERT INTO events VALUES (?, ?, ?, ?)", event)
                self._change(job, {**changes, "last_sequence": sequence})
            return sequence

        # A state must not be lost; events about a run can wait for space.
        return self._urgent(append) if "state" in changes else append()

    def events(
        self, job: str, after: int, limit: int = 500, max_bytes: int = 1 << 16
    ) -> list[tuple[int, float, bytes]]:
        """Returns a job's events in order: number, time and payload.

        Args:
            job: Its id.
            after: The number of the last event already known.
            limit: The most events to return.
            max_bytes: Bytes of payloads after which no more events are returned.
        """
        statement = (
            "SELECT sequence, time_s, payload FROM events WHERE job = ? AND sequence > ? "
            "ORDER BY sequence LIMIT ?"
        )
        rows: list[tuple[int, float, bytes]] = []
        size = 0
        with self._translated(), closing(self._connection.cursor()) as cursor:
            for row in cursor.execute(statement, (job, min(after, MAX_INTEGER), limit)):
                if not isinstance(row[0], int):
                    continue
                rows.append(row)
                size += len(row[2]) if isinstance(row[2], bytes) else 0
                if size >= max_bytes:
                    break
        return rows

    def delete_job(self, job: str) -> None:
        """Deletes a job and its events, if it exists."""
        self._urgent(lambda: self._do("DELETE FROM jobs WHERE id = ?", job))

    def over_before(self, before_s: float, limit: int) -> list[str]:
        """Returns the ids of jobs that were over before a time, the oldest first.

        Args:
            before_s: The time, in seconds since the epoch.
            limit: The most ids.
        """
        over_s = "MAX(created_s, queued_s, COALESCE(ended_s, 0))"  # a damaged time makes no job old
        rows = self._rows(
            f"SELECT id FROM jobs WHERE state IN ({_FINAL}) "
            f"AND {over_s} < ? ORDER BY {over_s}, id LIMIT ?",
            *(before_s, limit),
        )
        return [str(job) for (job,) in rows]

    def newest_s(self) -> float:
        """Returns the newest stored time, in seconds since the epoch; 0 if there are no rows."""
        times = [
            *(f"SELECT MAX({name}) FROM jobs" for name in _TIMES),
            "SELECT MAX(used_s) FROM corpora",
            "SELECT MAX(events.time_s) FROM events JOIN jobs "
            "ON events.job = jobs.id AND events.sequence = jobs.last_sequence",
        ]
        found = [row[0] for statement in times for row in self._rows(statement)]
        return max((float(time_s) for time_s in found if isinstance(time_s, float)), default=0.0)

    def set_alias(self, model: str, alias: str, version: int) -> None:
        """Makes an alias lead to a version of a model, and to no other any more."""
        self._do("INSERT OR REPLACE INTO aliases VALUES (?, ?, ?)", model, alias, version)

    def delete_alias(self, model: str, alias: str) -> bool:
        """Deletes an alias; returns whether it existed."""
        statement = "DELETE FROM aliases WHERE model = ? AND alias = ?"
        return bool(self._urgent(lambda: self._do(statement, model, alias)))

    def aliases(self, model: str) -> dict[str, int]:
        """Returns the version of each alias of a model, in the order of their names."""
        rows = self._rows(
            "SELECT alias, version FROM aliases WHERE model = ? ORDER BY alias", model
        )
        return {
            alias: version
            for alias, version in rows
            if isinstance(alias, str) and isinstance(version, int)
        }

    def aliased(self, model: str, alias: str) -> int:
        """Returns the version of an alias of a model; 0 where there is no such alias."""
        rows = self._rows(
            "SELECT version FROM aliases WHERE model = ? AND alias = ?", *(model, alias)
        )
        return next((version for (version,) in rows if isinstance(version, int)), 0)

    def aliases_of(self, model: str, version: int, limit: int) -> tuple[list[str], int]:
        """Returns the first aliases of a version, in their order, and how many there are."""
        where = "FROM aliases WHERE model = ? AND version = ?"
        rows = self._rows(f"SELECT alias {where} ORDER BY alias LIMIT ?", model, version, limit)
        count = len(rows)
        if count == limit:
            [(count,)] = self._rows(f"SELECT count(*) {where}", model, version)
        return [alias for (alias,) in rows if isinstance(alias, str)], count

    def all_aliases(self) -> list[tuple[str, str, int]]:
        """Returns every alias: model, alias and version."""
        return self._rows("SELECT model, alias, version FROM aliases ORDER BY model, alias")

    def forget_aliases(self, model: str, versions: Sequence[int]) -> None:
        """Deletes the aliases of versions of a model."""
        statement = "DELETE FROM aliases WHERE model = ? AND version = ?"

        def forget() -> None:
            with self._transaction():
                for version in versions:
                    self._connection.execute(statement, (model, version))

        self._urgent(forget)

    def touch_corpus(self, sha256: str, size: int, now_s: float) -> None:
        """Notes that a corpus of `size` bytes was used at `now_s`."""
        self._do("INSERT OR REPLACE INTO corpora VALUES (?, ?, ?)", sha256, size, now_s)

    def corpora(self) -> list[tuple[str, int, float]]:
        """Returns hash, size and time of last use of every corpus; leaves out damaged rows."""
        rows = self._rows("SELECT sha256, size, used_s FROM corpora ORDER BY sha256")
        kinds = (str, int, float)
        return [row for row in rows if all(map(isinstance, row, kinds))]

    def forget_corpus(self, sha256: str) -> None:
        """Deletes the row of a corpus and those of its owners, if there are any."""

        def forget() -> None:
            with self._transaction():
                for table in ("corpora", "corpus_owners"):
                    self._connection.execute(f"DELETE FROM {table} WHERE sha256 = ?", (sha256,))

        self._urgent(forget)

    def owns_corpus(self, owner: str, sha256: str) -> bool:
        """Returns whether a corpus belongs to an owner."""
        statement = "SELECT 1 FROM corpus_owners WHERE sha256 = ? AND owner = ?"
        return bool(self._rows(statement, sha256, owner))

    def corpus_owners(self) -> list[tuple[str, str, float]]:
        """Returns hash, owner and time of last use for each owner of every corpus."""
        rows = self._rows("SELECT sha256, owner, used_s FROM corpus_owners ORDER BY sha256, owner")
        return [row for row in rows if all(map(isinstance, row, (str, str, float)))]

    def touch_corpus_owner(self, sha256: str, owner: str, now_s: float) -> None:
        """Notes that an owner used a corpus of its own at `now_s`."""
        statement = "UPDATE corpus_owners SET used_s = ? WHERE sha256 = ? AND owner = ?"
        self._do(statement, now_s, sha256, owner)

    def forget_corpus_owner(self, sha256: str, owner: str, before_s: float) -> bool:
        """Takes a corpus from an owner that last used it before a time.

        Returns:
            Whether it was one of the owner, and is not any more.
        """
        statement = "DELETE FROM corpus_owners WHERE sha256 = ? AND owner = ? AND used_s < ?"
        return bool(self._urgent(lambda: self._do(statement, sha256, owner, before_s)))

    def corpus_bytes(self, owner: str) -> int:
        """Returns the bytes of all corpora of an owner."""
        [(size,)] = self._rows("SELECT SUM(size) FROM corpus_owners WHERE owner = ?", owner)
        return int(size or 0)

    def add_file(self, row: FileRow) -> None:
        """Adds a file; its corpus belongs to its owner from now on."""
        values = (row.id, row.owner, row.name, row.sha256, row.size, row.created_s)
        with self._transaction():
            self._connection.execute("INSERT INTO files VALUES (?, ?, ?, ?, ?, ?)", values)
            if row.owner:
                owned = (row.sha256, row.owner, row.size, row.created_s)
                self._connection.execute(
                    "INSERT OR REPLACE INTO corpus_owners VALUES (?, ?, ?, ?)", owned
                )

    def files(
        self,
        owner: str | None = None,
        file: str | None = None,
        after: tuple[float, str] | None = None,
        limit: int = -1,
    ) -> list[FileRow]:
        """Returns files whose bytes are still there, the newest first.

        Args:
            owner: Their owner; None: any; empty: no file.
            file: The id of the only one; None: all.
            after: The place of the last file of the previous page; None: the first page.
            limit: The most files to return; -1: all.
        """
        terms = [_FILE_IS_KEPT]
        values = list[object]()
        if owner is not None:
            terms.append("owner = ? AND owner != ''")
            values.append(owner)
        if file is not None:
            terms.append("id = ?")
            values.append(file)
        if after is not None:
            terms.append("(created_s, id) < (?, ?)")
            values += after
        where = f"WHERE {' AND '.join(terms)} ORDER BY created_s DESC, id DESC LIMIT ?"
        names = ", ".join(TABLES["files"])
        rows = self._rows(f"SELECT {names} FROM files {where}", *values, limit)
        return [FileRow(*row) for row in rows if all(map(isinstance, row, _FILE_TYPES))]

    def forget_file(self, row: FileRow) -> None:
        """Deletes the row of a file, and takes its corpus from the owner if nothing else needs it.

        A corpus stays the owner's while another file of the owner or an unfinished job has it.
        """
        key = (row.sha256, row.owner)
        is_used = key in self.owned_corpora_in_use()

        def forget() -> None:
            with self._transaction():
                self._connection.execute("DELETE FROM files WHERE id = ?", (row.id,))
                if not is_used:
                    self._connection.execute(
                        "DELETE FROM corpus_owners WHERE sha256 = ? AND owner = ? AND NOT EXISTS "
                        "(SELECT 1 FROM files WHERE files.sha256 = ? AND files.owner = ?)",
                        key * 2,
                    )

        self._urgent(forget)

    def needs_corpus(self, sha256: str) -> bool:
        """Returns whether an owner, a file or an unfinished job has a corpus."""
        owned = self._rows("SELECT 1 FROM corpus_owners WHERE sha256 = ?", sha256)
        filed = self._rows("SELECT 1 FROM files WHERE sha256 = ?", sha256)
        return bool(owned or filed) or sha256 in self.corpora_in_use()

    def forget_lost_files(self) -> int:
        """Deletes the rows of files whose bytes are gone; returns how many there were."""
        statement = f"DELETE FROM files WHERE NOT ({_FILE_IS_KEPT})"
        return self._urgent(lambda: self._do(statement))

    def set_version_owner(
        self, model: str, version: int, owner: str, size: int, now_s: float
    ) -> None:
        """Notes whose job or stream makes a version of a model.

        Args:
            model: The name of the model.
            version: The version.
            owner: The owner; empty: no known one, and an earlier one is forgotten.
            size: Bytes of its file.
            now_s: The time, in seconds since the epoch.
        """
        if owner:
            statement = "INSERT OR REPLACE INTO version_owners VALUES (?, ?, ?, ?, ?)"
            values: tuple[object, ...] = (model, version, owner, size, now_s)
        else:
            statement = "DELETE FROM version_owners WHERE model = ? AND version = ?"
            values = (model, version)
        self._urgent(lambda: self._do(statement, *values))

    def version_owners(self) -> list[tuple[str, int, str, float]]:
        """Returns model, version, owner and time of every version with an owner."""
        rows = self._rows(
            "SELECT model, version, owner, created_s FROM version_owners ORDER BY model, version"
        )
        return [row for row in rows if all(map(isinstance, row, (str, int, str, float)))]

    def model_bytes(self, owner: str) -> int:
        """Returns the bytes of all versions of models of an owner."""
        [(size,)] = self._rows("SELECT SUM(size) FROM version_owners WHERE owner = ?", owner)
        return int(size or 0)

    def forget_versions(self, model: str, versions: Sequence[int]) -> None:
        """Deletes the owners of versions of a model."""
        statement = "DELETE FROM version_owners WHERE model = ? AND version = ?"

        def forget() -> None:
            with self._transaction():
                for version in versions:
                    self._connection.execute(statement, (model, version))

        self._urgent(forget)

    def corpora_in_use(self) -> set[str]:
        """Returns the hashes of the corpora of unfinished jobs."""
        return {sha256 for sha256, _ in self.owned_corpora_in_use()}

    def owned_corpora_in_use(self) -> set[tuple[str, str]]:
        """Returns the hashes of the corpora of unfinished jobs, each with the owner of the job.

        A job whose list of corpora cannot be read cannot continue, so it keeps none.
        """
        found = set[tuple[str, str]]()
        for row in self._jobs(f"WHERE state IN ({_UNFINISHED})"):
            with suppress(DatabaseError):
                found.update((sha256, row.owner) for sha256 in row.corpora())
        return found

    def _prepare(self, upgrade: bool) -> None:
        """Sets up the connection, and makes the tables of a new file."""
        # The version first: the file of a newer Treadle must not be changed.
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if not 0 <= version <= SCHEMA_VERSION + _NEWER:
            raise sqlite3.DatabaseError(f"its version is {version:,}, which does not exist")
        if version > SCHEMA_VERSION:
            raise NewerDatabaseError(
                f"the database {self._path} has version {version}, and this Treadle reads version "
                f"{SCHEMA_VERSION}: use a newer Treadle"
            )
        self._check_objects()
        for pragma in (
            *("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"),
            "secure_delete = ON",  # a repair must not bring deleted rows back
        ):
            self._connection.execute(f"PRAGMA {pragma}")
        if version == 0:
            with self._transaction():
                for statement in SCHEMA:
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        elif version < SCHEMA_VERSION and upgrade:
            with self._transaction():
                self._upgrade(version)
        elif version < SCHEMA_VERSION:
            self._connection.execute("BEGIN")  # closing the connection rolls this back
            self._upgrade(version)
        self._connection.execute(f"SELECT 1 FROM {', '.join(TABLES)} LIMIT 0")
        if upgrade:
            # A page of a list begins after a time and an id, so the time must be a real number.
            self._connection.execute(
                "UPDATE jobs SET created_s = 0.0 WHERE typeof(created_s) != 'real'"
            )

    def _check_objects(self) -> None:
        """Checks that the file holds nothing but tables and indexes.

        A trigger would run with each change, and reading a view may take for ever.
        """
        statement = (
            "SELECT type FROM sqlite_schema WHERE type NOT IN ('table', 'index') "
            "OR sql LIKE 'CREATE VIRTUAL%' LIMIT 1"
        )
        found = self._connection.execute(statement).fetchone()
        if found is not None:
            raise sqlite3.DatabaseError(f"it has a {found[0]} that Treadle has not made")

    def _upgrade(self, version: int) -> None:
        """Upgrades the tables of an older version, in a transaction."""
        for older in range(version, SCHEMA_VERSION):
            for statement in UPGRADES[older]:
                self._connection.execute(statement)
        self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _known(self, job: str) -> JobRow:
        row = self.job(job)
        if row is None:
            raise NoSuchJobError(f"there is no job {job!r}")
        return row

    def _change(self, job: str, changes: dict[str, Any]) -> None:
        if not changes:
            return
        places = ", ".join(f"{name} = ?" for name in changes)
        values = (*changes.values(), job)
        self._connection.execute(f"UPDATE jobs SET {places} WHERE id = ?", values)

    def _jobs(self, where: str, *values: object) -> list[JobRow]:
        return [read_row(row) for row in self._rows(f"{SELECT} {where}", *values)]

    def _rows(self, statement: str, *values: Any) -> list[Any]:
        with self._translated():
            return self._connection.execute(statement, values).fetchall()

    def _urgent(self, work: Callable[[], Result]) -> Result:
        """Runs a short piece of work; on a full disk again, after the spare space was released."""
        try:
            return work()
        except OSError as error:
            if not is_full(error) or self.spare is None or not self.spare.release():
                raise
            return work()

    def _do(self, statement: str, *values: Any) -> int:
        """Runs a statement in a transaction of its own; returns how many rows it changed."""
        with self._transaction():
            return self._connection.execute(statement, values).rowcount

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Commits all changes within, or none."""
        with self._translated():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                # SQLite has rolled back by itself where the disk is full.
                with suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Holds the lock, and translates SQLite's errors."""
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                if getattr(error, "sqlite_errorcode", None) in _FULL:
                    text = os.strerror(errno.ENOSPC)
                    raise OSError(errno.ENOSPC, text, str(self._path)) from error
                if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_CANTOPEN:
                    open_files.check()
                damaged = getattr(error, "sqlite_errorcode", None) in _DAMAGED
                kind = DamagedDatabaseError if damaged else DatabaseError
                raise kind(
                    f"the database {self._path} cannot be used ({error}): with no server running, "
                    f"try treadle-server --fsck --repair --data-dir {self._path.parent}"
                ) from error


def _check(changes: dict[str, Any]) -> None:
    for name in changes:
        if name not in COLUMNS or name in FIXED:
            raise TypeError(f"{name!r} is not a field of a job that may be changed")
