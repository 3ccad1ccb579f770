"""`job_limits` and the other functions make the limits of each part from the server's settings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from treadle.server.inference.admission import Admission, ControlAdmission, InferenceAdmission
from treadle.server.inference.open_streams import OpenStreams
from treadle.server.jobs.job_queue import JobLimits
from treadle.server.jobs.worker_request import RunLimits
from treadle.server.resources.upload_pace import UploadLimits

if TYPE_CHECKING:
    from treadle.server.access.quota_book import QuotaBook
    from treadle.server.config import ServerConfig
    from treadle.server.warmup import Warmup


def job_limits(config: ServerConfig) -> JobLimits:
    """Returns how many training jobs there may be."""
    return JobLimits(
        slots=config.training_slots,
        queue=config.training_queue_limit,
        uploads=config.upload_limit,
        restarts=config.max_restarts,
    )


def run_limits(config: ServerConfig, training_bytes: int | None) -> RunLimits:
    """Returns what holds for each job that runs.

    Args:
        config: The settings.
        training_bytes: The most memory that it may take; None: all of the machine.
    """
    return RunLimits(
        threads=config.threads,
        checkpoint_interval_s=config.checkpoint_interval_s,
        min_free_bytes=config.min_free_bytes,
        max_run_s=config.max_training_s,
        max_run_bytes=training_bytes,
    )


def upload_limits(config: ServerConfig, most_bytes: int) -> UploadLimits:
    """Returns how large an upload may be, and how slow."""
    return UploadLimits(
        most_bytes,
        config.upload_idle_s,
        config.upload_min_rate,
        config.upload_max_s or math.inf,
        config.first_message_s,
    )


def admission(config: ServerConfig, warmup: Warmup, quotas: QuotaBook) -> InferenceAdmission:
    """Returns how much inference there may be at once; none before the kernels are ready."""
    return InferenceAdmission(
        calls=Admission(config.inference_limit, "generations and scorings", warmup.check),
        sequences=Admission(config.session_limit, "texts being generated"),
        streams=OpenStreams(
            config.stream_limit,
            "streams to score",
            config.stream_idle_s,
            "open it again, with context or state for what came before",
            check=warmup.check,
        ),
        learning_streams=OpenStreams(
            config.learning_limit,
            "learning streams",
            config.stream_idle_s,
            "what it learned and did not publish is lost: publish before a pause",
            check=warmup.check,
        ),
        quotas=quotas,
    )


def control_admission(config: ServerConfig) -> ControlAdmission:
    """Returns how many lists, watchers and submissions there may be at once."""
    return ControlAdmission(
        lists=Admission(config.list_limit, "lists"),
        watchers=Admission(config.watch_limit, "calls that watch jobs"),
        submissions=Admission(config.watch_limit, "calls that bring or follow a job of theirs"),
    )
