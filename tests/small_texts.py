"""Small texts of few symbols, in which much occurs more than once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]


def texts(count: int, longest: int) -> Iterator[tuple[Ints, int]]:
    """Small texts of few symbols: random ones, and repetitions of their own beginnings."""
    rng = np.random.default_rng(7)
    for number in range(count):
        size = int(rng.integers(longest))
        V = int(rng.integers(1, 5))
        text = rng.integers(V, size=size, dtype=np.int32)
        if number % 3 == 0 and size:
            text = np.resize(text[: rng.integers(1, 6)], size)
        yield text, V
