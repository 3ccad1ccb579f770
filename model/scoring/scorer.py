"""`Scorer` computes the log-probability of every token, and on request its rank.

It serves texts and validation passes alike: a row scores the same, bit for bit, alone or next to
others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from treadle.kernels import network, scoring, structs
from treadle.model.data.batch import Batch
from treadle.model.network.ordered_sum import in_order
from treadle.model.network.parallel import Pool
from treadle.model.network.shape import CELL_CODES, Shape
from treadle.model.network.shards import cut_rows, shard_slices
from treadle.model.network.workspace import allocate_state, allocate_workspace
from treadle.model.scoring.scores import NO_FLOATS, NO_INTS, Details, Scores
from treadle.model.tokenizers.token_ids import check_tokens

Array = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]


class Scorer:
    """Scores batches (T, B), window after window, with the state carried between them."""

    def __init__(
        self, shape: Shape, weights: structs.Weights, rows: int, window: int, pool: Pool
    ) -> None:
        """Allocates memory for a pass.

        Args:
            shape: The network's sizes.
            weights: The parameters packed for inference.
            rows: Sequences side by side, B.
            window: The most steps of a batch, T.
            pool: Runs the shards.
        """
        self._cell = CELL_CODES[shape.cell]
        self._weights = weights
        self._pool = pool
        self._slices = shard_slices(rows)
        counts = [cut.stop - cut.start for cut in self._slices]
        self._works = [allocate_workspace(shape, window, count, backward=False) for count in counts]
        self._states = [allocate_state(shape, count) for count in counts]
        self._steps = 0

    def log_probabilities(self, tokens: Ints, targets: Ints, fresh: Bools) -> Array:
        """Scores one window.

        Args:
            tokens: (T, B), the tokens to read.
            targets: (T, B), the tokens to score, below 0 where nothing is to be scored.
            fresh: (B,), rows that begin from zeros instead of where the last window ended.

        Returns:
            (T, B), log p(target) in nats; 0 where there is no target.

        Raises:
            TokenError: A token or target is not in the vocabulary.
        """
        self._check(tokens, targets)
        out = np.zeros(tokens.shape, np.float32)
        self._steps = tokens.shape[0]

        def run(number: int) -> None:
            rows = self._slices[number]
            part = np.zeros((tokens.shape[0], rows.stop - rows.start), np.float32)
            scoring.score_shard(
                self._cell,
                self._weights,
                self._works[number],
                self._states[number],
                *cut_rows(rows, tokens, targets, fresh),
                part,
            )
            out[:, rows] = part

        self._pool.map(run, range(len(self._slices)))
        return out

    def scores(self, tokens: Ints, targets: Ints, fresh: Bools, details: Details) -> Scores:
        """Scores one window in detail.

        Args:
            tokens: (T, B), the tokens to read.
            targets: (T, B), the tokens to score, below 0 where nothing is to be scored.
            fresh: (B,), rows that begin from zeros instead of where the last window ended.
            details: What to report of every target.

        Returns:
            (T, B), the scores; log-probabilities are bit for bit those of `log_probabilities`.

        Raises:
            TokenError: A token or target is not in the vocabulary.
        """
        if not details.ranks and not details.alternatives:
            return Scores.plain(self.log_probabilities(tokens, targets, fresh))
        self._check(tokens, targets)
        A = min(details.alternatives, self._weights.by.size)
        out = np.zeros(tokens.shape, np.float32)
        places = np.zeros((*tokens.shape, int(details.ranks)), np.int32)
        ids = np.zeros((*tokens.shape, A), np.int32)
        others = np.zeros((*tokens.shape, A), np.float32)
        whole = (out, places, ids, others)
        self._steps = tokens.shape[0]

        def run(number: int) -> None:
            rows = self._slices[number]
            parts = tuple(np.ascontiguousarray(array[:, rows]) for array in whole)
            scoring.score_shard_in_detail(
                self._cell,
                self._weights,
                self._works[number],
                self._states[number],
                *cut_rows(rows, tokens, targets, fresh),
                *parts,
            )
            for array, part in zip(whole, parts, strict=True):
                array[:, rows] = part

        self._pool.map(run, range(len(self._slices)))
        return Scores(
            out,
            places[:, :, 0] if details.ranks else NO_INTS,
            ids if A else NO_INTS,
            others if A else NO_FLOATS,
        )

    def read(self, tokens: Ints, fresh: Bools) -> None:
        """Reads one window without scoring it, for the states after it.

        Args:
            tokens: (T, B), the tokens to read.
            fresh: (B,), rows that begin from zeros instead of where the last window ended.

        Raises:
            TokenError: A token is not in the vocabulary.
        """
        self._check(tokens)
        self._steps = tokens.shape[0]

        def run(number: int) -> None:
            part, _, begins = cut_rows(self._slices[number], tokens, tokens, fresh)
            network.read_shard(
                self._cell,
                self._weights,
                self._works[number],
                self._states[number],
                part,
                begins,
            )

        self._pool.map(run, range(len(self._slices)))

    def _check(self, tokens: Ints, targets: Ints | None = None) -> None:
        check_tokens(tokens, self._weights.by.size)
        if targets is not None:
            check_tokens(targets, self._weights.by.size, least=-1)

    def begin(self, hs: Array, cs: Array) -> None:
        """Continues from given states; for a scorer of one row.

        Args:
            hs: (L, H), the hidden states.
            cs: (L, H), the LSTM's cell states; zeros elsewhere.
        """
        self._states[0].h[:, 0] = hs
        self._states[0].c[:, 0] = cs

    def states(self, back: int = 0) -> tuple[Array, Array]:
        """Returns copies of the states; for a scorer of one row.

        Args:
            back: 0 for the states after the last window; 1 for those before that window's last
                step.

        Returns:
            The hidden states and the cell states, (L, H) each.
        """
        state = self._states[0]
        work = self._works[0]
        if not back:
            return state.h[:, 0].copy(), state.c[:, 0].copy()
        step = self._steps - back
        cs = work.cs[:, step, 0] if work.cs.shape[1] else state.c[:, 0]
        return work.hs[:, step, 0].copy(), cs.copy()


def mean_loss(
    shape: Shape,
    weights: structs.Weights,
    batches: Iterable[Batch],
    pool: Pool,
    give_up: Callable[[int], bool] = lambda tokens: False,
) -> float | None:
    """Computes the mean loss over all targets of some batches.

    Args:
        shape: The network's sizes.
        weights: The parameters packed for inference.
        batches: Batches of one window and one number of rows, with at least one target in all.
        pool: Runs the shards.
        give_up: Called before every batch with the number of tokens scored so far; once it
            returns true, the pass ends.

    Returns:
        The mean of -log p(target), in nats; None if the pass was given up.
    """
    scorer = None
    total = 0.0
    count = 0
    for batch in batches:
        if give_up(count):
            return None
        if scorer is None:
            window, rows = batch.tokens.shape
            scorer = Scorer(shape, weights, rows, window, pool)
        tokens = batch.tokens[: batch.steps]
        targets = batch.targets[: batch.steps]
        scores = scorer.log_probabilities(tokens, targets, batch.fresh)
        total = in_order(scores.reshape(-1).tolist(), total)
        count += int(np.count_nonzero(targets >= 0))
    return -total / count
