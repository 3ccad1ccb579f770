"""`ReplyGrowth` limits a reply while it is made, by the largest message and the memory budget.

A reply is written while its tokens are scored, so that one that is too large is never complete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from treadle.model.enums import InferencePrecision
from treadle.model.scoring.scores import PieceScore
from treadle.model.scoring.token_score import TokenScore
from treadle.server.errors import invalid
from treadle.server.messages import responses
from treadle.server.resources.memory_budget import Reservation
from treadle.v1 import sequence_pb2 as pb

_TIMES_ITS_BYTES = 7
"""Bytes of memory of a message of tokens per byte on the wire; measured 5 to 7."""

_STEP_BYTES = 1 << 16
"""Bytes by which a reply grows before its memory is reserved again."""

TAG_BYTES = 6
"""The most bytes that the tag and the length of a part of a reply take on the wire."""


def check_reply_size(size: int, limit: int, field: str, remedy: str) -> None:
    """Checks that a reply is not larger than a message may be.

    Args:
        size: Its bytes on the wire.
        limit: The most bytes of a message.
        field: The field of the request that is at fault.
        remedy: What to do about it, as a clause.

    Raises:
        StatusError: INVALID_ARGUMENT: it is larger.
    """
    if size > limit:
        text = f"the reply would be larger than a message may be; {remedy}"
        raise invalid([(field, text)])


class ReplyGrowth:
    """Counts the bytes of one reply.

    Args:
        held: The reservation of its memory.
        limit: The most bytes that it may have on the wire.
        field: The field of the request that is at fault where the reply is too large.
        remedy: What to do about it, as a clause.
    """

    def __init__(self, held: Reservation, limit: int, field: str, remedy: str) -> None:
        self._held = held
        self._limit = limit
        self._field = field
        self._remedy = remedy
        self._size = 0
        self._counted = 0

    @property
    def size(self) -> int:
        """Bytes counted so far."""
        return self._size

    def add(self, size: int) -> None:
        """Counts bytes by which the reply has grown.

        Raises:
            StatusError: INVALID_ARGUMENT: it is too large; RESOURCE_EXHAUSTED: its memory does not
                fit into the budget.
        """
        self._size += size
        self.check(0)
        if self._size - self._counted >= _STEP_BYTES:
            self._held.resize(_TIMES_ITS_BYTES * self._size)
            self._counted = self._size

    def check(self, more: int) -> None:
        """Checks that more bytes fit, before they are made.

        Raises:
            StatusError: INVALID_ARGUMENT: they do not fit.
        """
        check_reply_size(self._size + more, self._limit, self._field, self._remedy)


def write_piece(
    message: pb.PieceScore,
    scoring: Iterator[PieceScore | None],
    take_tokens: Callable[[], tuple[TokenScore, ...]],
    growth: ReplyGrowth,
    precision: InferencePrecision,
) -> Iterator[None]:
    """Writes the score of a piece into a message, in short steps.

    Args:
        message: The empty message to write.
        scoring: Scores the piece in steps, and yields its score at the end.
        take_tokens: Returns the tokens that were scored since its last call.
        growth: Counts the bytes of the message.
        precision: The precision of the network that scores.

    Raises:
        StatusError: See `ReplyGrowth.add`.
        ModelError: The piece cannot be scored.
    """
    for scored in scoring:
        growth.add(responses.add_tokens(message, take_tokens()))
        if scored is not None:
            message.MergeFrom(responses.piece_score(scored, precision))
        yield
    growth.add(message.ByteSize() + TAG_BYTES - growth.size)
