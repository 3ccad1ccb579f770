"""`JobFiles` keeps a directory for each job; the constants name the files in it.

Each file is replaced as a whole or not at all.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from treadle.server.storage import files

STATE_FILE = "state.safetensors"
"""The checkpoint: the whole state of the run, from which it continues."""

PREVIOUS_STATE_FILE = f"{STATE_FILE}.previous"
"""The checkpoint before that one."""

LAST_FILE = "last.safetensors"
"""The model as it was at the last checkpoint; it can be used while the job runs."""

BEST_FILE = "best.safetensors"
"""The model with the best validation so far."""

FINAL_FILE = "final.safetensors"
"""The model to store as a version: the run is over."""

INIT_FILE = "init.safetensors"
"""The model that the job starts from, where it fine-tunes one."""


class JobFiles:
    """The directories of jobs. All methods block on the disk and may be called from any thread.

    Args:
        root: Where they are; it exists.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        """The directory of the jobs' directories."""

    def own_bytes(self, job: str) -> int:
        """Returns the bytes of a job's files that are nowhere else, such as in a stored version.

        Args:
            job: The job's id.
        """
        size = 0
        with suppress(OSError), os.scandir(self.root / job) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
                    size += status.st_size
        return size

    def directory(self, job: str) -> Path:
        """Returns a job's directory, which is made if it is missing.

        Args:
            job: The job's id.

        Raises:
            ValueError: No job can have that id.
            OSError: The disk failed or is full.
        """
        if not _is_id(job):
            raise ValueError(f"{job[:80]!r} cannot be the id of a job")
        path = self.root / job
        if path.is_symlink() or not path.is_dir():
            files.make_directory(path)
            files.sync(self.root)  # a row of the database is about to rely on it
        return path

    def remove(self, job: str) -> None:
        """Removes a job's directory, if it is there.

        A file that cannot be removed is logged and left.
        """
        if _is_id(job):
            files.remove(self.root / job)

    def remove_checkpoint(self, job: str) -> None:
        """Removes the checkpoints of a job."""
        directory = self.directory(job)
        for name in (STATE_FILE, PREVIOUS_STATE_FILE):
            files.remove(directory / name)


def _is_id(job: str) -> bool:
    """Returns whether a job may have this id."""
    # Here, since training processes need the names of the files above, and no gRPC.
    from treadle.server.names import is_name

    return is_name(job)
