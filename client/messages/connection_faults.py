"""`connection_sentence` puts gRPC's messages about a connection and about TLS into words."""

from __future__ import annotations

import re
from dataclasses import dataclass

from treadle.client.argument_names import ArgumentNames


@dataclass(frozen=True)
class Peer:
    """The server of a call, and how the client reaches it."""

    address: str
    """The server's address, or those of several."""
    is_several: bool = False
    """Whether the address stands for any number of servers."""
    tls: bool = False
    """Whether the connection uses TLS."""
    has_certificate: bool = False
    """Whether the client shows a certificate."""
    has_token: bool = False
    """Whether the client sends a token."""
    renews_token: bool = False
    """Whether the next call may have another token."""
    token_file: str = ""
    """The file of the token, if it comes from one."""


# gRPC's messages about a connection, and their meaning. The first match counts, and "failed to
# connect" is part of most of the others.
_CONNECTION_FAULTS = (
    (r"dns|name resolution|address lookup|getaddrinfo|resolver", "the name does not resolve"),
    (r"no route to host|network is unreachable", "there is no route to it"),
    (r"no such file or directory", "there is no such socket"),
    (
        r"http1\.x|http/1|http2 settings|wrong_version_number",
        "what listens there is no gRPC server",
    ),
    (r"connect.* timed out|settings frame|deadline", "it does not answer"),
    (r"socket closed|connection reset|broken pipe|goaway|stream removed", "the connection broke"),
    (
        r"health check call failed",
        "it refuses the health check that this address needs: start treadle-server with "
        "--public-services health, or give HOST:PORT of one server",
    ),
    (r"backend unhealthy", "it does not serve now, as before its start is over and at its end"),
    (r"failed to connect|connections to all backends failing", "the connection failed"),
)

# The same for a connection with TLS, before the others. TLS 1.3 lets a client believe that it is
# connected before the server has looked at its certificate, so that a refusal looks like a break.
_TLS_FAULTS = (
    (
        r"wrong_version_number|http/1|http_request",
        "it does not use TLS: leave out {tls}, ca_file, cert_file and key_file",
    ),
    (
        r"hostname verification|not in peer certificate|peer name",
        "its certificate is for another name: use a name or address that the certificate holds",
    ),
    (r"certificate has expired", "its certificate has expired: the server needs a new one"),
    (r"not yet valid", "its certificate is not yet valid: compare the clocks of both machines"),
    (
        r"certificate_verify_failed|certificate verify failed",
        "no authority that this client trusts has signed its certificate: give the server's "
        "authority as ca_file",
    ),
    (
        r"alert_certificate_required|certificate_required",
        "it requires a certificate: {certificate}",
    ),
    (r"_alert_|alert number", "it refused the certificate of this client: {certificate}"),
)

_CLOSED_AT_ONCE = re.compile(r"failed to connect.*(socket closed|connection reset)", re.IGNORECASE)
"""gRPC's message about a server that closes a connection before the first call."""

_LAST_TRIED = re.compile(r"\bipv[46]:(\S+:[0-9]+): ")
"""The server that gRPC's message about a failed connection names."""

_CLOSED_PLAINTEXT = (
    "it closed the connection: if it uses TLS, give ca_file, or {tls} where this machine trusts "
    "its authority"
)
_CLOSED_TLS = "it closed the connection, as servers do that require a certificate: {remedy}"


def connection_sentence(details: str, peer: Peer, interface: ArgumentNames) -> str:
    """Returns why there is no connection, or the server's own sentence.

    Args:
        details: The message of a status UNAVAILABLE.
        peer: The server.
        interface: The interface, for the names of arguments.
    """
    address = _failed_address(details, peer)
    if re.search(r"connection refused", details, re.IGNORECASE):
        by_flag = interface.has_flags_to_connect
        another = "name another with --server" if by_flag else "give another address"
        return f"nothing listens at {address}: start treadle-server, or {another}"
    faults = _TLS_FAULTS if peer.tls else ()
    for pattern, meaning in (*faults, *_CONNECTION_FAULTS):
        if re.search(pattern, details, re.IGNORECASE):
            if _CLOSED_AT_ONCE.search(details):
                meaning = _CLOSED_TLS if peer.tls else _CLOSED_PLAINTEXT
            tls = "--tls" if interface.has_flags_to_connect else "tls"
            meaning = meaning.format(remedy=_certificate_remedy(peer), tls=tls)
            return f"cannot reach a Treadle server at {address}: {meaning}"
    return details or f"cannot reach a Treadle server at {address}"


def _failed_address(details: str, peer: Peer) -> str:
    """Returns the address as it was given, and of several servers the one that gRPC tried last."""
    found = _LAST_TRIED.search(details)
    address = peer.address
    if found is None or not peer.is_several:
        return address
    tried = found[1].replace("%5B", "[").replace("%5D", "]")
    return f"{tried}, the last tried of {address}" if tried != address else address


def _certificate_remedy(peer: Peer) -> str:
    """Returns what a client can do whose certificate was refused."""
    if peer.has_certificate:
        return "is cert_file expired, or of an authority that the server does not trust?"
    return "give cert_file and key_file"
