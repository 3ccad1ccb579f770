"""`check_health` asks a running server for its health, as container health checks do.

It imports gRPC only, since the import of NumPy or Numba alone takes longer than the check.
"""

from __future__ import annotations

import os
import socket
import struct
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from treadle.server.address import address_fault, health_socket, reachable

_PROBE_S = 1.0
"""Seconds to wait for a connection within this machine."""

_UCRED = struct.Struct("iII")
"""Process, user and group of the other end of a socket, as unix(7) describes them."""


def check_health(address: str, timeout_s: float = 5.0) -> int:
    """Asks for the health of the whole server and prints one line about it.

    Args:
        address: The address of the server, in the form of --address.
        timeout_s: Seconds to wait for the answer.

    Returns:
        The exit code: 0 if the server reports SERVING, 2 for an invalid address, otherwise 1.
    """
    fault = address_fault(address)
    if not fault and address.endswith(":0"):
        fault = "has port 0, on which no server can listen; give the port of the server"
    if fault:
        print(f"treadle-server: the address {address!r} {fault}", file=sys.stderr)
        return 2
    target = reachable(address)
    asked = health_socket(address) if _has_health_socket(address) else target
    # gRPC would use $http_proxy even for this machine, which no proxy reaches.
    with grpc.insecure_channel(asked, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=timeout_s
            )
        except grpc.RpcError as error:
            why = _reason(error.details() or "")
            print(f"{target}: {error.code().name}: {why}", file=sys.stderr)
            return 1
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
    print(f"{target}: {status}")
    return 0 if status == "SERVING" else 1


def _has_health_socket(address: str) -> bool:
    """Returns whether a server of this machine answers the health checks of an address elsewhere.

    Everybody can listen on an abstract socket, so that it must be one of this user or of root.
    """
    name = health_socket(address).partition(":")[2]
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(_PROBE_S)
            probe.connect("\0" + name)
            credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    except OSError:
        return False
    _, user, _ = _UCRED.unpack(credentials)
    return user in (0, os.geteuid())


def _reason(details: str) -> str:
    """Returns in plain words why a server was not reached, or gRPC's own words."""
    words = details.lower()
    if "connection refused" in words:
        return "nothing listens there"
    if "no such file or directory" in words:
        return "there is no such socket"
    if "socket closed" in words:
        return (
            "it closed the connection; one that speaks TLS answers health checks on its own "
            "machine, or at its --health-address"
        )
    if "deadline" in words or "timed out" in words:
        return "it does not answer"
    return details
