"""What a training process does: one job, or the rest of one, with every step told to the server.

It keeps the files of `job_files` in the job's directory. Each is written under another name,
synced and renamed, so that a process killed at any moment leaves the old one or the new one.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from treadle.model import Model, Progress, Trainer, warm
from treadle.model.atomic_files import remove_leftovers
from treadle.model.config import TrainConfig
from treadle.model.data.corpus import CorpusFile
from treadle.model.enums import CorpusRole
from treadle.model.errors import LoadError, ModelError
from treadle.model.scratch_files import ScratchFolder
from treadle.model.training.checkpoint import saved_config
from treadle.server.failures import NoSpaceError, is_full
from treadle.server.jobs import worker_protocol
from treadle.server.jobs.worker_control import Replies, RunControl, heartbeat
from treadle.server.resources.process_memory import limit_own
from treadle.server.storage.files import DiskSpace
from treadle.server.storage.job_files import BEST_FILE, FINAL_FILE, INIT_FILE, LAST_FILE, STATE_FILE

if TYPE_CHECKING:
    from treadle.model.training.progress import Validation

_MAX_SAMPLE = 10_000
"""Characters of a sample that are passed on; words may be of any length."""

_LARGE_CORPUS_BYTES = 32 << 20
"""A corpus from which on reading it takes long enough to say so."""

_AT_MOST = 9.0
"""A run trains this many times as long as it keeps its state, however large that is."""

_TOLD_TO_END = "the training process was told to end"


class _LeftError(Exception):
    """The run is to be left in the middle of a validation, to continue later."""


def serve(requests: IO[bytes], replies: IO[bytes], warm_up: bool) -> int:
    """Gets ready, waits for a job and does it.

    Args:
        requests: Where the server's messages come from.
        replies: Where messages to the server go.
        warm_up: Whether to load every kernel before the job comes.

    Returns:
        The exit code.
    """
    pipe = Replies(replies)
    if warm_up:
        with heartbeat(pipe):
            warm()
    pipe.send(event="ready")  # and then nothing: nobody listens to a process that stands by
    line = requests.readline()
    if not line:
        return 0
    wishes = RunControl(pipe)
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(1))
    signal.signal(signal.SIGTERM, lambda *_: _pause(wishes))
    threading.Thread(target=_listen, args=(requests, wishes), daemon=True).start()
    try:
        job = worker_protocol.decode(line)["job"]
        limit_own(job["memory_limit_bytes"], job["threads"])
        with heartbeat(pipe):
            _work(job, pipe, wishes)
    except Exception as error:
        if is_full(error):  # what was kept last is whole, and the rest is made again
            pipe.send(event="paused", reason=_full(error), needs_bytes=_needs(error))
        else:
            if not isinstance(error, (ModelError, BrokenPipeError)):
                traceback.print_exc(file=sys.stderr)
            pipe.send(event="failed", error=worker_protocol.pack_error(error))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the end has begun anyway
    return 0


class _Keeper:
    """Keeps a run's state and weights on disk as it goes.

    Args:
        trainer: The run.
        order: The job as the server gave it.
        space: The space of its disk.
        wishes: What is wanted of it.
        replies: Where the server hears of every checkpoint.
    """

    def __init__(
        self,
        trainer: Trainer,
        order: worker_protocol.Message,
        space: DiskSpace,
        wishes: RunControl,
        replies: Replies,
    ) -> None:
        self._trainer = trainer
        self._directory = Path(order["directory"])
        self._interval = order["checkpoint_interval_s"]
        self._space = space
        self._wishes = wishes
        self._replies = replies
        # The first one comes soon, so that there is something to use and to lose nothing of.
        self._due = time.monotonic() + min(1.0, self._interval)
        self._best_step = -1
        self.left = ""
        """Why the run was left to be gone on with later; empty where it was not."""
        self.needs_bytes = 0
        """Bytes of disk space for want of which it was; 0 where it was not."""

    def between(self) -> bool:
        """Keeps what is due; returns True to leave the run here.

        Called between two steps, the second of which may have been dropped.

        Returns:
            Whether to leave the run here.
        """
        wishes = self._wishes
        if wishes.threads:
            self._trainer.threads, wishes.threads = wishes.threads, 0
        if not self._trainer.steps:  # there is nothing to keep yet
            self.left = wishes.pause_reason
            return bool(self.left)
        began = time.monotonic()
        if not wishes.pause_reason and began < self._due:
            return False
        try:
            self.keep()
        except OSError as error:
            if not is_full(error):
                raise
            self.needs_bytes = _needs(error)
            self.left = _full(error)
        else:
            self.left = wishes.pause_reason
        ended = time.monotonic()
        self._due = ended + max(self._interval, _AT_MOST * (ended - began))
        return bool(self.left)

    def keep(self) -> None:
        """Writes the state, and then the weights: bad ones are refused before any are lost.

        Raises:
            OSError: The disk failed or is full; what was there before is still whole.
            TrainingError: A weight is no finite number.
        """
        require = self._space.require
        self._trainer.save_state(self._directory / STATE_FILE, require)
        best = self._trainer.best_model
        if best is not None and best.training is not None:
            step = best.training.weights_step
            if step != self._best_step:
                best.save(self._directory / BEST_FILE, require)
                self._best_step = step
        self._trainer.model.save(self._directory / LAST_FILE, require)
        self._replies.send(event="checkpoint")


class _Scratch:
    """Asks for space for the corpus' tokens.

    Args:
        space: The space of the disk, without what other jobs need for their checkpoints.
    """

    def __init__(self, space: DiskSpace) -> None:
        self._space = space
        self._written = 0

    def require(self, size: int) -> None:
        """Checks that so many bytes more may be written.

        Raises:
            NoSpaceError: They may not; its size is that of all tokens so far, which are made again.
        """
        try:
            self._space.require(size)
        except NoSpaceError as error:
            error.size = self._written + size
            raise
        self._written += size


def _needs(error: BaseException) -> int:
    """Returns the bytes of disk space that were needed at least, 1 or more."""
    return max(1, error.size) if isinstance(error, NoSpaceError) else 1


def _full(error: BaseException) -> str:
    return f"the disk is full: {getattr(error, 'strerror', None) or error}"


def _work(job: worker_protocol.Message, replies: Replies, wishes: RunControl) -> None:
    directory = Path(job["directory"])
    space = DiskSpace(directory, job["min_free_bytes"])
    # One that is left is of an end that was not to be, and must not pass for this run's.
    (directory / FINAL_FILE).unlink(missing_ok=True)
    remove_leftovers(directory)  # of a process that was killed
    with wishes.nothing_to_lose(preparing=True, by_stop=not (directory / STATE_FILE).exists()):
        size = sum(Path(file["path"]).stat().st_size for file in job["files"])
        if size >= _LARGE_CORPUS_BYTES:
            replies.send(event="reading", reason=f"reading a corpus of {size:,} bytes")
        trainer = _prepare(job, directory, replies)
    started = dataclasses.asdict(trainer.started) | {"config": trainer.started.config.to_json()}
    replies.send(event="started", **started)
    keeper = _Keeper(trainer, job, space, wishes, replies)
    if trainer.last_progress is not None:  # the server may have died before it noted that
        _send_progress(replies, trainer.last_progress)
    watcher = _Watcher(trainer, wishes, replies)
    try:
        for progress in trainer.run(
            wishes.stopping, keeper.between, watcher.during, wishes.leaving
        ):
            _send_progress(replies, progress)
    except _LeftError:
        keeper.between()
    if keeper.left:
        replies.send(event="paused", reason=keeper.left, needs_bytes=keeper.needs_bytes)
        return
    if wishes.heeded:
        if not trainer.steps:
            replies.send(event="stopped", reason=wishes.stop_reason)
            return
        trainer.ended_by = f"{wishes.stop_reason} after {trainer.steps} steps"
    keeper.keep()
    with wishes.nothing_to_lose(by_stop=False):
        model = trainer.finish(wishes.stopping, watcher.during)
    model.save(directory / FINAL_FILE, space.require)
    replies.send(event="saved")


class _Watcher:
    """Tells how far a long validation has come, and leaves it where the run is to pause.

    Args:
        trainer: The run.
        wishes: What is wanted of it.
        replies: Where the server hears of validations.
    """

    def __init__(self, trainer: Trainer, wishes: RunControl, replies: Replies) -> None:
        self._trainer = trainer
        self._wishes = wishes
        self._replies = replies
        self._interval = trainer.started.config.report.progress_interval_s
        self._due = 0.0

    def during(self, validation: Validation) -> None:
        """Called between two batches.

        Raises:
            _LeftError: The run is to pause.
        """
        if self._wishes.pause_reason:
            raise _LeftError
        now = time.monotonic()
        if not validation.tokens_done:
            self._due = now + self._interval
        if now >= self._due:
            self._due = now + self._interval
            values = dataclasses.asdict(validation)
            self._replies.send(event="validation", step=self._trainer.steps, **values)


def _prepare(job: worker_protocol.Message, directory: Path, replies: Replies) -> Trainer:
    """Returns the run, continued from its checkpoint where there is one."""
    files = [
        CorpusFile(Path(file["path"]), file["name"], CorpusRole(file["role"]), file["weight"])
        for file in job["files"]
    ]
    config = _config(job, directory / STATE_FILE)
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
        )

    trainer = make()
    try:
        trainer.restore_state(directory / STATE_FILE)
    except LoadError as error:
        # From its beginning it comes to the same weights; it only takes longer.
        print(f"the run starts over without its checkpoint: {error}", file=sys.stderr)
        replies.send(event="restarted", reason=f"the job starts over: {error}")
        trainer = make()
    return trainer


def _config(job: worker_protocol.Message, state: Path) -> TrainConfig:
    """Returns the settings, as they were settled where the run began before."""
    asked = TrainConfig.from_json(job["config"])
    with suppress(LoadError):  # told when the state is restored
        saved = saved_config(state)
        if saved is not None:
            # The tokenizer goes into the model as it was asked for, killed or not.
            policy = asked.tokenizer.unknown_policy
            tokenizer = dataclasses.replace(saved.tokenizer, unknown_policy=policy)
            return dataclasses.replace(saved, tokenizer=tokenizer)
    return asked


def _send_progress(replies: Replies, progress: Progress) -> None:
    sample = progress.sample and progress.sample[:_MAX_SAMPLE]
    replies.send(event="progress", **dataclasses.asdict(progress) | {"sample": sample})


def _pause(wishes: RunControl) -> None:
    """Passes on a signal: its handler may have interrupted whoever holds the lock."""
    threading.Thread(target=wishes.pause, args=(_TOLD_TO_END,), daemon=True).start()


def _listen(requests: IO[bytes], wishes: RunControl) -> None:
    """Takes the server's wishes; ends the process when the server is gone."""
    for line in requests:
        message = worker_protocol.decode(line)
        if "stop" in message:
            wishes.stop(message["stop"], message.get("at_once", False))
        if "pause" in message:
            wishes.pause(message["pause"])
        if "threads" in message:
            wishes.threads = message["threads"]
    os.kill(os.getpid(), signal.SIGHUP)  # the main thread ends, and tidies up
