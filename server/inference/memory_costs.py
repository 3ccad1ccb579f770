"""`call_bytes` and its like estimate the memory of a call, which is reserved before it is used.

The estimates were measured and rounded up. They only have to keep the sum of many calls near the
truth.
"""

from __future__ import annotations

from treadle.model.config import SamplingConfig
from treadle.model.generation.constraint import Constraint
from treadle.model.generation.output import Piece
from treadle.model.network.memory_estimate import scorer_bytes
from treadle.model.network.shape import Shape
from treadle.v1 import sequence_pb2 as pb

TOKEN_BYTES = 240
"""A token or an alternative that waits to be sent."""

_UNREAD_BYTES = 1 << 20
_UNREAD_BYTES_PER_TEXT = 1 << 16
"""What may wait for a client that reads slowly, before the texts of its call pause."""

_PIECE_BYTES = 400
"""A piece of a text, without its text and tokens."""

_PLAIN_UNREAD_BYTES = 1 << 16
"""The most that waits where no tokens are reported: messages of a few hundred bytes."""

_CALL_BYTES = 1 << 16
_TEXT_BYTES = 4096

_PROMPT_CHARACTER_BYTES = 12
"""A character of a prompt: itself, and its token in two arrays."""

_ID_BYTES = 40
"""A token's number in a list."""

_BEGINNING_BYTES = 300
"""A beginning in a beam search, without the alternatives to its token."""

_ALTERNATIVES_BYTES = 400
_ALTERNATIVE_BYTES = 16
"""The alternatives to a beginning's token, and each of them: numbers in two arrays."""

_CHUNK = 64
"""Tokens that a text may be ahead of its limit."""

_CONTEXT_CHARACTER_BYTES = 8
"""A character of a scored text's context: its tokens in parts, and joined."""

_TEXT_CHARACTER_BYTES = 16
"""A character of a scored text: its tokens and their log-probabilities, in parts and joined."""

_EMBEDDING_BYTES = 32
"""An Embedding without its numbers, and the reply without its embeddings, at most."""


def piece_bytes(piece: Piece) -> int:
    """Returns the bytes that a piece of a text takes in memory."""
    result = piece.result
    ids = 0 if result is None else len(result.ids)
    state = 0 if piece.resume is None else piece.resume.state.nbytes
    size = _PIECE_BYTES + 4 * len(piece.text) + TOKEN_BYTES * piece.weight + _ID_BYTES * ids
    return size + state


def call_bytes(
    request: pb.GenerateRequest, sampling: SamplingConfig, shape: Shape, reports_tokens: bool
) -> int:
    """Returns the bytes of a Generate call, without its request and its regular expression.

    Args:
        request: The request.
        sampling: Its settings.
        shape: The model's sizes.
        reports_tokens: Whether its replies report each token.
    """
    texts = max(request.n, sampling.best_of, 1)
    state = 4 * 2 * shape.L * shape.H
    text = _TEXT_BYTES + 8 * state + 16 * shape.V
    penalties = (request.repetition_penalty, request.presence_penalty, request.frequency_penalty)
    if any(penalties):
        text += 24 * shape.V
    if request.novelty:
        text += _ID_BYTES * sampling.max_new_tokens
    prompt = len(request.prompt) + len(request.prompt_tokens)
    size = _CALL_BYTES + _PROMPT_CHARACTER_BYTES * prompt + texts * text
    if not reports_tokens:
        return size + _PLAIN_UNREAD_BYTES
    ahead = _CHUNK * TOKEN_BYTES * (1 + sampling.top_log_probabilities)
    return size + unread_bytes(texts) + texts * ahead


def unread_bytes(texts: int) -> int:
    """Returns the bytes of a call's texts that may wait for its reader before they pause."""
    return _UNREAD_BYTES + _UNREAD_BYTES_PER_TEXT * texts


def search_bytes(beginnings: int, sampling: SamplingConfig) -> int:
    """Returns the bytes of a beam search that keeps so many beginnings of texts."""
    count = sampling.top_log_probabilities
    alternatives = _ALTERNATIVES_BYTES + _ALTERNATIVE_BYTES * count if count else 0
    return beginnings * (_BEGINNING_BYTES + alternatives)


def constraint_bytes(constraint: Constraint | None) -> int:
    """Returns the bytes of a regular expression's table while a call uses it."""
    return 0 if constraint is None else constraint.table.nbytes + constraint.complete.nbytes


def score_bytes(request: pb.ScoreRequest, shape: Shape) -> int:
    """Returns the bytes of a Score call; its texts are scored one after the other."""
    longest = max(map(len, request.texts), default=0)
    context = _CONTEXT_CHARACTER_BYTES * len(request.context)
    return scorer_bytes(shape) + max(context, _TEXT_CHARACTER_BYTES * longest)


def stream_bytes(spec: pb.ScoreStreamSpec, shape: Shape) -> int:
    """Returns the bytes of a ScoreStream call while its context is read."""
    return scorer_bytes(shape) + _CONTEXT_CHARACTER_BYTES * len(spec.context)


def vector_bytes(request: pb.EmbedRequest, shape: Shape) -> int:
    """Returns the bytes of the reply of an Embed call, on the wire and in memory."""
    numbers = shape.H * (shape.L if request.all_layers else 1)
    count = max(len(request.texts), 1)
    return count * (4 * numbers + _EMBEDDING_BYTES) + _EMBEDDING_BYTES


def embed_bytes(request: pb.EmbedRequest, shape: Shape) -> int:
    """Returns the bytes of an Embed call without its reply; its texts are read one by one."""
    longest = max([len(request.tokens), *map(len, request.texts)])
    return scorer_bytes(shape) + _TEXT_CHARACTER_BYTES * longest
