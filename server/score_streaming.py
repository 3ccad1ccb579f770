"""One ScoreStream call: its pieces in, their scores out."""

from __future__ import annotations

from collections.abc import Iterator

from treadle.model.errors import ModelError
from treadle.model.score_stream import StreamScorer
from treadle.model.state import SessionState
from treadle.server import records
from treadle.server.convert_scoring import Scoring
from treadle.server.errors import StatusError, from_model, invalid
from treadle.server.loaded import Source
from treadle.v1 import sequence_pb2 as pb


class Stream:
    """Scores the pieces of one stream; each method is an iterator of short steps.

    It holds on to the weights that it began with, whatever becomes of the model meanwhile.

    Args:
        source: What scores.
        spec: How to score.
        asked: The same, checked.
        state: Where the stream begins; None: at a new text.
        max_message_bytes: The largest reply.
        key: Authenticates states.
    """

    def __init__(
        self,
        source: Source,
        spec: pb.ScoreStreamSpec,
        asked: Scoring,
        state: SessionState | None,
        max_message_bytes: int,
        key: bytes,
    ) -> None:
        self._source = source
        self._spec = spec
        self._asked = asked
        self._begun = source.model.beginning(state)
        self._max_message_bytes = max_message_bytes
        self._key = key
        self._scorer: StreamScorer | None = None
        self.reply = pb.ScoreStreamResponse()
        """The answer to the last piece, and after `finish` the result."""

    def begin(self) -> Iterator[None]:
        """Makes room, and makes tokens of the context.

        Raises:
            StatusError: The model cannot read the context.
        """
        try:
            self._scorer = StreamScorer(
                self._source.model, self._asked.details, self._asked.policy, self._begun,
                self._spec.context, keep_tokens=self._asked.tokens,
            )  # fmt: skip
        except ModelError as error:
            raise from_model(error, "spec.context", "spec.{}".format) from error
        yield

    def feed(self, piece: pb.TextPiece) -> Iterator[None]:
        """Scores a piece.

        Raises:
            StatusError: The piece cannot be scored, or its reply would be too large.
        """
        assert self._scorer is not None
        least = self._asked.token_bytes if self._asked.tokens else 0
        try:
            for scored in self._scorer.feed(piece.text, piece.end):
                if self._scorer.piece_token_count * least > self._max_message_bytes:
                    raise _too_large()
                if scored is not None:
                    self.reply = pb.ScoreStreamResponse(piece=records.piece_score(scored))
                yield
        except ModelError as error:
            raise from_model(error, "piece.text") from error
        if self.reply.ByteSize() > self._max_message_bytes:
            raise _too_large()

    def finish(self) -> Iterator[None]:
        """Scores what waits, and sums up.

        Raises:
            StatusError: What waits cannot be scored.
        """
        scorer = self._scorer
        assert scorer is not None
        try:
            yield from scorer.finish()
        except ModelError as error:
            raise from_model(error, "piece.text") from error
        result = pb.ScoreStreamResult(
            total=records.summary(scorer.total),
            item_count=scorer.item_count,
            version=self._source.version,
            job_step=self._source.job_step,
        )
        if self._spec.return_state:
            result.state = self._source.model.state_bytes(scorer.state, self._key)
        self.reply = pb.ScoreStreamResponse(result=result)


def _too_large() -> StatusError:
    text = "the reply would be larger than a message may be; send smaller pieces"
    return invalid([("piece.text", text)])
