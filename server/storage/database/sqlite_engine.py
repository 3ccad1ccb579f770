"""`SqliteEngine` keeps the database in one SQLite file, `DATA_DIR/treadle.db`.

Every change is one transaction in a write-ahead log, synced before its method returns: after a
crash or a loss of power it is there whole or not at all. Only one server uses the file, since the
data directory is locked.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from treadle.server.failures import DamagedDatabaseError, DatabaseError, DuplicateRowError, is_full
from treadle.server.resources import open_files
from treadle.server.storage.database.change import Change
from treadle.server.storage.database.engine import Engine
from treadle.server.storage.files import SpareSpace, check_file
from treadle.server.storage.schema import (
    SCHEMA_VERSION,
    TABLES,
    NewerDatabaseError,
    text,
)

Result = TypeVar("Result")

_NEWER = 1000
"""A schema version that is higher by more than this is damage, not a newer Treadle."""

_LARGEST_ROW = 1 << 26
"""Bytes of the largest row and value that are read or written; what Treadle stores is far smaller.
A larger one is damage."""

_DAMAGED = (
    *(sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_CORRUPT_INDEX, sqlite3.SQLITE_CORRUPT_VTAB),
    *(sqlite3.SQLITE_CORRUPT_SEQUENCE, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_TOOBIG),
)
_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
_DUPLICATE = (sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, sqlite3.SQLITE_CONSTRAINT_UNIQUE)


class SqliteEngine(Engine):
    """The database of one data directory.

    Args:
        path: Its file; made, closed to others, if it is missing.
        upgrade: Whether to upgrade the tables of an older Treadle, which then refuses the file. If
            not, they are upgraded for this object alone, which must only read.

    Raises:
        DatabaseError: It is damaged, of a newer Treadle, or cannot be opened.
        OSError: The disk failed or is full.
    """

    now = "((julianday('now') - 2440587.5) * 86400.0)"
    greatest = "MAX"

    def __init__(self, path: Path, *, upgrade: bool = True) -> None:
        self._path = path
        self.spare: SpareSpace | None = None
        """Space to give up where a full disk prevents a job from ending or being deleted."""
        self._lock = threading.RLock()
        # Made here, since SQLite would make it readable for all; its log gets the same mode.
        for name in (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))):
            check_file(name)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o660))
        with self.translated():
            self.connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            """The connection, for those who need more than the methods of an engine."""
            self.connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LARGEST_ROW)
            self.connection.text_factory = text  # one bad byte must not fail a whole list
        try:
            with self.translated():
                self._prepare(upgrade)
        except BaseException:
            self.connection.close()
            raise

    def close(self) -> None:
        """Closes the file, into which SQLite moves the rest of the log."""
        with self._lock:
            self.connection.close()

    def rows(self, statement: str, /, *values: Any) -> list[Any]:
        """Runs a statement and returns its rows."""
        with self.translated():
            return self.connection.execute(statement, values).fetchall()

    def run(self, statement: str, /, *values: Any) -> int:
        """Runs a statement and returns how many rows it changed."""
        with self.translated():
            return self.connection.execute(statement, values).rowcount

    def notify(self, change: Change) -> None:
        """Does nothing: no other server uses the file."""

    def some_rows(self, max_bytes: int, statement: str, *values: Any) -> list[Any]:
        """Runs a statement and reads its rows as long as more are needed."""
        rows = list[Any]()
        size = 0
        with self.translated(), closing(self.connection.cursor()) as cursor:
            for row in cursor.execute(statement, values):
                rows.append(row)
                size += len(row[-1]) if isinstance(row[-1], bytes) else 0
                if size >= max_bytes:
                    break
        return rows

    def urgent(self, work: Callable[[], Result]) -> Result:
        """Runs a short piece of work; on a full disk again, after the spare space was released."""
        try:
            return work()
        except OSError as error:
            if not is_full(error) or self.spare is None or not self.spare.release():
                raise
            return work()

    @contextmanager
    def transaction(self, lock: str = "") -> Iterator[SqliteEngine]:
        """Commits all changes within, or none."""
        with self.translated():
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self
                self.connection.execute("COMMIT")
            except BaseException:
                # SQLite has rolled back by itself where the disk is full.
                with suppress(sqlite3.Error):
                    self.connection.execute("ROLLBACK")
                raise

    def check_structure(self) -> None:
        """Checks that no page is damaged."""
        with self.translated():
            for (found,) in self.connection.execute("PRAGMA quick_check(20)"):
                if found != "ok" and " value in " not in found:
                    raise sqlite3.DatabaseError(str(found).partition("\n")[0])

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Holds the lock, and translates SQLite's errors."""
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                code = getattr(error, "sqlite_errorcode", None)
                if code in _FULL:
                    text = os.strerror(errno.ENOSPC)
                    raise OSError(errno.ENOSPC, text, str(self._path)) from error
                if code == sqlite3.SQLITE_CANTOPEN:
                    open_files.check()
                kind = DamagedDatabaseError if code in _DAMAGED else DatabaseError
                if code in _DUPLICATE:
                    kind = DuplicateRowError
                raise kind(
                    f"the database {self._path} cannot be used ({error}): with no server running, "
                    f"try treadle-server --fsck --repair --data-dir {self._path.parent}"
                ) from error

    def _prepare(self, upgrade: bool) -> None:
        """Sets up the connection, and makes the tables of a new file."""
        # The version first: the file of a newer Treadle must not be changed.
        (version,) = self.connection.execute("PRAGMA user_version").fetchone()
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
            self.connection.execute(f"PRAGMA {pragma}")
        if version < SCHEMA_VERSION and (upgrade or version == 0):
            with self.transaction():
                self._migrate(version)
        elif version < SCHEMA_VERSION:
            self.connection.execute("BEGIN")  # closing the connection rolls this back
            self._migrate(version)
        self.connection.execute(f"SELECT 1 FROM {', '.join(TABLES)} LIMIT 0")
        if upgrade:
            # A page of a list begins after a time and an id, so the time must be a real number.
            self.connection.execute(
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
        found = self.connection.execute(statement).fetchone()
        if found is not None:
            raise sqlite3.DatabaseError(f"it has a {found[0]} that Treadle has not made")

    def _migrate(self, version: int) -> None:
        """Makes the tables of a new file, or those of an older version new, in a transaction."""
        # Imported here, since most servers start with tables that are up to date.
        from treadle.server.storage.database import migrations

        for number in range(version + 1, SCHEMA_VERSION + 1):
            for statement in migrations.statements(number):
                self.connection.execute(statement)
        self.connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
