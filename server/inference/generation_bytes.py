"""What a generation keeps in memory, so that it is reserved before it is made.

Estimates, measured and rounded up; they only have to keep the sum of many calls near the truth.
"""

from __future__ import annotations

from treadle.model.config import SamplingConfig
from treadle.model.generation.constraint import Constraint
from treadle.model.generation.sequence import Piece
from treadle.model.network.shape import Shape
from treadle.v1 import sequence_pb2 as pb

TOKEN_BYTES = 240
"""A token or an alternative that waits to be sent."""

_UNREAD_BYTES, _UNREAD_BYTES_A_TEXT = 1 << 20, 1 << 16
"""What may wait for a client that reads slowly, before the texts of its call pause."""

_PIECE_BYTES = 400
"""A piece of a text, without its text and tokens."""

_PLAIN_UNREAD_BYTES = 1 << 16
"""The most that waits where no tokens are asked for: messages of a few hundred bytes."""

_CALL_BYTES = 1 << 16
_TEXT_BYTES = 4096
_CHARACTER_BYTES = 12
"""A character of a prompt: itself, and its token in two arrays."""
_ID_BYTES = 40
"""A token's number in a list."""
_BEGINNING_BYTES = 300
"""A beginning in a beam search, without what is told of its token."""
_OTHERS_BYTES, _OTHER_BYTES = 400, 16
"""The alternatives of a beginning's token, and each of them: numbers in two arrays."""
_ONE_CHUNK = 64
"""Tokens that a text may be ahead of its limit."""


def piece_bytes(piece: Piece) -> int:
    """Returns what a piece of a text takes in memory."""
    result = piece.result
    ids = 0 if result is None else len(result.ids)
    return _PIECE_BYTES + 4 * len(piece.text) + TOKEN_BYTES * piece.weight + _ID_BYTES * ids


def call_bytes(
    request: pb.GenerateRequest, sampling: SamplingConfig, shape: Shape, tells_tokens: bool
) -> int:
    """Returns what a call may keep beside its request and its regular expression.

    Args:
        request: The request.
        sampling: Its settings.
        shape: The model's sizes.
        tells_tokens: Whether its replies tell each token.
    """
    texts = max(request.n, sampling.best_of, 1)
    state = 4 * 2 * shape.L * shape.H
    text = _TEXT_BYTES + 8 * state + 16 * shape.V
    penalties = (request.repetition_penalty, request.presence_penalty, request.frequency_penalty)
    if any(penalties):
        text += 24 * shape.V
    if request.novelty:
        text += _ID_BYTES * sampling.max_new_tokens
    size = _CALL_BYTES + _CHARACTER_BYTES * len(request.prompt) + texts * text
    if not tells_tokens:
        return size + _PLAIN_UNREAD_BYTES
    ahead = _ONE_CHUNK * TOKEN_BYTES * (1 + sampling.top_log_probabilities)
    return size + unread_bytes(texts) + texts * ahead


def unread_bytes(texts: int) -> int:
    """Returns what of a call's texts may wait for its reader before they pause."""
    return _UNREAD_BYTES + _UNREAD_BYTES_A_TEXT * texts


def search_bytes(beginnings: int, sampling: SamplingConfig) -> int:
    """Returns what a beam search takes that keeps so many beginnings of texts."""
    count = sampling.top_log_probabilities
    others = _OTHERS_BYTES + _OTHER_BYTES * count if count else 0
    return beginnings * (_BEGINNING_BYTES + others)


def constraint_bytes(constraint: Constraint | None) -> int:
    """Returns what a regular expression's table takes while a call uses it."""
    return 0 if constraint is None else constraint.table.nbytes + constraint.complete.nbytes
