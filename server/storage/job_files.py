"""`JobFiles` keeps a directory for each job; the constants name the files in it.

Each file is replaced as a whole or not at all.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from treadle.server.storage import files
from treadle.server.storage.job_state import JobState

if TYPE_CHECKING:
    from treadle.server.storage.files import DiskSpace
    from treadle.server.storage.model_version import StoredModel
    from treadle.server.storage.schema import JobRow

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

KEPT_FILES = (LAST_FILE, BEST_FILE, INIT_FILE)
"""What stays of a job that has its model or is cancelled."""


@dataclass(frozen=True)
class JobWeights:
    """The weights that a job published at one time."""

    job: str
    """The job's id."""
    name: str
    """Which of its weights: LAST_FILE or BEST_FILE."""
    path: Path
    """Their file, which the next weights replace."""
    created_ns: int
    """When it was written."""
    inode: int
    """The inode number of the file, which differs from that of the next file."""
    size_bytes: int
    """Bytes of the file."""
    key: str = ""
    """The blob that holds them, where several servers share one store; empty: they are here."""


class JobFiles:
    """The directories of jobs. All methods block on the disk and may be called from any thread.

    A server that shares jobs with others calls `fetch` once it has the lease of a job, and `leave`
    once it gives the job back. After each checkpoint it calls `publish`, stores what that returns
    in the row of the job with its fence, and then has `forget` delete what is not named any more::

        files.fetch(row)
        ...
        after = files.publish(row.id, fence, before)
        database.update_job(row.id, fence=fence, checkpoint=after)
        files.forget(before, after)

    Where one server has a data directory of its own, every file of a job is there, and these four
    do nothing.

    Args:
        root: Where they are; it exists.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        """The directory of the jobs' directories."""

    def begin(self, job: str, base: StoredModel | None, space: DiskSpace) -> str:
        """Makes the directory of a new job, and puts the model that it starts from into it.

        Args:
            job: The job's id.
            base: The model; None: it starts from none.
            space: The space of the disk.

        Returns:
            The `checkpoint` of the job's row.

        Raises:
            FileNotFoundError: The model was deleted.
            OSError: The disk failed or is full.
        """
        directory = self.directory(job)
        if base is not None:
            files.link_or_copy(base.path, directory / INIT_FILE, space)
        return ""

    def fetch(self, row: JobRow) -> None:
        """Brings the files of a job and its corpora to this machine, where it is about to run.

        Args:
            row: The job, as it is once its lease is this server's.

        Raises:
            FileNotFoundError: Something is missing in the store that the servers share.
            DamagedBlobError: Something in it is damaged.
            BlobsUnavailableError: It cannot be reached.
            OSError: The disk failed or is full.
            DatabaseError: The row cannot be read.
        """

    def publish(self, job: str, fence: int, before: str) -> str:
        """Stores the files of a job that runs here, as they are now, for other servers.

        Args:
            job: The job's id.
            fence: The fence of its lease.
            before: The `checkpoint` of its row until now.

        Returns:
            The `checkpoint` that its row is to have.

        Raises:
            BlobsUnavailableError: The store cannot be reached; `before` holds as it did.
            OSError: The disk failed or is full.
            DatabaseError: `before` cannot be read.
        """
        return before

    def forget(self, before: str, after: str) -> None:
        """Deletes what the row of a job does not name any more, now or with the next sweep.

        Args:
            before: The `checkpoint` that the row had.
            after: The one that it has; empty: none.

        Raises:
            DatabaseError: One of them cannot be read.
        """

    def kept(self, checkpoint: str) -> str:
        """Returns the `checkpoint` that the row of a job is to have once the job is over.

        Args:
            checkpoint: The one that it had.

        Raises:
            DatabaseError: It cannot be read.
        """
        return checkpoint

    def leave(self, job: str) -> None:
        """Removes the files of a job from this machine that the servers share.

        Args:
            job: The job's id, which does not run here any more.
        """

    def weights(self, job: str, name: str) -> JobWeights:
        """Returns weights that a job has published.

        Args:
            job: The job's id.
            name: LAST_FILE or BEST_FILE.

        Raises:
            FileNotFoundError: It has published none.
            OSError: The disk failed.
        """
        path = self.directory(job) / name
        found = path.stat()
        return JobWeights(job, name, path, found.st_mtime_ns, found.st_ino, found.st_size)

    def is_local(self, weights: JobWeights) -> bool:
        """Returns whether `local_file` need not wait for another machine.

        Args:
            weights: The weights.
        """
        return True

    @contextmanager
    def local_file(self, weights: JobWeights) -> Iterator[Path]:
        """Yields the path of weights on this machine, where they stay within.

        Args:
            weights: The weights.

        Yields:
            The path; newer weights may have replaced its file.
        """
        yield weights.path

    def own_bytes(self, row: JobRow) -> int:
        """Returns the bytes of a job's files that are nowhere else, such as in a stored version.

        What only a run needs does not count once the job has its model or is cancelled: it is
        removed a moment after that is recorded.

        Args:
            row: The job.
        """
        keeps_all = row.state not in (JobState.SUCCEEDED, JobState.CANCELLED)
        size = 0
        with suppress(OSError), os.scandir(self.root / row.id) as entries:
            for entry in entries:
                if not keeps_all and entry.name not in KEPT_FILES:
                    continue
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
