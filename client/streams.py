"""Streaming calls as Python iterators that can be left at any time."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

import grpc

from treadle.client.closing import Closing
from treadle.client.errors import from_rpc_error

Response = TypeVar("Response")
Received = TypeVar("Received", covariant=True)


class Call(Protocol[Received]):
    """What this module needs of a gRPC call that streams its replies."""

    def __next__(self) -> Received:
        """Waits for the next reply."""

    def cancel(self) -> object:
        """Ends the call."""


class Stream(Closing, Generic[Response]):
    """A stream of responses. Closing it, or leaving its `with` block, cancels the call."""

    def __init__(self, call: Call[Response], address: str) -> None:
        self._call = call
        self._address = address
        self._closed = False

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
