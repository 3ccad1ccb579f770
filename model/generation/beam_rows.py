"""The texts of a beam side by side: their states, and the best that may follow each of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from treadle.kernels import structs
from treadle.kernels.beam_search import step_log_probabilities
from treadle.model.generation.sampling import ResolvedSampling
from treadle.model.network.session_state import SessionState
from treadle.model.network.shape import CELL_CODES, Shape
from treadle.model.network.workspace import allocate_workspace
from treadle.model.tokenizers.token_ids import check_tokens

Array = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]

_MOST_ROWS = 16
_MOST_PRODUCTS = 1 << 25
_MOST_ELEMENTS = 1 << 18
"""What one kernel call, and the look at its results, may come to: a few milliseconds."""


class Rows:
    """The states of N texts."""

    def __init__(self, shape: Shape, weights: structs.Weights, begun: SessionState) -> None:
        """Begin with one text.

        Args:
            shape: the network's sizes.
            weights: packed for inference; only read.
            begun: the text's state.
        """
        self._shape, self._weights = shape, weights
        self._cell = CELL_CODES[shape.cell]
        self._h, self._c = begun.hs[:, None], begun.cs[:, None]
        self._works: dict[int, structs.Workspace] = {}
        products = shape.H * (shape.V + 2 * shape.L * shape.G)
        most = min(_MOST_PRODUCTS // products, _MOST_ELEMENTS // shape.V, _MOST_ROWS)
        self._most_rows = max(1, most)

    def read(self, tokens: list[int]) -> Iterator[tuple[int, Array, Array]]:
        """Read a token in each text, in short kernel calls.

        Args:
            tokens: one for each text.

        Yields:
            Of some texts: the first one's place, and the logits and log-probabilities (B, V) of
            what may follow them; to be looked at before the next are asked for.

        Raises:
            TokenError: a token is not in the vocabulary.
        """
        check_tokens(np.array(tokens, np.int64), self._shape.V)
        parts = []
        for first in range(0, len(tokens), self._most_rows):
            some = np.array(tokens[first : first + self._most_rows], np.int32)
            B, last = some.size, first + some.size
            state = structs.State(self._h[:, first:last].copy(), self._c[:, first:last].copy())
            if B not in self._works:
                self._works[B] = allocate_workspace(self._shape, 1, B, backward=False)
            work, out = self._works[B], np.empty((B, self._shape.V), np.float32)
            step_log_probabilities(self._cell, self._weights, work, state, some, out)
            parts.append(state)
            yield first, work.logits, out
        self._h = np.concatenate([part.h for part in parts], axis=1)
        self._c = np.concatenate([part.c for part in parts], axis=1)

    def keep(self, places: list[int]) -> None:
        """Go on with texts that follow those at the given places."""
        self._h, self._c = self._h[:, places], self._c[:, places]


class Followers(NamedTuple):
    """The best tokens that may follow one text, best first."""

    tokens: Places
    """(N,), at most as many as the beam is wide."""
    edited: Array
    """(N,), their logits with biases: what orders them."""
    scores: Array
    """(N,), their log-probabilities with biases, by which texts are ranked."""
    log_probabilities: Array
    """(N,), under the model itself."""


def best_first(row: Array, count: int) -> Places:
    """Return the places of the `count` largest numbers of a row (V,), lower ones of equals first.

    Those that are -inf are left out.
    """
    if count < row.size:
        least = np.partition(row, row.size - count)[row.size - count]
        places = np.flatnonzero(row >= least)
    else:
        places = np.arange(row.size)
    places = places[row[places] > -np.inf]
    return places[np.argsort(-row[places], kind="stable")][:count]


def followers(
    choices: ResolvedSampling,
    end: int,
    made: int,
    rule: int,
    logits: Array,
    log_probabilities: Array,
) -> Followers:
    """Return what may follow a text.

    Args:
        choices: what was asked for.
        end: the token that ends a text, or -1.
        made: tokens of the new text so far.
        rule: the state of its automaton, where it has one.
        logits: (V,).
        log_probabilities: (V,).
    """
    if made < choices.forced.size:
        forced = choices.forced[made : made + 1].astype(np.int64)
        own = log_probabilities[forced]
        return Followers(forced, logits[forced], own, own)
    edited = logits.copy() if choices.bias is None else logits + choices.bias
    if end >= 0 and made < choices.sampling.min_new_tokens:
        edited[end] = -np.inf
    if choices.constraint is not None:
        edited[choices.constraint.table[rule] < 0] = -np.inf
    tokens = best_first(edited, choices.sampling.best_of)
    own, best = log_probabilities[tokens], edited[tokens]
    if choices.bias is None:
        return Followers(tokens, best, own, own)
    # log p = (logit - largest) - log(sum): of the likeliest token it is the last term alone.
    likeliest = int(np.argmax(logits))
    scores = (best - logits[likeliest]) + log_probabilities[likeliest]
    return Followers(tokens, best, scores, own)


def token_rank(logits: Array, token: int) -> int:
    """Return a token's place by its logit among all (V,), 1 for the likeliest, equals by id."""
    equals: Places = np.flatnonzero(logits[:token] == logits[token])
    return 1 + int(np.count_nonzero(logits > logits[token])) + equals.size
