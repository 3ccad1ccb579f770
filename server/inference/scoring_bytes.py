"""How much memory calls to score and to embed take beside their requests and replies."""

from __future__ import annotations

from treadle.model.network.memory_estimate import scorer_bytes
from treadle.model.network.shape import Shape
from treadle.v1 import sequence_pb2 as pb

_CONTEXT = 8
"""Bytes a character of a context: its tokens in parts, and joined."""

_TEXT = 16
"""Bytes a character of a text: the same, and its tokens' log-probabilities, in parts and joined."""

_EMBEDDING = 32
"""What an Embedding has beside its numbers, and the reply beside its embeddings, at most."""


def score_bytes(request: pb.ScoreRequest, shape: Shape) -> int:
    """Returns what a Score call takes, in bytes; its texts are scored one after the other."""
    longest = max(map(len, request.texts), default=0)
    return scorer_bytes(shape) + max(_CONTEXT * len(request.context), _TEXT * longest)


def stream_bytes(spec: pb.ScoreStreamSpec, shape: Shape) -> int:
    """Returns what a ScoreStream call takes while its context is read, in bytes."""
    return scorer_bytes(shape) + _CONTEXT * len(spec.context)


def vector_bytes(request: pb.EmbedRequest, shape: Shape) -> int:
    """Returns what the reply of an Embed call takes on the wire and in memory, in bytes."""
    numbers = shape.H * (shape.L if request.all_layers else 1)
    return len(request.texts) * (4 * numbers + _EMBEDDING) + _EMBEDDING


def embed_bytes(request: pb.EmbedRequest, shape: Shape) -> int:
    """Returns what an Embed call takes beside its reply; its texts are read one by one."""
    return scorer_bytes(shape) + _TEXT * max(map(len, request.texts), default=0)
