"""`SessionState` is all that a model needs to continue a text.

A recurrent network remembers a text of any length in a few kilobytes of constant size. As bytes
they belong to the caller, who may store them, copy them, or pass them to another process with the
same model.

Format, little-endian: `TRS`, a byte of the version (1, or 2 with counts; of a network with int8
weights 4, or 5 with counts; 3 are those that a server encrypts), 16 bytes of the model's content
hash, a byte that is 1 if there is a seed, the seed and its draws so far (8 bytes each), the last
token, which is not read yet (4 bytes, -1 for none), the bytes that the text stream holds back (a
byte of length and 7 bytes), hs and of LSTMs cs in float32, the counts, and 16 bytes of SHA-256,
which detect damage, or with a key of HMAC-SHA256 (RFC 2104), which detect forgery as well.

The penalties use the counts: how often each token was drawn, and how often prompts contained it.
Only tokens that occurred are written, as three numbers each, in LEB128 (7 bits a byte, the lowest
first; the high bit is set if more follow): the token minus the one before it (of the first: the
token), how often it was drawn, how often prompts contained it. That is 3 bytes a token of a small
vocabulary and rarely more than 5: at most 400 bytes for 100 characters, 60 kB for a text that has
used 12,000 different words.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from treadle.model.enums import Cell, InferencePrecision
from treadle.model.errors import ForeignStateError, StateError

if TYPE_CHECKING:
    from treadle.model.network.shape import Shape

Array = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

_MAGICS = {
    (InferencePrecision.FP32, False): b"TRS\x01",
    (InferencePrecision.FP32, True): b"TRS\x02",
    (InferencePrecision.INT8, False): b"TRS\x04",
    (InferencePrecision.INT8, True): b"TRS\x05",
}
"""The first bytes of a state, by its precision and by whether it has counts."""

_MEANINGS = {magic: meaning for meaning, magic in _MAGICS.items()}
_HASH_BYTES = 16
_TAG_BYTES = 16
_HELD_BYTES = 7
_MOST_TIMES = 2**30
"""No text reaches such a count; one more call still fits into int32."""
_NUMBER_BYTES = 5
"""Bytes in which any count fits."""
_MOST_BITS = 7 * _NUMBER_BYTES
_HEAD = struct.Struct(f"<4s{_HASH_BYTES}s?QQiB{_HELD_BYTES}s")


@dataclass(frozen=True)
class SessionState:
    """The state of a session after some text. Its arrays are never written to."""

    hs: Array = field(repr=False)
    """(L, H), the hidden states after all tokens but the last."""
    cs: Array = field(repr=False)
    """(L, H), the LSTM's cell states; zeros elsewhere."""
    token: int
    """The last token, which the network has not read yet; -1 for no token."""
    seed: int | None = None
    """Seed of the draws, 64 bits; None if nothing was drawn."""
    position: int = 0
    """Draws of that seed so far."""
    held: bytes = b""
    """Bytes that the decoder of the text holds back; see `IncrementalDecoder.held`."""
    counts: Ints | None = field(default=None, repr=False, compare=False)
    """(2, V), how often each token was drawn, and how often prompts contained it; None without
    penalties."""
    precision: InferencePrecision = InferencePrecision.FP32
    """The precision of the network that made it. Another one moves it by continuing from it."""

    @classmethod
    def fresh(cls, shape: Shape, token: int = -1) -> SessionState:
        """Returns the state before anything was read.

        Args:
            shape: The network's sizes.
            token: The token that text follows; -1 for none.
        """
        zeros = np.zeros((shape.L, shape.H), np.float32)
        return cls(zeros, zeros, token)

    @property
    def nbytes(self) -> int:
        """The bytes of its arrays."""
        counts = 0 if self.counts is None else self.counts.nbytes
        return self.hs.nbytes + self.cs.nbytes + counts

    @staticmethod
    def most_bytes(shape: Shape) -> int:
        """Returns the bytes of the longest state of a network.

        Args:
            shape: The network's sizes.
        """
        arrays = 2 if shape.cell is Cell.LSTM else 1
        counts = _NUMBER_BYTES * (3 * shape.V + 1)
        return _HEAD.size + 4 * arrays * shape.L * shape.H + counts + _TAG_BYTES

    def to_bytes(self, shape: Shape, content_hash: bytes, key: bytes = b"") -> bytes:
        """Returns the state as bytes.

        Args:
            shape: The network's sizes.
            content_hash: The model's; see `TrainedNetwork.content_hash`.
            key: Authenticates the state; empty: anybody can make a valid state.
        """
        held = self.held.ljust(_HELD_BYTES, b"\0")
        head = _HEAD.pack(
            _MAGICS[self.precision, self.counts is not None],
            content_hash[:_HASH_BYTES],
            self.seed is not None,
            self.seed or 0,
            self.position,
            self.token,
            len(self.held),
            held,
        )
        arrays = (self.hs, self.cs) if shape.cell is Cell.LSTM else (self.hs,)
        body = head + b"".join(array.astype("<f4").tobytes() for array in arrays)
        if self.counts is not None:
            body += _pack_counts(self.counts)
        return body + _tag(body, key)

    @classmethod
    def from_bytes(
        cls, data: bytes, shape: Shape, content_hash: bytes, key: bytes = b""
    ) -> SessionState:
        """Reads what `to_bytes` returned.

        Args:
            data: The bytes.
            shape: The network's sizes.
            content_hash: The content hash of the model that is to continue.
            key: The key given to `to_bytes`.

        Returns:
            The state.

        Raises:
            StateError: The bytes are damaged, or were made without this key, or contain values that
                no model makes.
            ForeignStateError: Another model made them.
        """
        body = data[:-_TAG_BYTES]
        tag = data[-_TAG_BYTES:]
        if not hmac.compare_digest(tag, _tag(body, key)) or len(body) < _HEAD.size:
            made = " or was not made by this server" if key else ""
            raise StateError(f"state is damaged{made}: begin without one")
        head = _HEAD.unpack(body[: _HEAD.size])
        magic, made_by, draws, seed, position, token, held, padded = head
        if magic not in _MEANINGS:
            raise StateError("state is of another version of Treadle: begin without one")
        precision, has_counts = _MEANINGS[magic]
        if made_by != content_hash[:_HASH_BYTES]:
            raise ForeignStateError(
                "the state was made by a model with other weights: name the model and version that "
                "returned it, or leave state out"
            )
        count = 2 if shape.cell is Cell.LSTM else 1
        size = (shape.L, shape.H)
        end = _HEAD.size + 4 * count * shape.L * shape.H
        whole = len(body) > end if has_counts else len(body) == end
        clean = held <= _HELD_BYTES and not any(padded[held:])
        if not whole or not clean or not -1 <= token < shape.V:
            raise StateError("state does not fit the model: begin without one")
        numbers = np.frombuffer(body[_HEAD.size : end], "<f4").astype(np.float32)
        if not np.isfinite(numbers).all():
            raise StateError("state contains a number that is not finite: begin without one")
        arrays = numbers.reshape(count, *size)
        cs = arrays[1] if count == 2 else np.zeros(size, np.float32)
        counts = _unpack_counts(body[end:], shape.V) if has_counts else None
        drawn = seed if draws else None
        return cls(arrays[0], cs, token, drawn, position, padded[:held], counts, precision)


def _pack_counts(counts: Ints) -> bytes:
    """Returns the counts (2, V) as bytes, led by the number of tokens that occurred."""
    tokens = np.flatnonzero(counts.any(axis=0))
    gaps = np.diff(tokens, prepend=0)
    rows = np.stack((gaps, *counts[:, tokens]), axis=1)
    return _leb128([tokens.size, *rows.reshape(-1).tolist()])


def _leb128(numbers: list[int]) -> bytes:
    out = bytearray()
    for number in numbers:
        while number > 0x7F:
            out.append(number & 0x7F | 0x80)
            number >>= 7
        out.append(number)
    return bytes(out)


def _unpack_counts(data: bytes, V: int) -> Ints:
    """Returns what `_pack_counts` packed.

    Raises:
        StateError: It is not that, or not of a vocabulary of V tokens.
    """
    # Bytes that are too long are not read to the end.
    numbers = []
    number = 0
    shift = 0
    for byte in data[: _NUMBER_BYTES * (3 * V + 1) + 1]:
        number |= (byte & 0x7F) << shift
        shift += 7
        if shift > _MOST_BITS:
            break
        if byte < 0x80:
            numbers.append(number)
            number = 0
            shift = 0
    count, *rest = numbers or [-1]
    if shift or 3 * count != len(rest) or max(rest, default=0) > _MOST_TIMES:
        raise StateError("state is damaged: begin without one")
    rows = np.array(rest, np.int64).reshape(count, 3)
    tokens = np.cumsum(rows[:, 0])
    if count and (tokens[-1] >= V or (np.diff(tokens) < 1).any()):
        raise StateError("state does not fit the model: begin without one")
    counts = np.zeros((2, V), np.int32)
    counts[:, tokens] = rows[:, 1:].T
    return counts


def _tag(body: bytes, key: bytes) -> bytes:
    if key:
        return hmac.digest(key, body, "sha256")[:_TAG_BYTES]
    return hashlib.sha256(body).digest()[:_TAG_BYTES]
