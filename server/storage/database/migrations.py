"""`statements` reads the numbered files that bring the tables from one version to the next.

The file `NNNN_NAME.sql` makes version NNNN of the one before; the first begins with nothing.
All engines apply the same files, in the notation of SQLite. A file never changes once it was
released: what is to be different goes into a new one.
"""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).parent / "migrations"

_COMMENT = re.compile(r"^\s*--.*\n", re.MULTILINE)


def statements(version: int) -> list[str]:
    """Returns the statements that make a version of the one before."""
    (path,) = FOLDER.glob(f"{version:04}_*.sql")
    text = _COMMENT.sub("", path.read_text("utf-8"))
    return [statement.strip() for statement in text.split(";") if statement.strip()]


def newest() -> int:
    """Returns the newest version that there is a file for."""
    return max(int(path.name[:4]) for path in FOLDER.glob("*.sql"))
