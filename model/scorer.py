"""Scoring: the log-probability that a network gives to every token.

One function serves a text and a validation pass: a row scores the same, bit for bit, alone or
beside others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from treadle.kernels import network, structures
from treadle.model.batches import Batch
from treadle.model.engine import cut_rows, shard_slices
from treadle.model.parameters import CELL_CODES, Shape
from treadle.model.pool import Pool
from treadle.model.sums import in_order
from treadle.model.tokenizer import Tokenizer
from treadle.model.tokens import TokenScore
from treadle.model.workspace import allocate_state, allocate_workspace

Array = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

WINDOW = 64
"""Steps scored in one kernel call."""


class Scorer:
    """Scores batches (T, B), window after window, with the state carried between them."""

    def __init__(
        self, shape: Shape, weights: structures.Weights, rows: int, window: int, pool: Pool
    ) -> None:
        """Make room for a pass.

        Args:
            shape: the network's sizes.
            weights: packed for inference.
            rows: sequences side by side, B.
            window: the most steps of a batch, T.
            pool: takes the shards.
        """
        self._cell = CELL_CODES[shape.cell]
        self._weights = weights
        self._pool = pool
        self._slices = shard_slices(rows)
        counts = [cut.stop - cut.start for cut in self._slices]
        self._works = [allocate_workspace(shape, window, count, backward=False) for count in counts]
        self._states = [allocate_state(shape, count) for count in counts]

    def log_probabilities(self, tokens: Ints, targets: Ints, fresh: Bools) -> Array:
        """Score one window.

        Args:
            tokens: (T, B).
            targets: (T, B), below 0 where nothing is to be scored.
            fresh: (B,), rows that begin from zeros instead of where the last window ended.

        Returns:
            log p(target) in nats, (T, B); 0 where there is no target.
        """
        out = np.zeros(tokens.shape, np.float32)

        def run(number: int) -> None:
            rows = self._slices[number]
            part = np.zeros((tokens.shape[0], rows.stop - rows.start), np.float32)
            network.score_shard(
                self._cell, self._weights, self._works[number], self._states[number],
                *cut_rows(rows, tokens, targets, fresh), part,
            )  # fmt: skip
            out[:, rows] = part

        self._pool.map(run, range(len(self._slices)))
        return out


def mean_loss(
    shape: Shape,
    weights: structures.Weights,
    batches: Iterable[Batch],
    pool: Pool,
    give_up: Callable[[], bool] = lambda: False,
) -> float | None:
    """Return the mean of -log p(target) over all targets of the batches, in nats.

    Args:
        shape: the network's sizes.
        weights: packed for inference.
        batches: of one window and one number of rows; at least one target in all.
        pool: takes the shards.
        give_up: asked before every batch; once it says so, the result is None.
    """
    scorer, total, count = None, 0.0, 0
    for batch in batches:
        if give_up():
            return None
        if scorer is None:
            window, rows = batch.tokens.shape
            scorer = Scorer(shape, weights, rows, window, pool)
        tokens, targets = batch.tokens[: batch.steps], batch.targets[: batch.steps]
        scores = scorer.log_probabilities(tokens, targets, batch.fresh)
        total = in_order(scores.reshape(-1).tolist(), total)
        count += int(np.count_nonzero(targets >= 0))
    return -total / count


@dataclass(frozen=True)
class TextScore:
    """What one text scored."""

    total_log_probability: float
    """Sum over the scored tokens, in nats."""
    token_count: int
    """Tokens scored."""
    character_count: int
    """Code points of the text that the scored tokens stand for."""
    ids: Ints = field(compare=False, repr=False)
    """The text's tokens, (N,), an end token included where one is scored."""
    log_probabilities: Array = field(compare=False, repr=False)
    """log p of the last token_count of them, in nats."""
    tokenizer: Tokenizer = field(compare=False, repr=False)
    """What made the tokens."""

    @property
    def tokens(self) -> tuple[TokenScore, ...]:
        """Every token of the text, made anew at each call."""
        values: list[float | None] = [None] * (self.ids.size - self.token_count)
        values += self.log_probabilities.tolist()
        return tuple(
            TokenScore(token, self.tokenizer.token_text(token), value)
            for token, value in zip(self.ids.tolist(), values, strict=True)
        )

    @property
    def mean_nats(self) -> float | None:
        """-log p a token, in nats; None where no token was scored."""
        return -self.total_log_probability / self.token_count if self.token_count else None

    @property
    def perplexity(self) -> float | None:
        """exp(mean_nats), infinite where that exceeds a float; None where none was scored."""
        mean = self.mean_nats
        if mean is None:
            return None
        return math.exp(mean) if mean < 700 else math.inf

    @property
    def bits_per_character(self) -> float | None:
        """-log2 p a code point; None where the scored tokens stand for none."""
        if not self.character_count:
            return None
        return -self.total_log_probability / math.log(2) / self.character_count


def score_tokens(scorer: Scorer, tokens: Ints, scored_from: int) -> Iterator[Array]:
    """Score one sequence from the zero state, window by window.

    Args:
        scorer: for one row.
        tokens: (N,).
        scored_from: the first token to score, at least 1: nothing foretells token 0.

    Yields:
        log p of the next tokens in nats, all of tokens[scored_from:] together; an empty array
        for a window of context.
    """
    for start in range(0, tokens.size - 1, WINDOW):
        window = tokens[start : start + WINDOW + 1].reshape(-1, 1)
        targets = window[1:].copy()
        context = max(0, min(scored_from - 1 - start, targets.size))
        targets[:context] = -1
        scores = scorer.log_probabilities(window[:-1], targets, np.array([start == 0]))
        yield scores[context:, 0]


def summarize(tokenizer: Tokenizer, ids: Ints, scores: Array) -> TextScore:
    """Put scores and tokens together.

    Args:
        tokenizer: of the model.
        ids: (N,), the text's tokens, an end token included where one is scored.
        scores: log-probabilities in nats of all of them, or of all but the first.
    """
    scored = ids[ids.size - scores.size :]
    return TextScore(
        total_log_probability=in_order(scores.tolist()),
        token_count=scores.size,
        character_count=tokenizer.characters(scored),
        ids=ids,
        log_probabilities=scores,
        tokenizer=tokenizer,
    )
