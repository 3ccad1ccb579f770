"""`TrainingMetrics` holds what the jobs that run report, each under its id.

The last values of a job stay for some minutes after its end, so that a scrape sees those of a short
job as well. So there are never more ids than jobs that run, and a few.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from treadle.server.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_KEPT_S = 300.0
"""Seconds for which the values of a job stay after its end."""

_MOST_ENDED = 16
"""Jobs that have ended and whose values stay, at most."""


@dataclass
class _Job:
    """What is known of a job."""

    tokens: int
    """Tokens that it was trained on and that are counted."""
    checkpoint_s: float
    """When it last wrote a checkpoint, or began to run."""
    is_running: bool = True
    ended_s: float = 0.0


class TrainingMetrics:
    """The metrics of the jobs of a server, on its event loop.

    Args:
        clock: Returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._jobs: OrderedDict[str, _Job] = OrderedDict()

    def started(self, job: str, is_new: bool) -> None:
        """Notes that a process trains a job from now on.

        Args:
            job: Its id.
            is_new: Whether it has no progress yet; the tokens before the first report of another
                one were counted before.
        """
        known = self._jobs.get(job)
        tokens = known.tokens if known is not None else 0 if is_new else -1
        self._jobs[job] = _Job(tokens, self._clock())

    def progress(
        self,
        job: str,
        *,
        step: int,
        tokens: int,
        tokens_per_second: float,
        train_loss: float,
        valid_loss: float | None,
    ) -> None:
        """Notes the progress of a job.

        Args:
            job: Its id.
            step: Training steps done.
            tokens: Tokens trained on.
            tokens_per_second: The same per second.
            train_loss: The loss of its training part, in nats per token.
            valid_loss: That of its validation part; None where there was no validation.
        """
        known = self._jobs.get(job)
        if known is None:
            return
        if known.tokens >= 0:
            metrics.TRAINING_TOKENS.inc(max(0, tokens - known.tokens))
        known.tokens = max(tokens, known.tokens)
        metrics.TRAINING_STEP.labels(job).set(step)
        metrics.TRAINING_SPEED.labels(job).set(tokens_per_second)
        metrics.TRAINING_LOSS.labels(job, "train").set(train_loss)
        if valid_loss is not None:
            metrics.TRAINING_LOSS.labels(job, "valid").set(valid_loss)

    def checkpoint(self, job: str, took_s: float) -> None:
        """Notes that a checkpoint of a job was written.

        Args:
            job: Its id.
            took_s: Seconds that it took.
        """
        metrics.CHECKPOINT_SECONDS.observe(took_s)
        if job in self._jobs:
            self._jobs[job].checkpoint_s = self._clock()

    def left(self, job: str) -> None:
        """Notes that no process trains a job any more."""
        known = self._jobs.get(job)
        if known is not None:
            known.is_running = False
            known.ended_s = self._clock()
            metrics.TRAINING_SPEED.labels(job).set(0.0)
            self._jobs.move_to_end(job)
        self._forget()

    def checkpoint_ages(self) -> Mapping[str, float]:
        """Returns the seconds since the last checkpoint of each job that runs, by its id."""
        self._forget()
        now_s = self._clock()
        running = ((name, job) for name, job in self._jobs.items() if job.is_running)
        return {name: now_s - job.checkpoint_s for name, job in running}

    def _forget(self) -> None:
        """Drops the jobs that ended long ago, and those that are too many."""
        ended = [name for name, job in self._jobs.items() if not job.is_running]
        late_s = self._clock() - _KEPT_S
        for place, name in enumerate(reversed(ended)):
            if place >= _MOST_ENDED or self._jobs[name].ended_s <= late_s:
                del self._jobs[name]
                for gauge in (metrics.TRAINING_STEP, metrics.TRAINING_SPEED):
                    gauge.remove(name)
                for split in ("train", "valid"):
                    metrics.TRAINING_LOSS.remove(name, split)


TRAINING = TrainingMetrics()
"""Those of this process."""
