"""Servers are killed and stopped at random, and PostgreSQL as well: each step is stored once."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from services.postgresql import PostgresqlServer

from treadle.server.failures import DatabaseUnavailableError
from treadle.server.storage.database import Database
from treadle.server.storage.database.postgresql.opening import open_database

from .lease_worker import LEASE_S, STEPS
from .samples import job_row

pytestmark = pytest.mark.shared

JOBS = 12
MOMENTS = 30
PATIENCE_S = 120.0


class Workers:
    """The processes of a campaign, each with an id of its own."""

    def __init__(self, url: str, count: int) -> None:
        self._url = url
        self._started = 0
        self.running = list[subprocess.Popen[bytes]]()
        for _ in range(count):
            self.start()

    def start(self) -> None:
        self._started += 1
        command = [sys.executable, str(Path(__file__).parent / "lease_worker.py"), self._url]
        process = subprocess.Popen([*command, f"w{self._started}"], stdout=subprocess.DEVNULL)
        self.running.append(process)

    def kill(self, chance: random.Random) -> None:
        """Kills one, and starts another."""
        process = self.running.pop(chance.randrange(len(self.running)))
        process.kill()
        process.wait(PATIENCE_S)
        self.start()

    def stop(self, chance: random.Random) -> None:
        """Stops one for longer than its lease, and lets it continue."""
        process = chance.choice(self.running)
        process.send_signal(signal.SIGSTOP)
        time.sleep(LEASE_S * 1.3)
        process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        for process in self.running:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait(PATIENCE_S)


@pytest.mark.parametrize("seed", [1, 2])
def test_each_step_of_each_job_is_stored_once(
    own_postgresql_server: PostgresqlServer, seed: int
) -> None:
    server = own_postgresql_server
    chance = random.Random(seed)
    database = open_database(server.url())
    for number in range(JOBS):
        database.add_job(job_row(f"j{number:02}", owner=f"o{number % 3}"), b"0 queued")
    workers = Workers(server.url(), 3)
    try:
        for _ in range(MOMENTS):
            time.sleep(chance.uniform(0.0, 0.3))
            kind = chance.choice(["kill", "kill", "stop", "restart"])
            if kind == "kill":
                workers.kill(chance)
            elif kind == "stop":
                workers.stop(chance)
            else:
                server.stop(chance.choice([signal.SIGINT, signal.SIGQUIT]))
                time.sleep(chance.uniform(0.0, 0.5))
                server.start()
        end = time.monotonic() + PATIENCE_S
        while left(database) > 0:
            assert time.monotonic() < end
            time.sleep(0.1)
    finally:
        workers.end()
    for number in range(JOBS):
        job = f"j{number:02}"
        row = database.job(job)
        assert row is not None
        events = database.events(job, 0, STEPS + 2)
        steps = [int(payload.split()[0]) for _, _, payload in events]
        assert steps == list(range(STEPS + 1)), job
        assert [sequence for sequence, _, _ in events] == list(range(1, STEPS + 2))
        assert (row.state, row.last_sequence) == ("succeeded", STEPS + 1)
        fences = [int(payload.split()[-1]) for _, _, payload in events[1:]]
        assert fences == sorted(fences)
    database.close()


def left(database: Database) -> int:
    """Returns how many jobs are not over."""
    try:
        return database.count_jobs(["queued", "running"])
    except DatabaseUnavailableError:
        return JOBS
