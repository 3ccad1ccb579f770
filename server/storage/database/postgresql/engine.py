"""`PostgresqlEngine` keeps the database in PostgreSQL, for one server or for several.

Each statement and each transaction takes a connection of a small pool. Changes are announced by
NOTIFY within their transaction, so that servers hear of a change once it is visible, and never of
one that was rolled back.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any

import psycopg
from psycopg import sql

from treadle.server.failures import DatabaseError
from treadle.server.storage.database import migrations
from treadle.server.storage.database.change import Change
from treadle.server.storage.database.engine import Engine, Statements
from treadle.server.storage.database.postgresql.connection_pool import (
    BoundedConnection,
    ConnectionPool,
)
from treadle.server.storage.database.postgresql.connection_settings import ConnectionSettings
from treadle.server.storage.database.postgresql.listener import CHANNEL, listen
from treadle.server.storage.schema import SCHEMA_VERSION, NewerDatabaseError

CONNECTIONS = 8
"""The most connections of one server, without the one that listens."""

_NUL = "\N{SYMBOL FOR NULL}"
"""What stands for the character 0, which no text of PostgreSQL contains."""

_TYPES = {
    "BLOB": "BYTEA",
    "INTEGER": "BIGINT",
    "REAL": "DOUBLE PRECISION",
    "TEXT": 'TEXT COLLATE "C"',  # the order of SQLite, whatever the language of the database
    "WITHOUT ROWID": "",
}
_TYPE = re.compile(rf"\b(?:{'|'.join(_TYPES)})\b")


class PostgresqlEngine(Engine):
    """A database of PostgreSQL, whose tables are made or upgraded at the start.

    Args:
        url: Its URL, as libpq reads it.
        connections: The most connections.

    Raises:
        DatabaseUnavailableError: It cannot be reached.
        DatabaseError: It is of a newer Treadle, or cannot be used.
    """

    now = "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"
    greatest = "GREATEST"

    def __init__(self, url: str, *, connections: int = CONNECTIONS) -> None:
        self._settings = ConnectionSettings.of(url)
        self._pool = ConnectionPool(self._settings, connections)
        try:
            self._migrate()
        except BaseException:
            self._pool.close()
            raise

    def close(self) -> None:
        """Closes the connections."""
        self._pool.close()

    def rows(self, statement: str, /, *values: Any) -> list[Any]:
        """Runs a statement and returns its rows."""
        with self._pool.connection() as connection:
            return _Transaction(connection).rows(statement, *values)

    def run(self, statement: str, /, *values: Any) -> int:
        """Runs a statement and returns how many rows it changed."""
        with self._pool.connection() as connection:
            return _Transaction(connection).run(statement, *values)

    def notify(self, change: Change) -> None:
        """Notifies the other servers of a change, in a transaction of its own."""
        with self.transaction() as transaction:
            transaction.notify(change)

    def some_rows(self, max_bytes: int, statement: str, *values: Any) -> list[Any]:
        """Runs a statement and keeps its rows as long as more are needed.

        The others are read as well, one at a time: ending a statement early takes longer.

        Args:
            max_bytes: Bytes in the last column of the rows after which no more are returned.
            statement: The statement.
            values: Its values.

        Returns:
            The rows.
        """
        rows = list[Any]()
        size = 0
        with self._pool.connection() as connection, connection.cursor() as cursor:
            for row in cursor.stream(_query(statement), [*map(_value, values)]):
                if size < max_bytes or not rows:
                    rows.append(row)
                    size += len(row[-1])
        return rows

    @contextmanager
    def transaction(self, lock: str = "") -> Iterator[Statements]:
        """Commits all changes within, or none.

        Args:
            lock: Its name, if only one transaction of this name may run at a time, in all servers.

        Yields:
            What runs statements within the transaction.
        """
        with self._pool.connection() as connection:
            begin = f"BEGIN; SELECT pg_advisory_xact_lock({_key(lock)})" if lock else "BEGIN"
            connection.execute(begin, prepare=False)
            transaction = _Transaction(connection)
            try:
                yield transaction
                transaction.commit()
            except BaseException:
                with suppress(psycopg.Error):
                    connection.execute("ROLLBACK")
                raise

    def check_structure(self) -> None:
        """Does nothing: PostgreSQL checks its own pages, where its cluster has checksums."""

    def listen(self) -> AsyncGenerator[Change, None]:
        """Returns the changes that any server makes from now on: see `listener`."""
        return listen(self._settings)

    def _migrate(self) -> None:
        """Makes the tables, or those of an older version new; one server at a time does so."""
        place = self._settings.place
        with self._pool.connection() as connection:
            connection.answer_s = None
            connection.execute("SET statement_timeout = 0")
            try:
                encoding = connection.execute("SHOW server_encoding").fetchall()
                if encoding != [("UTF8",)]:
                    raise DatabaseError(
                        f"{place} has the encoding {encoding[0][0]}: make one with ENCODING 'UTF8'"
                    )
                with connection.transaction():
                    connection.execute(f"SELECT pg_advisory_xact_lock({_key('migrations')})")
                    _bring_up_to_date(connection, place)
            finally:
                with suppress(psycopg.Error):
                    connection.execute("RESET statement_timeout")
                connection.close()  # its limits are not those of the others


class _Transaction(Statements):
    """Runs statements on one connection, which is in a transaction or not.

    Args:
        connection: The connection.
    """

    def __init__(self, connection: BoundedConnection) -> None:
        self._connection = connection
        self._changes = list[Change]()

    def rows(self, statement: str, /, *values: Any) -> list[Any]:
        """Runs a statement and returns its rows."""
        cursor = self._connection.execute(_query(statement), [*map(_value, values)])
        return cursor.fetchall()

    def run(self, statement: str, /, *values: Any) -> int:
        """Runs a statement and returns how many rows it changed."""
        return self._connection.execute(_query(statement), [*map(_value, values)]).rowcount

    def notify(self, change: Change) -> None:
        """Notifies the other servers of a change, at the end of the transaction."""
        if change not in self._changes:
            self._changes.append(change)

    def commit(self) -> None:
        """Ends the transaction, with what it has to say, in one message to the database."""
        parts = [
            sql.SQL("SELECT pg_notify({}, {});").format(CHANNEL, change.payload())
            for change in self._changes
        ]
        self._connection.execute(sql.SQL("").join([*parts, sql.SQL("COMMIT")]), prepare=False)


def _bring_up_to_date(connection: BoundedConnection, place: str) -> None:
    """Applies the migrations that a database lacks, in a transaction.

    Raises:
        NewerDatabaseError: It has more than this Treadle knows.
    """
    connection.execute("CREATE TABLE IF NOT EXISTS treadle_schema (version BIGINT NOT NULL)")
    rows = connection.execute("SELECT version FROM treadle_schema").fetchall()
    version = rows[0][0] if rows else 0
    if version > SCHEMA_VERSION:
        raise NewerDatabaseError(
            f"{place} has version {version}, and this Treadle reads version {SCHEMA_VERSION}: use "
            "a newer Treadle"
        )
    for number in range(version + 1, SCHEMA_VERSION + 1):
        for statement in migrations.statements(number):
            connection.execute(as_postgresql(statement))
    if not rows:
        connection.execute("INSERT INTO treadle_schema VALUES (%s)", [SCHEMA_VERSION])
    elif version < SCHEMA_VERSION:
        connection.execute("UPDATE treadle_schema SET version = %s", [SCHEMA_VERSION])


def as_postgresql(statement: str) -> bytes:
    """Returns a statement of a migration with the types of PostgreSQL."""
    return _TYPE.sub(lambda found: _TYPES[found[0]], statement).encode()


@lru_cache(maxsize=1024)
def _query(statement: str) -> bytes:
    """Returns a statement in psycopg's notation."""
    return statement.replace("%", "%%").replace("?", "%s").encode()


def _value(value: Any) -> Any:
    if isinstance(value, str) and "\0" in value:
        return value.replace("\0", _NUL)
    return value


def _key(name: str) -> int:
    """Returns the number of an advisory lock, the same in every server."""
    digest = hashlib.sha256(f"treadle {name}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
