"""`measure_sqlite` and `measure_postgresql` return what the server's statements take.

The tables and statements have the form of the server's: an event of a job is a transaction that
checks the fence, counts the event in the job's row and adds the event; with several servers it
also notifies them.
"""

from __future__ import annotations

import asyncio
import importlib
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from treadle.benchmarks.scale.postgresql_server import MissingError, PostgreSQL, run

_JOBS = 1000
"""Jobs that are not over, as in a fleet of a thousand machines."""
_PAYLOAD = 200
"""Bytes of an event of progress."""
_CLIENTS = 16
_LISTENERS = 200
_ROUNDS = 3
_IDLE = 50
_PATIENCE_S = 30.0

_TABLES = """
CREATE TABLE jobs (id INTEGER PRIMARY KEY, owner TEXT NOT NULL, state TEXT NOT NULL,
    queued_s DOUBLE PRECISION NOT NULL, holder TEXT NOT NULL, fence INTEGER NOT NULL,
    lease_until_s DOUBLE PRECISION NOT NULL, last_event INTEGER NOT NULL);
CREATE TABLE events (job INTEGER NOT NULL, sequence INTEGER NOT NULL,
    time_s DOUBLE PRECISION NOT NULL, payload TEXT NOT NULL, PRIMARY KEY (job, sequence));
"""

_NOW = "EXTRACT(EPOCH FROM clock_timestamp())"

_EVENT = f"""
\\set job random(1, {_JOBS})
BEGIN;
UPDATE jobs SET last_event = last_event + 1 WHERE id = :job AND fence = 1
    RETURNING last_event \\gset
INSERT INTO events VALUES (:job, :last_event, {_NOW}, repeat('x', {_PAYLOAD}));
-- notify
COMMIT;
"""
_NOTIFY = "SELECT pg_notify('treadle', 'job ' || :job || ' ' || :last_event);"

_RENEW = f"""
\\set job random(1, {_JOBS})
UPDATE jobs SET lease_until_s = {_NOW} + 10
    WHERE holder = 'replica' AND (id, fence) IN (VALUES (:job::integer, 1)) RETURNING id;
"""

_LOOK = f"""
SELECT 1 FROM jobs WHERE state IN ('QUEUED', 'RUNNING') AND lease_until_s < {_NOW} LIMIT 1;
"""

_ACQUIRE = f"""
BEGIN;
SELECT pg_advisory_xact_lock(1);
WITH waiting AS (SELECT id, owner, queued_s, ROW_NUMBER() OVER
        (PARTITION BY owner ORDER BY queued_s, id) AS place FROM jobs
        WHERE state IN ('QUEUED', 'RUNNING') AND lease_until_s < {_NOW}),
    held AS (SELECT owner, COUNT(*) AS count FROM jobs
        WHERE state IN ('QUEUED', 'RUNNING') AND lease_until_s >= {_NOW} GROUP BY owner)
SELECT waiting.id, waiting.owner, COALESCE(held.count, 0) AS running
    FROM waiting LEFT JOIN held ON held.owner = waiting.owner WHERE place = 1
    ORDER BY running, waiting.queued_s, waiting.id;
COMMIT;
"""


def measure_sqlite(seconds: float) -> dict[str, float]:
    """Returns constants of the database of a single server.

    Args:
        seconds: How long to measure.
    """
    with tempfile.TemporaryDirectory() as folder:
        connection = sqlite3.connect(Path(folder) / "scale.db", isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.executescript(_TABLES)
            connection.execute("INSERT INTO jobs VALUES (1, '', 'RUNNING', 0, '', 1, 0, 0)")
            found = []
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                began = time.perf_counter()
                _commit_event(connection)
                found.append(time.perf_counter() - began)
        finally:
            connection.close()
    return {"sqlite_event_s": statistics.median(found)}


def _commit_event(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    update = "UPDATE jobs SET last_event = last_event + 1 WHERE id = 1 RETURNING last_event"
    [(sequence,)] = connection.execute(update).fetchall()
    row = (1, sequence, time.time(), "x" * _PAYLOAD)
    connection.execute("INSERT INTO events VALUES (?, ?, ?, ?)", row)
    connection.execute("COMMIT")


def measure_postgresql(seconds: float) -> dict[str, float]:
    """Returns constants of the database that servers share.

    Args:
        seconds: For each of them.

    Raises:
        MissingError: PostgreSQL or psycopg is not installed.
    """
    try:
        psycopg = importlib.import_module("psycopg")
    except ImportError as error:
        raise MissingError(
            "psycopg is not installed: pip install '.[postgresql]' in a checkout of Treadle"
        ) from error
    with run() as server, psycopg.connect(server.conninfo, autocommit=True) as connection:
        connection.execute(_TABLES)
        connection.execute(
            "INSERT INTO jobs SELECT number, 'owner' || number % 20, 'RUNNING', number, "
            f"'replica', 1, {_NOW} + 3600, 0 FROM generate_series(1, {_JOBS}) AS number"
        )
        connection.execute("ANALYZE")
        notifying = _EVENT.replace("-- notify", _NOTIFY)
        alone = server.bench(notifying, 1, seconds)
        quiet = server.bench(_EVENT.replace("-- notify", ""), _CLIENTS, seconds)
        renewals = server.bench(_RENEW, _CLIENTS, seconds)
        looks = server.bench(_LOOK, _CLIENTS, seconds)
        choices = server.bench(_ACQUIRE, _CLIENTS, seconds)
        silent_s, heard_s = _notified_s(psycopg, server, notifying, seconds)
        return {
            "event_s": 1 / alone,
            "quiet_event_s": 1 / quiet,
            "notified_event_s": silent_s,
            "delivery_s": max(0.0, heard_s - silent_s) / _LISTENERS,
            "renewal_s": 1 / renewals,
            "look_s": 1 / looks,
            "acquire_s": 1 / choices,
            "backend_bytes": _backend_bytes(psycopg, server),
            "notification_s": _notification_s(psycopg, server),
        }


def _notified_s(
    psycopg: Any, server: PostgreSQL, script: str, seconds: float
) -> tuple[float, float]:
    """Returns the seconds of an event of which nobody is notified, or many, in turns."""
    silent = []
    heard = []
    for _ in range(_ROUNDS):
        silent.append(1 / server.bench(script, _CLIENTS, seconds))
        with _listeners(psycopg, server, _LISTENERS):
            heard.append(1 / server.bench(script, _CLIENTS, seconds))
    return statistics.median(silent), statistics.median(heard)


@contextmanager
def _listeners(psycopg: Any, server: PostgreSQL, count: int) -> Iterator[None]:
    """Keeps connections that listen, of which nobody reads, as busy servers would a moment later.

    What they get stays in the buffers of their sockets, and beyond those in PostgreSQL's queue.
    """
    with ExitStack() as stack:
        for _ in range(count):
            connection = stack.enter_context(psycopg.connect(server.conninfo, autocommit=True))
            connection.execute("LISTEN treadle")
        yield


def _backend_bytes(psycopg: Any, server: PostgreSQL) -> float:
    """Returns the memory of an idle connection that has run the server's statements.

    Memory that processes share counts in part for each (PSS), so the first ones stand for it.
    """
    with ExitStack() as stack:
        pids = []
        for _ in range(_IDLE):
            connection = stack.enter_context(psycopg.connect(server.conninfo, autocommit=True))
            connection.execute("SELECT COUNT(*) FROM jobs WHERE lease_until_s > 0")
            pids.append(connection.info.backend_pid)
        private = [_private_bytes(pid) for pid in pids]
    return statistics.median(private)


def _private_bytes(pid: int) -> int:
    """Returns the memory that a process shares with no other."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    sizes = {line.split(":")[0]: line.split()[1] for line in lines[1:]}
    return (int(sizes["Private_Clean"]) + int(sizes["Private_Dirty"])) * 1024


def _notification_s(psycopg: Any, server: PostgreSQL, count: int = 2000) -> float:
    """Returns the processor time that an event loop takes to receive a notification.

    They come one at a time, as from many servers, and not all at once.
    """

    async def receive() -> float:
        listening = await psycopg.AsyncConnection.connect(server.conninfo, autocommit=True)
        try:
            await listening.execute("LISTEN treadle")
            notifying = threading.Thread(target=notify)
            notifying.start()
            began = time.thread_time()
            got = 0
            async for _ in listening.notifies(timeout=_PATIENCE_S, stop_after=count):
                got += 1
            spent = time.thread_time() - began
            notifying.join()
        finally:
            await listening.close()
        if got < count:
            raise RuntimeError(f"only {got} of {count} notifications came in {_PATIENCE_S:.0f} s")
        return spent / got

    def notify() -> None:
        with psycopg.connect(server.conninfo, autocommit=True) as connection:
            connection.execute("SET synchronous_commit = off")
            for number in range(count):
                connection.execute(f"SELECT pg_notify('treadle', 'job {number} {number}')")

    return asyncio.run(receive())
