"""`JobScratch` is the directory of one job on a machine that only computes.

It vanishes with the job. That of a process that was killed goes when the next job begins there.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from treadle.server.storage.job_files import BEST_FILE, FINAL_FILE, LAST_FILE, STATE_FILE

_LOCK = "lock"

RESULTS = (STATE_FILE, BEST_FILE, LAST_FILE, FINAL_FILE)
"""What a worker writes, in the order in which it has to leave: a checkpoint before its weights."""


class JobScratch:
    """The files of one job on this machine, while it runs here.

    Args:
        job: The job's id.

    Raises:
        OSError: The disk failed or is full.
    """

    def __init__(self, job: str) -> None:
        _remove_abandoned()
        self.root = Path(tempfile.mkdtemp(prefix=_prefix()))
        """The directory, which nobody else may read."""
        unlocked = self.root / f"{_LOCK}.new"
        self._lock = unlocked.open("xb")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        unlocked.rename(self.root / _LOCK)  # others take what is there without a lock for abandoned
        self.directory = self.root / job
        """The job's own directory, in which the worker writes."""
        self.corpora = self.root / "corpora"
        """The directory of the files of its corpus, each under its hash."""
        self.directory.mkdir()
        self.corpora.mkdir()

    def results(self) -> list[tuple[str, str]]:
        """Returns the names of the files that the worker has written, each with its version."""
        found = []
        for name in RESULTS:
            with suppress(FileNotFoundError):
                status = (self.directory / name).stat()
                version = f"{status.st_ino} {status.st_mtime_ns} {status.st_size}"
                found.append((name, version))
        return found

    def remove(self) -> None:
        """Removes the directory with all its files."""
        self._lock.close()
        shutil.rmtree(self.root, ignore_errors=True)


def _prefix() -> str:
    return f"treadle-job-{os.getuid()}-"


def _remove_abandoned() -> None:
    """Removes the directories of processes that were killed."""
    for root in _own():
        # One without a lock is being made.
        with suppress(OSError), (root / _LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(root, ignore_errors=True)


def _own() -> Iterator[Path]:
    """Yields the directories of this user's jobs on this machine."""
    for path in Path(tempfile.gettempdir()).glob(f"{_prefix()}*"):
        with suppress(OSError):
            if not path.is_symlink() and path.stat().st_uid == os.getuid():
                yield path
