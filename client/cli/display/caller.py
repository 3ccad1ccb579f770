"""`caller_facts` lays out what a server says of its caller: its rights, limits and use."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

from treadle.client.cli.display.progress import size_text
from treadle.client.messages.enums import field_word

if TYPE_CHECKING:
    from treadle.v1.sequence_pb2 import CallerInfo

NO_LIMIT = "no limit"


def caller_facts(caller: CallerInfo) -> list[tuple[str, str]]:
    """Returns the names and values of the facts about a caller."""
    use = caller.use
    running = _of(f"{use.jobs_running}", _limit(caller, "jobs_running"))
    waiting = _of(f"{use.jobs_queued}", _limit(caller, "jobs_queued"))
    return [
        ("caller", caller.name),
        ("role", field_word(caller, "role")),
        *_valid_until(caller),
        ("may read", ", ".join(caller.read_models) or "none"),
        ("may write", ", ".join(caller.write_models) or "none"),
        ("own calls", _of(f"{use.calls}", _limit(caller, "calls"))),
        ("own sessions", _of(f"{use.sessions}", _limit(caller, "sessions"))),
        ("own tokens", _tokens(caller)),
        ("own jobs", f"running {running}; waiting {waiting}"),
        ("own models", _of(size_text(use.model_bytes), _size_limit(caller, "model_bytes"))),
        ("own corpora", _of(size_text(use.corpus_bytes), _size_limit(caller, "corpus_bytes"))),
    ]


def _of(use: str, limit: str) -> str:
    """Returns a use with its limit; an empty limit is no limit."""
    return f"{use} of {limit}" if limit else f"{use}, {NO_LIMIT}"


def _valid_until(caller: CallerInfo) -> list[tuple[str, str]]:
    """Returns when the caller's credential expires, if it does."""
    if not caller.HasField("valid_until_s"):
        return []
    try:
        time = datetime.datetime.fromtimestamp(caller.valid_until_s, datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return []
    text = time.replace(tzinfo=None).isoformat(" ", "seconds")
    return [("valid until", f"{text} UTC")]


def _tokens(caller: CallerInfo) -> str:
    """Returns the tokens that the caller may use."""
    if not caller.quotas.HasField("tokens_per_minute"):
        return NO_LIMIT
    limit = f"{caller.quotas.tokens_per_minute:,} per minute"
    left = caller.use.tokens_left
    return f"{left:,} left, {limit}" if left > 0 else f"none left, {limit}"


def _limit(caller: CallerInfo, quota: str) -> str:
    """Returns a quota of the caller; empty: not limited."""
    quotas = caller.quotas
    return f"{getattr(quotas, quota):,}" if quotas.HasField(quota) else ""  # type: ignore[arg-type]


def _size_limit(caller: CallerInfo, quota: str) -> str:
    """Returns a quota of the caller that counts bytes; empty: not limited."""
    quotas = caller.quotas
    return size_text(getattr(quotas, quota)) if quotas.HasField(quota) else ""  # type: ignore[arg-type]
