"""The connection to one server: its channel, its health, and calls of one reply."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import grpc

from treadle.client.address import check_address, is_local
from treadle.client.closing import Closing
from treadle.client.errors import DeadlineExceededError, UnavailableError, from_rpc_error
from treadle.client.wire import integer
from treadle.v1.sequence_pb2 import GetServerInfoRequest
from treadle.v1.sequence_pb2_grpc import SequenceServiceStub

DEFAULT_ADDRESS = "127.0.0.1:50051"

HEALTH_CHECK = "/grpc.health.v1.Health/Check"
SERVING = 1
"""grpc.health.v1.HealthCheckResponse.ServingStatus.SERVING"""

POLL_S = 0.1
"""Seconds between two health checks of a server that is up but not ready."""

MAX_REPLY_BYTES = 64 * 1024 * 1024
"""The largest reply taken: the tokens of a scored text weigh about twenty times the text."""

Request = TypeVar("Request")
Reply = TypeVar("Reply")


class Connection(Closing):
    """A connection to one Treadle server, made when the first call needs it.

    Args:
        address: `HOST:PORT`, `unix:/PATH`, `unix-abstract:NAME`, or another target that gRPC
            knows, such as `dns:///NAME:PORT`.
        timeout_s: The longest that a call may take. None waits as long as it takes.

    Raises:
        InputError: The address is of none of these forms.
    """

    def __init__(self, address: str = DEFAULT_ADDRESS, *, timeout_s: float | None = None) -> None:
        check_address(address)
        self.address = address
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(address, channel_options(address))
        self._stub = SequenceServiceStub(self._channel)
        self._health: Callable[..., bytes] = self._channel.unary_unary(HEALTH_CHECK)

    def close(self) -> None:
        """Closes the connection; calls under way are cancelled."""
        self._channel.close()

    def health(self) -> bool:
        """Asks the standard health service whether the server serves.

        Raises:
            ServerError: The call failed.
        """
        return self._check_health(self._timeout_s, wait=False)

    def wait_ready(
        self, timeout_s: float = 30.0, on_wait: Callable[[str], None] | None = None
    ) -> None:
        """Waits until the server is up and serves.

        Args:
            timeout_s: The longest to wait.
            on_wait: Is told what a server does that is up and does not serve yet, each time that
                this has changed: "it is compiling its kernels (12 of 99)".

        Raises:
            UnavailableError: It is not serving by then.
            ServerError: The server has no health service, or refuses the call.
        """
        deadline = time.monotonic() + timeout_s
        doing = ""
        while (left := deadline - time.monotonic()) > 0:
            try:
                if self._check_health(left, wait=True):
                    return
                before, doing = doing, self.starting()
                if on_wait is not None and doing not in ("", before):
                    on_wait(doing)
            except (DeadlineExceededError, UnavailableError):
                doing = ""
            time.sleep(min(POLL_S, max(0.0, deadline - time.monotonic())))
        raise UnavailableError(
            f"no Treadle server was ready at {self.address} within {timeout_s:g} s"
            + (f": {doing}" if doing else ""),
            code="UNAVAILABLE",
        )

    def starting(self) -> str:
        """Says what a server does that is up and does not serve yet.

        Returns:
            "it is compiling its kernels (12 of 99)"; empty where it does not say.
        """
        try:
            info = self._stub.GetServerInfo(GetServerInfoRequest(), timeout=self._timeout_s)
        except grpc.RpcError:
            return ""
        if not info.kernels_total:
            return ""
        return f"it is compiling its kernels ({info.kernels_ready} of {info.kernels_total})"

    def _check_health(self, timeout_s: float | None, *, wait: bool) -> bool:
        """Calls Health.Check for the server as a whole: an empty request."""
        try:
            reply = self._health(b"", timeout=timeout_s, wait_for_ready=wait)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.address) from error
        return integer(reply, 1) == SERVING

    def _call(
        self, method: grpc.UnaryUnaryMultiCallable[Request, Reply], request: Request
    ) -> Reply:
        """Makes a call of one request and one reply."""
        try:
            return method(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.address) from error


def channel_options(address: str) -> list[tuple[str, int]]:
    """Chooses gRPC's settings for one server."""
    options = [
        ("grpc.max_receive_message_length", MAX_REPLY_BYTES),
        # gRPC's own pauses between tries grow from 1 s to 2 minutes: too long for someone
        # who waits for a server that starts.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
    ]
    if is_local(address):
        # gRPC obeys $http_proxy even for this machine, where no proxy can help.
        options.append(("grpc.enable_http_proxy", 0))
    return options
