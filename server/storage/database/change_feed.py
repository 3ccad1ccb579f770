"""`ChangeFeed` says in the event loop that something in a shared database has changed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING

from treadle.server.failures import DatabaseError
from treadle.server.storage.database.change import Change, ChangeKind

if TYPE_CHECKING:
    from treadle.server.storage.database import Database

logger = logging.getLogger(__name__)

_POLL_S = 1.0
"""Seconds after which callers look for changes themselves, while none are announced."""

ANYTHING = Change(ChangeKind.ANYTHING)
"""Changes may have been missed, so that anything may be new."""


class ChangeFeed:
    """The changes that any server makes, this one included.

    While the database announces none, ANYTHING comes once a second instead, so that those who wait
    for a change look for it then.

    Args:
        database: The database. One that is not shared has no changes.
        poll_s: Seconds between two such calls.
    """

    def __init__(self, database: Database, poll_s: float = _POLL_S) -> None:
        self._listen = database.engine.listen
        self._poll_s = poll_s
        self._callbacks = list[Callable[[Change], object]]()
        self._is_listening = False

    @property
    def is_listening(self) -> bool:
        """Whether changes are announced."""
        return self._is_listening

    def subscribe(self, callback: Callable[[Change], object]) -> None:
        """Has a function called, in the event loop, with each change."""
        self._callbacks.append(callback)

    async def run(self) -> None:
        """Passes changes on until it is cancelled; ends at once where there are none."""
        while (changes := self._listen()) is not None:
            try:
                await self._pass_on(changes)
            except Exception as error:  # whatever it is: all rely on the feed
                # With its traceback where it is no failure that is to be expected.
                unexpected = None if isinstance(error, DatabaseError | OSError) else error
                if self._is_listening or unexpected:
                    logger.warning(
                        "no changes by other servers are announced: %s", error, exc_info=unexpected
                    )
            finally:
                self._is_listening = False
            self._call(ANYTHING)
            await asyncio.sleep(self._poll_s)

    async def _pass_on(self, changes: AsyncGenerator[Change, None]) -> None:
        async with aclosing(changes):
            async for change in changes:
                if not self._is_listening:
                    logger.info("changes by other servers are announced by the database")
                self._is_listening = True
                self._call(change)

    def _call(self, change: Change) -> None:
        for callback in self._callbacks:
            try:
                callback(change)
            except Exception:  # the others need it as well
                logger.exception("a change could not be noted: %s", change.payload())
