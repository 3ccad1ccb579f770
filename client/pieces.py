"""Pieces of a stream of text, and the two ways to send them: one by one, or as they come."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, NamedTuple, TypeAlias, TypeVar

import grpc

from treadle.client.errors import ERRORS, InputError, InternalError, ServerError
from treadle.client.streams import Call, Stream
from treadle.v1.sequence_pb2 import StreamError, TextPiece

Request = TypeVar("Request")
Response = TypeVar("Response")


class Piece(NamedTuple):
    """A piece of a stream of text."""

    text: str
    """The next text, of any length, empty included."""
    end: bool = False
    """Whether the text or item ends here; what follows then begins again."""
    more: bool = False
    """Whether the next piece belongs to the same unit, such as a long line: what `on_error` skips
    is a unit."""


AnyPiece: TypeAlias = str | Piece | tuple[str, bool]
"""A piece: its text alone, or with whether the text or item ends there."""


def text_piece(piece: AnyPiece) -> TextPiece:
    """Puts a piece on the wire.

    Raises:
        InputError: It is none, or its text cannot be sent.
    """
    try:
        if isinstance(piece, str):
            return TextPiece(text=piece)
        text, end, more = piece if isinstance(piece, Piece) else (*piece, False)
        return TextPiece(text=text, end=end, more=more)
    except UnicodeEncodeError as error:
        raise InputError("a piece is not text: it holds bytes that are not UTF-8") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"a piece cannot be {piece!r}: it is a text, or (text, end)") from error


def stream_error(error: StreamError) -> ServerError:
    """Makes the error of what went wrong in a stream that continues all the same."""
    names = [code.name for code in grpc.StatusCode if code.value[0] == error.code]
    code = names[0] if names else "UNKNOWN"
    return ERRORS[code](error.message, code=code)


class Mailbox(Generic[Request]):
    """The requests of a call that are put in one by one; gRPC takes them in its own thread."""

    def __init__(self, first: Request) -> None:
        self._queue: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._queue.put(first)

    def put(self, request: Request) -> None:
        """Sends a request."""
        self._queue.put(request)

    def close(self) -> None:
        """Says that there are no more; the server then ends its side."""
        self._queue.put(None)

    def requests(self) -> Iterator[Request]:
        """Yields what is put in, until it is closed."""
        while (request := self._queue.get()) is not None:
            yield request


class Source(Generic[Request]):
    """The requests of a call that are made from an iterable, as fast as the server takes them.

    gRPC iterates over it in a thread of its own. An error there cancels the call and is kept for
    the thread that reads the responses.
    """

    def __init__(self, requests: Iterable[Request]) -> None:
        self._requests = requests
        self._cancel: Callable[[], object] = lambda: None
        self._called = threading.Event()
        self.error: Exception | None = None
        """What making the requests raised."""

    def attach(self, cancel: Callable[[], object]) -> None:
        """Tells how to end the call that the requests belong to."""
        self._cancel = cancel
        self._called.set()

    def requests(self) -> Iterator[Request]:
        """Yields the requests."""
        try:
            yield from self._requests
        except Exception as error:
            self.error = error
            self._called.wait()
            self._cancel()


class Conversation(Stream[Response], Generic[Request, Response]):
    """A call of which each request is answered by one response, one after the other.

    It is for one thread. Leaving its `with` block ends the call.
    """

    def __init__(self, mailbox: Mailbox[Request], call: Call[Response], address: str) -> None:
        super().__init__(call, address)
        self._mailbox = mailbox

    def close(self) -> None:
        """Ends the call."""
        super().close()
        self._mailbox.close()

    def _ask(self, request: Request) -> Response:
        """Sends a request and waits for its response.

        Raises:
            InputError: The call was closed here.
            ServerError: The call failed.
        """
        if self._closed:
            raise InputError("this stream is closed")
        self._mailbox.put(request)
        try:
            return self._receive()
        except StopIteration:
            raise InternalError("the server ended the stream before it was closed") from None


class Flow(Stream[Response], Generic[Request, Response]):
    """A call whose requests are sent in the background, while its responses are read.

    Leaving it early, by `close()` or by the end of its `with` block, cancels the call.
    """

    def __init__(self, source: Source[Request], call: Call[Response], address: str) -> None:
        super().__init__(call, address)
        self._source = source
        source.attach(call.cancel)

    def _receive(self) -> Response:
        """Waits for the next response; what went wrong in making the requests comes first."""
        try:
            return super()._receive()
        except Exception:
            if self._source.error is not None and not self._closed:
                raise self._source.error from None
            raise
