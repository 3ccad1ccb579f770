"""The two streaming calls as Python iterators that can be left at any time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

import grpc

from treadle.client.errors import InternalError, TreadleError, from_rpc_error
from treadle.v1.sequence_pb2 import (
    CorpusEnd,
    GenerateResponse,
    GenerateResult,
    Model,
    Token,
    TrainingProgress,
    TrainingStarted,
    TrainRequest,
    TrainResponse,
    TrainSpec,
)

if TYPE_CHECKING:
    from treadle.client.corpus import CorpusSource

Response = TypeVar("Response")
Received = TypeVar("Received", covariant=True)


class Call(Protocol[Received]):
    """What this module needs of a gRPC call that streams its replies."""

    def __next__(self) -> Received:
        """Waits for the next reply."""

    def cancel(self) -> object:
        """Ends the call."""


class _Stream(Generic[Response]):
    """A stream of responses. Closing it, or leaving its `with` block, cancels the call."""

    def __init__(self, call: Call[Response], address: str) -> None:
        self._call = call
        self._address = address
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancels the call unless it has ended; nothing more is yielded."""
        self._closed = True
        self._call.cancel()

    def _receive(self) -> Response:
        """Waits for the next response.

        Raises:
            StopIteration: The stream has ended, or was closed here.
            ServerError: The call failed.
        """
        if self._closed:
            raise StopIteration
        try:
            return next(self._call)
        except grpc.RpcError as error:
            if self._closed:  # by another thread, while this one waited
                raise StopIteration from None
            raise from_rpc_error(error, self._address) from error


class Upload:
    """The requests of one Train call, read from the corpus as the server takes them.

    gRPC iterates over it in a thread of its own. An error there cancels the call and is kept for
    the thread that reads the responses; the corpus then has no end, so nothing is trained on it.
    """

    def __init__(self, spec: TrainSpec, source: CorpusSource) -> None:
        self._spec = spec
        self._source = source
        self._call: Call[TrainResponse] | None = None
        self._called = threading.Event()
        self.error: Exception | None = None
        """What reading the corpus raised."""
        self.sent = False
        """Whether gRPC has taken the whole corpus; a cancellation may still overtake it."""

    def attach(self, call: Call[TrainResponse]) -> None:
        """Tells which call the requests belong to."""
        self._call = call
        self._called.set()

    def requests(self) -> Iterator[TrainRequest]:
        """Yields the spec, then the corpus chunk by chunk, then its end."""
        try:
            yield TrainRequest(spec=self._spec)
            size = 0
            for chunk in self._source.chunks:
                size += len(chunk)
                yield TrainRequest(corpus_chunk=chunk)
            yield TrainRequest(corpus_end=CorpusEnd(size_bytes=size))
            self.sent = True
        except Exception as error:
            self.error = error
            self._called.wait()
            if self._call is not None:
                self._call.cancel()
        finally:
            self._source.close()


class TrainingRun(_Stream[TrainResponse]):
    """A training run under way: iterate over its events, or wait for `result()`.

    Leaving it early, by `close()` or by the end of its `with` block, drops an upload under way.
    A run whose corpus has arrived goes on at the server: a training limit ends it, and its
    model is stored, whether or not anybody watches.
    """

    def __init__(self, call: Call[TrainResponse], address: str, upload: Upload) -> None:
        super().__init__(call, address)
        self._upload = upload
        self.started: TrainingStarted | None = None
        """What the server made of the spec and the corpus, once it said so."""
        self.progress: TrainingProgress | None = None
        """The newest progress event."""
        self.model: Model | None = None
        """The stored model, once the run has completed."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TrainResponse:
        try:
            response = self._receive()
        except TreadleError:
            if self._upload.error is not None:
                raise self._upload.error from None
            raise
        match response.WhichOneof("event"):
            case "started":
                self.started = response.started
            case "progress":
                self.progress = response.progress
            case "completed":
                self.model = response.completed
        return response

    @property
    def sent(self) -> bool:
        """Whether the whole corpus has been handed over.

        The server surely has it, and goes on by itself, once `started` is set; between the two,
        closing the run may still overtake it.
        """
        return self._upload.sent

    def result(self) -> Model:
        """Waits for the end of the run and returns the stored model.

        Raises:
            ServerError: The run failed, or was closed before its end.
        """
        for _ in self:
            pass
        if self.model is None:
            raise InternalError("the training run ended without a model")
        return self.model


class Generation(_Stream[GenerateResponse]):
    """Text in the making: iterate over its pieces, then ask for `result()`."""

    def __init__(self, call: Call[GenerateResponse], address: str) -> None:
        super().__init__(call, address)
        self.text = ""
        """The text so far."""
        self.tokens: list[Token] = []
        """The tokens so far, where `log_probabilities` were asked for."""
        self._result: GenerateResult | None = None

    def __iter__(self) -> Iterator[str]:
        """Yields pieces of text as they are made; none is empty."""
        for response in self.responses():
            if response.text:
                yield response.text

    def responses(self) -> Iterator[GenerateResponse]:
        """Yields the server's messages as they are: text, tokens and, last, the result."""
        while True:
            try:
                response = self._receive()
            except StopIteration:
                return
            self.text += response.text
            self.tokens.extend(response.tokens)
            if response.HasField("result"):
                self._result = response.result
            yield response

    def result(self) -> GenerateResult:
        """Waits for the end and returns why it ended, the seed used and the counts.

        Raises:
            ServerError: The call failed, or was closed before its end.
        """
        for _ in self.responses():
            pass
        if self._result is None:
            raise InternalError("the generation ended without a result")
        return self._result
