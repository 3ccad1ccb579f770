"""`JobBlobs` brings the files of jobs to this machine, and stores what other servers may need.

A checkpoint is uploaded in the background while its job continues. The row of the job names it once
it is complete, so that whichever server continues the job finds a whole one. While the store of
the blobs cannot be reached, the newest checkpoint waits; the one on this machine stays.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from treadle.server.failures import BlobsUnavailableError, DatabaseError, LostLeaseError
from treadle.server.resources import thread_pools

if TYPE_CHECKING:
    from treadle.server.jobs.job import Job
    from treadle.server.storage.job_files import JobFiles

logger = logging.getLogger(__name__)

_RETRY_S = 1.0
"""Seconds between two attempts to reach the store."""


class JobBlobs:
    """The files of the jobs that are this server's, where several share a store of blobs.

    Args:
        files: The files of jobs, here and there.
    """

    def __init__(self, files: JobFiles) -> None:
        self._files = files
        self._here: set[Job] = set()
        """Jobs of which files may be on this machine."""
        self._whole: set[Job] = set()
        """Those of which all files are."""
        self._changed: set[Job] = set()
        """Jobs with a checkpoint that is not uploaded yet."""
        self._uploads: dict[Job, asyncio.Task[None]] = {}
        self.is_reached = True
        """Whether the store could be reached the last time."""

    async def bring(self, job: Job) -> None:
        """Brings the files of a job to this machine, once for each time that the job comes here.

        Raises:
            BlobsUnavailableError: The store cannot be reached.
            DatabaseError: The database failed, or cannot be reached.
            OSError: The disk failed or is full, or a blob is missing or damaged.
        """
        if job in self._whole:
            return
        row = await job.whole()
        self._here.add(job)
        try:
            await thread_pools.BLOBS.run(self._files.fetch, row)
        except BlobsUnavailableError as error:
            self._miss(error)
            raise
        self.is_reached = True
        self._whole.add(job)

    def note(self, job: Job) -> None:
        """Begins to upload the checkpoint that a job has just written."""
        self._changed.add(job)
        if job not in self._uploads:
            self._uploads[job] = asyncio.create_task(self._upload(job))

    async def flush(self, job: Job) -> None:
        """Waits until the last checkpoint of a job is uploaded.

        Raises:
            LostLeaseError: The job is another server's.
        """
        if job in self._uploads:
            await asyncio.wait([self._uploads[job]])
        job.lease.check(job.id)

    async def leave(self, job: Job) -> None:
        """Removes the files of a job from this machine, which is not this server's any more.

        Where the disk fails, they stay until the job comes here again.
        """
        self._changed.discard(job)
        self._whole.discard(job)
        if job in self._here:
            self._here.discard(job)
            try:
                await thread_pools.BLOBS.run(self._files.leave, job.id)
            except OSError as error:
                logger.error("job %s: its files stay on this machine: %s", job.id, error)

    async def _upload(self, job: Job) -> None:
        try:
            while job in self._changed:
                self._changed.discard(job)
                await self._publish(job)
        except LostLeaseError as error:
            logger.info("job %s: its checkpoint is not uploaded: %s", job.id, error)
        except (BlobsUnavailableError, DatabaseError, OSError) as error:
            logger.error("job %s: its checkpoint is not uploaded: %s", job.id, error)
        except Exception:
            logger.exception("job %s: its checkpoint is not uploaded", job.id)
        finally:
            del self._uploads[job]

    async def _publish(self, job: Job) -> None:
        """Uploads a checkpoint, as soon as the store can be reached, and has the row name it."""
        fence = job.lease.fence
        assert fence is not None
        before = job.row.checkpoint
        while True:
            job.lease.check(job.id)
            try:
                after = await thread_pools.BLOBS.run(self._files.publish, job.id, fence, before)
                break
            except BlobsUnavailableError as error:
                if not job.lease.is_patient:
                    raise
                self._miss(error)
            await asyncio.sleep(_RETRY_S)
        self.is_reached = True
        if after != before:
            await job.change(checkpoint=after)
            if job.row.checkpoint != after:  # it has ended meanwhile, and its row names others
                await thread_pools.BLOBS.run(self._files.forget, after, job.row.checkpoint)
                return
            await thread_pools.BLOBS.run(self._files.forget, before, after)

    def _miss(self, error: BlobsUnavailableError) -> None:
        if self.is_reached:
            logger.warning(
                "the blobs cannot be reached; jobs continue, checkpoints wait: %s", error
            )
        self.is_reached = False
