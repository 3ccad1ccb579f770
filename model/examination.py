"""How good a model is in the middle of its training: its validation loss and a sample of text."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from treadle.model.batches import validation_batches
from treadle.model.corpus import Corpus, TokenData
from treadle.model.model import Model
from treadle.model.parameters import Parameters
from treadle.model.pool import Pool
from treadle.model.scorer import mean_loss
from treadle.model.session import StopReason
from treadle.model.workspace import pack_for_inference

VALIDATION_STREAMS = 32
VALIDATION_WINDOW = 64
VALIDATION_CONTEXT = 64
"""Validation runs this many rows side by side, each warmed by the tokens before it."""

STOP_PATIENCE_S = 2.0
"""How long a run that is to stop goes on with an examination; whoever stops it is waiting."""


@dataclass(frozen=True)
class Sample:
    """A text drawn from a model."""

    text: str
    """The text."""
    is_new: bool | None
    """Whether no item trained on equals it; None where it is no whole item."""


class Examination:
    """Examines models of one run, unless that keeps a run waiting that is to stop."""

    def __init__(self, corpus: Corpus, pool: Pool, stop: Callable[[], bool]) -> None:
        """Prepare for a run.

        Args:
            corpus: tells the validation part.
            pool: takes the shards.
            stop: whether the run is to stop.
        """
        self._corpus = corpus
        self._pool = pool
        self._stop = stop
        self._stopping_since: float | None = None

    def loss(self, parameters: Parameters) -> float | None:
        """Return the mean nats a token of the validation part; None without one, or in haste."""
        return self._loss(self._corpus.valid, parameters)

    def test_loss(self, parameters: Parameters) -> float | None:
        """Return the mean nats a token of the test part; None without one, or in haste."""
        return self._loss(self._corpus.test, parameters)

    def _loss(self, data: TokenData | None, parameters: Parameters) -> float | None:
        if data is None:
            return None
        batches = validation_batches(
            data, self._corpus.tokenizer, VALIDATION_STREAMS,
            VALIDATION_WINDOW, VALIDATION_CONTEXT,
        )  # fmt: skip
        weights = pack_for_inference(parameters)
        return mean_loss(parameters.shape, weights, batches, self._pool, self._in_haste)

    def sample(self, model: Model, tokens: int, seed: int) -> Sample | None:
        """Return a text of so many tokens; None for none, or in haste."""
        if not tokens:
            return None
        text, ids, whole = "", list[int](), False
        for piece in model.stream(max_new_tokens=tokens, seed=seed):
            if self._in_haste():
                return None
            text += piece.text
            ids += [token.id for token in piece.tokens]
            result = piece.result
            whole = result is not None and result.stop_reason is StopReason.END_TOKEN
        # The end token is none of the item's own.
        return Sample(text, not self._corpus.train.has_item(ids[:-1]) if whole else None)

    def _in_haste(self) -> bool:
        if not self._stop():
            return False
        now = time.monotonic()
        if self._stopping_since is None:
            self._stopping_since = now
        return now - self._stopping_since > STOP_PATIENCE_S
