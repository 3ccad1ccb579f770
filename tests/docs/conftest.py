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
    """A directory with all that a checkout holds."""
    folder = tmp_path / "treadle"
    shutil.copytree(ROOT, folder, ignore=NOT_IN_A_COPY)
    yield folder
    shutil.rmtree(folder)
