"""`ScoredPieces` and `ScoreStream` score a stream of text: from an iterable, or piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from treadle.client.errors import InternalError
from treadle.client.streaming import (
    AlternatingStream,
    AnyPiece,
    ConcurrentStream,
    StreamPiece,
    text_piece,
)
from treadle.v1.sequence_pb2 import (
    PieceScore,
    ScoreStreamRequest,
    ScoreStreamResponse,
    ScoreStreamResult,
    ScoreStreamSpec,
)


def score_requests(
    spec: ScoreStreamSpec, pieces: Iterable[AnyPiece]
) -> Iterator[ScoreStreamRequest]:
    """Yields the requests of a whole ScoreStream call."""
    yield ScoreStreamRequest(spec=spec)
    for piece in pieces:
        yield ScoreStreamRequest(piece=text_piece(piece))


_LOST = (
    "a stream of scores cannot continue on another connection (pieces that were scored: {}): begin "
    "a new one"
)


class ScoredPieces(ConcurrentStream[ScoreStreamRequest, ScoreStreamResponse]):
    """The scores of a stream: iterate over them, one for each piece, then call `result()`."""

    lost_with_connection = _LOST
    _result: ScoreStreamResult | None = None

    def __iter__(self) -> Iterator[PieceScore]:
        """Yields the score of each piece, in their order.

        With `on_error="skip"` or `"stop"`, a piece that was skipped has an `error`.

        Raises:
            ServerError: The call failed.
            Exception: The error that the iterable of pieces raised.
        """
        while True:
            try:
                response = self._receive()
            except StopIteration:
                return
            if response.HasField("piece"):
                yield response.piece
            else:
                self._result = response.result

    def result(self) -> ScoreStreamResult:
        """Waits for the end; returns the score of the whole stream, and its state if requested.

        Returns:
            The score of the whole stream.

        Raises:
            ServerError: The call failed, or was closed before its end.
        """
        for _ in self:
            pass
        if self._result is None:
            raise InternalError("the stream ended without a result")
        return self._result


class ScoreStream(AlternatingStream[ScoreStreamRequest, ScoreStreamResponse]):
    """A stream that is scored piece by piece, each answered before the next is sent."""

    lost_with_connection = _LOST

    def send(self, text: str, end: bool = False, more: bool = False) -> PieceScore:
        """Scores the next piece.

        Args:
            text: The next text, of any length. An end that is not yet a whole token waits, and
                is scored with a later piece.
            end: Whether the text or item ends here; the next piece then begins a new one.
            more: Whether the next piece belongs to the same unit; see `StreamPiece`.

        Returns:
            The score since the last piece; where the text has ended, `whole` as well. With
            `on_error="skip"` or `"stop"`, a piece that was skipped has an `error`.

        Raises:
            InputError: The text cannot be sent, or the stream was closed.
            ServerError: The call failed.
        """
        return self._ask(ScoreStreamRequest(piece=text_piece(StreamPiece(text, end, more)))).piece

    def finish(self) -> ScoreStreamResult:
        """Ends the stream; returns its score as a whole, and its state if requested.

        Returns:
            The score of the whole stream.

        Raises:
            ServerError: The call failed, or was closed before.
        """
        self._queue.close()
        try:
            return self._receive().result
        except StopIteration:
            raise InternalError("the stream ended without a result") from None
        finally:
            self.close()
