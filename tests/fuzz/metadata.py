"""`odd_metadata` draws the metadata of a call: credentials and ids that nobody should send."""

from __future__ import annotations

import random

Metadata = tuple[tuple[str, str | bytes], ...]

_VALUES = (
    "",
    " ",
    "Bearer",
    "Bearer ",
    "Bearer a",
    "bearer treadle_0123456789abcdef_" + "0" * 64,
    "Bearer treadle_0123456789abcdef_" + "0" * 65,
    "Basic dXNlcjpwYXNz",
    "Bearer e30.e30.",
    "Bearer " + "a" * 4000,
    "x" * 128,
    "x" * 129,
    "~!@#$%^&*()",
    "a b",
    '"}{"',
    "%0a%0d",
    "1",
)
_KEYS = ("authorization", "x-request-id", "x-forwarded-for", "traceparent", "te-x", "a-bin")


def odd_metadata(pick: random.Random) -> Metadata:
    """Returns metadata that a client of gRPC can send; empty for most calls."""
    if pick.randrange(3):
        return ()
    found: list[tuple[str, str | bytes]] = []
    for _ in range(pick.choice((1, 1, 2, 5, 40))):
        key = pick.choice(_KEYS)
        if key.endswith("-bin"):
            found.append((key, pick.randbytes(pick.choice((0, 1, 50)))))
        else:
            found.append((key, pick.choice(_VALUES)))
    size = sum(len(key) + len(value) + 32 for key, value in found)
    return tuple(found) if size < 7000 else tuple(found[:1])
