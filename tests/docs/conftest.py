from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from .pages import ROOT

NOT_IN_A_COPY = shutil.ignore_patterns(
    ".*", "__pycache__", "node_modules", "build", "dist", "treadle-data", "*.egg-info"
)


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Path]:
    """A directory with all that a checkout holds, but only each tenth line of the longest text.

    Each of many models would be validated on all of the text's end.
    """
    folder = tmp_path / "treadle"
    shutil.copytree(ROOT, folder, ignore=NOT_IN_A_COPY)
    text = folder / "examples" / "data" / "tinyshakespeare.txt"
    text.write_bytes(b"".join(text.read_bytes().splitlines(keepends=True)[::10]))
    yield folder
    shutil.rmtree(folder)
