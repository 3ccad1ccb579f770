"""`JobRunner` has processes train a job and publishes what they report."""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import grpc

from treadle.model.atomic_files import remove_leftovers
from treadle.server.errors import StatusError, aborted
from treadle.server.failures import BlobsUnavailableError, DatabaseUnavailableError
from treadle.server.jobs import worker_protocol
from treadle.server.jobs.executors.executor import Executor, JobNeeds, Worker
from treadle.server.jobs.worker_request import RunLimits, worker_request
from treadle.server.messages import responses
from treadle.server.resources import thread_pools
from treadle.server.storage.job_state import JobState
from treadle.server.telemetry import metrics
from treadle.server.telemetry.training_metrics import TRAINING
from treadle.v1 import sequence_pb2 as pb

if TYPE_CHECKING:
    from treadle.server.jobs.job import Job
    from treadle.server.jobs.job_blobs import JobBlobs
    from treadle.server.storage.data_dir import DataDir

logger = logging.getLogger(__name__)

_LOOK_S = 5.0
"""Seconds between two checks of the free disk space, since events take some."""


_BACKOFF_S = 0.1
"""Seconds before a second restart, doubled before each further one."""
_MAX_BACKOFF_S = 5.0

_MOST_LOSSES = 20
"""How often in a row a job continues after its machine died without a new checkpoint: one that
brings down machine after machine must end some time."""


_RETRY_S = 1.0
"""Seconds between two attempts to reach what several servers share."""


class Ending(enum.Enum):
    """How a process left its job."""

    SAVED = enum.auto()
    """The final model is in the job's directory."""
    PAUSED = enum.auto()
    """The checkpoint is in the job's directory."""
    STOPPED = enum.auto()
    """It ended on request, with no model but the weights that it has published."""
    FAILED = enum.auto()
    """It cannot continue."""
    DIED = enum.auto()
    """The process ended without a message."""


@dataclass(frozen=True)
class Outcome:
    """How a process left its job, and why."""

    ending: Ending
    reason: str = ""
    needs_bytes: int = 0
    """Bytes of disk space that it lacked; 0: it did not pause for lack of space."""
    error: Exception | None = None
    """What it failed with."""
    lost: bool = False
    """Whether it died with its machine, which is no fault of the job."""


class JobRunner:
    """Has processes train jobs.

    Args:
        data_dir: Where jobs are kept.
        workers: Gives the processes.
        limits: What holds for each job.
        restarts: How often in a row a job continues after its process died without a new
            checkpoint.
        blobs: Brings the files of jobs here, and stores them for other servers; None: they are
            nowhere else.
    """

    def __init__(
        self,
        data_dir: DataDir,
        workers: Executor,
        limits: RunLimits,
        restarts: int,
        blobs: JobBlobs | None = None,
    ) -> None:
        self._data_dir = data_dir
        self._blobs = blobs
        self._workers = workers
        self._limits = limits
        self._restarts = restarts
        self._threads = limits.threads
        self._leaving = ""
        """Why all jobs are to leave; empty where they are not."""
        self._killed = False
        self._look_at = 0.0
        """When to check the free space again, by `time.monotonic`."""
        self._no_process_needed: dict[Job, asyncio.Event] = {}
        """An event for each job that waits for a process, set once it needs none."""

    async def run(self, job: Job) -> Outcome:
        """Has processes train a job, one after the other where they die.

        Returns:
            How the last process left the job.

        Raises:
            OSError: The disk is full.
            DatabaseError: The database failed.
            LostLeaseError: The job is another server's.
        """
        reason = ""
        while True:
            await job.enter(JobState.RUNNING, job.request_reason or reason, **_first_start(job))
            outcome = await self._run_once(job)
            if self._killed and outcome.ending is Ending.DIED:
                raise asyncio.CancelledError  # an `outlast` may have taken the first one
            job.lease.check(job.id)
            if outcome.ending is not Ending.DIED or job.leaving:
                return outcome
            if outcome.lost:
                job.losses += 1
            else:
                job.crashes += 1
            deaths = job.crashes + job.losses
            if job.crashes > self._restarts or job.losses > _MOST_LOSSES:
                times = f"{deaths} times in a row without a new checkpoint between"
                error = aborted(f"{outcome.reason} ({times})")
                return Outcome(Ending.FAILED, error=error)
            logger.warning("job %s continues: %s", job.id, outcome.reason)
            metrics.JOB_RESTARTS.inc()
            await job.change(restarts=job.row.restarts + 1)
            reason = f"{outcome.reason}; the job continues from its last checkpoint"
            if deaths > 1:  # the cause of its death may pass
                await asyncio.sleep(min(_BACKOFF_S * 2**deaths, _MAX_BACKOFF_S))

    async def _run_once(self, job: Job) -> Outcome:
        """Has a new process train a job, from its checkpoint if it has one."""
        if not await self._bring(job):
            return Outcome(Ending.PAUSED, job.pausing or job.overrun or self._leaving)
        before = job.row.reason
        try:
            worker = await self._take(job)
        except (StatusError, OSError) as error:  # the latter: too many processes, say
            logger.error("no training process could be started: %s", error)
            # Without the path that an OSError names, since clients see this text.
            reason = getattr(error, "strerror", None) or str(error)
            return Outcome(Ending.DIED, f"no training process could be started: {reason}")
        if worker is None:
            return Outcome(Ending.PAUSED, job.pausing or job.overrun or self._leaving)
        try:
            if job.row.reason != before:  # it waited for the process
                await self._report_reason(job, before)
            TRAINING.started(job.id, is_new=not job.last_progress.step)
            with job.running():
                outcome = await self._train(job, worker)
        except BaseException:
            await self._workers.dismiss(worker)  # it may still be writing
            raise
        finally:
            job.worker = None
            TRAINING.left(job.id)
        if outcome.ending is Ending.DIED:
            await self._workers.dismiss(worker)
            with suppress(OSError):  # the next process of the job, or its end, removes the rest
                await thread_pools.STORE.run(
                    remove_leftovers, self._data_dir.jobs.directory(job.id)
                )
        else:
            self._workers.dismiss(worker)
        return outcome

    async def _bring(self, job: Job) -> bool:
        """Brings the files of a job here as soon as that is possible.

        Returns:
            Whether they are here; if not, the job is to leave.
        """
        while self._blobs is not None and not (job.leaving or self._leaving):
            job.lease.check(job.id)
            try:
                await self._blobs.bring(job)
                return True
            except (BlobsUnavailableError, DatabaseUnavailableError):
                await asyncio.sleep(_RETRY_S)
        return self._blobs is None

    def stop(self, job: Job, reason: str) -> None:
        """Asks a job to end, at once where it has published weights."""
        self._release(job)
        if job.worker is not None:
            job.worker.ask_to_leave({"stop": reason, "at_once": True})

    def pause(self, job: Job, reason: str) -> None:
        """Asks a job to write its checkpoint and end its process."""
        job.pausing = reason
        self._release(job)
        if job.worker is not None:
            job.worker.ask_to_leave({"pause": reason})

    def leave(self, jobs: Sequence[Job], reason: str) -> None:
        """Asks jobs, those that are about to start included, to write checkpoints and end."""
        self._leaving = reason
        for job in jobs:
            self._release(job)
            if job.worker is not None:
                job.worker.ask_to_leave({"pause": reason})

    def kill(self, jobs: Sequence[Job]) -> None:
        """Kills the processes of jobs, which the next server continues from their checkpoints."""
        self._killed = True
        for job in jobs:
            if job.worker is not None:
                job.worker.kill()

    def drop(self, job: Job) -> None:
        """Kills the process of a job that is another server's now."""
        self._release(job)
        if job.worker is not None:
            job.worker.kill("was killed: its job continues elsewhere")

    def share_threads(self, jobs: Sequence[Job]) -> None:
        """Gives all running jobs equal shares of the threads of one machine.

        That changes no result.
        """
        if not self._workers.shares_threads:
            return
        self._threads = max(1, self._limits.threads // max(1, len(jobs)))
        for job in jobs:
            if job.worker is not None:
                job.worker.send({"threads": self._threads})

    async def _take(self, job: Job) -> Worker | None:
        """Returns a process for a job, which may take seconds; None once the job needs none."""
        nodes = await _nodes(job)
        job.lease.check(job.id)
        without = self._no_process_needed[job] = asyncio.Event()
        if job.leaving or self._leaving:
            without.set()
        needs = JobNeeds(job.id, job.row.fence, self._threads, self._limits.max_run_bytes, nodes)
        taking = asyncio.create_task(self._workers.take(needs, partial(self._waits, job)))
        waiting = asyncio.create_task(without.wait())
        try:
            await asyncio.wait([taking, waiting], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            taking.cancel()
            raise
        finally:
            waiting.cancel()
            del self._no_process_needed[job]
        if not taking.done():
            self._workers.keep(taking)
            return None
        return taking.result()

    def _release(self, job: Job) -> None:
        """Ends the wait of a job for a process."""
        if job in self._no_process_needed:
            self._no_process_needed[job].set()

    async def _train(self, job: Job, worker: Worker) -> Outcome:
        row = await job.whole_later()
        trace = job.trace.traceparent
        request = worker_request(row, self._data_dir, self._limits, self._threads, trace)
        worker.send({"job": request})
        job.worker = worker
        if job.pausing or self._leaving:
            worker.ask_to_leave({"pause": job.pausing or self._leaving})
        if job.cancelling:
            worker.ask_to_leave({"stop": "cancelled", "at_once": True})
        with self._limited(job, worker):
            async with self._supervised(worker):
                return await self._listen(job, worker)

    @asynccontextmanager
    async def _supervised(self, worker: Worker) -> AsyncIterator[None]:
        """Kills the process within where it hangs or takes too much memory."""
        looking = asyncio.create_task(
            worker.supervise(self._limits.stop_timeout_s, self._limits.max_run_bytes)
        )
        try:
            yield
        finally:
            looking.cancel()

    @contextmanager
    def _limited(self, job: Job, worker: Worker) -> Iterator[None]:
        """Asks the process within to stop once its job has reached its time limit."""
        most = self._limits.max_run_s
        if not most:
            yield
            return
        unit = "second" if most == 1 else "seconds"
        reason = f"the server ends a run after {most:,.15g} {unit}, and did so"

        def end() -> None:
            job.overrun = reason
            worker.ask_to_leave({"stop": reason})

        left = max(0.0, most - job.ran_s)
        timer = asyncio.get_running_loop().call_later(left, end)
        try:
            yield
        finally:
            timer.cancel()

    async def _listen(self, job: Job, worker: Worker) -> Outcome:
        """Publishes what a process reports until it is done."""
        before = job.row.reason
        kept = False
        while True:
            try:
                message = await worker.receive()
            except StatusError as error:
                # After a checkpoint, another process may have taken the memory.
                if worker.took_too_much or (worker.starved and not kept):
                    logger.error("job %s: %s", job.id, error)
                    return Outcome(Ending.FAILED, error=_needs_more(self._limits.max_run_bytes))
                return Outcome(Ending.DIED, error.message, lost=worker.lost)
            match message.pop("event"):
                case "started":
                    await self._started(job, message)
                    if not job.request_reason and job.row.reason != before:
                        with suppress(OSError):  # on a full disk it stays until the next state
                            await job.change(reason=before)
                case "progress":
                    await self._progress(job, message)
                case "validation":
                    await self._validation(job, message)
                case "reading":
                    await self._report_reason(job, message["reason"])
                case "restarted":
                    before = await self._report_reason(job, message["reason"])
                case "checkpoint":
                    TRAINING.checkpoint(job.id, message["took_s"])
                    job.crashes = 0
                    job.losses = 0
                    job.space_tries = 0
                    kept = True
                    if self._blobs is not None:
                        self._blobs.note(job)
                case "phase":
                    job.trace.phase(message["name"], message["began_s"], message["ended_s"])
                case "saved":
                    return Outcome(Ending.SAVED)
                case "paused":
                    return Outcome(Ending.PAUSED, message["reason"], message["needs_bytes"])
                case "stopped":
                    return Outcome(Ending.STOPPED, message["reason"])
                case "failed":
                    fault = worker_protocol.unpack_error(message["error"])
                    if isinstance(fault, MemoryError):
                        fault = _needs_more(self._limits.max_run_bytes)
                    return Outcome(Ending.FAILED, error=fault)

    async def _waits(self, job: Job, reason: str) -> None:
        """Publishes why a job that may run has no process yet, once for each reason."""
        if job.row.reason != (job.request_reason or reason):
            await self._report_reason(job, reason)

    async def _report_reason(self, job: Job, reason: str) -> str:
        """Publishes what a running job is doing; returns the reason published."""
        reason = job.request_reason or reason
        state = pb.JobStateChange(state=pb.JOB_STATE_RUNNING, reason=reason)
        await self._publish(job, pb.JobEvent(state=state), reason=reason)
        return reason

    async def _started(self, job: Job, message: worker_protocol.Message) -> None:
        """Publishes that a job started, once: a process that continues it reports that again."""
        if job.has_started:
            return
        started = responses.started(await job.whole_later(), message)
        config = worker_protocol.encode(message["config"]).decode().strip()
        event = pb.JobEvent(started=started)
        await self._publish(job, event, started=started.SerializeToString(), config=config)

    async def _progress(self, job: Job, message: worker_protocol.Message) -> None:
        """Publishes progress, unless it was before a crash after which steps are repeated."""
        progress = responses.progress(message)
        TRAINING.progress(
            job.id,
            step=progress.step,
            tokens=progress.tokens_seen,
            tokens_per_second=progress.tokens_per_second,
            train_loss=progress.train_loss,
            valid_loss=progress.valid_loss if progress.HasField("valid_loss") else None,
        )
        last = job.last_progress
        validated = progress.HasField("valid_loss")
        news = validated and not last.HasField("valid_loss")
        if progress.step > last.step or (progress.step == last.step and news):
            event = pb.JobEvent(progress=progress)
            await self._publish(job, event, progress=progress.SerializeToString())

    async def _validation(self, job: Job, message: worker_protocol.Message) -> None:
        """Publishes how far a validation is, unless its loss was published before a crash."""
        validation = responses.validation(message)
        last = job.last_progress
        known = last.step == validation.step and last.HasField("valid_loss")
        if last.step > validation.step or (known and not validation.is_final):
            return
        await self._publish(job, pb.JobEvent(validation=validation))

    async def _publish(self, job: Job, event: pb.JobEvent, **changes: object) -> None:
        """Publishes an event; on a full disk the job pauses instead."""
        try:
            await self._check_space()
            await job.publish(event, ran_s=job.ran_s, **changes)
        except OSError as error:
            logger.error("job %s pauses: %s", job.id, error)
            if not job.pausing:
                self.pause(job, f"the disk is full: {error.strerror}")

    async def _check_space(self) -> None:
        """Checks at intervals that there is space for more events.

        Raises:
            NoSpaceError: There is no space.
        """
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_S
            await thread_pools.DATABASE.run(self._data_dir.space.require_least)


async def _nodes(job: Job) -> int:
    """Returns how many processes share a job."""
    return max(1, pb.TrainSpec.FromString((await job.whole_later()).spec).nodes)


def _first_start(job: Job) -> dict[str, float]:
    return {} if job.row.started_s else {"started_s": job.time_s()}


def _needs_more(limit_bytes: int | None) -> StatusError:
    """Returns the error of a job whose process took too much memory.

    Args:
        limit_bytes: The most that it may take; None: all of the machine.
    """
    most = "" if limit_bytes is None else f" ({limit_bytes:,} bytes)"
    which = "than the machine has" if limit_bytes is None else f"than --max-training-bytes{most}"
    return StatusError(
        grpc.StatusCode.FAILED_PRECONDITION,
        f"the job needs more memory {which}: lower data.batch_size, data.window or "
        "network.hidden_size, give a smaller corpus or one with shorter lines, or have the server "
        "started with more",
    )
