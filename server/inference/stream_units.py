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
"""Reads a text in short steps, and ends it if the flag says so; its reply covers this text only."""


class StreamPiece(NamedTuple):
    """A piece of a stream. The message that it came in, which is as large, can be dropped."""

    text: str
    """The next text."""
    end: bool
    """Whether the text or item ends here."""
    more: bool
    """Whether the next piece belongs to the same unit."""

    @classmethod
    def of(cls, message: pb.TextPiece) -> StreamPiece:
        """Returns the piece of a message."""
        return cls(message.text, message.end, message.more)


class UnitReader(Protocol):
    """Reads a stream, and can return to where a unit began."""

    @property
    def is_open(self) -> bool:
        """Whether a text or item has begun and not ended."""

    def begin_unit(self) -> None:
        """Marks the place to which `take_back` returns."""

    def take_back(self, error: Exception | None = None) -> None:
        """Returns to where the unit began; drops text that waited then if it caused the error."""


class StreamUnits:
    """Feeds pieces to a reader, and handles its errors as `OnError` says.

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
        """Whether the call continues after an error, which is then part of a reply."""
        return self._on_error != pb.ON_ERROR_UNSPECIFIED

    def feed(
        self, reader: UnitReader, piece: StreamPiece, read: Read
    ) -> Generator[None, None, pb.StreamError | None]:
        """Reads a piece, in short steps.

        Returns:
            The error that caused the piece to be skipped; None where it was read.

        Raises:
            StatusError: The piece cannot be read, and that ends the call.
        """
        if not self.keeps_going:
            yield from read(piece.text, piece.end)
            return None
        if not self._begun and self._skipped is None:
            reader.begin_unit()
            self._begun = True
            self._ends = False
        self._ends = self._ends or piece.end
        error = self._skipped
        if error is None:
            try:
                yield from read(piece.text, piece.end)
            except StatusError as fault:
                if fault.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise  # not an error of the piece: skipping never depends on the load
                reader.take_back(_cause(fault))
                error = stream_error(fault)
        if error is not None:
            yield from read("", False)  # makes a reply without the text that was taken back
            if self._ends and self._begun:
                yield from self._end(reader, read)
        self._close(piece.more, error)
        return error

    def restart(self) -> None:
        """Begins a new unit with the next piece, after the reader was moved to another place."""
        self._begun = False
        if self._on_error != pb.ON_ERROR_STOP:
            self._skipped = None

    def _end(self, reader: UnitReader, read: Read) -> Iterator[None]:
        """Ends the item that began before the unit; text that waits may cause an error, too."""
        if not reader.is_open:
            return
        try:
            yield from read("", True)
        except StatusError as fault:
            reader.take_back(_cause(fault))
            yield from read("", True)

    def _close(self, more: bool, error: pb.StreamError | None) -> None:
        """Remembers an error for the later pieces that are skipped because of it."""
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
    """Returns the message of an error that does not end the call."""
    return pb.StreamError(code=fault.code.value[0], message=fault.message)


def _cause(fault: StatusError) -> Exception | None:
    cause = fault.__cause__
    return cause if isinstance(cause, Exception) else None
