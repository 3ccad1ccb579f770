"""`apply_event` and `apply_job` bring a trial up to date with what the server says of its job."""

from __future__ import annotations

from typing import cast

from treadle.client.messages.enums import field_word
from treadle.client.sweep.trial import OPEN_STATES, Trial, TrialState, Validation
from treadle.v1.sequence_pb2 import Job, JobEvent, TrainingProgress


def apply_event(trial: Trial, event: JobEvent) -> None:
    """Applies an event of its job to a trial."""
    match event.WhichOneof("event"):
        case "state":
            state = field_word(event.state, "state")
            if state in OPEN_STATES and not trial.pruned_after:
                trial.state = cast(TrialState, state)
                trial.reason = event.state.reason if state == "paused" else ""
        case "started":
            trial.total_steps = event.started.total_steps
        case "progress":
            _apply_progress(trial, event.progress)
        case "completed":
            trial.version = event.completed.version
            record = event.completed.training
            trial.stored_loss = record.valid_loss if record.HasField("valid_loss") else None


def _apply_progress(trial: Trial, progress: TrainingProgress) -> None:
    trial.step = max(trial.step, progress.step)
    trial.time_left_s = progress.time_left_s if progress.HasField("time_left_s") else None
    if not progress.HasField("valid_loss"):
        return
    # A job that continues from a checkpoint may repeat a validation, to the same bits.
    if trial.validations and progress.step <= trial.validations[-1].step:
        return
    has_bits = progress.HasField("valid_bits_per_character")
    bits = progress.valid_bits_per_character if has_bits else None
    trial.validations.append(Validation(progress.step, progress.valid_loss, bits))


def apply_job(trial: Trial, job: Job) -> None:
    """Applies the state of its job to a trial; one that was stopped keeps its own."""
    state = cast(TrialState, field_word(job, "state"))
    trial.is_over = state not in OPEN_STATES
    trial.version = job.version
    if trial.pruned_after:
        return
    trial.state = state
    trial.reason = job.reason if state in ("failed", "cancelled", "paused") else ""
