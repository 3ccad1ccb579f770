from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from treadle.client import Client

from .fake import FakeServer, FakeService


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides the settings of the user who runs the tests."""
    for name in [name for name in os.environ if name.startswith("TREADLE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", os.devnull)


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


@pytest.fixture(scope="session")
def real_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a `treadle-server` with an empty data directory."""
    folder = tmp_path_factory.mktemp("server")
    words = ["--address", "127.0.0.1:0", "--data-dir", str(folder / "data")]
    with (
        open(folder / "log", "wb") as log,
        subprocess.Popen(
            [sys.executable, "-m", "treadle.server", *words], stdout=subprocess.PIPE, stderr=log
        ) as process,
    ):
        assert process.stdout is not None
        ready = process.stdout.readline().decode()
        assert "listening on" in ready, (folder / "log").read_text()
        yield ready.split()[-1]
        process.terminate()
        assert process.wait(120) == 0
