"""`HealthServer` answers health checks, and nothing else, at addresses of their own."""

from __future__ import annotations

import logging
from typing import Any

from grpc_health.v1 import health_pb2_grpc  # type: ignore[import-untyped]

from treadle.server.access.authenticator import OpenAuthenticator
from treadle.server.address import AddressError, address_fault, health_socket
from treadle.server.config import MalformedSettingError, SettingError
from treadle.server.resources.memory_budget import MemoryBudget
from treadle.server.rpc.guarded_server import guarded_server
from treadle.server.rpc.listening import listen
from treadle.server.rpc.public_services import PublicServices
from treadle.server.rpc.server_options import server_options

logger = logging.getLogger(__name__)

_MAX_MESSAGE_BYTES = 1 << 12
"""A health check holds the name of a service."""


class HealthServer:
    """A second gRPC server of the process, without TLS and without authentication.

    Args:
        servicer: What answers the checks; it may serve other servers as well.
        budget: Counts the bytes of requests that arrive slowly.
    """

    def __init__(self, servicer: Any, budget: MemoryBudget) -> None:
        bounds = PublicServices("health", OpenAuthenticator(), budget, _MAX_MESSAGE_BYTES)
        self._server = guarded_server([bounds], server_options(_MAX_MESSAGE_BYTES))
        health_pb2_grpc.add_HealthServicer_to_server(servicer, self._server)

    def listen(self, address: str) -> None:
        """Binds the address of --health-address.

        Raises:
            SettingError: It is no address, taken, or not of this machine.
        """
        if fault := address_fault(address):
            raise MalformedSettingError("health_address", f"{address!r} {fault}")
        try:
            bound = listen(self._server, address)
        except AddressError as error:
            raise SettingError("health_address", f"must be another address: {error}") from None
        logger.info("health checks are answered on %s as well", bound)

    def listen_on_machine(self, address: str) -> None:
        """Binds the socket at which `treadle-server --check-health` asks first.

        Args:
            address: The address of the server, with its port.
        """
        try:
            listen(self._server, health_socket(address))
        except AddressError as error:  # no reason to end: it may be another user's doing
            logger.warning("treadle-server --check-health will not reach this server: %s", error)

    async def start(self) -> None:
        """Begins to answer."""
        await self._server.start()

    async def stop(self) -> None:
        """Ends at once."""
        await self._server.stop(None)
