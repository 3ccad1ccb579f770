"""`ReplicaTable` keeps which servers share the database, and when each was seen last."""

from __future__ import annotations

from typing import TYPE_CHECKING

from treadle.server.storage.schema import ReplicaRow

if TYPE_CHECKING:
    from treadle.server.storage.database.engine import Engine


class ReplicaTable:
    """The servers that share a database. All times are by its clock.

    Args:
        engine: The database.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def see_replica(self, replica: str, address: str) -> None:
        """Notes that a server runs.

        Args:
            replica: Its id, another one for each start.
            address: Where others reach it.
        """
        now = self._engine.now
        self._engine.run(
            f"INSERT INTO replicas VALUES (?, ?, {now}, {now}) ON CONFLICT (id) "
            "DO UPDATE SET address = excluded.address, seen_s = excluded.seen_s",
            *(replica, address),
        )

    def replicas(self, within_s: float) -> list[ReplicaRow]:
        """Returns the servers that were seen in the last `within_s` seconds, by their start."""
        rows = self._engine.rows(
            "SELECT id, address, started_s, seen_s FROM replicas "
            f"WHERE seen_s >= {self._engine.now} - ? ORDER BY started_s, id",
            within_s,
        )
        return [ReplicaRow(*row) for row in rows]

    def forget_replica(self, replica: str) -> None:
        """Deletes a server that ends in order."""
        self._engine.run("DELETE FROM replicas WHERE id = ?", replica)

    def forget_silent_replicas(self, silent_s: float) -> int:
        """Deletes the servers that were not seen for `silent_s` seconds; returns how many."""
        return self._engine.run(
            f"DELETE FROM replicas WHERE seen_s < {self._engine.now} - ?", silent_s
        )

    def now_s(self) -> float:
        """Returns the time by the clock of the database, in seconds since the epoch."""
        [(now_s,)] = self._engine.rows(f"SELECT {self._engine.now}")
        return float(now_s)
