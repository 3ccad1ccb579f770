"""`open_database` opens the database of a `--database-url`."""

from __future__ import annotations

from treadle.server.failures import DatabaseError
from treadle.server.storage.database import Database


def open_database(url: str) -> Database:
    """Returns the database of a URL, with tables that are up to date.

    Args:
        url: Its URL.

    Raises:
        DatabaseUnavailableError: It cannot be reached.
        DatabaseError: It cannot be used, or the extra with its package is not installed.
    """
    try:
        from treadle.server.storage.database.postgresql.engine import PostgresqlEngine
    except ImportError as error:  # psycopg is there, but not the C library that it needs
        if isinstance(error, ModuleNotFoundError) and str(error.name).startswith("treadle"):
            raise
        raise DatabaseError(
            "--database-url needs psycopg, which is not installed: pip install "
            "'.[server,postgresql]' in a checkout of Treadle"
        ) from None
    return Database(PostgresqlEngine(url))
