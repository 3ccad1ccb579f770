"""`address_fault` checks the address of a server: HOST:PORT or a Unix domain socket.

`treadle.client.address` checks addresses for clients; tests/vectors/addresses.json holds both to
the same rules. The health check imports this module, so that it must not import NumPy.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
import socket
import stat
from contextlib import suppress
from pathlib import Path

FORMS = "HOST:PORT, unix:/PATH or unix-abstract:NAME"
"""The forms of an address."""

_MAX_SOCKET_BYTES = 107
"""Bytes of the longest socket path on Linux."""

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}


class AddressError(Exception):
    """The server cannot listen on its address. The message is one sentence."""


def address_fault(address: str) -> str:
    """Returns what is wrong with the form of an address, as a clause that follows it, or ''."""
    if not address.strip():
        return f"is empty; give {FORMS}"
    if address.startswith("unix:"):
        path = _socket_text(address)
        if not path.startswith("/"):
            return "names a socket without its absolute path; write unix:/PATH, or HOST:PORT"
        if len(os.fsencode(path)) > _MAX_SOCKET_BYTES:
            return f"names a socket whose path is longer than {_MAX_SOCKET_BYTES} bytes"
        return ""
    if address.startswith("unix-abstract:"):
        return "" if address.partition(":")[2] else "lacks a name; write unix-abstract:NAME"
    return _tcp_fault(address)


def _tcp_fault(address: str) -> str:
    host, colon, port = address.rpartition(":")
    if not colon or not port or address.endswith("]"):
        return f"lacks a port; give {FORMS}"
    if not host:
        return "lacks a host; 0.0.0.0 or [::] listens on every network"
    if not (port.isascii() and port.isdecimal() and int(port) <= 65535):
        return f"ends in {port!r}, which is not a port from 0 to 65535"
    if ":" in host or "[" in host:
        if re.search(r"[/@\s]", host) or re.match(r"[a-z][a-z0-9+.-]*:", host):
            return f"has {host!r}, which is not a host; give {FORMS}"
        if not re.fullmatch(r"\[[^\[\]]+\]", host):
            return "is ambiguous; put an IPv6 host into brackets, as in [::1]:50051"
    elif not re.fullmatch(r"[\w.-]+", host):
        return f"has {host!r}, which is not a host; give {FORMS}"
    return ""


def reachable(address: str) -> str:
    """Returns the address at which this machine reaches a server that listens on `address`.

    Args:
        address: The address as given to the server; 0.0.0.0 and [::] are every interface.
    """
    host, colon, port = address.rpartition(":")
    return f"{_EVERYWHERE.get(host, host)}{colon}{port}"


def exposure(address: str) -> str:
    """Returns who can reach a server from other machines, as a noun phrase; '' for nobody.

    Args:
        address: The address as given to the server, in which `address_fault` finds no fault.
    """
    if address.startswith(("unix:", "unix-abstract:")):
        return ""
    host = address.rpartition(":")[0]
    if host in _EVERYWHERE:
        return "everybody on any network that this machine or container is in"
    addresses = _addresses(host.strip("[]"))
    return "" if all(map(_is_loopback, addresses)) else f"everybody who reaches {host}"


def _addresses(host: str) -> list[str]:
    """Returns the IP addresses of a host; of an unknown host its name."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return [host]
    return [str(address[0]) for *_, address in found]


def _is_loopback(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def health_socket(address: str) -> str:
    """Returns the address at which a server answers the health checks of its own machine.

    It is an abstract socket, so that neither a directory nor a certificate is needed. A server
    listens there if its own address may refuse a health check.

    Args:
        address: The address of the server.
    """
    return f"unix-abstract:treadle-health-{hashlib.sha256(address.encode()).hexdigest()[:32]}"


def socket_path(address: str) -> Path | None:
    """Returns the path of the socket that an address names; None for other addresses."""
    return Path(_socket_text(address)) if address.startswith("unix:") else None


def clear_socket(path: Path) -> None:
    """Removes the socket that a killed server has left, if there is one.

    gRPC itself would silently replace the socket of a server that still listens.

    Raises:
        AddressError: A server listens there, or the file is not a socket.
    """
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise AddressError(f"cannot listen on unix:{path}: a file of that name is not a socket")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(5.0)
            probe.connect(os.fspath(path))
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        with suppress(OSError):  # if it stays, the server reports that it cannot listen
            path.unlink()
        return
    except OSError as error:
        raise AddressError(f"cannot listen on unix:{path}: {error.strerror or error}") from None
    raise AddressError(f"cannot listen on unix:{path}: another server listens there")


def listening_fault(address: str) -> str:
    """Returns why no server can listen on an address, in the operating system's words.

    Called after gRPC has failed, which gives no reason.
    """
    path = socket_path(address)
    try:
        if path is not None:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.bind(os.fspath(path))
            path.unlink()
        elif not address.startswith("unix-abstract:"):
            host, _, port = address.rpartition(":")
            for family, kind, _, _, target in socket.getaddrinfo(
                host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            ):
                with socket.socket(family, kind) as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(target)
                    probe.listen()
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return "it is in use, or is not an address of this machine"


def _socket_text(address: str) -> str:
    path = address.removeprefix("unix:")
    return path.removeprefix("//") if path.startswith("//") else path
