"""`StateSealer` encrypts session states, so that only the caller who got one can use it.

Format: `TRS`, a byte of the version (3), 4 bytes of the key's id, and what AES-256-SIV (RFC 5297)
makes of the state as `SessionState.to_bytes` writes it, which names its model: 16 bytes of a tag
and then as many bytes as the state has. The tag covers the head and the caller's name as well. The
key and its id are derived from a secret by HKDF-SHA256 (RFC 5869).

SIV needs no random nonce. So the same request gives the same bytes, and no nonce can repeat.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from treadle.server.config import SettingError

MAGIC = b"TRS\x03"
"""The first bytes of a sealed state."""

OVERHEAD = 24
"""Bytes that a sealed state has more than the state in it."""

LEAST_SECRET_BYTES = 16
"""Bytes of the shortest secret."""

_MOST_KEYS = 32
_ID_BYTES = 4
_CIPHER_BYTES = 64
_PURPOSE = b"treadle session state 3"
_PRINTABLE = frozenset(range(0x20, 0x7F)) | frozenset(b"\t\r\n\f\v")


@dataclass(frozen=True)
class StateKey:
    """A key for states."""

    id: bytes
    """Its short name, which stands in every state that it seals."""
    secret: bytes = field(repr=False)
    """The secret from the file, which signed the states of earlier versions."""
    cipher: AESSIV = field(repr=False, compare=False)
    """Encrypts, and authenticates what it decrypts."""

    @classmethod
    def of(cls, secret: bytes) -> StateKey:
        """Derives a key from a secret of any length."""
        size = _CIPHER_BYTES + _ID_BYTES
        derived = HKDF(SHA256(), size, salt=None, info=_PURPOSE).derive(secret)
        return cls(derived[_CIPHER_BYTES:], secret, AESSIV(derived[:_CIPHER_BYTES]))


class StateSealer:
    """Seals states for callers, and opens what it has sealed.

    Args:
        keys: The keys; the first one seals, and all open. Without a key nothing is sealed.
    """

    def __init__(self, keys: Iterable[StateKey] = ()) -> None:
        self.keys: Sequence[StateKey] = tuple(keys)
        """The keys in use. They may be replaced while states are sealed in other threads."""

    def seal(self, state: bytes, caller: str) -> bytes:
        """Returns a state for one caller; without a key it stays as it is.

        Args:
            state: The state.
            caller: The caller's name; empty for a caller without one.
        """
        keys = self.keys
        if not keys:
            return state
        head = MAGIC + keys[0].id
        return head + keys[0].cipher.encrypt(state, [head, _bound_to(caller)])

    def open(self, data: bytes, caller: str) -> bytes | None:
        """Returns the state that was sealed for a caller; None if the bytes are anything else.

        Args:
            data: What `seal` returned.
            caller: The name of the caller who brings it.
        """
        head = data[: len(MAGIC) + _ID_BYTES]
        for key in self.keys:
            if head == MAGIC + key.id:
                try:
                    return key.cipher.decrypt(data[len(head) :], [head, _bound_to(caller)])
                except InvalidTag:  # also of bytes that are too short
                    continue
        return None


def state_keys(data: bytes) -> tuple[StateKey, ...]:
    """Returns the keys of a key file; none for an empty one.

    Args:
        data: The file's content: text with a secret on each line, or else one secret.

    Raises:
        SettingError: A secret is too short, or there are too many.
    """
    lines = [data]
    if _PRINTABLE.issuperset(data):
        lines = [line.strip() for line in data.splitlines()]
    secrets = list(dict.fromkeys(filter(None, lines)))
    for number, secret in enumerate(secrets, 1):
        if len(secret) < LEAST_SECRET_BYTES:
            fault = f"names a file whose secret {number} has fewer than {LEAST_SECRET_BYTES} bytes"
            raise SettingError("state_key_file", f"{fault}: each line is a secret of its own")
    if len(secrets) > _MOST_KEYS:
        fault = f"names a file with {len(secrets)} secrets: keep the newest {_MOST_KEYS}"
        raise SettingError("state_key_file", fault)
    return tuple(map(StateKey.of, secrets))


def _bound_to(caller: str) -> bytes:
    # Never empty: OpenSSL before 3.0.10 ignored empty associated data (CVE-2023-2975).
    return b"caller:" + caller.encode()
