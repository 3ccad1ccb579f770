"""A process that works on jobs under leases, as `test_lease_campaign` starts, stops and kills it.

The work on a job is to count to STEPS: each step is an event, and the last one is the job's end. It
continues from the `progress` of the row, as a training job does from its checkpoint.
"""

from __future__ import annotations

import sys
import time

from treadle.server.failures import DatabaseUnavailableError, LostLeaseError
from treadle.server.storage.database import Database
from treadle.server.storage.database.postgresql.opening import open_database
from treadle.server.storage.schema import JobRow

STEPS = 120
LEASE_S = 1.0


def work(database: Database, replica: str) -> None:
    """Works on jobs until it is killed."""
    while True:
        try:
            row = database.acquire_next(replica, LEASE_S)
        except DatabaseUnavailableError:
            row = None
        if row is None:
            time.sleep(0.05)
            continue
        try:
            count(database, replica, row)
        except LostLeaseError:
            print("lost", flush=True)


def count(database: Database, replica: str, row: JobRow) -> None:
    """Counts to the end, however often the database is away.

    Raises:
        LostLeaseError: Somebody else counts by now.
    """
    last = row.last_sequence
    for step in range(int(row.progress or b"0") + 1, STEPS + 1):
        changes = {"state": "succeeded"} if step == STEPS else {"state": "running"}
        payload = f"{step} by {replica} under {row.fence}".encode()
        last = stored(database, row, last, payload, step, changes)
        time.sleep(0.02)
        try:
            if database.renew(replica, {row.id: row.fence}, LEASE_S) and step < STEPS:
                raise LostLeaseError(row.id)
        except DatabaseUnavailableError:
            continue


def stored(
    database: Database, row: JobRow, last: int, payload: bytes, step: int, changes: dict[str, str]
) -> int:
    """Stores an event, once, and returns its number."""
    while True:
        try:
            return database.append_event(
                *(row.id, payload, time.time()),
                fence=row.fence,
                after=last,
                progress=str(step).encode(),
                **changes,
            )
        except DatabaseUnavailableError:
            time.sleep(0.05)


if __name__ == "__main__":
    while True:
        try:
            opened = open_database(sys.argv[1])
            break
        except DatabaseUnavailableError:
            time.sleep(0.1)
    work(opened, sys.argv[2])
