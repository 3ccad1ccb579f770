"""`RowRepair` reads and writes the rows of a data directory's database as `--fsck` needs them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from treadle.server.storage.database.sqlite_engine import SqliteEngine
from treadle.server.storage.schema import TABLES


class RowRepair:
    """The rows of a SQLite file, some of which may be damaged.

    Args:
        engine: The database.
    """

    def __init__(self, engine: SqliteEngine) -> None:
        self._engine = engine

    def check(self) -> list[str]:
        """Returns the damage that SQLite finds in the file, as sentences; none if it is whole."""
        found = [str(text) for (text,) in self._engine.rows("PRAGMA integrity_check(20)")]
        if found == ["ok"]:
            found = []
        for table, row, *_ in self._engine.rows("PRAGMA foreign_key_check"):
            found.append(f"row {row} of {table} belongs to no job")
        return found

    def scan(self) -> Iterator[tuple[str, Sequence[Any]]]:
        """Yields the table and the stored values of every row."""
        with self._engine.translated():
            for table, columns in TABLES.items():
                names = ", ".join(columns)
                statement = f"SELECT {names} FROM {table} NOT INDEXED"
                for values in self._engine.connection.execute(statement):
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
        with self._engine.transaction() as transaction:
            for table, values in rows:
                statement = f"INSERT OR IGNORE INTO {table} VALUES ({places[table]})"
                added[table] += transaction.run(statement, *values)
        return added

    def lost_events(self) -> list[tuple[str, int]]:
        """Returns the jobs whose last event is missing, and the number of the last one."""
        return self._engine.rows(
            "SELECT id, last_sequence FROM jobs WHERE last_sequence > 0 AND NOT EXISTS "
            "(SELECT 1 FROM events WHERE job = id AND sequence >= last_sequence)"
        )

    def uncounted_events(self) -> list[tuple[str, int]]:
        """Returns the jobs with events after their last one, and the greatest number of these."""
        return self._engine.rows(
            "SELECT id, MAX(sequence) FROM jobs JOIN events ON job = id "
            "GROUP BY id HAVING MAX(sequence) > last_sequence"
        )

    def count_events(self, job: str, last_sequence: int) -> None:
        """Stores the number of a job's last event."""
        self._engine.run("UPDATE jobs SET last_sequence = ? WHERE id = ?", last_sequence, job)

    def add_lost_event(self, job: str, sequence: int, time_s: float) -> None:
        """Adds an empty event in the place of a job's last one, which is lost."""
        self.load([("events", (job, sequence, time_s, b""))])
