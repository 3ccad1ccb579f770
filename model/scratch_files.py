"""`ScratchFolder` makes files without a name for data that does not fit in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

Require = Callable[[int], None]
"""Called with a number of bytes before they are written; raises OSError if there is no space."""


def anything(size: int) -> None:
    """Allows any number of bytes: the `Require` without a limit."""


@dataclass(frozen=True)
class ScratchFolder:
    """A folder for files without a name, which vanish when they are closed and unmapped."""

    path: Path
    """The folder."""
    require: Require = anything
    """Called before bytes are written there."""

    def new_file(self) -> IO[bytes]:
        """Returns a new file.

        Raises:
            OSError: The disk failed or is full.
        """
        return tempfile.TemporaryFile(dir=self.path)


Folder = Path | ScratchFolder
"""A folder to be written to, with or without a limit of space."""


def scratch_folder(folder: Folder) -> ScratchFolder:
    """Returns a folder as a `ScratchFolder`."""
    return folder if isinstance(folder, ScratchFolder) else ScratchFolder(folder)
