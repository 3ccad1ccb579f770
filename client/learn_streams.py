"""LearnStream in two forms: pieces as they come from an iterable, or sent one by one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeAlias

from treadle.client.errors import ServerError
from treadle.client.options import make_request
from treadle.client.pieces import AnyPiece, Conversation, Flow, Piece, stream_error, text_piece
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

Step: TypeAlias = AnyPiece | Snapshot | RollBack | Publish | LearnStreamRequest
"""A piece to learn, or anything else that a LearnStream call takes."""


def learn_requests(spec: LearnStreamSpec, steps: Iterable[Step]) -> Iterator[LearnStreamRequest]:
    """Yields the requests of a whole LearnStream call."""
    yield LearnStreamRequest(spec=spec)
    for step in steps:
        yield _request(step)


def _request(step: Step) -> LearnStreamRequest:
    """Puts a step on the wire; a piece is one to learn.

    Raises:
        InputError: It is none.
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


class LearntPieces(Flow[LearnStreamRequest, LearnStreamResponse]):
    """The scores of a stream that is learned: iterate over them, one a piece.

    What the stream publishes, takes back or keeps on its way is told by `updates` and
    `published`.
    """

    updates: int = 0
    """Updates of the weights so far."""
    published: tuple[Model, ...] = ()
    """The versions stored so far, oldest first."""
    unpublished: tuple[ServerError, ...] = ()
    """Why versions were not stored, where `on_error` had the stream continue all the same."""

    def __iter__(self) -> Iterator[PieceScore]:
        """Yields what each piece scored before anything was learned from it, in their order.

        With `on_error="skip"` or `"stop"`, a piece that was skipped has an `error`.

        Raises:
            ServerError: The call failed.
            Exception: What the iterable of the pieces raised.
        """
        for response in self.responses():
            if response.HasField("piece"):
                yield response.piece

    def responses(self) -> Iterator[LearnStreamResponse]:
        """Yields the server's messages as they are, one for each step."""
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


class LearnStream(Conversation[LearnStreamRequest, LearnStreamResponse]):
    """A model of one's own that learns piece by piece, each predicted before it is learned.

    What it has learned is gone with the stream, unless it is published.
    """

    updates: int = 0
    """Updates of the weights so far."""

    def learn(self, text: str, end: bool = False, more: bool = False) -> PieceScore:
        """Predicts the next piece, and then learns from it.

        Args:
            text: The next text, of any length.
            end: Whether the text or item ends here; what follows then begins again.
            more: Whether the next piece belongs to the same unit; see `Piece`.

        Returns:
            What the piece scored before anything was learned from it. With `on_error="skip"` or
            `"stop"`, a piece that was skipped has an `error`.

        Raises:
            InputError: The text cannot be sent, or the stream was closed.
            ServerError: The call failed.
        """
        return self._do(LearnStreamRequest(learn=text_piece(Piece(text, end, more)))).piece

    def predict(self, text: str, end: bool = False, more: bool = False) -> PieceScore:
        """Predicts the next piece and learns nothing from it; arguments as for `learn`."""
        return self._do(LearnStreamRequest(predict=text_piece(Piece(text, end, more)))).piece

    def snapshot(self) -> None:
        """Keeps the weights and everything else as they are, in place of the last snapshot."""
        self._do(LearnStreamRequest(snapshot=Snapshot()))

    def roll_back(self) -> None:
        """Goes back to the last snapshot, or to the beginning where there is none."""
        self._do(LearnStreamRequest(roll_back=RollBack()))

    def publish(self, model: str = "", alias: str = "", *, validate_only: bool = False) -> Model:
        """Stores the weights as they are now as a new version.

        Args:
            model: The name; empty takes that of the model which the stream began with.
            alias: An alias to give to the new version.
            validate_only: Only check these names, so that trouble comes before the work.

        Returns:
            The new version; with `validate_only`, a Model with its name alone.

        Raises:
            ServerError: It was not stored. With `on_error="skip"` or `"stop"` the stream
                continues all the same, and this may be tried again; else the call has failed.
        """
        made = make_request(Publish, model=model, alias=alias, validate_only=validate_only)
        response = self._do(LearnStreamRequest(publish=made))
        if response.HasField("error"):
            raise stream_error(response.error)
        return response.published

    def _do(self, request: LearnStreamRequest) -> LearnStreamResponse:
        """Takes one step, and counts the updates."""
        response = self._ask(request)
        self.updates = response.updates
        return response
