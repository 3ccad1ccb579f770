"""`JobState` names the states of a training job, as the rows of the database keep them.

A job changes its state in `Job.enter` (server/jobs/job.py).
"""

from __future__ import annotations

import enum


class JobState(enum.StrEnum):
    """What a job is doing."""

    QUEUED = "queued"
    """It waits for a slot."""
    RUNNING = "running"
    """A process trains it, or is about to."""
    PAUSED = "paused"
    """Its state is on disk, and it waits to be resumed."""
    SUCCEEDED = "succeeded"
    """It has ended with a model."""
    FAILED = "failed"
    """It has ended with an error."""
    CANCELLED = "cancelled"
    """It was cancelled; what it had learned is a model, if it had trained at all."""

    @property
    def is_final(self) -> bool:
        """Whether a job never leaves the state."""
        return self not in (JobState.QUEUED, JobState.RUNNING, JobState.PAUSED)


FINAL_STATES = tuple(state for state in JobState if state.is_final)
UNFINISHED_STATES = tuple(state for state in JobState if not state.is_final)
