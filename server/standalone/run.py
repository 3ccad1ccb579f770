"""`Run` trains one model to its end, or until it is interrupted, and keeps checkpoints meanwhile.

A run that is killed, or interrupted, continues from its last checkpoint when the same command is
given again, with any number of processes and threads, to the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from treadle.model import Model, Progress, Trainer
from treadle.model.atomic_files import remove_leftovers
from treadle.model.config import TrainConfig
from treadle.model.errors import LoadError
from treadle.model.training.checkpoint import settled_config
from treadle.server.standalone.asked_run import ASKED_FILE, check_asked

if TYPE_CHECKING:
    from treadle.model.data.files import CorpusFile
    from treadle.model.network.ranks.ranks import Ranks
    from treadle.model.training.progress import Started, Validation

STATE_FILE = "state.safetensors"
"""The checkpoint."""

_STATE_FILES = (STATE_FILE, f"{STATE_FILE}.previous")

_AT_MOST = 9.0
"""A run trains at least this many times as long as it writes checkpoints."""


@dataclass(frozen=True)
class RunFiles:
    """Where a run reads and writes."""

    corpus: list[CorpusFile]
    """The corpus."""
    init_from: Path | None
    """The model that it starts from; None: random weights."""
    output: Path
    """The model file that it makes."""
    checkpoints: Path
    """The folder of its checkpoint, which exists."""


class _LeftError(Exception):
    """The run leaves a validation, to continue later."""


class Run:
    """One run.

    Args:
        config: The settings.
        files: What it reads and writes.
        threads: Threads of this process, and of every other one that shares the work.
        interval_s: Seconds between two checkpoints.
        ranks: The processes that share the work, this one being rank 0; None: this one alone.

    Raises:
        OtherRunError: The folder has the checkpoint of another run.
        ModelError: See `Trainer`.
        OSError: A file cannot be read or written.
    """

    def __init__(
        self,
        config: TrainConfig,
        files: RunFiles,
        threads: int,
        interval_s: float,
        ranks: Ranks | None,
    ) -> None:
        self._files = files
        self._state = files.checkpoints / STATE_FILE
        self._interval = interval_s
        self._due = time.monotonic() + interval_s
        self.interrupted = False
        """Set by a signal: the run is to write its checkpoint and leave."""
        remove_leftovers(files.checkpoints)
        init_from = None if files.init_from is None else _loaded(files.init_from)
        is_begun = any((files.checkpoints / name).exists() for name in _STATE_FILES)
        check_asked(files.checkpoints, config, files.corpus, files.init_from, is_begun=is_begun)
        self._trainer = Trainer(
            files.corpus,
            settled_config(config, self._state),
            threads,
            init_from=init_from,
            folder=files.checkpoints,
            ranks=ranks,
        )
        self._trainer.restore_state(self._state)

    @property
    def started(self) -> Started:
        """The resolved settings."""
        return self._trainer.started

    @property
    def steps(self) -> int:
        """Steps done."""
        return self._trainer.steps

    def train(self, on_progress: Callable[[Progress], None]) -> Model | None:
        """Trains, and writes the model.

        Args:
            on_progress: Called with every progress.

        Returns:
            The model; None if the run was interrupted, and its checkpoint has been written.

        Raises:
            ModelError: See `Trainer.run`.
            OSError: A file could not be written.
        """
        try:
            steps = self._trainer.run(
                between=self._between_steps,
                during=self._during,
                interrupted=lambda: self.interrupted,
                in_series=True,
            )
            with closing(steps):  # also where a report fails: the other ranks hear of it in order
                for progress in steps:
                    on_progress(progress)
            if not self.interrupted:
                self._write()
                model = self._trainer.finish(during=self._during)
        except _LeftError:
            pass
        if self.interrupted:
            if self._trainer.steps:
                self._write()
            return None
        self._files.output.parent.mkdir(parents=True, exist_ok=True)
        model.save(self._files.output)
        for name in (*_STATE_FILES, ASKED_FILE):
            (self._files.checkpoints / name).unlink(missing_ok=True)
        with suppress(OSError):  # there are other files in it
            self._files.checkpoints.rmdir()
        return model

    def _between_steps(self) -> bool:
        """Writes a checkpoint where one is due; returns whether to leave the run."""
        began = time.monotonic()
        if not self.interrupted and began >= self._due and self._trainer.steps:
            self._write()
            ended = time.monotonic()
            self._due = ended + max(self._interval, _AT_MOST * (ended - began))
        return self.interrupted

    def _during(self, validation: Validation) -> None:
        if self.interrupted:
            raise _LeftError

    def _write(self) -> None:
        self._trainer.save_state(self._state)


def _loaded(path: Path) -> Model:
    """Returns the model that a run starts from.

    Raises:
        LoadError: It cannot be used; the message names it.
    """
    try:
        return Model.load(path)
    except LoadError as error:
        raise LoadError(f"init_from {path} cannot be used: {error}") from error
