"""`job_object` and `event_object` describe jobs as OpenAI's API does."""

from __future__ import annotations

from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2  # type: ignore[import-untyped]

from treadle.server.http.openai.model_ids import job_id, model_id
from treadle.server.http.openai.tuning.presets import ADAM_RATE, NEW, network_of
from treadle.v1 import sequence_pb2 as pb

MARK = "openai"
"""What begins the request id of a job that was made here; the ids of its files follow."""

_STATES = {
    pb.JOB_STATE_QUEUED: "queued",
    pb.JOB_STATE_RUNNING: "running",
    pb.JOB_STATE_PAUSED: "paused",
    pb.JOB_STATE_SUCCEEDED: "succeeded",
    pb.JOB_STATE_FAILED: "failed",
    pb.JOB_STATE_CANCELLED: "cancelled",
}
_FINAL = ("succeeded", "failed", "cancelled")


def files_mark(training_file: str, validation_file: str, nonce: str) -> str:
    """Returns the request id of a job that is trained from files."""
    return f"{MARK}:{training_file}:{validation_file}:{nonce}"


def status_of(job: pb.Job) -> str:
    """Returns the state of a job in OpenAI's words."""
    if job.state == pb.JOB_STATE_RUNNING and not job.HasField("started"):
        return "validating_files"
    return _STATES.get(job.state, "queued")


def job_object(job: pb.Job) -> dict[str, Any]:
    """Returns a job."""
    status = status_of(job)
    training_file, validation_file = _files(job.spec.request_id)
    settings = _hyperparameters(job.spec)
    failed = status == "failed"
    code = code_pb2.Code.Name(job.error_code).lower() if failed else ""
    error = {"code": code, "message": job.reason, "param": None} if failed else None
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": job.create_time.seconds,
        "finished_at": _seconds(job, "end_time"),
        "estimated_finish": _estimate(job) if status == "running" else None,
        "model": _base(job.spec),
        "fine_tuned_model": model_id(job.model, job.version) if job.version else None,
        "organization_id": job.owner,
        "status": status,
        "training_file": training_file,
        "validation_file": validation_file or None,
        "result_files": [],
        "trained_tokens": job.progress.tokens_seen if status in _FINAL else None,
        "hyperparameters": settings,
        "method": {"type": "supervised", "supervised": {"hyperparameters": settings}},
        "seed": job.spec.seed,
        "error": error,
        "integrations": [],
        "metadata": None,
    }


def event_object(event: pb.JobEvent, job: pb.Job) -> dict[str, Any]:
    """Returns an event of a job."""
    kind = event.WhichOneof("event")
    level = "info"
    data: dict[str, Any] = {}
    match kind:
        case "state":
            word = _STATES.get(event.state.state, "unknown")
            text = f"The job is {word}"
            text += f": {event.state.reason}" if event.state.reason else ""
            level = "error" if word == "failed" else "info"
        case "started":
            begun = event.started
            text = f"Training begins with {begun.train_tokens:,} tokens"
            text = "; ".join([text, *begun.notices])
            data = {"train_tokens": begun.train_tokens, "valid_tokens": begun.valid_tokens}
        case "progress":
            text, data = _progress(event.progress, job)
        case "validation":
            done = event.validation
            text = f"Validation: {done.tokens_done:,} of {done.tokens_total:,} tokens"
        case "completed":
            name = model_id(event.completed.name, event.completed.version)
            text = f"New fine-tuned model created: {name}"
        case _:
            text = "This event cannot be read any more"
            level = "warn"
    return {
        "id": f"ftevent-{job.id}-{event.sequence}",
        "object": "fine_tuning.job.event",
        "created_at": event.event_time.seconds,
        "level": level,
        "message": text,
        "type": "metrics" if kind == "progress" else "message",
        "data": data,
    }


def checkpoint_objects(job: pb.Job) -> list[dict[str, Any]]:
    """Returns the weights of a job that requests can name: the last ones, and the best ones."""
    progress = job.progress
    if not progress.step:
        return []
    found = [_checkpoint(job, job_id(job.id), "last", {"train_loss": progress.train_loss})]
    if progress.HasField("best_valid_loss"):
        name = f"{job_id(job.id)}@best"
        found.append(_checkpoint(job, name, "best", {"valid_loss": progress.best_valid_loss}))
    return found


def _checkpoint(job: pb.Job, name: str, word: str, losses: dict[str, float]) -> dict[str, Any]:
    return {
        "id": f"ftckpt-{job.id}-{word}",
        "object": "fine_tuning.job.checkpoint",
        "created_at": job.start_time.seconds,
        "fine_tuned_model_checkpoint": name,
        "fine_tuning_job_id": job.id,
        "metrics": {"step": job.progress.step} | losses,
        "step_number": job.progress.step,
    }


def _progress(progress: pb.TrainingProgress, job: pb.Job) -> tuple[str, dict[str, Any]]:
    total = job.started.total_steps
    step = f"{progress.step:,}/{total:,}" if total else f"{progress.step:,}"
    text = f"Step {step}: training loss={progress.train_loss:.4f}"
    data = {"step": progress.step, "total_steps": total, "train_loss": progress.train_loss}
    if progress.HasField("valid_loss"):
        text += f", validation loss={progress.valid_loss:.4f}"
        data["valid_loss"] = progress.valid_loss
    return text, data


def _files(request_id: str) -> tuple[str, str]:
    """Returns the ids of the files of a job; empty ones where it was not made here."""
    parts = request_id.split(":")
    if len(parts) != 4 or parts[0] != MARK:
        return "", ""
    return parts[1], parts[2]


def _base(spec: pb.TrainSpec) -> str:
    if spec.init_from:
        name = spec.init_from.partition("@")[0]
        return model_id(name, spec.init_from_version) if spec.init_from_version else spec.init_from
    return NEW + network_of(spec)


def _hyperparameters(spec: pb.TrainSpec) -> dict[str, Any]:
    rate = spec.optimizer.learning_rate
    return {
        "n_epochs": spec.limits.max_epochs if spec.limits.HasField("max_epochs") else "auto",
        "batch_size": spec.data.batch_size or "auto",
        "learning_rate_multiplier": round(rate / ADAM_RATE, 6) if rate else "auto",
    }


def _seconds(job: pb.Job, name: str) -> int | None:
    if not job.HasField(name):  # type: ignore[arg-type]
        return None
    time: Timestamp = getattr(job, name)
    return time.seconds


def _estimate(job: pb.Job) -> int | None:
    progress = job.progress
    if not progress.HasField("time_left_s"):
        return None
    return int(job.start_time.seconds + progress.elapsed_s + progress.time_left_s)
