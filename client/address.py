"""`check_address` checks the address of a server: HOST:PORT, a socket, or a target of gRPC.

Several servers that serve the same models are `HOST:PORT,HOST:PORT`, or a name in the DNS that has
all of their addresses, `dns:///NAME:PORT`.

The server reads its own in `treadle.server.address`; both are held to tests/vectors/addresses.json.
"""

from __future__ import annotations

import ipaddress
import os
import re

from treadle.client.errors import InputError

FORMS = "HOST:PORT, unix:/PATH or unix-abstract:NAME"
"""The forms of an address."""

DNS = "dns:"
"""The scheme whose addresses gRPC looks up again and again: those of replicas, for example."""

_OTHER_SCHEMES = (DNS, "ipv4:", "ipv6:", "vsock:", "xds:", "google-c2p:")
"""Other schemes of gRPC, which checks the rest itself."""

_MAX_SOCKET_BYTES = 107
"""The longest path of a socket that Linux accepts."""


def check_address(address: str) -> None:
    """Checks the form of an address, which gRPC would report as an unreachable server.

    Raises:
        InputError: The address has none of the forms.
    """
    servers = servers_of(address)
    for server in servers:
        fault = _fault(server)
        if not fault and len(servers) > 1 and not _is_tcp(server):
            fault = "is one of several, and only HOST:PORT can be; give it alone"
        if fault:
            raise InputError(f"the server's address {server!r} {fault}")


def servers_of(address: str) -> list[str]:
    """Returns the addresses in one that may name several servers, separated by commas."""
    if address.startswith(("unix:", "unix-abstract:")):  # a file's name may have a comma
        return [address]
    # `ipv4:` and `ipv6:` take several addresses themselves.
    separated = not address.startswith(_OTHER_SCHEMES)
    return [each.strip() for each in address.split(",")] if separated else [address]


def has_replicas(address: str) -> bool:
    """Returns whether an address stands for any number of servers."""
    return address.startswith((DNS, "ipv4:", "ipv6:")) or len(servers_of(address)) > 1


def is_local(address: str) -> bool:
    """Returns whether an address is this machine by its form."""
    return all(map(_is_local, servers_of(address)))


def _is_tcp(address: str) -> bool:
    return not address.startswith(("unix:", "unix-abstract:", *_OTHER_SCHEMES))


def _is_local(address: str) -> bool:
    if address.startswith(("unix:", "unix-abstract:", "vsock:")):
        return True
    for scheme in _OTHER_SCHEMES:
        address = address.removeprefix(scheme)
    host = address.rpartition("/")[2].rpartition(":")[0].strip("[]")
    if host in ("localhost", "localhost."):
        return True
    try:
        address_ = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address_.is_loopback or address_.is_unspecified


def is_loopback(address: str) -> bool:
    """Returns whether no other machine can take part in a connection to an address.

    In contrast to `is_local`, an address of a scheme that looks names up does not count, nor does
    the host of a virtual machine.
    """
    return all(
        server.startswith(("unix:", "unix-abstract:"))
        or (
            _is_local(server)
            and "/" not in server
            and not server.startswith((DNS, "vsock:", "xds:", "google-c2p:"))
        )
        for server in servers_of(address)
    )


def _fault(address: str) -> str:
    if not address.strip():
        return f"is empty; give {FORMS}"
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        path = path.removeprefix("//") if path.startswith("//") else path
        if not path.startswith("/"):
            return "names a socket without its absolute path; write unix:/PATH, or HOST:PORT"
        if len(os.fsencode(path)) > _MAX_SOCKET_BYTES:
            return f"names a socket whose path is longer than {_MAX_SOCKET_BYTES} bytes"
        return ""
    if address.startswith("unix-abstract:"):
        return "" if address.partition(":")[2] else "lacks a name; write unix-abstract:NAME"
    if address.lower().startswith(("http://", "https://")):
        host = address.partition("://")[2].rstrip("/")
        shown = host if re.fullmatch(r"[\w.:\[\]-]+:[0-9]+", host) else "HOST:PORT"
        hint = " with --tls (tls=True in Python)" if address.lower().startswith("https") else ""
        return f"is a URL, not a host and a port; give {shown}{hint}"
    if address.startswith(DNS):
        return _dns_fault(address.removeprefix(DNS))
    return "" if address.startswith(_OTHER_SCHEMES) else _tcp_fault(address)


def _dns_fault(name: str) -> str:
    if name.startswith("//"):  # the server of the DNS may stand before the third slash
        _, slash, name = name.removeprefix("//").partition("/")
        if not slash:
            return "lacks the third slash before the name; write dns:///NAME:PORT"
    if "," in name:
        return "has several names; give HOST:PORT,HOST:PORT, or one name as dns:///NAME:PORT"
    fault = _tcp_fault(name)
    return fault and f"{fault.partition(';')[0]}; write dns:///NAME:PORT"


def _tcp_fault(address: str) -> str:
    host, colon, port = address.rpartition(":")
    if not colon or not port or address.endswith("]"):
        return f"lacks a port; give {FORMS}"
    if not host:
        return "lacks a host; give HOST:PORT"
    if not (port.isascii() and port.isdecimal() and int(port) <= 65535):
        return f"ends in {port!r}, which is not a port from 1 to 65535"
    if int(port) == 0:
        return "has port 0, where no server can be; give the port that it listens on"
    if ":" in host or "[" in host:
        if re.search(r"[/@\s]", host) or re.match(r"[a-z][a-z0-9+.-]*:", host):
            return f"has {host!r}, which is not a host; give {FORMS}"
        if not re.fullmatch(r"\[[^\[\]]+\]", host):
            return "is ambiguous; put an IPv6 host into brackets, as in [::1]:50051"
    elif not re.fullmatch(r"[\w.-]+", host):
        return f"has {host!r}, which is not a host; give {FORMS}"
    return ""
