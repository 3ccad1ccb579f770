"""The names under which files are written before they are whole, and what a killed writer left.

A file is written next to its place, as `.NAME.RANDOM.tmp`, and renamed once it is synced. A
process that is killed meanwhile leaves it; nobody reads it, and whoever has the folder to himself
removes it.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


def temporary_path(path: Path) -> Path:
    """Returns where a file is written before it takes its place."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def leftovers(folder: Path) -> Iterator[Path]:
    """Yields the files in a folder that are not whole; none where there is no such folder.

    Raises:
        OSError: The folder cannot be read.
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        for path in folder.iterdir():
            if _TEMPORARY.fullmatch(path.name) and not path.is_dir():
                yield path


def remove_leftovers(folder: Path) -> int:
    """Removes what writers that were killed left in a folder, in which nobody writes now.

    Returns:
        How many files were removed.

    Raises:
        OSError: The disk failed.
    """
    found = list(leftovers(folder))
    for path in found:
        path.unlink(missing_ok=True)
    return len(found)
