"""`check_address` checks the address of a server: HOST:PORT, a socket, or a target of gRPC.

The server reads its own in `treadle.server.address`; both are held to tests/vectors/addresses.json.
"""

from __future__ import annotations

import ipaddress
import os
import re

from treadle.client.errors import InputError

FORMS = "HOST:PORT, unix:/PATH or unix-abstract:NAME"
"""The forms of an address."""

_OTHER_SCHEMES = ("dns:", "ipv4:", "ipv6:", "vsock:", "xds:", "google-c2p:")
"""Other schemes of gRPC, which checks the rest itself."""

_MAX_SOCKET_BYTES = 107
"""The longest path of a socket that Linux accepts."""


def check_address(address: str) -> None:
    """Checks the form of an address, which gRPC would report as an unreachable server.

    Raises:
        InputError: The address has none of the forms.
    """
    if fault := _fault(address):
        raise InputError(f"the server's address {address!r} {fault}")


def is_local(address: str) -> bool:
    """Returns whether an address is this machine by its form."""
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
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    return is_local(address) and not (
        "/" in address or address.startswith(("dns:", "vsock:", "xds:", "google-c2p:"))
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
    return "" if address.startswith(_OTHER_SCHEMES) else _tcp_fault(address)


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
