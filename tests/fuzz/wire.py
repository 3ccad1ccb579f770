"""Bytes that may or may not be a protobuf message: `random_wire`, `damaged_wire`."""

from __future__ import annotations

import random

from .mutate import Mutator

_ODD_NUMBERS = (
    0,
    1,
    127,
    128,
    255,
    (1 << 14) - 1,
    (1 << 21) - 1,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    (1 << 63) - 1,
    (1 << 64) - 1,
)
_ODD_TEXTS = (
    b"\xff\xfe",
    b"\xed\xa0\x80",  # a surrogate
    b"\xf4\x90\x80\x80",  # behind the last code point
    b"\xc0\x80",  # NUL, in two bytes
    b"\xe2\x82",  # half a character
    b"\x80",
)


def varint(number: int, spare: int = 0) -> bytes:
    """Returns a number as protobuf writes it; with spare bytes, longer than it has to be."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number | (0x80 if spare else 0))
    if spare:
        out += b"\x80" * (spare - 1) + b"\0"
    return bytes(out)


def field(number: int, wire_type: int, value: bytes) -> bytes:
    """Returns a field of a message: its tag and what follows."""
    return varint(number << 3 | wire_type) + value


def _number(pick: random.Random) -> int:
    return pick.choice((pick.choice(_ODD_NUMBERS), pick.randrange(40)))


def _field_number(pick: random.Random) -> int:
    return pick.choice((pick.randrange(1, 34), 0, 100, 19_000, (1 << 29) - 1, 1 << 29))


def random_wire(pick: random.Random, depth: int = 0) -> bytes:
    """Returns fields of random numbers and types, with lengths that may lie."""
    parts = []
    for _ in range(pick.randrange(1, 9)):
        number = _field_number(pick) if pick.randrange(3) == 0 else pick.randrange(1, 34)
        kind = pick.randrange(8)
        if kind == 0:
            parts.append(field(number, 0, varint(_number(pick), pick.choice((0, 0, 1, 9, 12)))))
        elif kind == 1:
            parts.append(field(number, 1, pick.randbytes(pick.choice((8, 8, 3)))))
        elif kind == 2:
            parts.append(field(number, 5, pick.randbytes(pick.choice((4, 4, 1)))))
        elif kind == 3 and depth < 6:
            inner = random_wire(pick, depth + 1)
            parts.append(field(number, 2, varint(len(inner)) + inner))
        elif kind == 4:
            text = pick.choice((*_ODD_TEXTS, b"", b"a", b"abc"))
            lie = pick.choice((0, 0, 0, 1, -1, 1 << 20, (1 << 31) - 1, (1 << 63) - 1))
            parts.append(field(number, 2, varint(max(0, len(text) + lie)) + text))
        elif kind == 5:  # groups, opened, closed, or closed by another number
            inner = random_wire(pick, depth + 1) if depth < 6 else b""
            closing = pick.choice((number, number, number + 1))
            end = field(closing, 4, b"") if pick.randrange(4) else b""
            parts.append(field(number, 3, inner + end))
        elif kind == 6:
            parts.append(field(number, pick.choice((6, 7)), pick.randbytes(2)))
        else:
            parts.append(pick.randbytes(pick.randrange(1, 12)))
    return b"".join(parts)


def damaged_wire(draw: Mutator, data: bytes) -> bytes:
    """Returns the bytes of a request with changes that aim at how messages are written."""
    pick = draw.random
    choice = pick.randrange(10)
    if choice < 3:
        return draw.bytes(data, pick.choice((1, 1, 2, 4)))
    if choice == 3:
        return random_wire(pick)
    if choice == 4:
        return data + random_wire(pick)
    if choice == 5:  # the same message many times: repeated fields grow, others are merged
        times = pick.choice((2, 5, 40, 3000))
        return (data * times)[: 1 << 21]
    if choice == 6:  # groups within groups, or messages within messages
        depth = pick.choice((10, 99, 101, 5000, 200_000))
        number = pick.randrange(1, 34)
        return data + field(number, 3, b"") * depth + field(number, 4, b"") * depth
    if choice == 7:  # a field repeated without contents: many entries in few bytes
        number = pick.randrange(1, 34)
        times = pick.choice((17, 1025, 10_001, 40_000, 1_000_000))
        return data + field(number, 2, b"\0") * times
    if choice == 8:  # a packed list of many numbers
        size = pick.choice((3, 101, 100_000, 3_000_000))
        return data + field(pick.randrange(1, 34), 2, varint(size) + b"\x01" * size)
    at = pick.randrange(len(data) + 1)
    return data[:at] + pick.choice(_ODD_TEXTS) + data[at:]
