"""`channel_target` and `service_config` let one channel use several servers of the same models.

gRPC itself takes turns between the servers that are up and whose health service says SERVING, and
makes a call again at another one whose connection broke before it had sent anything back.
"""

from __future__ import annotations

import ipaddress
import json
import socket

from treadle.client.address import has_replicas, servers_of

_SERVICE = "treadle.v1.SequenceService"

_REPEATABLE = (
    "CancelJob",
    "Embed",
    "ExportModel",
    "Generate",
    "GetFile",
    "GetJob",
    "GetModel",
    "GetServerInfo",
    "ListFiles",
    "ListJobs",
    "ListModels",
    "PauseJob",
    "ReadFile",
    "ResumeJob",
    "Score",
    "SetAlias",
    "WatchJob",
)
"""The calls that have the same effect and the same reply if they are made twice. A second
DeleteModel, for example, may delete what was stored meanwhile, or find nothing. Streams of requests
are not among them: gRPC would have to keep all that they sent."""

_RETRY_BUFFER_BYTES = 4 << 20
"""The largest request that gRPC keeps, to send it again: the largest that servers take unless they
are set up otherwise."""

_KEEPALIVE_S = 20
"""Seconds of silence after which gRPC asks a server whether it is still there, and for which it
waits for the answer. A machine that vanishes closes no connection. Servers permit it every 10 s."""


def channel_target(address: str) -> str:
    """Returns gRPC's target for an address.

    Names in a list of servers are looked up here, once. Those that are unknown now are left out.

    Args:
        address: The address; see `check_address`.
    """
    servers = servers_of(address)
    if len(servers) == 1:
        return address
    found = [_look_up(server) for server in servers]
    known = [endpoint for endpoint in found if endpoint is not None]
    if not known:
        return f"dns:///{servers[0]}"  # whose calls say that the name does not resolve
    if all(host.version == 4 for host, _ in known):
        return "ipv4:" + ",".join(f"{host}:{port}" for host, port in known)
    return "ipv6:" + ",".join(f"[{_as_ipv6(host)}]:{port}" for host, port in known)


def replica_options(address: str, *, tls: bool) -> list[tuple[str, str | int]]:
    """Returns gRPC's settings for an address that stands for several servers.

    Args:
        address: The address.
        tls: Whether the connection uses TLS.

    Returns:
        The settings; none for the address of one server.
    """
    if not has_replicas(address):
        return []
    options: list[tuple[str, str | int]] = [
        ("grpc.service_config", service_config()),
        ("grpc.per_rpc_retry_buffer_size", _RETRY_BUFFER_BYTES),
        ("grpc.keepalive_time_ms", _KEEPALIVE_S * 1000),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_S * 1000),
    ]
    servers = servers_of(address)
    if tls and len(servers) > 1:
        # Every server has to show a certificate for this name: gRPC knows one for a channel.
        options.append(("grpc.ssl_target_name_override", _host_and_port(servers[0])[0]))
    return options


def service_config() -> str:
    """Returns how calls are spread over servers and made again: gRPC's service config in JSON."""
    return json.dumps(
        {
            "loadBalancingConfig": [{"round_robin": {}}],
            # The empty name stands for the server as a whole.
            "healthCheckConfig": {"serviceName": ""},
            "methodConfig": [
                {
                    "name": [{"service": _SERVICE, "method": method} for method in _REPEATABLE],
                    "retryPolicy": {
                        "maxAttempts": 5,
                        "initialBackoff": "0.1s",
                        "maxBackoff": "1s",
                        "backoffMultiplier": 2,
                        "retryableStatusCodes": ["UNAVAILABLE"],
                    },
                }
            ],
        }
    )


_Host = ipaddress.IPv4Address | ipaddress.IPv6Address


def _host_and_port(server: str) -> tuple[str, int]:
    host, _, port = server.rpartition(":")
    return host.strip("[]"), int(port)


def _look_up(server: str) -> tuple[_Host, int] | None:
    """Returns the address and port of a server, IPv4 where it has both; None: it is unknown."""
    host, port = _host_and_port(server)
    try:
        return ipaddress.ip_address(host), port
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return None
    hosts = [ipaddress.ip_address(str(each[4][0])) for each in found]
    return min(hosts, key=lambda each: each.version), port


def _as_ipv6(host: _Host) -> str:
    return f"::ffff:{host}" if host.version == 4 else str(host)
