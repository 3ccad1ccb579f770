"""`listen` lets a gRPC server listen on an address, with or without TLS."""

from __future__ import annotations

import grpc
from grpc import aio

from treadle.server.address import AddressError, clear_socket, listening_fault, socket_path


def listen(
    server: aio.Server, address: str, credentials: grpc.ServerCredentials | None = None
) -> str:
    """Binds an address.

    Args:
        server: The server, before its start.
        address: The address, in which `address_fault` finds no fault.
        credentials: Those of TLS; None: without it.

    Returns:
        The address, with the real port where port 0 was asked for.

    Raises:
        AddressError: The address is taken or not of this machine.
    """
    path = socket_path(address)
    if path is not None:
        clear_socket(path)
    try:
        # A socket's file has the mode that the umask leaves, and goes with the server.
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError:
        fault = listening_fault(address)
        raise AddressError(f"cannot listen on {address}: {fault}") from None
    if address.startswith(("unix:", "unix-abstract:")):
        return address
    return f"{address.rpartition(':')[0]}:{port}"
