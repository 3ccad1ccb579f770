"""`ConnectionPool` lends connections to threads.

Its waits have limits. Once the server of the database cannot be reached, one caller at a time tries
it again, and all others fail at once: otherwise each thread of the server would wait in turn.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from treadle.server.failures import DatabaseUnavailableError
from treadle.server.storage.database.postgresql.connection_failure import (
    first_line,
    is_down,
    translated,
)
from treadle.server.storage.database.postgresql.connection_settings import ConnectionSettings

_ANSWER_S = 10.0
"""Seconds within which a statement is answered; the connection is given up otherwise."""
_STATEMENT_S = 8.0
"""Seconds after which the server of the database cancels a statement by itself."""
_SILENT_S = 5.0
"""Seconds after which it ends a transaction in which nothing happens, so that a server that is
stopped holds no lock for longer."""
_RETRY_S = 0.5
"""Seconds after an attempt to reach it that failed, in which there is no further one."""
_ATTEMPT_S = 0.2
"""Seconds that a caller waits for the attempt of another."""


class BoundedConnection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that does not wait for an answer for ever, not even of a server that hangs."""

    answer_s: float | None = _ANSWER_S
    """Seconds within which a statement is answered; None: any time."""

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        """Returns the answer that psycopg waits for; after the time is over it raises an error."""
        return super().wait(gen, interval, self.answer_s if timeout is None else timeout)


class ConnectionPool:
    """Up to `size` connections, which are made when they are needed.

    Args:
        settings: How connections are made.
        size: The most connections.
    """

    def __init__(self, settings: ConnectionSettings, size: int) -> None:
        self._settings = settings
        self._free = threading.BoundedSemaphore(size)
        self._lock = threading.Lock()
        self._idle = list[BoundedConnection]()
        self._lent = threading.local()
        self._closed = False
        self._failure = ""
        """Why the server of the database was not reached last; empty: it was."""
        self._retry_at = 0.0
        self._trying = threading.Lock()

    @contextmanager
    def connection(self) -> Iterator[BoundedConnection]:
        """Lends a connection that is in no transaction, and expects it back like that.

        Yields:
            The connection.

        Raises:
            DatabaseUnavailableError: There is no connection.
            DatabaseError: The database failed.
            OSError: Its disk is full.
        """
        if getattr(self._lent, "connection", None) is not None:
            raise RuntimeError("a thread has one connection at a time, or all could wait for all")
        if not self._free.acquire(timeout=_ANSWER_S):
            raise DatabaseUnavailableError(
                f"all connections to {self._settings.place} were in use for {_ANSWER_S:.0f} s"
            )
        try:
            connection = self._take()
            self._lent.connection = connection
            try:
                yield connection
            finally:
                self._lent.connection = None
                self._give_back(connection)
        except psycopg.Error as error:
            if is_down(error):
                self._note_failure(error)
            raise translated(error, self._settings.place) from error
        finally:
            self._free.release()

    def close(self) -> None:
        """Closes the connections, those in use once they come back."""
        with self._lock:
            self._closed = True
        self._close_idle()

    def _take(self) -> BoundedConnection:
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return self._connected()
            # A server that has ended has left its farewell, or the end of the connection, there.
            if not _has_input(connection):
                return connection
            connection.close()

    def _connected(self) -> BoundedConnection:
        """Returns a new connection.

        Raises:
            psycopg.Error: The database cannot be reached.
            DatabaseUnavailableError: It could not a moment ago.
        """
        if not self._failure:
            return self._connect()
        # Where only one connection was lost, the attempt succeeds in much less.
        if not self._trying.acquire(timeout=_ATTEMPT_S):
            raise self._unavailable()
        try:
            if self._failure and time.monotonic() < self._retry_at:
                raise self._unavailable()
            connection = self._connect()
            self._failure = ""
        except psycopg.Error:
            self._retry_at = time.monotonic() + _RETRY_S
            raise
        finally:
            self._trying.release()
        return connection

    def _unavailable(self) -> DatabaseUnavailableError:
        return DatabaseUnavailableError(
            f"{self._settings.place} cannot be reached for now ({self._failure})"
        )

    def _connect(self) -> BoundedConnection:
        connection = BoundedConnection.connect(autocommit=True, **self._settings.parameters)
        try:
            connection.execute(
                f"SET statement_timeout = {_STATEMENT_S * 1000:.0f}; "
                f"SET idle_in_transaction_session_timeout = {_SILENT_S * 1000:.0f}",
                prepare=False,
            )
        except BaseException:
            connection.close()
            raise
        return connection

    def _give_back(self, connection: BoundedConnection) -> None:
        is_usable = connection.info.transaction_status == TransactionStatus.IDLE
        with self._lock:
            if is_usable and not self._closed:
                self._idle.append(connection)
                return
        with suppress(psycopg.Error):
            connection.close()

    def _note_failure(self, error: psycopg.Error) -> None:
        self._failure = first_line(error)
        self._close_idle()  # they lead to the same server

    def _close_idle(self) -> None:
        with self._lock:
            idle = self._idle
            self._idle = []
        for connection in idle:
            with suppress(psycopg.Error):
                connection.close()


def _has_input(connection: BoundedConnection) -> bool:
    """Returns whether something arrived, or the end of the connection."""
    poll = select.poll()  # `select` takes no descriptor above 1023
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))
