"""`LearnStream` answers the requests of one LearnStream call."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from treadle.model import InferencePrecision, Model
from treadle.model.errors import ModelError
from treadle.model.online.learner import Learner
from treadle.model.online.memory_estimate import snapshot_bytes
from treadle.server.errors import from_exception, from_model
from treadle.server.inference.stream_units import StreamPiece, StreamUnits, stream_error
from treadle.server.messages.learn_request import Learning
from treadle.server.messages.reply_size import ReplyGrowth, write_piece
from treadle.server.resources.memory_budget import Reservation
from treadle.v1 import sequence_pb2 as pb


class LearnStream:
    """Learns from one stream; methods that return an iterator work in short steps.

    It keeps the weights that it began with, even if the model is deleted meanwhile.

    Args:
        model: The model to begin with.
        learning: The settings.
        max_message_bytes: The largest reply.
        held: Holds the memory of the learner; that of a snapshot is added.
        held_reply: Holds the memory of the current reply.
    """

    def __init__(
        self,
        model: Model,
        learning: Learning,
        max_message_bytes: int,
        held: Reservation,
        held_reply: Reservation,
    ) -> None:
        self._model = model
        self._learning = learning
        self._max_message_bytes = max_message_bytes
        self._held = held
        self._held_reply = held_reply
        self._has_snapshot = False
        self._learner: Learner | None = None
        self._units = StreamUnits(learning.on_error)
        self.reply = pb.LearnStreamResponse()
        """The reply to the last request."""

    @property
    def learner(self) -> Learner:
        """The learner, once `begin` is over."""
        assert self._learner is not None
        return self._learner

    def begin(self) -> Iterator[None]:
        """Copies the model.

        Raises:
            StatusError: The model cannot do what the spec asks for.
        """
        learning = self._learning
        try:
            self._learner = Learner(
                self._model, learning.config, learning.details, keep_tokens=learning.tokens
            )
        except ModelError as error:
            raise from_model(error, "spec", "spec.{}".format) from error
        yield

    def answer(self, request: pb.LearnStreamRequest) -> Iterator[None]:
        """Answers a request, except for `publish`; `reply` is then its reply.

        Raises:
            StatusError: The request fails, or its reply would be too large, and that ends the call.
        """
        self.reply = pb.LearnStreamResponse()
        match request.WhichOneof("message"):
            case "learn":
                piece = StreamPiece.of(request.learn)
                del request
                yield from self._feed(piece, True)
            case "predict":
                piece = StreamPiece.of(request.predict)
                del request
                yield from self._feed(piece, False)
            case "snapshot":
                self._snapshot()
                self.reply.snapshot.SetInParent()
            case "roll_back":
                self.learner.roll_back()
                self._units.restart()
                self.reply.roll_back.SetInParent()
        self.reply.updates = self.learner.updates
        yield

    def _snapshot(self) -> None:
        if not self._has_snapshot:  # the next one takes its place
            more = snapshot_bytes(self._model.parameters.shape, self._learning.config)
            self._held.resize(self._held.size + more)
            self._has_snapshot = True
        self.learner.snapshot()

    def published(self, model: pb.Model) -> None:
        """Makes a stored model the reply."""
        self.reply = pb.LearnStreamResponse(published=model, updates=self.learner.updates)

    def not_published(self, error: BaseException) -> None:
        """Makes the reason why no model was stored the reply.

        Raises:
            StatusError: It ends the call.
        """
        fault = from_exception(error, "publishing a learned model", "publish.model")
        if not self._units.keeps_going:
            raise fault from error
        self.reply = pb.LearnStreamResponse(error=stream_error(fault), updates=self.learner.updates)

    def _feed(self, piece: StreamPiece, learn: bool) -> Iterator[None]:
        error = yield from self._units.feed(self.learner, piece, partial(self._read, learn))
        if error is not None:
            self.reply.piece.error.CopyFrom(error)

    def _read(self, learn: bool, text: str, end: bool) -> Iterator[None]:
        field = "learn.text" if learn else "predict.text"
        self.reply = pb.LearnStreamResponse(piece=pb.PieceScore())
        growth = ReplyGrowth(
            self._held_reply, self._max_message_bytes, field, "send smaller pieces"
        )
        scoring = self.learner.feed(text, end, learn)
        try:
            yield from write_piece(
                self.reply.piece,
                scoring,
                self.learner.take_tokens,
                growth,
                InferencePrecision.FP32,
            )
        except ModelError as error:
            raise from_model(error, field) from error

    def sent(self) -> None:
        """Drops the reply, which was sent: a silent stream keeps none."""
        self.reply = pb.LearnStreamResponse()
        self._held_reply.release()
