"""Tokens as results show them: drawn or scored, with what the model made of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Alternative:
    """A token that might have been."""

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
    """Its place by probability, 1 for the likeliest, equals by id; 0 where not asked for."""
    alternatives: tuple[Alternative, ...] = ()
    """The likeliest tokens in its place, likeliest first, as many as were asked for."""
