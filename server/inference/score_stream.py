"""`ScoreStream` scores the pieces of one ScoreStream call."""

from __future__ import annotations

from collections.abc import Iterator

from treadle.model.errors import ModelError
from treadle.model.network.session_state import SessionState
from treadle.model.scoring.stream_scorer import StreamMark, StreamScorer
from treadle.server.errors import from_model
from treadle.server.inference.model_cache import ResolvedModel
from treadle.server.inference.stream_units import StreamPiece, StreamUnits, stream_error
from treadle.server.messages import responses
from treadle.server.messages.inference_precision import precision_number
from treadle.server.messages.reply_size import ReplyGrowth, write_piece
from treadle.server.messages.score_request import Scoring
from treadle.server.messages.session_states import SessionStates
from treadle.server.resources.memory_budget import Reservation
from treadle.v1 import sequence_pb2 as pb


class ScoreStream:
    """Scores the pieces of one stream, in short steps.

    It keeps the weights that it began with, even if the model is deleted meanwhile.

    Args:
        resolved: The model that scores.
        spec: The settings of the request.
        scoring: The same, checked.
        max_message_bytes: The largest reply.
        states: Writes the caller's state.
        held: Holds the memory of the current reply.
        state: The state from which the stream continues; None: it begins a text or item.
    """

    def __init__(
        self,
        resolved: ResolvedModel,
        spec: pb.ScoreStreamSpec,
        scoring: Scoring,
        max_message_bytes: int,
        states: SessionStates,
        held: Reservation,
        state: SessionState | None = None,
    ) -> None:
        self._resolved = resolved
        self._spec: pb.ScoreStreamSpec | None = spec
        self._returns_state = spec.return_state
        self._scoring = scoring
        self._max_message_bytes = max_message_bytes
        self._states = states
        self._state = state
        self._held = held
        self._scorer: StreamScorer | None = None
        self._units = StreamUnits(spec.on_error)
        self._mark: StreamMark | None = None
        self.reply = pb.ScoreStreamResponse()
        """The reply to the last piece; after `finish` the result."""

    def begin(self) -> Iterator[None]:
        """Reads the context.

        Raises:
            StatusError: The model cannot read the context.
        """
        model = self._resolved.model
        asked = self._scoring
        spec = self._spec
        assert spec is not None
        self._spec = None  # a long context is not needed any more once it is read
        try:
            self._scorer = StreamScorer(
                model.trained,
                asked.details,
                asked.policy,
                model.beginning(self._state),
                spec.context,
                keep_tokens=asked.tokens,
            )
            del spec
            yield from self._scorer.read_context()
        except ModelError as error:
            raise from_model(error, "spec.context", "spec.{}".format) from error

    @property
    def is_open(self) -> bool:
        """Whether a text or item has begun and not ended."""
        return self._scorer is not None and self._scorer.is_open

    def begin_unit(self) -> None:
        """Marks the place to which `take_back` returns."""
        assert self._scorer is not None
        self._mark = self._scorer.mark()

    def take_back(self, error: Exception | None = None) -> None:
        """Returns to where the unit began; drops text that waited then if it caused the error."""
        assert self._scorer is not None
        assert self._mark is not None
        self._scorer.restore(self._mark, error)

    def feed(self, piece: StreamPiece) -> Iterator[None]:
        """Scores a piece.

        Raises:
            StatusError: The piece cannot be scored, or its reply would be too large, and that ends
                the call.
        """
        error = yield from self._units.feed(self, piece, self._read)
        if error is not None:
            self.reply.piece.error.CopyFrom(error)

    def sent(self) -> None:
        """Drops the reply, which was sent: a silent stream keeps none."""
        self.reply = pb.ScoreStreamResponse()
        self._held.release()

    def _read(self, text: str, end: bool) -> Iterator[None]:
        scorer = self._scorer
        assert scorer is not None
        self.reply = pb.ScoreStreamResponse(piece=pb.PieceScore())
        growth = ReplyGrowth(
            self._held, self._max_message_bytes, "piece.text", "send smaller pieces"
        )
        steps = scorer.feed(text, end)
        try:
            yield from write_piece(
                self.reply.piece,
                steps,
                scorer.take_tokens,
                growth,
                self._resolved.model.trained.precision,
            )
        except ModelError as error:
            raise from_model(error, "piece.text") from error

    def finish(self) -> Iterator[None]:
        """Scores the text that waits, and makes the result.

        Raises:
            StatusError: The text that waits cannot be scored, and that ends the call.
        """
        scorer = self._scorer
        assert scorer is not None
        self.begin_unit()
        dropped: pb.StreamError | None = None
        try:
            yield from scorer.finish()
        except ModelError as error:
            fault = from_model(error, "piece.text")
            if not self._units.keeps_going:
                raise fault from error
            self.take_back(error)
            dropped = stream_error(fault)
        precision = self._resolved.model.trained.precision
        result = pb.ScoreStreamResult(
            total=responses.summary(scorer.total, precision),
            item_count=scorer.item_count,
            version=self._resolved.version,
            job_step=self._resolved.job_step,
            error=dropped,
            inference_precision=precision_number(precision),
        )
        if self._returns_state:
            yield from self._resolved.model.trained.hash_in_steps()
            result.state = self._states.write(self._resolved.model, scorer.state)
        self.reply = pb.ScoreStreamResponse(result=result)
