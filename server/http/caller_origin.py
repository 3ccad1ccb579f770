"""`origin_of` says where an HTTP request comes from, in the form in which gRPC would.

So who calls is found out in one place, from the same credentials: `Authorization: Bearer TOKEN`, or
the certificate that the client has shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.types import Scope

from treadle.server.access.call_origin import CallOrigin
from treadle.server.access.request_id import REQUEST_ID_KEY

_METADATA = (b"authorization", b"traceparent", b"tracestate")
"""The headers that become metadata of the call."""

REQUEST_ID = "treadle.request_id"
"""The entry of a scope with the id of the request."""


def origin_of(scope: Scope | Mapping[str, Any]) -> CallOrigin:
    """Returns the origin of the calls that a request makes.

    Args:
        scope: The ASGI scope of the request, or the request itself.
    """
    metadata: list[tuple[str, str | bytes]] = [
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in scope["headers"]
        if name in _METADATA
    ]
    if REQUEST_ID in scope:
        metadata.append((REQUEST_ID_KEY, scope[REQUEST_ID]))
    return CallOrigin(tuple(metadata), _auth_context(scope), _peer(scope))


def _auth_context(scope: Scope | Mapping[str, Any]) -> dict[str, list[bytes]]:
    tls = scope.get("extensions", {}).get("tls", {})
    chain = [certificate.encode() for certificate in tls.get("client_cert_chain", ())]
    return {"x509_pem_cert": chain} if chain else {}


def _peer(scope: Scope | Mapping[str, Any]) -> str:
    client = scope.get("client")
    if not client:
        return "unix:"
    host, port = client
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"
