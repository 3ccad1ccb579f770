"""`BeamRows` holds the states of a beam's texts, and reads the next token of each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from treadle.kernels import structs
from treadle.kernels.beam_search import step_log_probabilities
from treadle.model.network.shape import CELL_CODES
from treadle.model.network.workspace import allocate_workspace
from treadle.model.tokenizers.token_ids import check_tokens

if TYPE_CHECKING:
    from treadle.model.generation.sampling import ResolvedSampling
    from treadle.model.network.session_state import SessionState
    from treadle.model.network.shape import Shape

Array = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

_MAX_ROWS = 16
_MAX_PRODUCTS = 1 << 25
_MAX_ELEMENTS = 1 << 18
"""The limits of one kernel call, and of the look at its results: a few milliseconds."""


class BeamRows:
    """The states of N texts; there is one text at first.

    Args:
        shape: The network's sizes.
        weights: Packed for inference; only read.
        begun: The state of the text.
    """

    def __init__(self, shape: Shape, weights: structs.Weights, begun: SessionState) -> None:
        self._shape = shape
        self._weights = weights
        self._cell = CELL_CODES[shape.cell]
        self._h = begun.hs[:, None]
        self._c = begun.cs[:, None]
        self._works: dict[int, structs.Workspace] = {}
        products = shape.H * (shape.V + 2 * shape.L * shape.G)
        rows = min(_MAX_PRODUCTS // products, _MAX_ELEMENTS // shape.V, _MAX_ROWS)
        self._rows_per_call = max(1, rows)

    def read(self, tokens: list[int]) -> Iterator[tuple[int, Array, Array]]:
        """Reads a token in each text, in short kernel calls.

        Args:
            tokens: One for each text.

        Yields:
            The index of the first text of a call, and the logits and log-probabilities (B, V) of
            what may follow its texts. The arrays are valid until the next step.

        Raises:
            TokenError: A token is not in the vocabulary.
        """
        check_tokens(np.array(tokens, np.int64), self._shape.V)
        parts = []
        for first in range(0, len(tokens), self._rows_per_call):
            ids = np.array(tokens[first : first + self._rows_per_call], np.int32)
            B = ids.size
            last = first + B
            state = structs.State(self._h[:, first:last].copy(), self._c[:, first:last].copy())
            if B not in self._works:
                self._works[B] = allocate_workspace(self._shape, 1, B, backward=False)
            work = self._works[B]
            out = np.empty((B, self._shape.V), np.float32)
            step_log_probabilities(self._cell, self._weights, work, state, ids, out)
            parts.append(state)
            yield first, work.logits, out
        self._h = np.concatenate([part.h for part in parts], axis=1)
        self._c = np.concatenate([part.c for part in parts], axis=1)

    def keep(self, rows: list[int]) -> None:
        """Continues with texts that follow those at the given indices, which may repeat."""
        self._h = self._h[:, rows]
        self._c = self._c[:, rows]


class Continuations(NamedTuple):
    """The best tokens that may follow one text, best first."""

    tokens: Indices
    """(N,), at most as many as the beam is wide."""
    edited: Array
    """(N,), their logits with biases, which order them."""
    scores: Array
    """(N,), their log-probabilities with biases, by which texts are ranked."""
    log_probabilities: Array
    """(N,), under the model itself."""


def largest_first(values: Array, count: int) -> Indices:
    """Returns the indices of the `count` largest of some values (V,), lower ones of equals first.

    Values of -inf are left out.
    """
    if count < values.size:
        least = np.partition(values, values.size - count)[values.size - count]
        indices = np.flatnonzero(values >= least)
    else:
        indices = np.arange(values.size)
    indices = indices[values[indices] > -np.inf]
    return indices[np.argsort(-values[indices], kind="stable")][:count]


def continuations(
    sampling: ResolvedSampling,
    end: int,
    made: int,
    rule: int,
    logits: Array,
    log_probabilities: Array,
) -> Continuations:
    """Returns the best tokens that may follow a text.

    Args:
        sampling: Which tokens are allowed.
        end: The token that ends a text, or -1.
        made: Tokens of the new text so far.
        rule: The state of its automaton, where it has one.
        logits: (V,).
        log_probabilities: (V,).
    """
    if made < sampling.forced.size:
        forced = sampling.forced[made : made + 1].astype(np.int64)
        own = log_probabilities[forced]
        return Continuations(forced, logits[forced], own, own)
    edited = logits.copy() if sampling.bias is None else logits + sampling.bias
    if end >= 0 and made < sampling.settings.min_new_tokens:
        edited[end] = -np.inf
    if sampling.constraint is not None:
        edited[sampling.constraint.table[rule] < 0] = -np.inf
    tokens = largest_first(edited, sampling.settings.best_of)
    own = log_probabilities[tokens]
    best = edited[tokens]
    if sampling.bias is None:
        return Continuations(tokens, best, own, own)
    # log p = (logit - largest) - log(sum): of the likeliest token it is the last term alone.
    likeliest = int(np.argmax(logits))
    scores = (best - logits[likeliest]) + log_probabilities[likeliest]
    return Continuations(tokens, best, scores, own)


def token_rank(logits: Array, token: int) -> int:
    """Returns a token's rank by its logit among all (V,): 1 for the likeliest, equals by id."""
    equals: Indices = np.flatnonzero(logits[:token] == logits[token])
    return 1 + int(np.count_nonzero(logits > logits[token])) + equals.size
