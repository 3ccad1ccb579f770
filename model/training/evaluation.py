"""`Evaluation` measures a model during its training: validation loss and a sample of text."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from treadle.model.data.validation_batches import ValidationBatches
from treadle.model.enums import CorpusRole
from treadle.model.generation.output import StopReason
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
"""Seconds for which a run that is to stop continues its evaluations: the caller is waiting."""

ValidationHook = Callable[[Validation], None]
"""Called before every batch of a validation. An exception that it raises ends the validation."""


def no_hook(validation: Validation) -> None:
    """Does nothing: a `ValidationHook`."""


class GracePeriod:
    """The time that a run still has for evaluations after it was asked to stop."""

    def __init__(self) -> None:
        self._stopping_since: float | None = None

    def is_over(self, stop: Callable[[], bool]) -> bool:
        """Returns whether `stop` has returned True for STOP_PATIENCE_S."""
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
    """Whether it differs from all items of the training part; None if it is not a whole item."""


@dataclass(frozen=True)
class Loss:
    """The loss of a model on a part of the corpus."""

    value: float
    """Mean loss in nats per token."""
    tokens: int
    """Number of tokens in the mean."""
    seconds_per_token: float
    """Seconds per token; if there is more than one batch, without the time to load kernels."""


class Evaluation:
    """Evaluates models of one run, unless that delays a run that is to stop.

    Args:
        corpus: The corpus, of which the validation part and the test part are read.
        pool: The threads that compute.
        out_of_time: Returns whether to skip the rest of the evaluation.
        during: Called before every batch.
        interrupted: Returns whether to interrupt the run; called before every piece of a sample.
    """

    def __init__(
        self,
        corpus: Corpus,
        pool: Pool,
        out_of_time: Callable[[], bool],
        during: ValidationHook = no_hook,
        interrupted: Callable[[], bool] = never,
    ) -> None:
        self._corpus = corpus
        self._pool = pool
        self._out_of_time = out_of_time
        self._during = during
        self._interrupted = interrupted
        self._batches: dict[tuple[CorpusRole, int | None], ValidationBatches] = {}

    def loss(
        self, parameters: Parameters, role: CorpusRole, at_most: int | None, *, final: bool
    ) -> Loss | None:
        """Returns the loss on a part; None without the part, or if time ran out.

        Args:
            parameters: The weights.
            role: VALID or TEST, the part.
            at_most: Size of the sample that is read, in tokens; None: the whole part.
            final: Whether this is the pass at the end of the run.

        Raises:
            Exception: What `during` raised.
        """
        batches = self.batches(role, at_most)
        if batches is None:
            return None

        readings: list[tuple[float, int]] = []

        def before_batch(tokens: int) -> bool:
            readings.append((time.perf_counter(), tokens))
            del readings[2:]  # before the first batch, and after it
            self._during(Validation(tokens, batches.tokens, role, final))
            return self._out_of_time()

        weights = pack_for_inference(parameters)
        value = mean_loss(parameters.shape, weights, batches, self._pool, before_batch)
        if value is None:
            return None
        begin, read = readings[-1]
        seconds = (time.perf_counter() - begin) / max(batches.tokens - read, 1)
        return Loss(value, batches.tokens, seconds)

    def batches(self, role: CorpusRole, at_most: int | None) -> ValidationBatches | None:
        """Returns the batches of a pass over a part; None without the part.

        Args:
            role: VALID or TEST, the part.
            at_most: Size of the sample that is read, in tokens; None: the whole part.
        """
        data = self._corpus.test if role is CorpusRole.TEST else self._corpus.valid
        if data is None:
            return None
        key = (role, at_most)
        if key not in self._batches:
            self._batches[key] = ValidationBatches(
                data,
                self._corpus.tokenizer,
                VALIDATION_STREAMS,
                VALIDATION_WINDOW,
                VALIDATION_CONTEXT,
                at_most,
            )
        return self._batches[key]

    def sample(self, model: Model, tokens: int, seed: int) -> Sample | None:
        """Returns a text drawn from a model; None for no tokens, or if time ran out.

        Args:
            model: The model.
            tokens: Maximum number of tokens.
            seed: Seed of the draws.

        Raises:
            InterruptedRunError: `interrupted` returned True.
        """
        if not tokens:
            return None
        text = ""
        ids: list[int] = []
        whole = False
        for piece in model.stream(max_new_tokens=tokens, seed=seed):
            if self._interrupted():
                raise InterruptedRunError
            if self._out_of_time():
                return None
            text += piece.text
            ids += [token.id for token in piece.tokens]
            result = piece.result
            whole = result is not None and result.stop_reason is StopReason.END_TOKEN
        # The end token is not part of the item.
        return Sample(text, not self._corpus.train.has_item(ids[:-1]) if whole else None)
