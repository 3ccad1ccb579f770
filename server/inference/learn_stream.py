"""One LearnStream call: its requests in, their answers out."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from treadle.model import Model
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
    """Learns from one stream; methods that return an iterator take a short step each time.

    It holds on to the weights that it began with, whatever becomes of the model meanwhile.

    Args:
        model: What to begin with.
        asked: How to learn.
        max_message_bytes: The largest reply.
        held: What the learner takes is reserved there; a snapshot is added to it.
        held_reply: Where the reply at hand is reserved.
    """

    def __init__(
        self,
        model: Model,
        asked: Learning,
        max_message_bytes: int,
        held: Reservation,
        held_reply: Reservation,
    ) -> None:
        self._model = model
        self._asked = asked
        self._max_message_bytes = max_message_bytes
        self._held = held
        self._held_reply = held_reply
        self._has_snapshot = False
        self._learner: Learner | None = None
        self._units = StreamUnits(asked.on_error)
        self.reply = pb.LearnStreamResponse()
        """The answer to the last request."""

    @property
    def learner(self) -> Learner:
        """What learns; there is one once `begin` is over."""
        assert self._learner is not None
        return self._learner

    def begin(self) -> Iterator[None]:
        """Copies the model.

        Raises:
            StatusError: It cannot do what the spec asks for.
        """
        asked = self._asked
        try:
            self._learner = Learner(
                self._model, asked.config, asked.details, keep_tokens=asked.tokens
            )
        except ModelError as error:
            raise from_model(error, "spec", "spec.{}".format) from error
        yield

    def answer(self, request: pb.LearnStreamRequest) -> Iterator[None]:
        """Does what a request asks for, but for `publish`; `reply` is then its answer.

        Raises:
            StatusError: It cannot be done, or its reply would be too large, and that ends the call.
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
            more = snapshot_bytes(self._model.parameters.shape, self._asked.config)
            self._held.resize(self._held.size + more)
            self._has_snapshot = True
        self.learner.snapshot()

    def published(self, model: pb.Model) -> None:
        """Makes a stored model the answer."""
        self.reply = pb.LearnStreamResponse(published=model, updates=self.learner.updates)

    def not_published(self, error: BaseException) -> None:
        """Makes the reason why no model was stored the answer.

        Raises:
            StatusError: It ends the call.
        """
        fault = from_exception(error, "publishing what a session learned", "publish.model")
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
            yield from write_piece(self.reply.piece, scoring, self.learner.take_tokens, growth)
        except ModelError as error:
            raise from_model(error, field) from error

    def sent(self) -> None:
        """Forgets the reply, which was sent: a silent session keeps none."""
        self.reply = pb.LearnStreamResponse()
        self._held_reply.release()
