"""The whole memory of a session: what a model needs to go on with a text, and nothing else.

A recurrent network remembers a text of any length in a few kilobytes of constant size. Written as
bytes they are the caller's to keep: to store, to copy, to hand to another process that has the
same model.

Format, little-endian: `TRS`, a byte of the version (1), 16 bytes of the model's content hash, a
byte that is 1 where there is a seed, the seed and the draws of it so far (8 bytes each), the last
token, which is not read yet (4 bytes, -1 for none), what the text stream holds back (a byte of
length and 7 bytes), hs and of LSTMs cs in float32, and 16 bytes by which damage is told: of
SHA-256, or with a key of HMAC-SHA256 (RFC 2104), by which forgery is as well.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from treadle.model.config import Cell
from treadle.model.errors import ForeignStateError, StateError
from treadle.model.parameters import Shape

Array = npt.NDArray[np.float32]

_MAGIC = b"TRS\x01"
_HASH_BYTES = 16
_TAG_BYTES = 16
_HELD_BYTES = 7
_HEAD = struct.Struct(f"<4s{_HASH_BYTES}s?QQiB{_HELD_BYTES}s")


@dataclass(frozen=True)
class SessionState:
    """Where a session stands. Its arrays are never written to."""

    hs: Array = field(repr=False)
    """(L, H), the hidden states after all tokens but the last."""
    cs: Array = field(repr=False)
    """(L, H), the LSTM's cell states; zeros elsewhere."""
    token: int
    """The last token, which the states have not read yet; -1 where there is none."""
    seed: int | None = None
    """Seed of the draw, 64 bits; None where nothing draws."""
    position: int = 0
    """Draws of that seed so far."""
    held: bytes = b""
    """What the stream from tokens to text holds back; see `TokenStream.held`."""

    @classmethod
    def fresh(cls, shape: Shape, token: int = -1) -> SessionState:
        """Return the state before anything was read.

        Args:
            shape: the network's sizes.
            token: the token that text begins after; -1 for none.
        """
        zeros = np.zeros((shape.L, shape.H), np.float32)
        return cls(zeros, zeros, token)

    def to_bytes(self, shape: Shape, content_hash: bytes, key: bytes = b"") -> bytes:
        """Return the state as bytes.

        Args:
            shape: the network's sizes.
            content_hash: the model's; see `Model.content_hash`.
            key: authenticates the state; empty: whoever can read this page can make one.
        """
        held = self.held.ljust(_HELD_BYTES, b"\0")
        head = _HEAD.pack(
            _MAGIC, content_hash[:_HASH_BYTES], self.seed is not None, self.seed or 0,
            self.position, self.token, len(self.held), held,
        )  # fmt: skip
        arrays = (self.hs, self.cs) if shape.cell is Cell.LSTM else (self.hs,)
        body = head + b"".join(array.astype("<f4").tobytes() for array in arrays)
        return body + _tag(body, key)

    @classmethod
    def from_bytes(
        cls, data: bytes, shape: Shape, content_hash: bytes, key: bytes = b""
    ) -> SessionState:
        """Read what `to_bytes` returned.

        Args:
            data: the bytes.
            shape: the network's sizes.
            content_hash: of the model that is to go on.
            key: that of `to_bytes`.

        Raises:
            StateError: the bytes are damaged, or were made without this key.
            ForeignStateError: another model made them.
        """
        body, tag = data[:-_TAG_BYTES], data[-_TAG_BYTES:]
        if not hmac.compare_digest(tag, _tag(body, key)) or len(body) < _HEAD.size:
            made = " or was not made by this server" if key else ""
            raise StateError(f"state is damaged{made}: begin without one")
        head = _HEAD.unpack(body[: _HEAD.size])
        magic, made_by, draws, seed, position, token, held, padded = head
        if magic != _MAGIC:
            raise StateError("state is of another version of Treadle: begin without one")
        if made_by != content_hash[:_HASH_BYTES]:
            raise ForeignStateError(
                "state was made by a model with other weights: name the model and version that "
                "returned it, or begin without one"
            )
        count, size = (2 if shape.cell is Cell.LSTM else 1), (shape.L, shape.H)
        numbers = np.frombuffer(body, "<f4", offset=_HEAD.size).astype(np.float32)
        if numbers.size != count * shape.L * shape.H or not -1 <= token < shape.V:
            raise StateError("state does not fit the model: begin without one")
        arrays = numbers.reshape(count, *size)
        cs = arrays[1] if count == 2 else np.zeros(size, np.float32)
        return cls(arrays[0], cs, token, seed if draws else None, position, padded[:held])


def _tag(body: bytes, key: bytes) -> bytes:
    if key:
        return hmac.digest(key, body, "sha256")[:_TAG_BYTES]
    return hashlib.sha256(body).digest()[:_TAG_BYTES]
