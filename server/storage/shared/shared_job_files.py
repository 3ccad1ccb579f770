"""`SharedJobFiles` keeps the files of jobs as blobs, and those of the jobs that run here on disk.

A server that gets the lease of a job calls `fetch`, and `leave` once it gives the job back. After
each checkpoint it calls `publish`, stores what that returns in the job's row with its fence, and
then lets `forget` delete the blobs that the row does not name any more::

    files.fetch(row)
    ...
    after = files.publish(row.id, fence, before)
    database.update_job(row.id, fence=fence, checkpoint=after)
    files.forget(before, after)

A server that dies between two of these steps leaves blobs that no row names. The sweep deletes
them: see `orphan_sweep`.
"""

from __future__ import annotations

import errno
import logging
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from treadle.server.failures import BlobsUnavailableError
from treadle.server.storage import files
from treadle.server.storage.job_files import (
    BEST_FILE,
    INIT_FILE,
    LAST_FILE,
    STATE_FILE,
    JobFiles,
    JobWeights,
)
from treadle.server.storage.model_version import file_hash
from treadle.server.storage.shared.job_checkpoint import (
    JobBlob,
    read_checkpoint,
    written_checkpoint,
)
from treadle.server.storage.shared.keys import corpus_key, job_prefix, model_key, new_job_prefix

if TYPE_CHECKING:
    from treadle.server.storage.blobs.blob_cache import BlobCache, HeldBlob
    from treadle.server.storage.blobs.blob_store import BlobStore
    from treadle.server.storage.database import Database
    from treadle.server.storage.files import DiskSpace
    from treadle.server.storage.model_version import StoredModel
    from treadle.server.storage.schema import JobRow

logger = logging.getLogger(__name__)

_PUBLISHED = (STATE_FILE, LAST_FILE, BEST_FILE, INIT_FILE)
"""The files that are published, in this order: the best weights must be at least as new as the
state that counts on them."""

_Signature = tuple[int, int, int]


class SharedJobFiles(JobFiles):
    """The files of the jobs that several servers run.

    Args:
        root: The directory of the jobs' directories on this machine; it is emptied.
        tmp: Where files are prepared, on the same disk.
        blobs: Where the files of all jobs are.
        cache: Brings blobs to this machine.
        database: The rows of the jobs.
        space: The space of the disk.
    """

    def __init__(
        self,
        root: Path,
        tmp: Path,
        blobs: BlobStore,
        cache: BlobCache,
        database: Database,
        space: DiskSpace,
    ) -> None:
        super().__init__(root)
        self._tmp = tmp
        self._blobs = blobs
        self._cache = cache
        self._database = database
        self._space = space
        self._lock = threading.Lock()
        self._here: dict[str, dict[str, tuple[_Signature, JobBlob]]] = {}
        """The jobs that run here, and the files of each as they were published or fetched last."""
        self._corpora: dict[str, list[HeldBlob]] = {}
        """The corpora that jobs here need, by the job."""
        for place in root.iterdir():  # of an earlier server; what counts is in the store
            files.remove(place)

    def own_bytes(self, row: JobRow) -> int:
        """Returns the bytes of a job's files, as far as it has published them.

        Args:
            row: The job.
        """
        return sum(blob.size for blob in read_checkpoint(row.checkpoint).values())

    def begin(self, job: str, base: StoredModel | None, space: DiskSpace) -> str:
        """Stores the model that a new job starts from.

        Args:
            job: The job's id.
            base: The model; None: it starts from none.
            space: The space of the disk.

        Returns:
            The `checkpoint` of the job's row.

        Raises:
            FileNotFoundError: The model was deleted.
            BlobsUnavailableError: The store cannot be reached.
        """
        if base is None:
            return ""
        sha256 = base.path.name
        key = f"{new_job_prefix(job, 0)}{INIT_FILE}"
        self._blobs.copy(model_key(base.name, base.version, sha256), key)
        return written_checkpoint({INIT_FILE: JobBlob(key, sha256, base.size_bytes)})

    def fetch(self, row: JobRow) -> None:
        """Brings the files of a job and its corpora to this machine, where it is about to run.

        Args:
            row: The job, as it is once its lease is this server's.

        Raises:
            FileNotFoundError: A blob is missing.
            DamagedBlobError: A blob is damaged.
            BlobsUnavailableError: The store cannot be reached.
            OSError: The disk failed or is full.
            DatabaseError: The row cannot be read.
        """
        stored = read_checkpoint(row.checkpoint)
        directory = self.directory(row.id)
        for path in directory.iterdir():
            if path.name not in stored or file_hash(path) != stored[path.name].sha256:
                files.remove(path)
        known: dict[str, tuple[_Signature, JobBlob]] = {}
        for name, blob in stored.items():
            if not (directory / name).exists():
                self._space.require(blob.size)
                self._blobs.fetch(blob.key, directory / name, blob.sha256, self._space.require)
            known[name] = _signature(directory / name), blob
        held: list[HeldBlob] = []
        try:
            held.extend(self._cache.hold(corpus_key(sha256), sha256) for sha256 in row.corpora())
        except BaseException:
            _release(held)
            raise
        with self._lock:
            self._here[row.id] = known
            _release(self._corpora.pop(row.id, []))
            self._corpora[row.id] = held

    def publish(self, job: str, fence: int, before: str) -> str:
        """Stores the files of a job that runs here, as they are now.

        Files that have not changed since the last time are not stored again.

        Args:
            job: The job's id.
            fence: The fence of its lease.
            before: The `checkpoint` of its row until now.

        Returns:
            The `checkpoint` that its row is to have.

        Raises:
            BlobsUnavailableError: The store cannot be reached; `before` holds as it did.
            FileNotFoundError: The job does not run here any more.
            OSError: The disk failed or is full.
            DatabaseError: `before` cannot be read.
        """
        named = {blob.key for blob in read_checkpoint(before).values()}
        with self._lock:
            known = dict(self._here.get(job, {}))
        prefix = new_job_prefix(job, fence)
        found: dict[str, tuple[_Signature, JobBlob]] = {}
        with self._snapshot(job) as snapshot:
            for name in _PUBLISHED:
                path = snapshot / name
                if not path.exists():
                    continue
                signature = _signature(path)
                last = known.get(name)
                if last is not None and last[0] == signature and last[1].key in named:
                    found[name] = last
                    continue
                blob = JobBlob(f"{prefix}{name}", file_hash(path), signature[2])
                self._blobs.put(blob.key, path)
                found[name] = signature, blob
        with self._lock:
            if job not in self._here:  # what was found may be a part of its files, or nothing
                raise FileNotFoundError(errno.ENOENT, "the job has left this machine", job)
            self._here[job] = found
        return written_checkpoint({name: blob for name, (_, blob) in found.items()})

    def forget(self, before: str, after: str) -> None:
        """Deletes the blobs of a job that its row does not name any more.

        What cannot be deleted now is left to the sweep.

        Args:
            before: The `checkpoint` that the row had.
            after: The one that it has; empty: none.

        Raises:
            DatabaseError: One of them cannot be read.
        """
        kept = {blob.key for blob in read_checkpoint(after).values()}
        gone = {blob.key for blob in read_checkpoint(before).values()} - kept
        try:
            self._blobs.delete(sorted(gone))
        except BlobsUnavailableError as error:
            logger.warning("old files of a job are deleted later: %s", error)

    def kept(self, checkpoint: str) -> str:
        """Returns what stays of a checkpoint once its job is over: the last and the best weights.

        Raises:
            DatabaseError: It cannot be read.
        """
        found = read_checkpoint(checkpoint)
        return written_checkpoint(
            {name: blob for name, blob in found.items() if name in (LAST_FILE, BEST_FILE)}
        )

    def leave(self, job: str) -> None:
        """Removes the files of a job from this machine, where it does not run any more.

        Args:
            job: The job's id.
        """
        with self._lock:
            self._here.pop(job, None)
            _release(self._corpora.pop(job, []))
        super().remove(job)

    def remove(self, job: str) -> None:
        """Removes all files of a job, of which there is no row any more.

        What cannot be deleted now is left to the sweep.
        """
        self.leave(job)
        try:
            self._blobs.delete(blob.key for blob in [*self._blobs.list(job_prefix(job))])
        except BlobsUnavailableError as error:
            logger.warning("the files of job %s are deleted later: %s", job, error)

    def weights(self, job: str, name: str) -> JobWeights:
        """Returns weights that a job has published, wherever it runs.

        Raises:
            FileNotFoundError: It has published none.
            OSError: The disk failed.
            DatabaseError: The database failed.
        """
        if job in self._here:
            with suppress(FileNotFoundError):
                return super().weights(job, name)
        row = self._database.job(job)
        blob = None if row is None else read_checkpoint(row.checkpoint).get(name)
        if blob is None:
            raise FileNotFoundError(name)
        path = self._cache.path(blob.sha256)
        return JobWeights(job, name, path, 0, 0, blob.size, blob.key)

    def is_local(self, weights: JobWeights) -> bool:
        """Returns whether weights are on this machine."""
        return not weights.key or self._cache.has(weights.path.name)

    @contextmanager
    def local_file(self, weights: JobWeights) -> Iterator[Path]:
        """Yields the path of weights on this machine, where they stay within."""
        if not weights.key:
            yield weights.path
            return
        with self._cache.use(weights.key, weights.path.name) as path:
            yield path

    @contextmanager
    def _snapshot(self, job: str) -> Iterator[Path]:
        """Yields a directory with the files of a job, which a process may replace meanwhile."""
        directory = self.root / job
        snapshot = self._tmp / f"job-{secrets.token_hex(8)}"
        snapshot.mkdir(mode=0o770)
        try:
            for name in _PUBLISHED:
                with suppress(FileNotFoundError):
                    files.link_or_copy(directory / name, snapshot / name, self._space)
            yield snapshot
        finally:
            files.remove(snapshot)


def _release(held: list[HeldBlob]) -> None:
    for blob in held:
        blob.release()


def _signature(path: Path) -> _Signature:
    """Returns what differs between a file and its successor."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size
