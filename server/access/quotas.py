"""`Quotas` holds the limits of one caller."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Quotas:
    """The limits of one caller; None is no limit.

    They hold in addition to the limits of the server, which all callers share.
    """

    calls: int | None = None
    """Calls at once, streams included."""
    sessions: int | None = None
    """Texts generated at once, streams that are scored, and streams that a model learns from."""
    tokens_per_minute: int | None = None
    """Generated and scored tokens per minute, on average."""
    jobs_queued: int | None = None
    """Training jobs that wait or are paused."""
    jobs_running: int | None = None
    """Training jobs that run at once; more wait in the queue."""
    model_bytes: int | None = None
    """Bytes of the stored versions that the caller's jobs and streams made, and of the weights that
    its jobs keep after their end."""
    corpus_bytes: int | None = None
    """Bytes of the stored corpora that the caller uploaded."""


NO_QUOTAS = Quotas()
"""No limit at all."""
