"""`TokenScore` is a token that was drawn or scored, with its log-probability."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Alternative:
    """One of the likeliest tokens in the place of a drawn or scored token."""

    id: int
    """Its number in the vocabulary."""
    text: str
    """Its text; empty for special tokens and for parts of a character."""
    log_probability: float
    """log p in nats under the model itself."""


@dataclass(frozen=True)
class TokenScore:
    """One token as scored or drawn."""

    id: int
    """Its number in the vocabulary."""
    text: str
    """Its text; empty for special tokens and for parts of a character."""
    log_probability: float | None
    """log p in nats under the model itself; None for a first token without context."""
    rank: int = 0
    """Its place by probability, 1 for the likeliest, equals by id; 0 if not requested."""
    alternatives: tuple[Alternative, ...] = ()
    """The likeliest tokens in its place, likeliest first, as many as were requested."""
