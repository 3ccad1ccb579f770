"""Streaming calls as Python iterators that can be left at any time, and generation as one."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

import grpc

from treadle.client.errors import InternalError, from_rpc_error
from treadle.v1.sequence_pb2 import GenerateResponse, GenerateResult, Token

Response = TypeVar("Response")
Received = TypeVar("Received", covariant=True)


class Call(Protocol[Received]):
    """What this module needs of a gRPC call that streams its replies."""

    def __next__(self) -> Received:
        """Waits for the next reply."""

    def cancel(self) -> object:
        """Ends the call."""


class Stream(Generic[Response]):
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


class Generation(Stream[GenerateResponse]):
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
