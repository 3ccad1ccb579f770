"""`caller_info` describes a caller, its quotas and its use in the contract's messages."""

from __future__ import annotations

import dataclasses
import math

from treadle.server.access.caller import Caller
from treadle.server.access.quota_book import CallerUse
from treadle.v1 import sequence_pb2 as pb


@dataclasses.dataclass(frozen=True)
class StoredUse:
    """What a caller keeps on the server."""

    jobs_queued: int
    """Jobs that wait or are paused."""
    jobs_running: int
    """Jobs that run."""
    model_bytes: int
    """Bytes of stored versions of models."""
    corpus_bytes: int
    """Bytes of stored corpora."""


def caller_info(caller: Caller, use: CallerUse, stored: StoredUse) -> pb.CallerInfo:
    """Returns the description of a caller.

    Args:
        caller: The caller.
        use: What it uses now.
        stored: What it keeps.
    """
    limits = dataclasses.asdict(caller.quotas)
    info = pb.CallerInfo(
        name=caller.name,
        role=pb.CallerRole.Value(f"CALLER_ROLE_{caller.role.name}"),
        read_models=caller.read_models,
        write_models=caller.write_models,
        quotas=pb.CallerQuotas(**{name: most for name, most in limits.items() if most is not None}),
        use=pb.CallerUse(
            calls=use.calls,
            sessions=use.sessions,
            jobs_queued=stored.jobs_queued + use.uploads,
            jobs_running=stored.jobs_running,
            model_bytes=stored.model_bytes,
            corpus_bytes=stored.corpus_bytes,
        ),
    )
    if use.tokens.is_limited:
        info.use.tokens_left = math.floor(use.tokens.level)
    if math.isfinite(caller.valid_until_s):
        info.valid_until_s = caller.valid_until_s
    return info
