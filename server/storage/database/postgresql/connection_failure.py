"""`translated` gives errors of psycopg their meaning for callers.

No message of PostgreSQL or psycopg has a password in it, apart from those about a malformed URL,
which are not repeated.
"""

from __future__ import annotations

import errno

import psycopg
from psycopg import errors

from treadle.server.failures import DatabaseError, DatabaseUnavailableError, DuplicateRowError

_PASSES = (
    *("08", "57"),  # no connection; the server shuts down, starts up or has cancelled a statement
    "53",  # too many connections, or too little memory
    *("40", "55"),  # a deadlock, or a row that is locked for too long
    "25006",  # a server that takes over, or has lost its place to another, is read-only
    "25P03",  # the connection was idle within a transaction, as in a server that was stopped
)
"""The beginnings of the codes of failures that pass by themselves."""


def translated(error: psycopg.Error, place: str) -> DatabaseError | OSError:
    """Returns the error for callers.

    Args:
        error: The error of psycopg.
        place: The database, as messages name it.
    """
    what = first_line(error)
    code = error.sqlstate or ""
    if isinstance(error, errors.DiskFull):
        return OSError(errno.ENOSPC, "the disk of the database is full", place)
    if isinstance(error, errors.UniqueViolation):
        return DuplicateRowError(f"{place} has this already ({what})")
    if is_down(error) or code.startswith(_PASSES):
        return DatabaseUnavailableError(f"{place} cannot be reached for now ({what})")
    return DatabaseError(f"{place} cannot be used ({what})")


def first_line(error: psycopg.Error) -> str:
    """Returns what an error says in short."""
    return str(error).strip().partition("\n")[0]


def is_down(error: psycopg.Error) -> bool:
    """Returns whether no connection can be expected to work: the server is gone or is not ready."""
    if isinstance(error, psycopg.InterfaceError):
        return True
    code = error.sqlstate or ""
    lost = not code and isinstance(error, psycopg.OperationalError)
    return lost or code.startswith(("08", "57P0"))
