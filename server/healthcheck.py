"""Asks a running server for its health, as container health checks do every few seconds.

Imports gRPC only: neither NumPy nor Numba, whose import alone takes longer than the check.
"""

from __future__ import annotations

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]


def reachable(address: str) -> str:
    """Returns where to reach a server that listens on `address`.

    Args:
        address: HOST:PORT as given to the server; 0.0.0.0 and [::] stand for every interface.
    """
    host, _, port = address.rpartition(":")
    return f"{ {'0.0.0.0': '127.0.0.1', '[::]': '[::1]'}.get(host, host) }:{port}"


def check_health(address: str, timeout_s: float = 5.0) -> int:
    """Asks for the health of the whole server and prints one line about it.

    Args:
        address: HOST:PORT of the server.
        timeout_s: Seconds to wait for the answer.

    Returns:
        The exit code: 0 if the server says SERVING, 1 otherwise.
    """
    target = reachable(address)
    with grpc.insecure_channel(target) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=timeout_s
            )
        except grpc.RpcError as error:
            print(f"{target}: {error.code().name}: {error.details()}", file=sys.stderr)
            return 1
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
    print(f"{target}: {status}")
    return 0 if status == "SERVING" else 1
