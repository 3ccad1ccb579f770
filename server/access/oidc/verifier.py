"""`OidcVerifier` finds out who makes a call from a JSON Web Token of an identity provider.

PyJWT checks signatures and times. Here is decided which algorithms and keys it may use, and what
the claims give. Addresses of keys that a token itself names (`jku`, `x5u`, `jwk`) are never read.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import jwt
from jwt import exceptions

from treadle.server.access.caller import Caller
from treadle.server.access.oidc.key_source import KeySource
from treadle.server.access.oidc.settings import Grant, OidcSettings
from treadle.server.access.quotas import Quotas
from treadle.server.errors import StatusError, unavailable

NAME_PREFIX = "oidc:"
"""What the names of these callers begin with; no caller of the callers file can have such a one."""

_MAX_TOKEN_BYTES = 16 << 10
_MAX_KNOWN = 4096
"""Tokens whose signature need not be checked again."""

_MAX_NAME = 200
"""The most characters of a caller's name in a token."""

_INVALID = (
    "the token of the identity provider is not valid: it is mistyped, or signed by nobody whom "
    "this server trusts"
)


@dataclass(frozen=True)
class _Known:
    """A token that was accepted."""

    caller: Caller
    fingerprint: str
    """The key that it was signed with."""


class OidcVerifier:
    """Accepts the tokens of one identity provider. Use it on the event loop.

    Args:
        settings: Whose tokens are accepted, and what their claims give.
        source: The provider's keys.
    """

    def __init__(self, settings: OidcSettings, source: KeySource) -> None:
        self.settings = settings
        """Whose tokens are accepted."""
        self.source = source
        """The provider's keys."""
        self._policies = _policies(settings)
        self._accepted_policies = frozenset(self._policies.values())
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._quotas: OrderedDict[str, Quotas] = OrderedDict()

    async def authenticate(self, text: str) -> Caller:
        """Returns the caller that a token names.

        Args:
            text: The token.

        Raises:
            StatusError: UNAUTHENTICATED: it is not valid; PERMISSION_DENIED: its claims give no
                role; UNAVAILABLE: the provider's keys have never been fetched.
        """
        digest = hashlib.sha256(text.encode(errors="replace")).digest()
        known = self._known.get(digest)
        if known is not None and self.is_valid(known.caller):
            return known.caller
        caller, fingerprint = await self._verified(text)
        self._known[digest] = _Known(caller, fingerprint)
        self._quotas[caller.name] = caller.quotas
        for known_ones in (self._known, self._quotas):
            if len(known_ones) > _MAX_KNOWN:
                known_ones.popitem(last=False)
        return caller

    def quotas_of(self, name: str) -> Quotas | None:
        """Returns the quotas of a caller by its name; None where it has not called of late."""
        return self._quotas.get(name)

    def is_valid(self, caller: Caller) -> bool:
        """Returns whether a caller's token is still accepted: its key, its time, the settings."""
        keys = self.source.keys
        _, policy, fingerprint = caller.credential_id.split(":")
        return (
            keys is not None
            and policy in self._accepted_policies
            and fingerprint in keys.fingerprints
            and time.time() < caller.valid_until_s
        )

    async def _verified(self, text: str) -> tuple[Caller, str]:
        settings = self.settings
        algorithm, kid = self._header(text)
        key = await self.source.find(kid, algorithm)
        if key is None:
            if self.source.keys is None:
                raise unavailable("the keys of the identity provider cannot be fetched at present")
            raise _refused(_INVALID)
        try:
            claims = jwt.decode(
                text,
                key.algorithms[algorithm],
                algorithms=[algorithm],
                audience=settings.audience,
                issuer=settings.issuer,
                leeway=settings.leeway_s,
                options={"require": ["exp", "iss", "aud"]},
            )
            until_s = int(claims["exp"]) + settings.leeway_s
        except Exception as error:  # hostile input, for which PyJWT has no closed list
            raise _refused(_reason(error)) from None
        name = _name(_claim(claims, settings.caller_claim), settings)
        grant = _grant(_values(claims, settings.role_claim), settings)
        rights = grant.rights
        credential = f"key:{self._policies[grant.value]}:{key.fingerprint}"
        caller = Caller(
            NAME_PREFIX + name,
            rights.role,
            rights.read_models,
            rights.write_models,
            rights.quotas,
            credential,
            until_s,
        )
        return caller, key.fingerprint

    def _header(self, text: str) -> tuple[str, str | None]:
        """Returns the algorithm and the key that a token names, if it may name them."""
        if len(text) > _MAX_TOKEN_BYTES:
            raise _refused(f"the token is longer than {_MAX_TOKEN_BYTES} bytes")
        try:
            header = jwt.get_unverified_header(text)
        except Exception:  # hostile input, for which PyJWT has no closed list
            raise _refused(_INVALID) from None
        algorithm = header.get("alg")
        kid = header.get("kid")
        # A critical extension that is not understood makes a token invalid (RFC 7515).
        if algorithm not in self.settings.algorithms or "crit" in header or "b64" in header:
            raise _refused(_INVALID)
        return algorithm, kid


def _policies(settings: OidcSettings) -> dict[str, str]:
    """Returns for the value of each grant a hash of all that gives its rights to a token.

    That is whose tokens are accepted, and the grants up to this one. While they stay, running calls
    may stay as well.
    """
    whose = (settings.issuer, settings.audience, settings.algorithms)
    hashed = hashlib.sha256(repr((whose, settings.caller_claim, settings.role_claim)).encode())
    found = {}
    for grant in settings.grants:
        rights = grant.rights
        part = (grant.value, rights.role.title, rights.read_models, rights.write_models)
        hashed.update(repr(part).encode())
        found[grant.value] = hashed.hexdigest()[:16]
    return found


def _reason(error: Exception) -> str:
    """Returns what is wrong with a token; only what a valid signature proves is named."""
    match error:
        case exceptions.ExpiredSignatureError():
            return "the token of the identity provider has expired: get a new one"
        case exceptions.ImmatureSignatureError():
            return "the token of the identity provider is not valid yet: compare the clocks"
        case exceptions.InvalidAudienceError():
            return "the token of the identity provider is for another audience than this server"
        case exceptions.InvalidIssuerError():
            return "the token is of another issuer than the identity provider of this server"
        case exceptions.MissingRequiredClaimError():
            return f"the token of the identity provider lacks the claim {error.claim!r}"
        case _:
            return _INVALID


def _claim(claims: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    """Returns the value of a claim; None if it is missing."""
    value: Any = claims
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _name(value: Any, settings: OidcSettings) -> str:
    claim = ".".join(settings.caller_claim)
    if not isinstance(value, str) or not value.strip():
        raise _refused(f"the token of the identity provider lacks the claim {claim!r}, a name")
    if len(value) > _MAX_NAME or not value.isprintable():
        form = f"up to {_MAX_NAME} printable characters"
        raise _refused(f"the claim {claim!r} of the token must be {form}")
    return value


def _values(claims: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    """Returns the values of the claim that gives the rights: one, or a list of them."""
    value = _claim(claims, path)
    if isinstance(value, str):
        # The one claim that is a list in a string, as RFC 6749 and RFC 9068 define it.
        return value.split(" ") if path == ("scope",) else [value]
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _grant(values: list[str], settings: OidcSettings) -> Grant:
    for grant in settings.grants:
        if grant.value in values:
            return grant
    claim = ".".join(settings.role_claim)
    raise StatusError(
        grpc.StatusCode.PERMISSION_DENIED,
        f"the claim {claim!r} of the token has no value that gives a role on this server",
    )


def _refused(message: str) -> StatusError:
    return StatusError(grpc.StatusCode.UNAUTHENTICATED, message)
