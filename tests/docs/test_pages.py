"""Every command block of the pages runs as it stands, in order; test_readme.py has the README."""

from __future__ import annotations

from pathlib import Path

import pytest

from .changes import EDITS, ENDLESS, NOT_RUN, Endless, NotRun
from .pages import RUN, blocks, pages
from .reader import follow, is_run

BLOCKS = [block for page in pages() for block in blocks(page) if block.language in RUN]
PAGES = sorted({block.page for block in filter(is_run, BLOCKS)} - {"README.md"})


@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs(page: str, copy: Path) -> None:
    follow(page, copy)


def test_every_change_is_needed() -> None:
    for edit in EDITS:
        named = [block for block in BLOCKS if block.page == edit.page and edit.old in block.text]
        assert any(map(is_run, named)), edit
    entries: list[NotRun | Endless] = [*NOT_RUN, *ENDLESS]
    for entry in entries:
        named = [b for b in BLOCKS if b.page == entry.page and entry.text in b.text]
        assert len(named) == 1, entry
