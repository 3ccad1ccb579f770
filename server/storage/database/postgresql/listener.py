"""`listen` yields the changes of which the servers of one database notify each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import psycopg

from treadle.server.failures import DatabaseUnavailableError
from treadle.server.storage.database.change import Change, ChangeKind
from treadle.server.storage.database.postgresql.connection_failure import translated
from treadle.server.storage.database.postgresql.connection_settings import ConnectionSettings

CHANNEL = "treadle"
"""The channel of the notifications."""

_QUIET_S = 5.0
"""Seconds without a notification after which the connection is tried."""


async def listen(settings: ConnectionSettings) -> AsyncGenerator[Change, None]:
    """Yields changes until the connection ends.

    The first one is ANYTHING, and every later change follows.

    Args:
        settings: How the connection is made.

    Yields:
        The changes.

    Raises:
        DatabaseUnavailableError: The connection ended, or was not made.
        DatabaseError: The database failed.
    """
    connection: psycopg.AsyncConnection | None = None
    try:
        connection = await psycopg.AsyncConnection.connect(autocommit=True, **settings.parameters)
        await connection.execute(f"LISTEN {CHANNEL}")
        yield Change(ChangeKind.ANYTHING)
        while True:
            async for notification in connection.notifies(timeout=_QUIET_S):
                yield Change.parse(notification.payload)
            async with asyncio.timeout(_QUIET_S):
                await connection.execute("SELECT 1")
    except psycopg.Error as error:
        raise translated(error, settings.place) from error
    except TimeoutError as error:
        raise DatabaseUnavailableError(f"{settings.place} does not answer") from error
    finally:
        if connection is not None:
            await connection.close()
