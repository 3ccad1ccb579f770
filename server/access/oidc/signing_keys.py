"""`SigningKeys` holds the public keys of an identity provider, a JSON Web Key Set (RFC 7517)."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jwt import PyJWK
from jwt.exceptions import PyJWTError

logger = logging.getLogger(__name__)

MAX_SET_BYTES = 1 << 20
"""Bytes of the largest set that is read."""

_MAX_KEYS = 100
_LEAST_RSA_BITS = 2048
_PUBLIC = ("kty", "crv", "x", "y", "n", "e")
"""The parts of a key that are used; a private part would not be."""

_CURVES = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}


class KeySetError(ValueError):
    """A set of keys cannot be used. The message is a clause that follows its name."""


@dataclass(frozen=True)
class SigningKey:
    """One public key."""

    kid: str
    """Its id, which tokens name; may be empty."""
    fingerprint: str
    """A hash of the key itself."""
    algorithms: Mapping[str, PyJWK] = field(repr=False)
    """The key as each algorithm that it may be used with has it."""


class SigningKeys:
    """The keys of one set.

    Args:
        keys: The keys.
    """

    def __init__(self, keys: Iterable[SigningKey] = ()) -> None:
        self._keys = tuple(keys)
        self.fingerprints = frozenset(key.fingerprint for key in self._keys)
        """The hashes of all keys."""

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, kid: str | None, algorithm: str) -> SigningKey | None:
        """Returns the key that a token was signed with; None if it is unknown.

        Args:
            kid: The id that the token names; None: the only key for the algorithm is meant.
            algorithm: The algorithm that the token names.
        """
        fit = [
            key
            for key in self._keys
            if algorithm in key.algorithms and (kid is None or key.kid == kid)
        ]
        return fit[0] if len(fit) == 1 else None


def parse_keys(data: bytes) -> SigningKeys:
    """Returns the keys of a set; those that verify no signature of a token are left out.

    Args:
        data: The set as JSON.

    Raises:
        KeySetError: It is no set of keys, or too large.
    """
    if len(data) > MAX_SET_BYTES:
        raise KeySetError(f"is larger than {MAX_SET_BYTES} bytes")
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        raise KeySetError("is not JSON") from None
    keys = values.get("keys") if isinstance(values, dict) else None
    if not isinstance(keys, list):
        raise KeySetError('is not a JSON Web Key Set, {"keys": [...]}')
    if len(keys) > _MAX_KEYS:
        raise KeySetError(f"has more than {_MAX_KEYS} keys")
    found = [key for key in map(_key, keys) if key is not None]
    if len(found) < len(keys):
        logger.debug("%d keys of %d verify no tokens", len(keys) - len(found), len(keys))
    return SigningKeys(found)


def _key(values: Any) -> SigningKey | None:
    if not isinstance(values, dict) or values.get("use", "sig") != "sig":
        return None
    operations = values.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    kid = values.get("kid", "")
    names = _algorithms(values)
    if not isinstance(kid, str) or not names:
        return None
    public = {name: values[name] for name in _PUBLIC if name in values}
    try:
        keys = {name: PyJWK(public, name) for name in names}
        bits = getattr(next(iter(keys.values())).key, "key_size", None)
    except (PyJWTError, ValueError, TypeError, KeyError, AttributeError):
        return None
    if public["kty"] == "RSA" and (bits is None or bits < _LEAST_RSA_BITS):
        logger.warning("a key of the identity provider has fewer than %d bits", _LEAST_RSA_BITS)
        return None
    text = json.dumps(public, sort_keys=True)
    return SigningKey(kid, hashlib.sha256(text.encode()).hexdigest(), keys)


def _algorithms(values: Mapping[str, Any]) -> list[str]:
    """Returns the algorithms that a key may be used with: never HMAC, whose key is a secret."""
    kind = values.get("kty")
    curve = values.get("crv")
    if not isinstance(curve, str | None):
        return []
    if kind == "RSA":
        names = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]
    elif kind == "EC" and curve in _CURVES:
        names = [_CURVES[curve]]
    elif kind == "OKP" and curve in ("Ed25519", "Ed448"):
        names = ["EdDSA"]
    else:
        names = []
    only = values.get("alg")
    return names if only is None else [name for name in names if name == only]
