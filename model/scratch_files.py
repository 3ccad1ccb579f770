"""Files without a name for what is not to be in memory, and who is asked before they grow."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

Require = Callable[[int], None]
"""Asked before so many bytes are written; raises OSError where they may not be."""


def anything(size: int) -> None:
    """A `Require`: any number of bytes may be written."""


@dataclass(frozen=True)
class ScratchFolder:
    """A folder for files without a name: they go with whoever has them open or mapped."""

    path: Path
    """The folder."""
    require: Require = anything
    """Asked before bytes are written there."""

    def new_file(self) -> IO[bytes]:
        """Returns a new file.

        Raises:
            OSError: The disk failed or is full.
        """
        return tempfile.TemporaryFile(dir=self.path)


Folder = Path | ScratchFolder
"""A folder to be written to, with or without somebody to ask."""


def scratch_folder(folder: Folder) -> ScratchFolder:
    """Returns a folder with whoever is to be asked."""
    return folder if isinstance(folder, ScratchFolder) else ScratchFolder(folder)
