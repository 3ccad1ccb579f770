"""Every command block of the README runs as it stands, in order."""

from __future__ import annotations

from pathlib import Path

from .reader import follow


def test_every_block_runs(copy: Path) -> None:
    follow("README.md", copy)
