"""`CallOrigin` says where a call comes from that does not come over gRPC."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from treadle.server.access.authenticator import AuthContext


@dataclass(frozen=True)
class CallOrigin:
    """Where a call comes from: what gRPC knows of a call over the network."""

    metadata: tuple[tuple[str, str | bytes], ...] = ()
    """Its metadata, with names in lower case."""
    auth_context: AuthContext = field(default_factory=dict)
    """What TLS knows of the client, as `ServicerContext.auth_context` returns it."""
    peer: str = "unknown"
    """The address of the client, in gRPC's form: `ipv4:127.0.0.1:4242`."""
