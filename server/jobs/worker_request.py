"""What a job is to do: from a request to the row that the database keeps, and on to the worker."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from treadle.model.config import TrainConfig
from treadle.server.jobs import worker_protocol
from treadle.server.storage.data_dir import DataDir
from treadle.server.storage.job_state import JobState
from treadle.server.storage.schema import JobRow
from treadle.v1 import sequence_pb2 as pb

if TYPE_CHECKING:
    from treadle.server.jobs.runner import RunLimits


@dataclass(frozen=True)
class UploadedFile:
    """One file of a corpus, stored."""

    sha256: str
    """SHA-256 of its bytes, in lower-case hexadecimal: its name in the store."""
    name: str
    """What to call it in messages."""
    role: str
    """What it is for: train, valid or test."""
    weight: float
    """How often a pass reads it."""
    size: int
    """Its bytes."""


def new_id() -> str:
    """Returns the id of a new job; ids sort by the time at which they were made."""
    return f"{time.time_ns() // 1_000_000:011x}-{secrets.token_hex(4)}"


def new_row(
    id: str,  # noqa: A002
    spec: pb.TrainSpec,
    config: TrainConfig,
    files: Sequence[UploadedFile],
    init_from_version: int = 0,
) -> JobRow:
    """Returns the row of a job that is to be queued.

    Args:
        id: Its id.
        spec: What was asked for, with the version of `init_from` that was taken.
        config: The same as settings.
        files: Its corpus.
        init_from_version: The version of `init_from` as asked for; 0: the newest.
    """
    now = time.time()
    return JobRow(
        id=id, model=spec.model, state=JobState.QUEUED, reason="",
        spec=spec.SerializeToString(), config=json.dumps(config.to_json()),
        files=json.dumps([asdict(file) for file in files], ensure_ascii=False),
        corpus_bytes=sum(file.size for file in files),
        request_id=spec.request_id, init_from=spec.init_from,
        created_s=now, queued_s=now, started_s=None, ended_s=None,
        last_sequence=0, restarts=0, started=b"", progress=b"",
        version=0, claim=0, error_code=0, error=b"", ran_s=0.0,
        init_from_version=init_from_version,
    )  # fmt: skip


def order(
    row: JobRow, data_dir: DataDir, limits: RunLimits, threads: int
) -> worker_protocol.Message:
    """Returns what a process is told of a job.

    Args:
        row: The job.
        data_dir: Where its corpus and its directory are.
        limits: What holds for every job.
        threads: Threads that it may use.
    """
    files, config = json.loads(row.files), json.loads(row.config)
    if not pb.TrainSpec.FromString(row.spec).tokenizer.unknown_policy:
        # Settled at the first start; a model's tokenizer says what was asked for, killed or not.
        config["tokenizer"]["unknown_policy"] = None
    return {
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
