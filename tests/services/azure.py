"""A real server of Azure Blob Storage for tests: npm's azurite."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import shutil
import subprocess
import sysconfig
import time
import urllib.request
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

_PATIENCE_S = 60.0
_ACCOUNT = "treadle"
_VERSION = "2021-08-06"
CONTAINER = "blobs"


def azurite() -> str | None:
    """Returns the path of azurite's server of blobs; None where it is not installed."""
    name = "azurite-blob"
    return shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)


class AzureServer:
    """A server of Azure Blob Storage on 127.0.0.1, with one container."""

    def __init__(self, root: Path, program: str) -> None:
        self._key = base64.b64encode(os.urandom(64)).decode()
        command = [program, "--blobHost", "127.0.0.1", "--blobPort", "0", "--inMemoryPersistence"]
        command += ["--skipApiVersionCheck", "--disableTelemetry"]
        accounts = {"AZURITE_ACCOUNTS": f"{_ACCOUNT}:{self._key}"}
        log = root / "log"
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command, cwd=root, stdout=file, stderr=subprocess.STDOUT, env=os.environ | accounts
            )
        end = time.monotonic() + _PATIENCE_S
        pattern = r"successfully listens on http://127\.0\.0\.1:(\d+)"
        while not (found := re.search(pattern, log.read_text())):
            assert self._process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        self._endpoint = f"http://127.0.0.1:{found[1]}/{_ACCOUNT}"
        self._make_container()

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which a client finds the server."""
        return {
            "AZURE_STORAGE_ENDPOINT": self._endpoint,
            "AZURE_STORAGE_ACCOUNT_NAME": _ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": self._key,
        }

    def url(self, prefix: str) -> str:
        """The --blobs-url of a part of the container."""
        return f"az://{CONTAINER}/{prefix}"

    def stop(self) -> None:
        """Ends the server."""
        self._process.kill()
        self._process.wait(_PATIENCE_S)

    def _make_container(self) -> None:
        date = formatdate(usegmt=True)
        lines = ["PUT", *[""] * 11, f"x-ms-date:{date}", f"x-ms-version:{_VERSION}"]
        lines += [f"/{_ACCOUNT}/{_ACCOUNT}/{CONTAINER}", "restype:container"]
        signed = hmac.digest(base64.b64decode(self._key), "\n".join(lines).encode(), hashlib.sha256)
        headers = {
            "x-ms-date": date,
            "x-ms-version": _VERSION,
            "Authorization": f"SharedKey {_ACCOUNT}:{base64.b64encode(signed).decode()}",
        }
        url = f"{self._endpoint}/{CONTAINER}?restype=container"
        request = urllib.request.Request(url, method="PUT", headers=headers)
        with urllib.request.urlopen(request, timeout=_PATIENCE_S) as reply:
            assert reply.status == 201


@pytest.fixture(scope="session")
def azure_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureServer]:
    """A server of Azure Blob Storage; each test takes a prefix of its own."""
    program = azurite()
    if program is None:
        pytest.skip("azurite is not installed: make test-shared installs it, where npm is")
    server = AzureServer(tmp_path_factory.mktemp("azure"), program)
    try:
        yield server
    finally:
        server.stop()
