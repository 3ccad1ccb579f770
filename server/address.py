"""Where a server listens: HOST:PORT, or a Unix domain socket.

A client reads addresses in `treadle.client.address`; both are held to tests/vectors/addresses.json.
Light on purpose, as `config`: the health check must not import NumPy.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import stat
from contextlib import suppress
from pathlib import Path

FORMS = "HOST:PORT, unix:/PATH or unix-abstract:NAME"
"""What an address may look like."""

_MAX_SOCKET_BYTES = 107
"""The longest path of a socket that Linux takes."""

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}


class AddressError(Exception):
    """The server cannot listen where it should. The message is one sentence."""


def address_fault(address: str) -> str:
    """Returns what is wrong with the form of an address, to be read behind it; empty: nothing."""
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
        return "lacks a host; 0.0.0.0 or [::] listens everywhere"
    if not (port.isascii() and port.isdecimal() and int(port) <= 65535):
        return f"ends in {port!r}, which is no port from 0 to 65535"
    if ":" in host or "[" in host:
        if re.search(r"[/@\s]", host) or re.match(r"[a-z][a-z0-9+.-]*:", host):
            return f"has {host!r}, which is no host; give {FORMS}"
        if not re.fullmatch(r"\[[^\[\]]+\]", host):
            return "is ambiguous; put an IPv6 host into brackets, as in [::1]:50051"
    elif not re.fullmatch(r"[\w.-]+", host):
        return f"has {host!r}, which is no host; give {FORMS}"
    return ""


def reachable(address: str) -> str:
    """Returns where to reach a server that listens on `address`.

    Args:
        address: As given to the server; 0.0.0.0 and [::] stand for every interface.
    """
    host, colon, port = address.rpartition(":")
    return f"{_EVERYWHERE.get(host, host)}{colon}{port}"


def exposure(address: str) -> str:
    """Returns who reaches a server beyond its own machine, as a noun phrase; empty: nobody.

    Args:
        address: As given to the server, and of a form that `address_fault` takes.
    """
    if address.startswith(("unix:", "unix-abstract:")):
        return ""
    host = address.rpartition(":")[0]
    if host in _EVERYWHERE:
        return "everybody on any network that this machine or container is in"
    places = _places(host.strip("[]"))
    return "" if all(map(_is_loopback, places)) else f"everybody who reaches {host}"


def _places(host: str) -> list[str]:
    """Returns the IP addresses of a host; a host that is unknown is taken as it stands."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return [host]
    return [str(place[0]) for *_, place in found]


def _is_loopback(place: str) -> bool:
    try:
        address = ipaddress.ip_address(place)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def socket_path(address: str) -> Path | None:
    """Returns the file of the socket that an address names; None where it names none."""
    return Path(_socket_text(address)) if address.startswith("unix:") else None


def clear_socket(path: Path) -> None:
    """Removes the socket that a killed server left, if there is one.

    gRPC itself would take the place of a server that listens there without a word.

    Raises:
        AddressError: A server listens there, or the file is something else.
    """
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise AddressError(
                f"cannot listen on unix:{path}: a file that is no socket has that name"
            )
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(5.0)
            probe.connect(os.fspath(path))
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        with suppress(OSError):  # what stays is said when the server cannot listen
            path.unlink()
        return
    except OSError as error:
        raise AddressError(f"cannot listen on unix:{path}: {error.strerror or error}") from None
    raise AddressError(f"cannot listen on unix:{path}: another server listens there")


def listening_fault(address: str) -> str:
    """Returns why nothing can listen on an address, in the operating system's words.

    Asked only after gRPC, which says nothing, has failed.
    """
    path = socket_path(address)
    try:
        if path is not None:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.bind(os.fspath(path))
            path.unlink()
        elif not address.startswith("unix-abstract:"):
            host, _, port = address.rpartition(":")
            for family, kind, _, _, place in socket.getaddrinfo(
                host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            ):
                with socket.socket(family, kind) as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(place)
                    probe.listen()
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return "it is in use, or is no address of this machine"


def _socket_text(address: str) -> str:
    path = address.removeprefix("unix:")
    return path.removeprefix("//") if path.startswith("//") else path
