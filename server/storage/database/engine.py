"""`Engine` runs the statements of the tables in one database.

Statements are in the part of SQL that all engines share, with `?` for each value. What differs is
an attribute of the engine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from treadle.server.storage.database.change import Change

Result = TypeVar("Result")


class Statements(ABC):
    """Runs statements, within a transaction or each in one of its own."""

    @abstractmethod
    def rows(self, statement: str, /, *values: Any) -> list[Any]:
        """Runs a statement and returns its rows."""

    @abstractmethod
    def run(self, statement: str, /, *values: Any) -> int:
        """Runs a statement and returns how many rows it changed."""

    @abstractmethod
    def notify(self, change: Change) -> None:
        """Notifies the other servers of a change, at the end of the transaction."""


class Engine(Statements):
    """One database. Every method blocks and may be called from any thread.

    A statement outside a transaction is one of its own.
    """

    now: str
    """An expression: seconds since the epoch by the clock of the database."""
    greatest: str
    """The function that returns the greatest of several values."""

    @abstractmethod
    def transaction(self, lock: str = "") -> AbstractContextManager[Statements]:
        """Commits all changes within, or none.

        Args:
            lock: Its name, if only one transaction of this name may run at a time.
        """

    @abstractmethod
    def some_rows(self, max_bytes: int, statement: str, *values: Any) -> list[Any]:
        """Runs a statement and returns its first rows.

        Args:
            max_bytes: Bytes in the last column of the rows after which no more are returned.
            statement: The statement.
            values: Its values.
        """

    def urgent(self, work: Callable[[], Result]) -> Result:
        """Runs a short piece of work for which the engine may use space that it keeps back."""
        return work()

    @abstractmethod
    def check_structure(self) -> None:
        """Checks, as far as the engine can tell, that no page is damaged.

        Writing would make damage worse.

        Raises:
            DatabaseError: Pages are damaged. A row with an invalid value is no error here.
        """

    def listen(self) -> AsyncGenerator[Change, None] | None:
        """Returns the changes that any server makes from now on; None: nobody else makes any."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Closes the database."""
