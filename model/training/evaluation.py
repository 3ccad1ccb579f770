"""How good a model is in the middle of its training: its validation loss and a sample of text."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from treadle.model.data.validation_batches import ValidationBatches
from treadle.model.enums import CorpusRole
from treadle.model.generation.sequence import StopReason
from treadle.model.network.engine import InterruptedRunError, never
from treadle.model.network.workspace import pack_for_inference
from treadle.model.scoring.scorer import mean_loss
from treadle.model.training.progress import Validation

if TYPE_CHECKING:
    from treadle.model.data.corpus import Corpus
    from treadle.model.model import Model
    from treadle.model.network.parallel import Pool
    from treadle.model.network.parameters import Parameters

VALIDATION_STREAMS = 32
VALIDATION_WINDOW = 64
VALIDATION_CONTEXT = 64
"""Validation runs this many rows side by side, each warmed by the tokens before it."""

STOP_PATIENCE_S = 0.5
"""How long a run that is to stop continues with its examinations: somebody waits for it."""

During = Callable[[Validation], None]
"""Called before every batch of a validation. What it raises ends the validation."""


def nothing(validation: Validation) -> None:
    """Lets a validation run on."""


class Haste:
    """Whether a run that is to stop has no more time for examinations."""

    def __init__(self) -> None:
        self._stopping_since: float | None = None

    def __call__(self, stop: Callable[[], bool]) -> bool:
        """Return whether `stop` has said so for STOP_PATIENCE_S."""
        if not stop():
            return False
        now = time.monotonic()
        if self._stopping_since is None:
            self._stopping_since = now
        return now - self._stopping_since > STOP_PATIENCE_S


@dataclass(frozen=True)
class Sample:
    """A text drawn from a model."""

    text: str
    """The text."""
    is_new: bool | None
    """Whether no item trained on equals it; None where it is no whole item."""


@dataclass(frozen=True)
class Loss:
    """The loss of a model on a part of the corpus."""

    value: float
    """Mean nats a token."""
    tokens: int
    """Tokens that it is the mean of."""
    seconds_per_token: float
    """How long reading one took, the loading of kernels not counted where that can be told."""


class Evaluation:
    """Examines models of one run, unless that keeps a run waiting that is to stop."""

    def __init__(
        self, corpus: Corpus, pool: Pool, in_haste: Callable[[], bool], during: During = nothing,
        leaving: Callable[[], bool] = never,
    ) -> None:  # fmt: skip
        """Prepare for a run.

        Args:
            corpus: has the validation part and the test part.
            pool: takes the shards.
            in_haste: whether to leave out what is not done yet.
            during: called before every batch.
            leaving: whether the run is to be left; asked before every piece of a sample.
        """
        self._corpus = corpus
        self._pool = pool
        self._in_haste = in_haste
        self._during = during
        self._leaving = leaving
        self._batches: dict[tuple[CorpusRole, int | None], ValidationBatches] = {}

    def loss(
        self, parameters: Parameters, role: CorpusRole, at_most: int | None, *, final: bool
    ) -> Loss | None:
        """Return the loss on a part; None without one, or in haste.

        Args:
            parameters: the weights.
            role: VALID or TEST, the part.
            at_most: tokens of the sample of it that is read; None: all of it.
            final: whether this is the pass at the end of the run.

        Raises:
            Exception: what `during` raised.
        """
        batches = self.batches(role, at_most)
        if batches is None:
            return None

        looks: list[tuple[float, int]] = []

        def leave(tokens: int) -> bool:
            looks.append((time.perf_counter(), tokens))
            del looks[2:]  # before the first batch, and after it
            self._during(Validation(tokens, batches.tokens, role, final))
            return self._in_haste()

        weights = pack_for_inference(parameters)
        value = mean_loss(parameters.shape, weights, batches, self._pool, leave)
        if value is None:
            return None
        begin, read = looks[-1]
        seconds = (time.perf_counter() - begin) / max(batches.tokens - read, 1)
        return Loss(value, batches.tokens, seconds)

    def batches(self, role: CorpusRole, at_most: int | None) -> ValidationBatches | None:
        """Return what a pass over a part reads; None without the part."""
        data = self._corpus.test if role is CorpusRole.TEST else self._corpus.valid
        if data is None:
            return None
        key = role, at_most
        if key not in self._batches:
            self._batches[key] = ValidationBatches(
                data, self._corpus.tokenizer, VALIDATION_STREAMS,
                VALIDATION_WINDOW, VALIDATION_CONTEXT, at_most,
            )  # fmt: skip
        return self._batches[key]

    def sample(self, model: Model, tokens: int, seed: int) -> Sample | None:
        """Return a text of so many tokens; None for none, or in haste.

        Raises:
            InterruptedRunError: the run is to be left.
        """
        if not tokens:
            return None
        text, ids, whole = "", list[int](), False
        for piece in model.stream(max_new_tokens=tokens, seed=seed):
            if self._leaving():
                raise InterruptedRunError
            if self._in_haste():
                return None
            text += piece.text
            ids += [token.id for token in piece.tokens]
            result = piece.result
            whole = result is not None and result.stop_reason is StopReason.END_TOKEN
        # The end token is none of the item's own.
        return Sample(text, not self._corpus.train.has_item(ids[:-1]) if whole else None)
