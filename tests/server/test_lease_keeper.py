"""When a server takes leases, and what it knows of the database meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from treadle.server.failures import DatabaseUnavailableError
from treadle.server.jobs.job import Job
from treadle.server.jobs.leases.lease_keeper import LeaseKeeper, Replica
from treadle.server.storage.database import Database
from treadle.server.storage.lease import Lease

from .harness import until

LEASE_S = 0.05


class ScriptedDatabase:
    """Has no job, and notes how it was asked for one."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.row: object = None
        """The job that it has, if any."""
        self.is_out = True
        """Whether nothing but `acquire_next` reaches it."""

    def acquire_next(self, *arguments: object, **named: Any) -> object:
        self.asked.append(named)
        return self.row

    def renew(self, *arguments: object) -> set[str]:
        assert arguments[1], "nothing is to be renewed"
        return set()

    def see_replica(self, *arguments: object) -> None:
        if self.is_out:
            raise DatabaseUnavailableError("it cannot be reached")

    forget_replica = forget_silent_replicas = see_replica


async def nothing(*_: object) -> None:
    pass


def keeper_of(
    database: ScriptedDatabase,
    *jobs: str,
    adopt: Callable[..., Awaitable[None]] = nothing,
    heed: Callable[[], Awaitable[None]] = nothing,
) -> LeaseKeeper:
    return LeaseKeeper(
        cast("Database", database),
        Replica("r", "", LEASE_S),
        {job: cast("Job", SimpleNamespace(id=job, lease=Lease())) for job in jobs},
        free_slots=lambda: 1,
        running_quota=lambda _: None,
        adopt=adopt,
        lose=lambda _: None,
        heed=heed,
    )


def test_the_call_that_ends_an_outage_takes_no_lease_that_ran_out_in_it() -> None:
    async def run() -> None:
        database = ScriptedDatabase()
        keeper = keeper_of(database)
        await asyncio.sleep(2 * LEASE_S)
        with pytest.raises(DatabaseUnavailableError):
            await keeper.renew()
        keeper.start()
        await until(lambda: database.asked)
        await keeper.stop()
        assert database.asked[0]["is_patient"]

    asyncio.run(run())


def test_a_server_without_leases_does_not_seem_to_reach_the_database() -> None:
    async def run() -> None:
        keeper = keeper_of(ScriptedDatabase())
        for _ in range(2):
            with pytest.raises(DatabaseUnavailableError):
                await keeper.renew()
            assert not keeper.is_reached

    asyncio.run(run())


def test_a_server_takes_no_job_that_it_has() -> None:
    async def run() -> None:
        database = ScriptedDatabase()
        keeper = keeper_of(database, "mine")
        keeper.shelve("damaged")
        database.is_out = False
        keeper.start()
        await until(lambda: database.asked)
        await keeper.stop()
        assert {*database.asked[0]["skipped"]} == {"mine", "damaged"}

    asyncio.run(run())


def test_requests_are_heeded_while_a_job_is_on_its_way_here() -> None:
    async def run() -> None:
        database = ScriptedDatabase()
        database.is_out = False
        database.row = "a job"
        heeded = 0

        async def never(*_: object) -> None:
            await asyncio.Event().wait()

        async def heed() -> None:
            nonlocal heeded
            heeded += 1

        keeper = keeper_of(database, adopt=never, heed=heed)
        keeper.start()
        await until(lambda: database.asked)
        before = heeded
        keeper.look()
        await until(lambda: heeded > before)
        await keeper.stop()

    asyncio.run(run())
