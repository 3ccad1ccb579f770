"""`check_health` asks a running server for its health, as container health checks do.

It imports gRPC only, since the import of NumPy or Numba alone takes longer than the check.
"""

from __future__ import annotations

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from treadle.server.address import address_fault, reachable


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
    # gRPC would use $http_proxy even for this machine, which no proxy reaches.
    with grpc.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
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


def _reason(details: str) -> str:
    """Returns in plain words why a server was not reached, or gRPC's own words."""
    words = details.lower()
    if "connection refused" in words:
        return "nothing listens there"
    if "no such file or directory" in words:
        return "there is no such socket"
    if "deadline" in words or "timed out" in words:
        return "it does not answer"
    return details
