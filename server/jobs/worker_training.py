"""`serve` trains one job in a training process and reports each step to the server.

It writes the files that `job_files` names into the job's directory. Each is written under another
name, synced and renamed: a process that is killed at any moment leaves the old or the new file.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import IO, TYPE_CHECKING

from treadle.model import Model, Progress, Trainer, warm
from treadle.model.atomic_files import remove_leftovers
from treadle.model.config import TrainConfig
from treadle.model.data.corpus import CorpusFile
from treadle.model.enums import CorpusRole
from treadle.model.errors import LoadError, ModelError
from treadle.model.network.ranks.ranks import LostRankError
from treadle.model.scratch_files import ScratchFolder
from treadle.model.training.checkpoint import settled_config
from treadle.model.warmup.groups import KernelGroup
from treadle.server.access.request_id import log_to_stderr, set_logged_trace, set_request_id
from treadle.server.failures import NoSpaceError, is_full
from treadle.server.jobs import worker_protocol
from treadle.server.jobs.worker_control import Phases, Replies, RunControl, heartbeat
from treadle.server.resources.process_memory import limit_own
from treadle.server.storage.files import DiskSpace
from treadle.server.storage.job_files import BEST_FILE, FINAL_FILE, INIT_FILE, LAST_FILE, STATE_FILE

if TYPE_CHECKING:
    from treadle.model.network.ranks.ranks import Ranks
    from treadle.model.training.progress import Validation

logger = logging.getLogger(__name__)

_MAX_SAMPLE = 10_000
"""The most characters of a sample that are sent; a word may be of any length."""

_LARGE_CORPUS_BYTES = 32 << 20
"""Bytes of a corpus from which on its reading is reported, since it takes long."""

_AT_MOST = 9.0
"""A run trains at least this many times as long as it writes checkpoints, whatever their size."""

_ASKED_TO_END = "the training process was asked to end"


class _LeftError(Exception):
    """The run leaves a validation, to continue later."""


def serve(
    requests: IO[bytes], replies: IO[bytes], warm_up: bool, ranks: Ranks | None = None
) -> int:
    """Prepares, waits for a job and trains it.

    Args:
        requests: The pipe with the messages of the server.
        replies: The pipe for messages to the server.
        warm_up: Whether to load the kernels of training before the job arrives.
        ranks: The processes that share the work, this one being rank 0; None: this one alone.

    Returns:
        The exit code.

    Raises:
        LostRankError: Another rank does not answer. The server hears nothing of it, so that it
            continues the job from its checkpoint, as after the end of any process.
    """
    pipe = Replies(replies)
    if warm_up:
        with heartbeat(pipe):
            warm([KernelGroup.INFERENCE, KernelGroup.TRAINING])
    pipe.send(event="ready")  # and then nothing, since nobody reads from a process on standby
    line = requests.readline()
    if not line:
        return 0
    control = RunControl(pipe)
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(1))
    signal.signal(signal.SIGTERM, lambda *_: _pause(control))
    threading.Thread(target=_listen, args=(requests, control, ranks), daemon=True).start()
    try:
        job = worker_protocol.decode(line)["job"]
        job["threads"] = _own_threads(job["threads"], ranks)
        log_to_stderr(job.get("log_level", logging.WARNING), job.get("log_format", "text"))
        set_request_id(job.get("request_id", ""), job.get("caller", ""))
        set_logged_trace(job.get("traceparent", "")[3:35])
        limit_own(job["memory_limit_bytes"], job["threads"])
        with heartbeat(pipe):
            _work(job, pipe, control, ranks)
    except LostRankError as error:
        logger.error("%s", error)
        raise
    except Exception as error:
        if is_full(error):  # the last checkpoint is whole, and the rest is computed again
            pipe.send(event="paused", reason=_full(error), needs_bytes=_needs(error))
        else:
            if not isinstance(error, (ModelError, BrokenPipeError)):
                logger.exception("the training process failed")
            pipe.send(event="failed", error=worker_protocol.pack_error(error))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the process ends anyway
    return 0


class _Checkpoints:
    """Writes the checkpoints and weights of a run at intervals.

    Args:
        trainer: The run.
        request: The job as the server gave it.
        space: The space of its disk.
        control: What the server wants of the run.
        replies: Sends the server an event for every checkpoint.
        phases: Traces the checkpoints.
    """

    def __init__(
        self,
        trainer: Trainer,
        request: worker_protocol.Message,
        space: DiskSpace,
        control: RunControl,
        replies: Replies,
        phases: Phases,
    ) -> None:
        self._phases = phases
        self._trainer = trainer
        self._directory = Path(request["directory"])
        self._interval = request["checkpoint_interval_s"]
        self._space = space
        self._control = control
        self._replies = replies
        # The first checkpoint comes soon, so that there are weights to use.
        self._due = time.monotonic() + min(1.0, self._interval)
        self._best_step = -1
        self.leave_reason = ""
        """Why the run was left, to continue later; empty: it was not left."""
        self.needs_bytes = 0
        """Bytes of disk space that it lacked when it was left; 0: it did not lack any."""

    def between_steps(self) -> bool:
        """Writes a checkpoint where one is due.

        The trainer calls it between two steps, the second of which may have been dropped.

        Returns:
            Whether to leave the run here.
        """
        control = self._control
        if control.threads:
            self._trainer.threads = control.threads
            control.threads = 0
        if not self._trainer.steps:  # there is nothing to write yet
            self.leave_reason = control.pause_reason
            return bool(self.leave_reason)
        began = time.monotonic()
        if not control.pause_reason and began < self._due:
            return False
        try:
            self.write_checkpoint()
        except OSError as error:
            if not is_full(error):
                raise
            self.needs_bytes = _needs(error)
            self.leave_reason = _full(error)
        else:
            self.leave_reason = control.pause_reason
        ended = time.monotonic()
        self._due = ended + max(self._interval, _AT_MOST * (ended - began))
        return bool(self.leave_reason)

    def write_checkpoint(self) -> None:
        """Writes the checkpoint, and then the weights, so that bad weights replace no good ones.

        Raises:
            OSError: The disk failed or is full; the files from before are still whole.
            TrainingError: A weight is not finite.
        """
        began_s = time.time()
        began = time.monotonic()
        require = self._space.require
        self._trainer.save_state(self._directory / STATE_FILE, require)
        best = self._trainer.best_model
        if best is not None and best.training is not None:
            step = best.training.weights_step
            if step != self._best_step:
                best.save(self._directory / BEST_FILE, require)
                self._best_step = step
        self._trainer.model.save(self._directory / LAST_FILE, require)
        self._replies.send(event="checkpoint", took_s=time.monotonic() - began)
        self._phases.add("checkpoint", began_s)


class _Scratch:
    """Reserves disk space for the tokens of the corpus.

    Args:
        space: The space of the disk, less what other jobs need for their checkpoints.
    """

    def __init__(self, space: DiskSpace) -> None:
        self._space = space
        self._written = 0

    def require(self, size: int) -> None:
        """Checks that more bytes may be written.

        Raises:
            NoSpaceError: There is no space. Its size is that of all tokens so far, since a restart
                writes them again.
        """
        try:
            self._space.require(size)
        except NoSpaceError as error:
            error.size = self._written + size
            raise
        self._written += size


def _needs(error: BaseException) -> int:
    """Returns the least bytes of disk space that were needed, 1 or more."""
    return max(1, error.size) if isinstance(error, NoSpaceError) else 1


def _full(error: BaseException) -> str:
    return f"the disk is full: {getattr(error, 'strerror', None) or error}"


def _work(
    job: worker_protocol.Message, replies: Replies, control: RunControl, ranks: Ranks | None
) -> None:
    directory = Path(job["directory"])
    space = DiskSpace(directory, job["min_free_bytes"])
    phases = Phases(replies, is_on=bool(job.get("traceparent")))
    # One from an earlier end that failed must not pass for the model of this run.
    (directory / FINAL_FILE).unlink(missing_ok=True)
    remove_leftovers(directory)  # of a process that was killed
    with control.nothing_to_lose(preparing=True, by_stop=not (directory / STATE_FILE).exists()):
        size = sum(Path(file["path"]).stat().st_size for file in job["files"])
        if size >= _LARGE_CORPUS_BYTES:
            replies.send(event="reading", reason=f"reading a corpus of {size:,} bytes")
        with phases.phase("prepare"):
            trainer = _prepare(job, directory, replies, ranks)
    started = dataclasses.asdict(trainer.started) | {"config": trainer.started.config.to_json()}
    replies.send(event="started", **started)
    logger.info("job %s is trained from step %d on", directory.name, trainer.steps)
    checkpoints = _Checkpoints(trainer, job, space, control, replies, phases)
    if trainer.last_progress is not None:  # the server may have died before it stored that
        _send_progress(replies, trainer.last_progress)
    watcher = _Watcher(trainer, control, replies)
    with phases.phase("train"):
        try:
            steps = trainer.run(
                control.stopping,
                checkpoints.between_steps,
                watcher.during,
                control.leaving,
                in_series=True,
            )
            with closing(steps):  # also where a report fails: the other ranks hear of it in order
                for progress in steps:
                    _send_progress(replies, progress)
                    if progress.valid_loss is not None:
                        phases.add("evaluation", watcher.began_s)
        except _LeftError:
            checkpoints.between_steps()
    if checkpoints.leave_reason:
        replies.send(
            event="paused", reason=checkpoints.leave_reason, needs_bytes=checkpoints.needs_bytes
        )
        return
    if control.heeded:
        if not trainer.steps:
            replies.send(event="stopped", reason=control.stop_reason)
            return
        trainer.ended_by = f"{control.stop_reason} after {trainer.steps} steps"
    checkpoints.write_checkpoint()
    with phases.phase("finish"):
        with control.nothing_to_lose(by_stop=False):
            model = trainer.finish(control.stopping, watcher.during)
        model.save(directory / FINAL_FILE, space.require)
    replies.send(event="saved")


class _Watcher:
    """Reports how far a long validation is, and leaves it where the run is to pause.

    Args:
        trainer: The run.
        control: What the server wants of the run.
        replies: Sends the server events about validations.
    """

    def __init__(self, trainer: Trainer, control: RunControl, replies: Replies) -> None:
        self._trainer = trainer
        self._control = control
        self._replies = replies
        self._interval = trainer.started.config.report.progress_interval_s
        self._due = 0.0
        self.began_s = 0.0
        """When the last validation began, in seconds since the epoch; 0: there was none."""

    def during(self, validation: Validation) -> None:
        """Reports progress; the trainer calls it between two batches.

        Raises:
            _LeftError: The run is to pause.
        """
        if self._control.pause_reason:
            raise _LeftError
        now = time.monotonic()
        if not validation.tokens_done:
            self.began_s = time.time()
            self._due = now + self._interval
        if now >= self._due:
            self._due = now + self._interval
            values = dataclasses.asdict(validation)
            self._replies.send(event="validation", step=self._trainer.steps, **values)


def _prepare(
    job: worker_protocol.Message, directory: Path, replies: Replies, ranks: Ranks | None
) -> Trainer:
    """Returns a trainer, restored from its checkpoint where there is one."""
    files = [
        CorpusFile(Path(file["path"]), file["name"], CorpusRole(file["role"]), file["weight"])
        for file in job["files"]
    ]
    config = settled_config(TrainConfig.from_json(job["config"]), directory / STATE_FILE)
    init = directory / INIT_FILE if job["init_from"] else None
    reserved = job["reserved_bytes"]
    space = DiskSpace(directory, job["min_free_bytes"], lambda: reserved)

    def make() -> Trainer:
        return Trainer(
            files,
            config,
            job["threads"],
            job["memory_limit_bytes"],
            init_from=None if init is None else Model.load(init),
            folder=ScratchFolder(directory, _Scratch(space).require),
            ranks=ranks,
        )

    trainer = make()
    try:
        trainer.restore_state(directory / STATE_FILE)
    except LoadError as error:
        # From the beginning it reaches the same weights; it only takes longer.
        logger.warning("the run starts over without its checkpoint: %s", error)
        replies.send(event="restarted", reason=f"the job starts over: {error}")
        trainer = make()
    return trainer


def _send_progress(replies: Replies, progress: Progress) -> None:
    sample = progress.sample and progress.sample[:_MAX_SAMPLE]
    replies.send(event="progress", **dataclasses.asdict(progress) | {"sample": sample})


def _pause(control: RunControl) -> None:
    """Pauses the run in another thread, since a signal may interrupt the holder of the lock."""
    threading.Thread(target=control.pause, args=(_ASKED_TO_END,), daemon=True).start()


def _own_threads(threads: int, ranks: Ranks | None) -> int:
    """Returns the threads of each process where those on this machine share some."""
    return threads if ranks is None else max(1, threads // ranks.on_this_host)


def _listen(requests: IO[bytes], control: RunControl, ranks: Ranks | None) -> None:
    """Reads the messages of the server; ends the process when the server is gone."""
    for line in requests:
        message = worker_protocol.decode(line)
        if "stop" in message:
            control.stop(message["stop"], message.get("at_once", False))
        if "pause" in message:
            control.pause(message["pause"])
        if "threads" in message:
            control.threads = _own_threads(message["threads"], ranks)
    os.kill(os.getpid(), signal.SIGHUP)  # the main thread cleans up and ends
