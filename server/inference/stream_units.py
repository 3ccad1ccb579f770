"""`StreamUnits` takes a unit of a stream back whole if a piece of it cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple, Protocol

import grpc

from treadle.server.errors import StatusError
from treadle.v1 import sequence_pb2 as pb

_NOT_READ = 9
"""google.rpc.Code.FAILED_PRECONDITION"""

Read = Callable[[str, bool], Iterator[None]]
"""Reads a text, and ends it or not, in short steps; its reply holds nothing of earlier texts."""


class StreamPiece(NamedTuple):
    """A piece of a stream, taken out of its message, which is of the same size and goes."""

    text: str
    """The next text."""
    end: bool
    """Whether the text or item ends here."""
    more: bool
    """Whether the next piece belongs to the same unit."""

    @classmethod
    def of(cls, message: pb.TextPiece) -> StreamPiece:
        """Returns the piece that a message is."""
        return cls(message.text, message.end, message.more)


class UnitReader(Protocol):
    """What reads a stream, and can be taken back to where a unit began."""

    @property
    def is_open(self) -> bool:
        """Whether a text or item has begun that is not ended yet."""

    def begin_unit(self) -> None:
        """Makes `take_back` come back to here."""

    def take_back(self, error: Exception | None = None) -> None:
        """Goes back to where the unit began; drops what waited then if it is at fault."""


class StreamUnits:
    """Feeds pieces to a reader, and does about its errors what `OnError` says.

    Args:
        on_error: An `OnError`, checked.
    """

    def __init__(self, on_error: int) -> None:
        self._on_error = on_error
        self._begun = False
        self._ends = False
        self._skipped: pb.StreamError | None = None

    @property
    def keeps_going(self) -> bool:
        """Whether an error is answered and does not end the call."""
        return self._on_error != pb.ON_ERROR_UNSPECIFIED

    def feed(
        self, reader: UnitReader, piece: StreamPiece, read: Read
    ) -> Generator[None, None, pb.StreamError | None]:
        """Reads a piece, in short steps.

        Returns:
            Why it was skipped; None where it was read.

        Raises:
            StatusError: It cannot be read, and that ends the call.
        """
        if not self.keeps_going:
            yield from read(piece.text, piece.end)
            return None
        if not self._begun and self._skipped is None:
            reader.begin_unit()
            self._begun, self._ends = True, False
        self._ends = self._ends or piece.end
        error = self._skipped
        if error is None:
            try:
                yield from read(piece.text, piece.end)
            except StatusError as fault:
                if fault.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise  # the piece is not at fault: what is skipped never depends on the load
                reader.take_back(_cause(fault))
                error = stream_error(fault)
        if error is not None:
            yield from read("", False)  # the reply then holds nothing of what was taken back
            if self._ends and self._begun:
                yield from self._end(reader, read)
        self._close(piece.more, error)
        return error

    def restart(self) -> None:
        """Begins a new unit with the next piece: the reader was moved to another place."""
        self._begun = False
        if self._on_error != pb.ON_ERROR_STOP:
            self._skipped = None

    def _end(self, reader: UnitReader, read: Read) -> Iterator[None]:
        """Ends the item that began before the unit; what waits may be at fault as well."""
        if not reader.is_open:
            return
        try:
            yield from read("", True)
        except StatusError as fault:
            reader.take_back(_cause(fault))
            yield from read("", True)

    def _close(self, more: bool, error: pb.StreamError | None) -> None:
        """Carries an error on to the other pieces that it skips."""
        if not more:
            self._begun = False
        if error is None or more:
            self._skipped = error
        elif self._on_error == pb.ON_ERROR_STOP:
            text = "not read: an earlier piece could not be read, and on_error is ON_ERROR_STOP"
            self._skipped = pb.StreamError(code=_NOT_READ, message=text)
        else:
            self._skipped = None


def stream_error(fault: StatusError) -> pb.StreamError:
    """Returns what is reported of an error that does not end the call."""
    return pb.StreamError(code=fault.code.value[0], message=fault.message)


def _cause(fault: StatusError) -> Exception | None:
    cause = fault.__cause__
    return cause if isinstance(cause, Exception) else None
