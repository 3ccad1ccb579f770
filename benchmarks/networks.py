"""`network_weights` draws the weights of a case: the same for every program that computes it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from treadle.benchmarks.settings import Case
from treadle.kernels.reference import GATES

Array = npt.NDArray[np.float32]
Weights = dict[str, Array]

_INPUT = 1.2
_RECURRENT = 1.5
_OUTPUT = 6.5
_BIAS = 0.3
"""Bounds of uniform weights, those of matrices in units of 1/sqrt(rows).

Gates move and probabilities spread by this, as in a trained network: with smaller weights wrong
answers would look like right ones.
"""


def network_weights(case: Case) -> Weights:
    """Returns weights by their names in `treadle.kernels.reference`, of one layer.

    Args:
        case: The sizes of the network, with an embedding.
    """
    rng = np.random.default_rng(0)
    V = case.vocabulary
    E = case.embedding
    H = case.hidden
    G = GATES[case.cell] * H

    def uniform(bound: float, *shape: int) -> Array:
        return rng.uniform(-bound, bound, shape).astype(np.float32)

    weights = {
        "embedding": uniform(3**0.5, V, E),
        "Wx0": uniform(_INPUT / E**0.5, E, G),
        "Wh0": uniform(_RECURRENT / H**0.5, H, G),
        "b0": uniform(_BIAS, G),
        "Wy": uniform(_OUTPUT / H**0.5, H, V),
        "by": uniform(_BIAS, V),
    }
    if case.cell == "gru":
        weights["bh0"] = uniform(_BIAS, H)
    return weights


def scored_tokens(case: Case) -> npt.NDArray[np.int32]:
    """Returns the tokens (T, B) that a case of scoring reads."""
    rng = np.random.default_rng(1)
    return rng.integers(case.vocabulary, size=(case.steps, case.rows), dtype=np.int32)
