"""Asks a running server for its health, as container health checks do every few seconds.

Imports gRPC only: neither NumPy nor Numba, whose import alone takes longer than the check.
"""

from __future__ import annotations

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from treadle.server.address import address_fault, reachable


def check_health(address: str, timeout_s: float = 5.0) -> int:
    """Asks for the health of the whole server and prints one line about it.

    Args:
        address: Where the server listens, as it was told.
        timeout_s: Seconds to wait for the answer.

    Returns:
        The exit code: 0 if the server says SERVING, 1 otherwise; 2 for what is no address.
    """
    fault = address_fault(address)
    if not fault and address.endswith(":0"):
        fault = "has port 0, where no server can be; give the port that it listens on"
    if fault:
        print(f"treadle-server: the address {address!r} {fault}", file=sys.stderr)
        return 2
    target = reachable(address)
    # gRPC obeys $http_proxy even for this machine, where no proxy can help.
    with grpc.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=timeout_s
            )
        except grpc.RpcError as error:
            why = _trouble(error.details() or "")
            print(f"{target}: {error.code().name}: {why}", file=sys.stderr)
            return 1
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
    print(f"{target}: {status}")
    return 0 if status == "SERVING" else 1


def _trouble(details: str) -> str:
    """Says in plain words why a server was not reached; gRPC's own words where there are none."""
    words = details.lower()
    if "connection refused" in words:
        return "nothing listens there"
    if "no such file or directory" in words:
        return "there is no such socket"
    if "deadline" in words or "timed out" in words:
        return "it does not answer"
    return details
