from __future__ import annotations

from collections.abc import Iterator

import pytest

from treadle.client import Client

from .fake import FakeServer, FakeService


@pytest.fixture
def server() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.stop()


@pytest.fixture
def service(server: FakeServer) -> FakeService:
    return server.service


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    with Client(server.address) as client:
        yield client
