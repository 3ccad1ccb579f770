"""`Credentials` holds how a client proves who it is, and whom it trusts: TLS and a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from uuid import uuid4

import grpc

from treadle.client.access.bearer_token import BearerToken, TokenFile, TokenSource
from treadle.client.access.tls import AnyPath, tls_credentials
from treadle.client.access.trace_context import trace_context
from treadle.client.address import has_replicas, is_loopback
from treadle.client.errors import InputError
from treadle.client.messages.connection_faults import Peer
from treadle.client.replicas.balancing import channel_target, replica_options

REQUEST_ID = "x-request-id"
"""The header with the id of a call, which is in every log line of the server about it."""


class CallMetadata(NamedTuple):
    """The metadata of one call."""

    entries: tuple[tuple[str, str], ...]
    """The headers."""
    request_id: str
    """The id of the call, which is among them."""


class Credentials:
    """How one client reaches one server; files and the form of a token are checked at once.

    Args:
        address: The server's address.
        tls: Whether to use TLS; None: where a file is given.
        ca_file: The certificate authorities to trust; None: those of this machine.
        cert_file: The client's certificate.
        key_file: The private key of the certificate.
        token: The token, or a function that returns it; None: none.
        allow_plaintext_token: Whether the token may leave this machine without TLS.

    Raises:
        InputError: Arguments contradict each other, a file cannot be used, or the token would be
            sent to another machine without TLS.
    """

    def __init__(
        self,
        address: str,
        *,
        tls: bool | None = None,
        ca_file: AnyPath | None = None,
        cert_file: AnyPath | None = None,
        key_file: AnyPath | None = None,
        token: TokenSource | None = None,
        allow_plaintext_token: bool = False,
    ) -> None:
        files = {"ca_file": ca_file, "cert_file": cert_file, "key_file": key_file}
        given = [name for name, path in files.items() if path is not None]
        if tls is None:
            tls = bool(given)
        elif not isinstance(tls, bool):
            raise InputError(f"tls cannot be {tls!r}: give True, False or None", argument="tls")
        if given and not tls:
            raise InputError(
                f"{given[0]} is for TLS, which is turned off: give one of the two", argument="tls"
            )
        self._tls = tls_credentials(ca_file, cert_file, key_file) if tls else None
        self._token = None if token is None else BearerToken(token)
        if self._token and not (tls or allow_plaintext_token or is_loopback(address)):
            raise InputError(
                f"the token would be sent to {address} without encryption, where others can read "
                "it: give ca_file, or give tls where this machine trusts the server's authority; "
                "allow_plaintext_token permits it",
                argument="tls",
            )
        self.peer = Peer(
            address,
            is_several=has_replicas(address),
            tls=tls,
            has_certificate=cert_file is not None,
            has_token=token is not None,
            renews_token=callable(token),
            token_file=token.path if isinstance(token, TokenFile) else "",
        )

    def open_channel(self, options: Sequence[tuple[str, str | int]]) -> grpc.Channel:
        """Opens a channel to the server, or to several; it connects when the first call needs it.

        Args:
            options: gRPC's settings.

        Returns:
            The channel.
        """
        address = self.peer.address
        options = [*options, *replica_options(address, tls=self._tls is not None)]
        target = channel_target(address)
        if self._tls is None:
            return grpc.insecure_channel(target, options)
        return grpc.secure_channel(target, self._tls, options)

    def call_metadata(self) -> CallMetadata:
        """Returns the metadata of a new call: a new id, and the token of this moment.

        With them goes the span that is active in the caller's program, if it has one.

        The token is sent as plain metadata because gRPC's credentials of a call do not work
        without TLS, not even on one machine. `__init__` has checked that it may be sent.

        Raises:
            InputError: The caller's function returned no token.
        """
        request_id = str(uuid4())
        entries = ((REQUEST_ID, request_id), *trace_context())
        if self._token is not None:
            entries = (*entries, ("authorization", self._token.header()))
        return CallMetadata(entries, request_id)
