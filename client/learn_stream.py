"""`LearnedPieces` and `LearnStream` learn from a stream: from an iterable, or piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeAlias

from treadle.client.errors import ServerError
from treadle.client.messages.fields import make_request
from treadle.client.streaming import (
    AlternatingStream,
    AnyPiece,
    ConcurrentStream,
    StreamPiece,
    stream_error,
    text_piece,
)
from treadle.v1.sequence_pb2 import (
    LearnStreamRequest,
    LearnStreamResponse,
    LearnStreamSpec,
    Model,
    PieceScore,
    Publish,
    RollBack,
    Snapshot,
)

LearnStep: TypeAlias = AnyPiece | Snapshot | RollBack | Publish | LearnStreamRequest
"""A piece to learn from, or another request of a LearnStream call."""


def learn_requests(
    spec: LearnStreamSpec, steps: Iterable[LearnStep]
) -> Iterator[LearnStreamRequest]:
    """Yields the requests of a whole LearnStream call."""
    yield LearnStreamRequest(spec=spec)
    for step in steps:
        yield _request(step)


def _request(step: LearnStep) -> LearnStreamRequest:
    """Returns the request for a step; a piece is one to learn from.

    Raises:
        InputError: The value is not a step.
    """
    if isinstance(step, LearnStreamRequest):
        return step
    if isinstance(step, Snapshot):
        return LearnStreamRequest(snapshot=step)
    if isinstance(step, RollBack):
        return LearnStreamRequest(roll_back=step)
    if isinstance(step, Publish):
        return LearnStreamRequest(publish=step)
    return LearnStreamRequest(learn=text_piece(step))


_LOST = (
    "what the stream has learned since it last published a version is lost: begin a new one from "
    "that version"
)


class LearnedPieces(ConcurrentStream[LearnStreamRequest, LearnStreamResponse]):
    """The scores of a stream that is learned: iterate over them, one for each piece.

    `updates`, `published` and `unpublished` report what has happened so far.
    """

    lost_with_connection = _LOST
    updates: int = 0
    """Updates of the weights so far."""
    published: tuple[Model, ...] = ()
    """The versions stored so far, oldest first."""
    unpublished: tuple[ServerError, ...] = ()
    """Errors of versions that were not stored, if `on_error` lets the stream continue."""

    def __iter__(self) -> Iterator[PieceScore]:
        """Yields the score that each piece had before it was learned from, in their order.

        With `on_error="skip"` or `"stop"`, a piece that was skipped has an `error`.

        Raises:
            ServerError: The call failed.
            Exception: The error that the iterable of pieces raised.
        """
        for response in self.responses():
            if response.HasField("piece"):
                yield response.piece

    def responses(self) -> Iterator[LearnStreamResponse]:
        """Yields the server's messages, one for each step."""
        while True:
            try:
                response = self._receive()
            except StopIteration:
                return
            self.updates = response.updates
            if response.HasField("published") and response.published.version:
                self.published = (*self.published, response.published)
            if response.HasField("error"):
                self.unpublished = (*self.unpublished, stream_error(response.error))
            yield response


class LearnStream(AlternatingStream[LearnStreamRequest, LearnStreamResponse]):
    """A copy of a model that learns piece by piece; each is predicted before it is learned.

    What the copy has learned is lost at the end of the stream, unless it is published.
    """

    lost_with_connection = _LOST
    updates: int = 0
    """Updates of the weights so far."""

    def learn(self, text: str, end: bool = False, more: bool = False) -> PieceScore:
        """Predicts the next piece, and then learns from it.

        Args:
            text: The next text, of any length.
            end: Whether the text or item ends here; the next piece then begins a new one.
            more: Whether the next piece belongs to the same unit; see `StreamPiece`.

        Returns:
            The score that the piece had before it was learned from. With `on_error="skip"` or
            `"stop"`, a piece that was skipped has an `error`.

        Raises:
            InputError: The text cannot be sent, or the stream was closed.
            ServerError: The call failed.
        """
        return self._take_step(
            LearnStreamRequest(learn=text_piece(StreamPiece(text, end, more)))
        ).piece

    def predict(self, text: str, end: bool = False, more: bool = False) -> PieceScore:
        """Predicts the next piece and learns nothing from it; arguments as for `learn`."""
        return self._take_step(
            LearnStreamRequest(predict=text_piece(StreamPiece(text, end, more)))
        ).piece

    def snapshot(self) -> None:
        """Keeps the weights and the rest of the state, in place of the last snapshot."""
        self._take_step(LearnStreamRequest(snapshot=Snapshot()))

    def roll_back(self) -> None:
        """Returns to the last snapshot, or to the beginning without one."""
        self._take_step(LearnStreamRequest(roll_back=RollBack()))

    def publish(self, model: str = "", alias: str = "", *, validate_only: bool = False) -> Model:
        """Stores the weights as they are now as a new version.

        Args:
            model: The name; empty takes the name of the model that the stream began with.
            alias: An alias for the new version.
            validate_only: Only check these names, so that an error comes before the work.

        Returns:
            The new version; with `validate_only`, a Model with its name alone.

        Raises:
            ServerError: The version was not stored. With `on_error="skip"` or `"stop"` the stream
                continues all the same, and this may be tried again; else the call has failed.
        """
        request = make_request(Publish, model=model, alias=alias, validate_only=validate_only)
        response = self._take_step(LearnStreamRequest(publish=request))
        if response.HasField("error"):
            raise stream_error(response.error)
        return response.published

    def _take_step(self, request: LearnStreamRequest) -> LearnStreamResponse:
        """Sends one step and counts the updates."""
        response = self._ask(request)
        self.updates = response.updates
        return response
