"""`ResponseStream` and its kinds: streaming calls as iterators that can be closed at any time.

An `AlternatingStream` sends a request and waits for its response before it sends the next one. A
`ConcurrentStream` sends its requests in the background while the caller reads responses.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import ClassVar, Generic, NamedTuple, Protocol, Self, TypeAlias, TypeVar

import grpc

from treadle.client.errors import (
    ERRORS,
    InputError,
    InternalError,
    ServerError,
    UnauthenticatedError,
)
from treadle.client.messages.connection_faults import Peer
from treadle.client.messages.status import from_rpc_error
from treadle.v1.sequence_pb2 import StreamError, TextPiece

Request = TypeVar("Request")
Response = TypeVar("Response")
Received = TypeVar("Received", covariant=True)


class Call(Protocol[Received]):
    """The part of a call with streamed responses that this client uses."""

    def __next__(self) -> Received:
        """Waits for the next response."""

    def cancel(self) -> object:
        """Ends the call."""


class ServerCall(Generic[Response]):
    """A gRPC call with streamed responses whose errors are those of this client.

    Args:
        call: The call of gRPC.
        peer: The server, for the sentences of errors.
        request_id: The id of the call.
    """

    def __init__(self, call: Call[Response], peer: Peer, request_id: str) -> None:
        self._call = call
        self._peer = peer
        self._request_id = request_id
        self._was_accepted = False

    def __next__(self) -> Response:
        """Waits for the next response.

        Returns:
            The response.

        Raises:
            StopIteration: The call has ended.
            ServerError: The call failed.
        """
        try:
            response = next(self._call)
        except grpc.RpcError as error:
            failure = from_rpc_error(error, self._peer, self._request_id)
            # A server ends a call whose token expires; the next call has a new one.
            if isinstance(failure, UnauthenticatedError) and self._peer.renews_token:
                failure.broken = self._was_accepted
            raise failure from error
        self._was_accepted = True
        return response

    def cancel(self) -> object:
        """Ends the call."""
        return self._call.cancel()


class ResponseStream(Generic[Response]):
    """A stream of responses. Closing it, or leaving its `with` block, cancels the call.

    Args:
        call: The call under way.
    """

    lost_with_connection: ClassVar[str] = ""
    """What is lost where the connection breaks, as a clause with a place for the number of
    responses; empty: nothing that an error has to say."""

    def __init__(self, call: Call[Response]) -> None:
        self._call = call
        self._closed = False
        self._received = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Cancels the call unless it has ended; nothing more is yielded."""
        self._closed = True
        self._call.cancel()

    def _receive(self) -> Response:
        """Waits for the next response.

        Returns:
            The response.

        Raises:
            StopIteration: The stream has ended, or was closed here.
            ServerError: The call failed.
        """
        if self._closed:
            raise StopIteration
        try:
            response = next(self._call)
        except ServerError as error:
            if self._closed:  # by another thread, while this one waited
                raise StopIteration from None
            # A server that leaves says itself what is lost, and when to come again.
            is_cut = error.broken and not error.unsent and error.retry_delay_s is None
            if is_cut and self.lost_with_connection:
                clause = self.lost_with_connection.format(f"{self._received:,}")
                raise error.followed(clause) from error.__cause__
            raise
        self._received += 1
        return response


class RequestQueue(Generic[Request]):
    """The requests of a call that are put in one by one; gRPC takes them in its own thread.

    Args:
        first: The first request.
    """

    def __init__(self, first: Request) -> None:
        self._queue: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._queue.put(first)

    def put(self, request: Request) -> None:
        """Sends a request."""
        self._queue.put(request)

    def close(self) -> None:
        """Ends the requests; the server then ends its side."""
        self._queue.put(None)

    def requests(self) -> Iterator[Request]:
        """Yields the requests as they are put in, until the queue is closed."""
        while (request := self._queue.get()) is not None:
            yield request


class AlternatingStream(ResponseStream[Response], Generic[Request, Response]):
    """A call that gets one response to each request before the next request is sent.

    It is for one thread. Leaving its `with` block ends the call.

    Args:
        queue: The requests.
        call: The call under way.
    """

    def __init__(self, queue: RequestQueue[Request], call: Call[Response]) -> None:
        super().__init__(call)
        self._queue = queue

    def close(self) -> None:
        """Ends the call."""
        super().close()
        self._queue.close()

    def _ask(self, request: Request) -> Response:
        """Sends a request and waits for its response.

        Returns:
            The response.

        Raises:
            InputError: The call was closed here.
            ServerError: The call failed.
        """
        if self._closed:
            raise InputError("this stream is closed: open another one")
        self._queue.put(request)
        try:
            return self._receive()
        except StopIteration:
            raise InternalError("the server ended the stream before it was closed") from None


class BackgroundRequests(Generic[Request]):
    """The requests of a call, made from an iterable as fast as the server takes them.

    gRPC iterates over them in a thread of its own. An error there cancels the call and is kept
    for the thread that reads the responses.

    Args:
        requests: The requests.
    """

    def __init__(self, requests: Iterable[Request]) -> None:
        self._requests = requests
        self._cancel: Callable[[], object] | None = None
        self._attached = threading.Event()
        self.error: Exception | None = None
        """The error that making the requests raised."""

    def attach(self, cancel: Callable[[], object]) -> None:
        """Sets the function that cancels the call to which the requests belong."""
        self._cancel = cancel
        self._attached.set()

    def requests(self) -> Iterator[Request]:
        """Yields the requests."""
        try:
            yield from self._requests
        except Exception as error:
            self.error = error
            self._attached.wait()
            if self._cancel is not None:
                self._cancel()


class ConcurrentStream(ResponseStream[Response], Generic[Request, Response]):
    """A call whose requests are sent in the background while its responses are read.

    Leaving it early, by `close()` or by the end of its `with` block, cancels the call.

    Args:
        background: The requests.
        call: The call under way.
    """

    def __init__(self, background: BackgroundRequests[Request], call: Call[Response]) -> None:
        super().__init__(call)
        self._background = background
        background.attach(call.cancel)

    def _receive(self) -> Response:
        """Waits for the next response; an error in making the requests takes precedence."""
        try:
            return super()._receive()
        except Exception:
            if self._background.error is not None and not self._closed:
                raise self._background.error from None
            raise


class StreamPiece(NamedTuple):
    """A piece of a text that is sent to the server in a stream."""

    text: str
    """The next text, of any length, empty included."""
    end: bool = False
    """Whether the text or item ends here; the next piece then begins a new one."""
    more: bool = False
    """Whether the next piece belongs to the same unit, such as a long line. `on_error` skips
    whole units."""


AnyPiece: TypeAlias = str | StreamPiece | tuple[str, bool]
"""A piece: its text alone, or a pair of the text and whether the text or item ends there."""


def text_piece(piece: AnyPiece) -> TextPiece:
    """Returns the message for a piece.

    Raises:
        InputError: The value is not a piece, or its text cannot be sent.
    """
    try:
        if isinstance(piece, str):
            return TextPiece(text=piece)
        text, end, more = piece if isinstance(piece, StreamPiece) else (*piece, False)
        return TextPiece(text=text, end=end, more=more)
    except UnicodeEncodeError as error:
        raise InputError("a piece is not text: it holds bytes that are not UTF-8") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"a piece cannot be {piece!r}: it is a text, or (text, end)") from error


def stream_error(error: StreamError) -> ServerError:
    """Returns the client's error for an error inside a stream that continues all the same."""
    names = [code.name for code in grpc.StatusCode if code.value[0] == error.code]
    code = names[0] if names else "UNKNOWN"
    return ERRORS[code](error.message, code=code)
