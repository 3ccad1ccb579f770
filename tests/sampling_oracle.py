"""The tokens that the reference may sample, give or take rounding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from treadle.kernels import reference

Floats = NDArray[np.float32]

CLOSE = 3e-5
"""A draw whose u or top_p is this close to where the result changes may fall to either side."""


def possible(
    logits: Floats,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    u: float,
    typical_p: float = 1.0,
) -> set[int]:
    """What the reference draws with u, top_p and min_p a little below, at and above the given."""
    return {
        reference.sample(
            logits.astype(np.float64),
            temperature=float(np.float32(temperature)),
            top_k=top_k,
            top_p=near_p if top_p < 1 else 1.0,
            min_p=near_min,
            u=near_u,
            typical_p=near_typical if typical_p < 1 else 1.0,
        )
        for near_u in (max(u - CLOSE, 0.0), u, min(u + CLOSE, 1 - 1e-9))
        for near_p in (top_p * (1 - CLOSE), top_p, min(top_p * (1 + CLOSE), 1 - 1e-12))
        for near_min in (min_p * (1 - CLOSE), min_p, min(min_p * (1 + CLOSE), 1.0))
        for near_typical in (typical_p * (1 - CLOSE), typical_p, min(typical_p * (1 + CLOSE), 1))
    }
