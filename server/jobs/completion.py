"""`Completion` records how a job ends: with a model, failed, cancelled, or waiting again."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from treadle.model import Keep, Model, TrainConfig
from treadle.model.atomic_files import remove_leftovers
from treadle.model.errors import ConfigError, ModelError
from treadle.server.errors import StatusError, from_exception
from treadle.server.failures import BlobsUnavailableError, DatabaseUnavailableError, is_full
from treadle.server.jobs.job import (
    CANCELLING,
    PAUSED_ON_REQUEST,
    Job,
    outlast,
)
from treadle.server.jobs.runner import Ending, Outcome
from treadle.server.messages import responses
from treadle.server.messages.requests import spec_field
from treadle.server.resources import thread_pools
from treadle.server.storage import files
from treadle.server.storage.job_files import BEST_FILE, FINAL_FILE, LAST_FILE
from treadle.server.storage.job_state import JobState
from treadle.server.storage.models import CLAIMS, always_deleted
from treadle.v1 import sequence_pb2 as pb

if TYPE_CHECKING:
    from treadle.server.jobs.job_blobs import JobBlobs
    from treadle.server.storage.data_dir import DataDir
    from treadle.server.storage.model_version import StoredModel
    from treadle.server.storage.schema import JobRow

logger = logging.getLogger(__name__)

_FULL_RETRY_S = 2.0
"""Seconds between attempts to record a state on a full disk."""

_GONE = grpc.StatusCode.NOT_FOUND
"""The status of a version that was just deleted."""
_TAKEN = grpc.StatusCode.ABORTED
"""The status of a version in whose place another model was put by hand."""

_ON_REQUEST = "cancelled on request"


class Completion:
    """Brings jobs into the states that follow from how their processes left them.

    Args:
        data_dir: Where jobs and models are stored.
        closing: Returns whether the server is closing.
        blobs: Brings the files of jobs here, and stores them for other servers; None: they are
            nowhere else.
    """

    def __init__(
        self, data_dir: DataDir, closing: Callable[[], bool], blobs: JobBlobs | None = None
    ) -> None:
        self._data_dir = data_dir
        self._blobs = blobs
        self._closing = closing
        self._claiming = asyncio.Lock()

    async def settle(self, job: Job, outcome: Outcome) -> None:
        """Brings a job into its next state; on a full disk, as soon as there is space.

        Raises:
            StatusError, OSError: Its model cannot be stored.
        """
        with job.trace.storing():
            if self._blobs is not None:
                await self._blobs.flush(job)  # the server that continues the job is to find it
            await self._record(job, lambda: self._settle(job, outcome))

    async def fail(self, job: Job, error: StatusError) -> None:
        """Ends a job without a model; on a full disk, as soon as there is space."""
        await self._record(job, lambda: self._fail(job, error))

    async def cancel(self, job: Job) -> None:
        """Ends a job that does not run; on a full disk, as soon as there is space.

        The weights that it has published become its model.

        Raises:
            StatusError, OSError: Its model cannot be stored.
        """
        await self._record(job, lambda: self._cancel(job))

    async def _cancel(self, job: Job) -> None:
        if self._blobs is not None:
            await self._blobs.bring(job)
        before = job.row
        try:
            path = await thread_pools.STORE.run(self._published, job, _ON_REQUEST)
            if path is not None:
                await self._complete(job, path)
                return
            ends = {"ended_s": job.time_s(), **self._kept_blobs(job)}
            await job.enter(JobState.CANCELLED, _ON_REQUEST, **ends)
        except OSError as error:
            # No server continues from its checkpoint any more, and its end needs the space.
            if is_full(error) and job.row.reason == CANCELLING:
                await thread_pools.STORE.run(self._data_dir.jobs.remove_checkpoint, job.id)
            raise
        await thread_pools.STORE.run(self._remove_run_files, before)

    async def _overrun(self, job: Job, outcome: Outcome) -> None:
        """Ends a job that has reached its time limit, with the weights that it has published."""
        path = await thread_pools.STORE.run(self._published, job, job.overrun)
        if path is not None:
            await self._complete(job, path)
            return
        death = f"; {outcome.reason}" if outcome.ending is Ending.DIED else ""
        message = f"{job.overrun}{death}; nothing was trained"
        await self._fail(job, StatusError(grpc.StatusCode.DEADLINE_EXCEEDED, message))

    async def completed_before(self, job: Job) -> bool:
        """Completes a job whose model an earlier server was about to store.

        Returns:
            Whether the job is final now.
        """
        final = self._data_dir.jobs.directory(job.id) / FINAL_FILE
        if not await thread_pools.STORE.run(final.exists):
            return False
        try:
            await self._complete(job, final)
        except Exception:  # the job is trained to its end once more
            logger.exception("job %s: its finished model cannot be stored", job.id)
        return job.row.is_final

    async def stored_before(self, job: Job) -> bool:
        """Completes a job whose model another server has stored, but not its end.

        Computed once more, the model would differ in the seconds that it took, and so be stored as
        another version.

        Returns:
            Whether the job is final now.

        Raises:
            DatabaseError: The database failed, or cannot be reached.
        """
        if not job.row.claim or not await thread_pools.STORE.run(
            self._is_stored, await job.whole()
        ):
            return False
        try:
            await self._complete(job, self._data_dir.jobs.root / job.id / FINAL_FILE)
            await thread_pools.STORE.run(self._data_dir.jobs.leave, job.id)
        except (OSError, StatusError):  # the job is trained to its end once more
            logger.exception("job %s: its stored model cannot be used", job.id)
        return job.row.is_final

    def _is_stored(self, row: JobRow) -> bool:
        """Returns whether the version that a job has claimed is there, and its own model."""
        # What an earlier run of it has left here may be another model.
        path = self._data_dir.jobs.root / row.id / FINAL_FILE
        try:
            files.remove(path)
            stored = self._data_dir.models.claim_file(
                row.model, path, row.claim, row.owner, job=row.id, fence=row.fence
            )
            record = self._data_dir.models.describe(stored).training
            config = TrainConfig.from_json(json.loads(row.config))
        except (OSError, StatusError, ValueError, ConfigError):
            return False
        # Somebody else may have stored a file under this number before the job claimed it.
        is_later = stored.created_s >= (row.started_s or 0.0)
        return record is not None and record.config == config and is_later

    async def _settle(self, job: Job, outcome: Outcome) -> None:
        match outcome.ending:
            case Ending.SAVED:
                await self._complete(job, self._data_dir.jobs.directory(job.id) / FINAL_FILE)
            case Ending.FAILED:
                assert outcome.error is not None
                name = f"training {job.row.model}"
                error = from_exception(outcome.error, name, "corpus_chunk", spec_field)
                await self._fail(job, error)
            case _ if job.cancelling:
                await self._cancel(job)
            case _ if job.overrun:
                await self._overrun(job, outcome)
            case _:
                async with job.deciding:  # a request to resume it meanwhile finds it paused
                    await self._wait(job, outcome)

    async def _wait(self, job: Job, outcome: Outcome) -> None:
        """Lets a job wait to be resumed, or for its next process."""
        # A job that pauses without a request does so for a full disk.
        full = outcome.needs_bytes or bool(job.pausing)
        waits = {"waits_for_bytes": 0 if job.pausing == PAUSED_ON_REQUEST else max(1, full)}
        if outcome.ending is Ending.DIED and job.pausing:
            reason = f"{outcome.reason}; it continues from its last checkpoint"
            await job.enter(JobState.PAUSED, f"{job.pausing}: {reason}", **waits)
        elif full:
            await job.enter(JobState.PAUSED, outcome.reason, **waits)
        elif self._closing():
            await job.enter(
                JobState.QUEUED, f"{outcome.reason}; the job continues when it starts again"
            )
        else:  # it was resumed meanwhile, or something else ended the process
            await job.enter(JobState.QUEUED, f"{outcome.reason}; the job continues")

    async def _record(self, job: Job, settle: Callable[[], Awaitable[None]]) -> None:
        """Records an end; where a disk is full or out of reach, as soon as that is possible."""
        while True:
            job.lease.check(job.id)
            try:
                await settle()
                return
            except OSError as error:
                if not is_full(error) or self._closing():
                    raise
                logger.warning("the disk is full; the end of a job is recorded later")
            except (BlobsUnavailableError, DatabaseUnavailableError) as error:
                if self._closing():
                    raise
                logger.warning("the end of a job is recorded later: %s", error)
            await asyncio.sleep(_FULL_RETRY_S)

    async def _complete(self, job: Job, path: Path) -> None:
        """Stores a model of a job as a new version, which ends it."""
        state = JobState.CANCELLED if job.cancelling else JobState.SUCCEEDED
        why = [_ON_REQUEST] if job.cancelling else []
        model = await outlast(self._claim(job, path))
        reason = "; ".join([*why, *model.training.notices])
        before = job.row
        changes = {"version": model.version, "ended_s": job.time_s(), **self._kept_blobs(job)}
        await job.publish(pb.JobEvent(completed=model), state=state, reason=reason, **changes)
        await thread_pools.STORE.run(self._remove_run_files, before)
        logger.info("job %s stored %s version %d", job.id, model.name, model.version)

    async def _claim(self, job: Job, path: Path) -> pb.Model:
        """Stores a model file as one version, also where it is repeated after a crash at any point.

        Where that version is deleted before it can be described, the file is stored as another.

        Returns:
            The stored model.
        """
        version = job.row.claim
        for left in reversed(range(CLAIMS)):
            try:
                stored = await self._claim_version(job, path, version)
                # The version is new, so no alias leads to it yet.
                return responses.model(
                    stored, await thread_pools.STORE.run(self._data_dir.models.describe, stored)
                )
            except (FileNotFoundError, StatusError) as error:
                code = error.code if isinstance(error, StatusError) else _GONE
                if code not in (_GONE, _TAKEN):
                    raise
                if not left:
                    raise always_deleted(job.row.model) from error
                if not await thread_pools.STORE.run(path.exists):
                    raise
                logger.info("job %s: its model is stored once more: %s", job.id, error)
                version = 0
        raise AssertionError

    async def _claim_version(self, job: Job, path: Path, version: int) -> StoredModel:
        """Stores a model file as a version; 0: as a new one."""
        name = job.row.model
        async with self._claiming:
            fence = job.lease.fence
            if not version and fence is not None:
                version = await job.reserve_version()
            elif not version:
                version = await thread_pools.STORE.run(self._data_dir.models.next_version, name)
                await job.change(claim=version)
            claim = partial(self._data_dir.models.claim_file, job=job.id, fence=fence)
            return await thread_pools.STORE.run(claim, name, path, version, job.row.owner)

    async def _fail(self, job: Job, error: StatusError) -> None:
        logger.info("job %s ended without a model: %s", job.id, error)
        changes = {"error_code": error.code.value[0], "error": error.packed()}
        await job.enter(JobState.FAILED, error.message, ended_s=job.time_s(), **changes)

    def _published(self, job: Job, why: str) -> Path | None:
        """Returns the file of the model that a job without a process has published, if any.

        Args:
            job: The job.
            why: Why it ended, for the model's record.
        """
        directory = self._data_dir.jobs.directory(job.id)
        row = self._data_dir.database.job(job.id)
        if row is None:  # just deleted
            return None
        keep = TrainConfig.from_json(json.loads(row.config)).keep
        names = (LAST_FILE,) if keep is Keep.LAST else (BEST_FILE, LAST_FILE)
        for name in names:
            try:
                model = Model.load(directory / name)
            except FileNotFoundError:
                continue
            except ModelError as error:
                logger.error("job %s: %s cannot be used: %s", job.id, name, error)
                continue
            if model.training is not None:
                ended_by = f"{why} after {model.training.steps} steps"
                model.training = replace(model.training, ended_by=ended_by)
            try:
                model.save(directory / FINAL_FILE, self._data_dir.space.require)
            except OSError as error:
                if not is_full(error):
                    raise
                return directory / name  # only its reason to end is missing
            return directory / FINAL_FILE
        return None

    def _kept_blobs(self, job: Job) -> dict[str, str]:
        """Returns the change of a job's row that ends: its checkpoint is not kept."""
        before = job.row.checkpoint
        return {"checkpoint": self._data_dir.jobs.kept(before)} if before else {}

    def _remove_run_files(self, before: JobRow) -> None:
        """Removes the files that only a run needs; the last and the best weights stay.

        Args:
            before: The job as it was before its end.
        """
        self._data_dir.jobs.remove_checkpoint(before.id)
        directory = self._data_dir.jobs.directory(before.id)
        files.remove(directory / FINAL_FILE)
        remove_leftovers(directory)
        self._data_dir.jobs.forget(before.checkpoint, self._data_dir.jobs.kept(before.checkpoint))
