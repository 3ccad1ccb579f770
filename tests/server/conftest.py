"""Fixtures: a server for each test that changes it, and a shared one for all others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from services.azure import azure_server
from services.postgresql import (
    PostgresqlServer,
    own_postgresql_server,
    postgresql_server,
    postgresql_url,
)
from services.s3 import own_s3_server, s3_server

from treadle.server.storage.database import Database
from treadle.server.storage.schema import SHARED_TABLES, TABLES

from .harness import Caller, Server, tiny_spec
from .tenants import CALLERS, Company
from .web import Web

__all__ = [
    "azure_server",
    "own_postgresql_server",
    "own_s3_server",
    "postgresql_server",
    "postgresql_url",
    "s3_server",
]


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty database of each engine."""
    if request.param == "postgresql":
        database = request.getfixturevalue("emptied_database")
        for table in (*TABLES, *SHARED_TABLES):
            database.engine.run(f"DELETE FROM {table}")
        yield database
        return
    database = Database(tmp_path / "any.db")
    yield database
    database.close()


@pytest.fixture(scope="session")
def emptied_database(postgresql_server: PostgresqlServer) -> Iterator[Database]:
    """One database of PostgreSQL for all tests of `database`, which is quicker than new ones."""
    from treadle.server.storage.database.postgresql.engine import PostgresqlEngine

    url = postgresql_server.url(postgresql_server.new_database())
    database = Database(PostgresqlEngine(url))
    yield database
    database.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that do not end, fill or change it."""
    server = Server(tmp_path_factory.mktemp("server") / "data", "--training-slots", "2")
    yield server
    server.close()


@pytest.fixture
def caller(server: Server) -> Caller:
    return server.caller


@pytest.fixture(scope="session")
def model(server: Server) -> str:
    """The name of a model that is there, of pieces of TEXT."""
    return server.caller.trained(tiny_spec("shared", max_steps=60)).name


@pytest.fixture(scope="session")
def http_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with an HTTP address for all tests that do not end, fill or change it."""
    data = tmp_path_factory.mktemp("http") / "data"
    server = Server(data, "--http-address", "127.0.0.1:0", "--standby-workers", "0")
    yield server
    server.close()
    for sign in ("Traceback", "Fatal", "internal error", "never retrieved"):
        assert sign not in server.log


@pytest.fixture
def web(http_server: Server) -> Web:
    """A client of its HTTP address."""
    return Web(http_server.http_url)


@pytest.fixture(scope="session")
def http_model(http_server: Server) -> str:
    """The name of a model that is there, of pieces of TEXT."""
    return http_server.caller.trained(tiny_spec("shared", max_steps=60)).name


def company_jobs() -> dict[str, tuple[str, str]]:
    """Returns the owner and the state of each job of a company by its id."""
    jobs = {"old-jobs": ("", "succeeded")}
    for number in range(5):
        jobs |= {f"ann-{number}": ("ann", "succeeded"), f"bob-{number}": ("bob", "succeeded")}
    jobs |= {"ann-done": ("ann", "succeeded"), "ann-held": ("ann", "paused")}
    jobs["held-by-bob"] = ("bob", "paused")
    jobs["ann-damaged"] = ("ann", "in no state")
    jobs |= {f"for-{name}": ("ann", "succeeded") for name in CALLERS}
    return jobs


@pytest.fixture(scope="session")
def company(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Company]:
    """A server with callers, and with things of theirs that no test takes from another test."""
    company = Company(tmp_path_factory.mktemp("company"), company_jobs())
    yield company
    company.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers of a test's own; they end with it."""
    servers: list[Server] = []

    def begin(*flags: str, **how: Any) -> Server:
        # A process standing by would only take time here; a test that needs one says so.
        servers.append(Server(tmp_path / "data", "--standby-workers", "0", *flags, **how))
        return servers[-1]

    yield begin
    for server in servers:
        server.close()
    logs = "".join(server.log for server in servers)
    for sign in ("Traceback", "Fatal", "internal error", "never retrieved"):
        assert sign not in logs
