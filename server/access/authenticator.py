"""`Authenticator` finds out who makes a call; `OpenAuthenticator` lets everybody call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from treadle.server.access.caller import ANONYMOUS, Caller
from treadle.server.access.quotas import NO_QUOTAS, Quotas

Metadata = Iterable[tuple[str, str | bytes]]
"""The metadata of a call, as gRPC gives it."""

AuthContext = Mapping[str, Iterable[bytes]]
"""What TLS knows of a client, as `ServicerContext.auth_context` returns it."""


class Authenticator(Protocol):
    """Finds out who makes a call."""

    async def authenticate(self, metadata: Metadata, auth_context: AuthContext) -> Caller:
        """Returns the caller.

        Args:
            metadata: The metadata of the call.
            auth_context: What TLS knows of the client.

        Raises:
            StatusError: UNAUTHENTICATED, or another code where a credential is known but of no
                use. The message never shows a secret.
        """

    def is_valid(self, caller: Caller) -> bool:
        """Returns whether a caller's credential is still accepted, for calls that run long."""

    def quotas_of(self, name: str) -> Quotas | None:
        """Returns the quotas of a caller by its name; None where nothing limits it."""

    def on_change(self, look: Callable[[], None]) -> None:
        """Calls `look` on the event loop whenever a credential may no longer be accepted."""


class OpenAuthenticator:
    """Takes everybody as `ANONYMOUS`, without credentials."""

    async def authenticate(self, metadata: Metadata, auth_context: AuthContext) -> Caller:
        """Returns `ANONYMOUS`."""
        return ANONYMOUS

    def is_valid(self, caller: Caller) -> bool:
        """Returns True."""
        return True

    def quotas_of(self, name: str) -> Quotas | None:
        """Returns no quotas at all."""
        return NO_QUOTAS

    def on_change(self, look: Callable[[], None]) -> None:
        """Does nothing: no credential changes."""
