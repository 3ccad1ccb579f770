"""`damage` finds what is wrong with the stored row of a job, such as a byte that a disk changed.

A damaged row affects no other job: its job is listed as damaged, does not run and can be deleted.
`treadle-server --fsck --repair` empties the damaged fields, and marks a job that cannot continue
without them as failed.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError

from treadle.model.config import TrainConfig
from treadle.model.errors import ConfigError
from treadle.server.errors import StatusError
from treadle.server.failures import DatabaseError
from treadle.server.names import is_name
from treadle.server.storage.job_state import JobState
from treadle.v1 import sequence_pb2 as pb

if TYPE_CHECKING:
    from treadle.server.storage.schema import JobRow

_COUNTS = {
    "corpus_bytes": 1 << 63,
    "last_sequence": 1 << 63,
    "restarts": 1 << 32,
    "version": 1 << 63,
    "claim": 1 << 63,
    "waits_for_bytes": 1 << 63,
    "fence": 1 << 63,
}
"""The fields that count something, and the number that each stays below."""
_LAST_S = 2.5e11
"""Seconds since the epoch that no time of a job reaches: Timestamp ends with the year 9999."""

_BLANK: dict[str, Any] = {
    "reason": "",
    "corpus_bytes": 0,
    "created_s": 0.0,
    "queued_s": 0.0,
    "started_s": None,
    "ended_s": None,
    "restarts": 0,
    "started": b"",
    "progress": b"",
    "error_code": 0,
    "error": b"",
    "ran_s": 0.0,
    "waits_for_bytes": 0,
    "owner": "",
    "call_id": "",
    "holder": "",
    "fence": 0,
    "lease_until_s": 0.0,
    "request": "",
    "checkpoint": "",
}
"""The fields that a job can do without, and the value that replaces each."""

_NEEDED: dict[str, Any] = {
    "state": JobState.FAILED,
    "spec": b"",
    "config": "{}",
    "files": "[]",
    "request_id": "",
    "init_from": "",
    "init_from_version": 0,
    "last_sequence": 0,
    "version": 0,
    "claim": 0,
}
"""The fields that an unfinished job needs, and the value that replaces each once it has failed."""


def damage(row: JobRow) -> str:
    """Returns what is wrong with a row, as a sentence; empty where nothing is."""
    faults = [row.damage] if row.damage else []
    faults += [f"{name} {fault}" for name, fault in _faults(row).items()]
    return "; ".join(faults)


def without_damage(row: JobRow) -> JobRow | None:
    """Returns a damaged row with its damaged fields replaced.

    An unfinished job fails where it needs one of these fields.

    Args:
        row: The row.

    Returns:
        None where the job of the row is unknown.
    """
    wrong = {*_faults(row)}
    if row.damage:
        wrong.update(row.damage.removesuffix(" cannot be read").split(" and "))
    empty = _BLANK | _NEEDED
    if not wrong <= empty.keys():
        return None
    whole = replace(row, damage="", **{name: empty[name] for name in wrong})
    if row.is_final or not wrong & _NEEDED.keys():
        return whole
    error = StatusError(
        grpc.StatusCode.DATA_LOSS, f"the record of the job was damaged: {damage(row)}"
    )
    return replace(
        whole,
        state=JobState.FAILED,
        reason=error.message,
        ended_s=time.time(),
        error_code=error.code.value[0],
        error=error.packed(),
    )


def _faults(row: JobRow) -> dict[str, str]:
    """Returns what is wrong with each damaged field."""
    faults = {
        name: f"is {getattr(row, name)}, which it cannot be"
        for name, limit in _COUNTS.items()
        if not 0 <= getattr(row, name) < limit
    }
    if not -(1 << 31) <= row.error_code < 1 << 31:
        faults["error_code"] = f"is {row.error_code}, which it cannot be"
    for name in ("created_s", "queued_s", "started_s", "ended_s", "ran_s", "lease_until_s"):
        value = getattr(row, name)
        if value is not None and not (math.isfinite(value) and -_LAST_S < value < _LAST_S):
            faults[name] = "is no time"
    for name in ("id", "model"):
        if not is_name(getattr(row, name)):
            faults[name] = "is no name"
    if row.state not in [*JobState]:
        faults["state"] = f"is {row.state[:40]!r}, which a job cannot be in"
    for name, read in _READERS.items():
        try:
            read(row)
        except (
            *(ValueError, TypeError, KeyError, AttributeError, RecursionError),
            *(ConfigError, DatabaseError, DecodeError),
        ):
            faults[name] = "cannot be read"
    return faults


def _config(row: JobRow) -> object:
    # A job that is over does not need its settings, which an older Treadle may have written.
    return row.is_final or TrainConfig.from_json(json.loads(row.config))


_READERS: dict[str, Callable[[JobRow], object]] = {
    "spec": lambda row: pb.TrainSpec.FromString(row.spec),
    "started": lambda row: pb.TrainingStarted.FromString(row.started),
    "progress": lambda row: pb.TrainingProgress.FromString(row.progress),
    "files": lambda row: row.corpora(),
    "config": _config,
}
