"""`Connection` holds the gRPC channel to a server or to several: calls of one reply, and health."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

import grpc

from treadle.client.access.credentials import Credentials
from treadle.client.address import is_local
from treadle.client.errors import (
    CancelledError,
    DeadlineExceededError,
    ServerError,
    UnavailableError,
)
from treadle.client.messages.raw_protobuf import integer
from treadle.client.messages.status import from_rpc_error
from treadle.client.streaming import BackgroundRequests, Call, ServerCall
from treadle.v1.sequence_pb2 import GetServerInfoRequest
from treadle.v1.sequence_pb2_grpc import SequenceServiceStub

DEFAULT_ADDRESS = "127.0.0.1:50051"

HEALTH_CHECK = "/grpc.health.v1.Health/Check"
SERVING = 1
"""grpc.health.v1.HealthCheckResponse.ServingStatus.SERVING"""

POLL_S = 0.1
"""Seconds between two health checks of a server that is up but not ready."""

FAULT_S = 2.0
"""The longest to ask for the reason why there was no connection, in seconds."""

MAX_REPLY_BYTES = 64 * 1024 * 1024
"""The largest reply taken: the tokens of a scored text take about twenty times its size."""

Request = TypeVar("Request")
Reply = TypeVar("Reply")
Sent = TypeVar("Sent", contravariant=True)
Received = TypeVar("Received", covariant=True)


class Page(Protocol):
    """A reply that holds part of a list."""

    @property
    def next_page_token(self) -> str:
        """Requests the next page; empty on the last one."""


AnyPage = TypeVar("AnyPage", bound=Page)


class StreamingMethod(Protocol[Sent, Received]):
    """A method of the stub with streamed responses."""

    def __call__(
        self,
        request: Sent,
        /,
        timeout: float | None = ...,
        metadata: tuple[tuple[str, str], ...] | None = ...,
    ) -> Call[Received]:
        """Starts a call."""


class UploadCall(Protocol[Received]):
    """A call with streamed requests that is under way."""

    def result(self) -> Received:
        """Waits for the reply."""

    def cancel(self) -> object:
        """Ends the call."""


class StreamUnaryMethod(Protocol[Sent, Received]):
    """A method of the stub with streamed requests and one reply."""

    def future(
        self,
        request_iterator: Iterator[Sent],
        timeout: float | None = ...,
        metadata: tuple[tuple[str, str], ...] | None = ...,
    ) -> UploadCall[Received]:
        """Starts a call."""


class Connection:
    """A gRPC channel to a Treadle server or its replicas, made when the first call needs it.

    Args:
        credentials: The address, and how it is reached.
        timeout_s: The longest that a call may take; None sets no limit.
    """

    def __init__(self, credentials: Credentials, timeout_s: float | None) -> None:
        self.peer = credentials.peer
        self.timeout_s = timeout_s
        self._credentials = credentials
        self._channel = credentials.open_channel(channel_options(self.peer.address))
        self.stub = SequenceServiceStub(self._channel)
        self._health: Callable[..., bytes] = self._channel.unary_unary(HEALTH_CHECK)

    def close(self) -> None:
        """Closes the channel; calls under way are cancelled."""
        self._channel.close()

    def call(self, method: grpc.UnaryUnaryMultiCallable[Request, Reply], request: Request) -> Reply:
        """Makes a call of one request and one reply.

        Returns:
            The reply.

        Raises:
            InputError: The caller's function returned no token.
            ServerError: The call failed.
        """
        metadata, request_id = self._credentials.call_metadata()
        try:
            return method(request, timeout=self.timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.peer, request_id) from error

    def stream(
        self, method: StreamingMethod[Request, Reply], request: Request, timeout_s: float | None
    ) -> ServerCall[Reply]:
        """Starts a call with streamed responses.

        Args:
            method: The call.
            request: The request, or the iterator over the requests.
            timeout_s: The longest that the call may take.

        Returns:
            The call.

        Raises:
            InputError: The caller's function returned no token.
        """
        metadata, request_id = self._credentials.call_metadata()
        call = method(request, timeout=timeout_s, metadata=metadata)
        return ServerCall(call, self.peer, request_id)

    def upload(
        self,
        method: StreamUnaryMethod[Request, Reply],
        background: BackgroundRequests[Request],
        timeout_s: float | None,
    ) -> Reply:
        """Makes a call of a stream of requests and one reply.

        Args:
            method: The call.
            background: The requests; where making them fails, the call is cancelled.
            timeout_s: The longest that the call may take.

        Returns:
            The reply.

        Raises:
            InputError: The caller's function returned no token, or making a request failed.
            ServerError: The call failed.
        """
        metadata, request_id = self._credentials.call_metadata()
        call = method.future(background.requests(), timeout=timeout_s, metadata=metadata)
        background.attach(call.cancel)
        try:
            return call.result()
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            if background.error is not None:
                raise background.error from None
            if isinstance(error, grpc.FutureCancelledError):
                raise CancelledError("the call was cancelled", code="CANCELLED") from None
            raise from_rpc_error(error, self.peer, request_id) from error
        finally:
            call.cancel()  # also where this thread was interrupted

    def pages(
        self,
        method: grpc.UnaryUnaryMultiCallable[Request, AnyPage],
        make_page_request: Callable[[str], Request],
    ) -> Iterator[AnyPage]:
        """Yields the pages of a list, one call for each.

        Args:
            method: The call.
            make_page_request: Returns the request for a page token; the first token is empty.

        Raises:
            ServerError: A call failed.
        """
        token = ""
        while True:
            page = self.call(method, make_page_request(token))
            yield page
            token = page.next_page_token
            if not token:
                return

    def check_health(self, timeout_s: float | None, *, wait: bool) -> bool:
        """Asks the standard health service about the server as a whole.

        Args:
            timeout_s: The longest to wait for the reply.
            wait: Whether to wait for a connection instead of failing at once.

        Returns:
            Whether the server is serving.

        Raises:
            ServerError: The call failed.
        """
        metadata, request_id = self._credentials.call_metadata()
        try:
            reply = self._health(b"", timeout=timeout_s, wait_for_ready=wait, metadata=metadata)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.peer, request_id) from error
        return integer(reply, 1) == SERVING

    def start_progress(self) -> str:
        """Describes the work of a server that is up but does not serve yet.

        Returns:
            "it is compiling its kernels (12 of 99)"; empty where the server does not say.
        """
        try:
            info = self.call(self.stub.GetServerInfo, GetServerInfoRequest())
        except ServerError:
            return ""
        if not info.kernels_total:
            return ""
        return f"it is compiling its kernels ({info.kernels_ready} of {info.kernels_total})"

    def wait_ready(self, timeout_s: float, on_wait: Callable[[str], None] | None) -> None:
        """Waits until the server is up and serves; see `Client.wait_ready`."""
        deadline = time.monotonic() + timeout_s
        progress = ""
        while (left := deadline - time.monotonic()) > 0:
            try:
                if self.check_health(left, wait=True):
                    return
                before = progress
                progress = self.start_progress()
                if on_wait is not None and progress not in ("", before):
                    on_wait(progress)
            except (DeadlineExceededError, UnavailableError):
                progress = ""
            time.sleep(min(POLL_S, max(0.0, deadline - time.monotonic())))
        cause = progress or self._tls_fault()
        raise UnavailableError(
            f"no Treadle server was ready at {self.peer.address} within {timeout_s:g} s"
            + (f": {cause}" if cause else ""),
            code="UNAVAILABLE",
        )

    def _tls_fault(self) -> str:
        """Returns why a connection with TLS failed, which gRPC does not say while it waits."""
        try:
            if self.peer.tls:
                self.check_health(FAULT_S, wait=False)
        except DeadlineExceededError:
            return ""
        except ServerError as error:
            return str(error)
        return ""


def channel_options(address: str) -> list[tuple[str, str | int]]:
    """Returns gRPC's settings that do not depend on how many servers there are."""
    options: list[tuple[str, str | int]] = [
        ("grpc.max_receive_message_length", MAX_REPLY_BYTES),
        # gRPC's own pauses between tries grow from 1 s to 2 minutes: too long for a caller
        # who waits for a server that starts.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
    ]
    if is_local(address):
        # gRPC obeys $http_proxy even for this machine, where no proxy can help.
        options.append(("grpc.enable_http_proxy", 0))
    return options
