"""What a data directory takes on its disk: measured in a thread, and not too often."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from treadle.server.resources import disk_usage
from treadle.server.resources.disk_usage import DiskUsage

from .harness import until


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for name, size in (
        ("models/m/1/model.safetensors", 1000),
        ("models/m/2/model.safetensors", 500),
        ("jobs/1/state", 30),
        ("corpora/abc", 7),
        ("treadle.db", 100),
        ("treadle.db-wal", 20),
        ("spare", 3),
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    (tmp_path / "elsewhere").write_bytes(b"x" * 10_000)
    (root / "models" / "link").symlink_to(tmp_path / "elsewhere")
    (root / "models" / "loop").symlink_to(root)
    return root


def test_sizes_by_what_they_hold(root: Path) -> None:
    async def test() -> None:
        usage = DiskUsage(root)
        await usage.refresh()
        await until(lambda: usage.sizes)
        links = sum(len(str(path.readlink())) for path in (root / "models").glob("l*"))
        assert usage.sizes == {
            "models": 1500 + links,
            "jobs": 30,
            "corpora": 7,
            "database": 120,
            "other": 3,
        }
        assert usage.free > 0
        (root / "corpora" / "new").write_bytes(b"x")
        await usage.refresh()  # so soon, it is that of before
        assert usage.sizes["corpora"] == 7
        (root / "cache").mkdir()
        (root / "cache" / "abc").write_bytes(b"xy")
        assert (await asyncio.to_thread(usage._walk))[0]["cache"] == 2

    asyncio.run(test())


def test_a_long_walk_holds_up_no_scrape(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        usage = DiskUsage(root)
        going = threading.Event()
        walks = []

        def walk() -> tuple[dict[str, float], float]:
            walks.append(1)
            going.wait(60)
            return {"models": 1.0}, 2.0

        monkeypatch.setattr(usage, "_walk", walk)
        monkeypatch.setattr(disk_usage, "_PATIENCE_S", 0.01)
        await usage.refresh()
        await usage.refresh()
        assert usage.sizes == {}
        assert len(walks) == 1
        going.set()
        await until(lambda: usage.sizes)
        assert usage.free == 2.0

    asyncio.run(test())


def test_a_directory_that_cannot_be_read_keeps_its_last_sizes(root: Path) -> None:
    async def test() -> None:
        usage = DiskUsage(root / "missing")
        await usage.refresh()
        assert usage.sizes == {}

    asyncio.run(test())
