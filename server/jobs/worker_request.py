"""`worker_request` makes the message that gives a training process its job."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from treadle.server.access.request_id import current_request_id, log_form
from treadle.server.jobs.executors.executor import STOP_TIMEOUT_S
from treadle.v1 import sequence_pb2 as pb

if TYPE_CHECKING:
    from treadle.server.jobs import worker_protocol
    from treadle.server.storage.data_dir import DataDir
    from treadle.server.storage.schema import JobRow


@dataclass(frozen=True)
class RunLimits:
    """Limits of each job that runs."""

    threads: int
    """Threads that all running jobs share."""
    checkpoint_interval_s: float
    """Seconds between two checkpoints."""
    min_free_bytes: int
    """Bytes of disk below which a job pauses."""
    max_run_s: float = 0.0
    """Seconds after which a job is stopped; its model is stored. 0: never."""
    max_run_bytes: int | None = None
    """The most memory that a job's arrays may take; None: all of the machine."""
    stop_timeout_s: float = STOP_TIMEOUT_S
    """Seconds after which a process that does not stop or respond is killed."""


def worker_request(
    row: JobRow, data_dir: DataDir, limits: RunLimits, threads: int, traceparent: str = ""
) -> worker_protocol.Message:
    """Returns what a process needs to know of a job, as JSON values.

    Args:
        row: The job.
        data_dir: Where its corpus and its directory are.
        limits: Limits of every job.
        threads: Threads that the process may use.
        traceparent: The span that the process works for, as W3C Trace Context names it; empty:
            nothing is traced.
    """
    files, config = json.loads(row.files), json.loads(row.config)
    if not pb.TrainSpec.FromString(row.spec).tokenizer.unknown_policy:
        # The first start settled it; the model's tokenizer is to keep what was requested.
        config["tokenizer"]["unknown_policy"] = None
    return {
        "request_id": current_request_id(),
        "caller": row.owner,
        "traceparent": traceparent,
        "log_level": logging.getLogger("treadle").level,
        "log_format": log_form(),
        "files": [file | {"path": str(data_dir.corpora.path(file["sha256"]))} for file in files],
        "directory": str(data_dir.jobs.directory(row.id)),
        "init_from": bool(row.init_from),
        "config": config,
        "threads": threads,
        "memory_limit_bytes": limits.max_run_bytes,
        "checkpoint_interval_s": limits.checkpoint_interval_s,
        "min_free_bytes": limits.min_free_bytes,
        "reserved_bytes": data_dir.space.reserved(),
    }
