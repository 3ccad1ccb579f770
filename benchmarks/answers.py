"""`scoring_answers` makes what a side answers before its speed counts: comparable results.

Every side computes the network of `treadle.benchmarks.networks`, from a state of zeros. A side
that scores answers with log-probabilities of given tokens. A side that draws answers with its
tokens and either their log-probabilities or its last hidden state.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

MOST_ROWS = 4
"""Sequences of a batch that a side answers for."""

FIRST_TOKEN = 0
"""What every side that draws reads first."""

Array = npt.NDArray[np.float64]


def log_softmax(logits: npt.NDArray[np.floating[Any]]) -> Array:
    """Returns the log-probabilities of logits (..., V)."""
    exact = logits.astype(np.float64)
    exact -= exact.max(axis=-1, keepdims=True)
    total: Array = exact - np.log(np.exp(exact).sum(axis=-1, keepdims=True))
    return total


def of_tokens(log_probabilities: Array, tokens: npt.NDArray[np.integer[Any]]) -> Array:
    """Returns those of log-probabilities (T, B, V) that belong to tokens (T, B)."""
    chosen: Array = np.take_along_axis(log_probabilities, tokens[..., np.newaxis], axis=2)[..., 0]
    return chosen


def scoring_answers(
    tokens: npt.NDArray[np.integer[Any]], logits: npt.NDArray[np.floating[Any]]
) -> dict[str, Any]:
    """Returns what a side that scores answers.

    Args:
        tokens: What was read, (T, B).
        logits: After each token, (T, B, V).
    """
    read = tokens[:, :MOST_ROWS]
    found = of_tokens(log_softmax(logits[:-1, :MOST_ROWS]), read[1:])
    return {"tokens": read.tolist(), "log_probabilities": found.tolist()}
