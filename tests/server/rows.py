"""Rows of jobs for tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from treadle.server.database import JobRow

_PLAIN = JobRow(
    id="",
    model="m",
    state="queued",
    reason="",
    spec=b"",
    config="{}",
    files="[]",
    corpus_bytes=0,
    request_id="",
    init_from="",
    created_s=1.0,
    queued_s=1.0,
    started_s=None,
    ended_s=None,
    last_sequence=0,
    restarts=0,
    started=b"",
    progress=b"",
    version=0,
    claim=0,
    error_code=0,
    error=b"",
    ran_s=0.0,
)


def job_row(job: str, **fields: Any) -> JobRow:
    """Returns the row of a queued job without corpora, but for the fields given."""
    return replace(_PLAIN, id=job, **fields)
