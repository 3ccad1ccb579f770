"""Training: batches through the engine to the optimizer, with progress as it goes."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from treadle.model.batches import Batches, make_batches, validation_batches
from treadle.model.config import LimitsConfig, TrainConfig
from treadle.model.corpus import Corpus, read_corpus
from treadle.model.engine import Engine, Pool
from treadle.model.errors import TrainingError
from treadle.model.model import Model, default_context
from treadle.model.optimizer import DEFAULT_WARMUP_STEPS, Optimizer, learning_rate
from treadle.model.parameters import Parameters, Shape
from treadle.model.record import TrainingRecord
from treadle.model.scorer import mean_loss
from treadle.model.workspace import pack_for_inference

DEFAULT_EPOCHS = 10.0
DEFAULT_STEPS = (300, 20_000)
"""The fewest and the most steps that a run without limits gets."""
VALIDATIONS = 10
"""Validations of a run that does not say how often."""
VALIDATION_STREAMS = 32
VALIDATION_WINDOW = 64
VALIDATION_CONTEXT = 64
"""Validation runs this many rows side by side, each warmed by the tokens before it."""


@dataclass(frozen=True)
class Started:
    """What became of the settings and the corpus."""

    config: TrainConfig
    """The settings as used: every default filled in, every shrunk value as shrunk."""
    notices: tuple[str, ...]
    """Sentences about what was shrunk or chosen."""
    train_tokens: int
    """Tokens trained on."""
    valid_tokens: int
    """Tokens kept for validation."""
    vocabulary_size: int
    """Tokens in the vocabulary."""
    parameter_count: int
    """Numbers trained."""
    total_steps: int
    """Optimizer steps planned; 0 where only time ends the run."""


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    step: int
    """Optimizer steps done."""
    epoch: float
    """Passes over the training part done."""
    tokens_seen: int
    """Tokens trained on, repeats counted."""
    train_loss: float
    """Mean nats a token since the last progress."""
    valid_loss: float | None
    """Mean nats a token of the validation part; None where none was done."""
    tokens_per_second: float
    """Tokens trained on a second since the last progress."""
    elapsed_s: float
    """Seconds of training, validation not counted."""
    time_left_s: float | None
    """Seconds until the nearest limit, as far as can be told."""
    gradient_norm: float
    """The gradient's global norm at the last step, before clipping."""
    learning_rate: float
    """The learning rate of the last step."""
    sample: str | None
    """Text drawn from the model as it is now; None where none was."""


def never() -> bool:
    """The stop signal of a run that nobody stops."""
    return False


class _Interval:
    """Loss, tokens and time since the last progress."""

    def __init__(self) -> None:
        self.loss, self.tokens, self.seconds = 0.0, 0, 0.0

    def add(self, loss: float, tokens: int, seconds: float) -> None:
        self.loss += loss
        self.tokens += tokens
        self.seconds += seconds


class Trainer:
    """One training run."""

    def __init__(
        self,
        corpus: bytes | os.PathLike[str] | Corpus,
        config: TrainConfig | None = None,
        threads: int = 1,
    ) -> None:
        """Read the corpus and prepare everything; `started` then tells what became of it.

        Args:
            corpus: the data, a file of it, or a corpus already read.
            config: all settings; None: the defaults.
            threads: threads that the kernels may use; they do not change the result.

        Raises:
            CorpusError: the corpus is empty, too small, or not UTF-8.
            UnknownSymbolError: a symbol has no token and the policy is ERROR.
        """
        config = config or TrainConfig()
        if not isinstance(corpus, Corpus):
            corpus = read_corpus(corpus, config.tokenizer, config.data, config.seed)
        self._corpus = corpus
        self._batches = make_batches(corpus.train, config.data, corpus.tokenizer, config.seed)
        shape = Shape.of(config.network, corpus.tokenizer.vocabulary_size)
        self._parameters = Parameters.initial(shape, config.seed)
        self._threads = threads
        config, chosen = _fill_in(config, self._batches)
        self._config = config
        self._optimizer = Optimizer(config.optimizer, self._parameters)
        self._plan = _Plan(config, self._batches)
        self.started = Started(
            config=config,
            notices=(*corpus.notices, *self._batches.notices, *chosen),
            train_tokens=corpus.train.tokens.size,
            valid_tokens=0 if corpus.valid is None else corpus.valid.tokens.size,
            vocabulary_size=shape.V,
            parameter_count=shape.parameter_count,
            total_steps=self._plan.total_steps or 0,
        )
        self.ended_by = ""
        self._last: Progress | None = None
        self._valid_loss: float | None = None
        self._elapsed = 0.0
        self._tokens_seen = 0

    @property
    def model(self) -> Model:
        """The model as it is now, with the record of the run so far. It shares no memory."""
        parameters = Parameters(self._parameters.shape)
        parameters.flat[:] = self._parameters.flat
        last = self._last
        record = TrainingRecord(
            config=self._config,
            steps=self._optimizer.steps,
            tokens_seen=self._tokens_seen,
            train_loss=math.nan if last is None else last.train_loss,
            valid_loss=self._valid_loss,
            elapsed_s=self._elapsed,
            ended_by=self.ended_by or "not ended yet",
        )
        context = default_context(self._corpus.tokenizer, int(self._corpus.train.tokens[0]))
        return Model(self._config.network, self._corpus.tokenizer, parameters, record, context)

    def run(self, stop: Callable[[], bool] = never) -> Iterator[Progress]:
        """Train until a limit is met or `stop` says so.

        Args:
            stop: asked between steps.

        Yields:
            Progress every `progress_interval_s`, at every validation, and at the end.

        Raises:
            TrainingError: the loss or the gradient is no finite number any more.
        """
        _load_kernels(self._config)
        pool = Pool(self._threads)
        try:
            engine = Engine(self._parameters, self._batches.batch_size, self._batches.window, pool)
            yield from self._run(engine, pool, stop)
        finally:
            pool.close()

    def _run(self, engine: Engine, pool: Pool, stop: Callable[[], bool]) -> Iterator[Progress]:
        interval, validated_at = _Interval(), 0.0
        while not self._ended(stop):
            norm, rate = self._step(engine, interval)
            share = self._plan.progress(self._optimizer.steps, self._elapsed)
            due = self._plan.validation_due(self._optimizer.steps, share, validated_at)
            ended = self._plan.over(self._optimizer.steps, self._elapsed)
            if not ended and (due or interval.seconds >= self._config.report.progress_interval_s):
                validated_at = share if due else validated_at
                yield self._report(interval, norm, rate, pool if due else None)
                interval = _Interval()
            elif ended:
                yield self._report(interval, norm, rate, pool)
                interval = _Interval()
        if interval.tokens:  # stopped between two reports
            yield self._report(interval, norm, rate, pool)

    def _ended(self, stop: Callable[[], bool]) -> bool:
        self.ended_by = self._plan.over(self._optimizer.steps, self._elapsed) or (
            "stopped on request" if stop() else ""
        )
        return bool(self.ended_by)

    def _step(self, engine: Engine, interval: _Interval) -> tuple[float, float]:
        """One batch: loss, gradient, update. Returns the gradient's norm and the rate."""
        begin = time.perf_counter()
        batch = next(self._batches)
        steps = self._optimizer.steps
        share = self._plan.progress(steps, self._elapsed)
        rate = learning_rate(self._config.optimizer, steps, share, self._plan.warmup_steps)
        tokens, targets = batch.tokens[: batch.steps], batch.targets[: batch.steps]
        loss, count = engine.loss_and_gradient(tokens, targets, batch.fresh)
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss} at step {steps + 1}; lower the learning rate"
            )
        norm = self._optimizer.step(engine.gradient, rate)
        seconds = time.perf_counter() - begin
        interval.add(loss, count, seconds)
        self._elapsed += seconds
        self._tokens_seen += count
        return norm, rate

    def _report(
        self, interval: _Interval, norm: float, rate: float, pool: Pool | None
    ) -> Progress:  # fmt: skip
        """Make a progress; with a pool, validate and draw a sample first."""
        valid_loss, sample = self._examine(pool) if pool is not None else (None, None)
        steps = self._optimizer.steps
        self._last = Progress(
            step=steps,
            epoch=self._tokens_seen / self._batches.tokens_per_epoch,
            tokens_seen=self._tokens_seen,
            train_loss=interval.loss / max(interval.tokens, 1),
            valid_loss=valid_loss,
            tokens_per_second=interval.tokens / max(interval.seconds, 1e-9),
            elapsed_s=self._elapsed,
            time_left_s=self._plan.time_left(steps, self._elapsed),
            gradient_norm=norm,
            learning_rate=rate,
            sample=sample,
        )
        return self._last

    def _examine(self, pool: Pool) -> tuple[float | None, str | None]:
        """The validation loss and a sample of the model as it is now."""
        if self._corpus.valid is not None:
            weights = pack_for_inference(self._parameters)
            batches = validation_batches(
                self._corpus.valid, self._corpus.tokenizer, VALIDATION_STREAMS,
                VALIDATION_WINDOW, VALIDATION_CONTEXT,
            )  # fmt: skip
            self._valid_loss = mean_loss(self._parameters.shape, weights, batches, pool)
        count = self._config.report.sample_tokens
        if not count:
            return self._valid_loss, None
        return self._valid_loss, self.model.generate(max_new_tokens=count, seed=self._config.seed)


class _Plan:
    """When a run ends, validates and how far it is, from its limits."""

    def __init__(self, config: TrainConfig, batches: Batches) -> None:
        limits = config.limits
        steps = [limits.max_steps] if limits.max_steps is not None else []
        if limits.max_epochs is not None:
            per_epoch = batches.batches_in(0)
            steps.append(max(1, math.ceil(limits.max_epochs * per_epoch)))
        self.total_steps = min(steps) if steps else None
        self._by_epochs = self.total_steps != limits.max_steps
        self._limits = limits
        self._interval = config.report.validation_interval_steps
        shorter = (self.total_steps or DEFAULT_WARMUP_STEPS * 10) // 10
        given = config.optimizer.warmup_steps
        self.warmup_steps = min(DEFAULT_WARMUP_STEPS, shorter) if given is None else given

    def over(self, steps: int, elapsed: float) -> str:
        """Why the run is over, in a sentence; empty while it is not."""
        if self.total_steps is not None and steps >= self.total_steps:
            name = "max_epochs" if self._by_epochs else "max_steps"
            return f"{name} reached after {steps} steps"
        if self._limits.max_time_s is not None and elapsed >= self._limits.max_time_s:
            return f"max_time_s reached after {steps} steps"
        return ""

    def progress(self, steps: int, elapsed: float) -> float:
        """The share of the run that is done, 0 to 1."""
        by_steps = steps / self.total_steps if self.total_steps else 0.0
        by_time = elapsed / self._limits.max_time_s if self._limits.max_time_s else 0.0
        return min(1.0, max(by_steps, by_time))

    def time_left(self, steps: int, elapsed: float) -> float | None:
        """Seconds until the nearest limit."""
        left = []
        if self.total_steps is not None and steps:
            left.append((self.total_steps - steps) * elapsed / steps)
        if self._limits.max_time_s is not None:
            left.append(max(0.0, self._limits.max_time_s - elapsed))
        return min(left) if left else None

    def validation_due(self, steps: int, share: float, validated_at: float) -> bool:
        """Whether the model is to be examined now."""
        if self._interval is not None:
            return steps % self._interval == 0
        return share - validated_at >= 1 / VALIDATIONS


def _load_kernels(config: TrainConfig) -> None:
    """Compile or load what a step needs, on a network of nothing, before the clock starts."""
    parameters = Parameters(Shape(config.network.cell, V=2, E=1, H=1, L=1))
    engine = Engine(parameters, rows=1, window=1, pool=Pool(1))
    nothing = np.zeros((1, 1), np.int32)
    engine.loss_and_gradient(nothing, nothing, np.ones(1, np.bool_))
    Optimizer(replace(config.optimizer, clip_norm=1e-9), parameters).step(engine.gradient, 0.0)


def _fill_in(
    config: TrainConfig, batches: Batches
) -> tuple[TrainConfig, tuple[str, ...]]:  # fmt: skip
    """Return the settings with every default filled in, and what was chosen."""
    notices: tuple[str, ...] = ()
    limits = config.limits
    if limits == LimitsConfig():
        fewest, most = DEFAULT_STEPS
        steps = math.ceil(DEFAULT_EPOCHS * batches.batches_in(0))
        limits = LimitsConfig(max_steps=min(max(steps, fewest), most))
        notices = (f"no limit given: training for {limits.max_steps:,} steps",)
    data = replace(config.data, batch_size=batches.batch_size, window=batches.window)
    filled = replace(config, limits=limits, data=data)
    plan = _Plan(filled, batches)
    optimizer = replace(
        config.optimizer, learning_rate=config.optimizer.rate, warmup_steps=plan.warmup_steps
    )
    tokenizer = replace(config.tokenizer, unknown_policy=config.tokenizer.policy)
    return replace(filled, optimizer=optimizer, tokenizer=tokenizer), notices


def train(
    corpus: bytes | str | os.PathLike[str] | Corpus,
    config: TrainConfig | None = None,
    threads: int = 1,
    on_progress: Callable[[Progress], None] | None = None,
    **limits: Any,
) -> Model:
    """Train a model in one call, for notebooks and scripts.

    Args:
        corpus: the text itself (str or bytes), a file's path (os.PathLike), or a corpus read.
        config: all settings; None: the defaults.
        threads: threads that the kernels may use.
        on_progress: called with every progress.
        **limits: fields of `LimitsConfig` that win over the config's.

    Returns:
        The trained model.

    Raises:
        ModelError: see `Trainer` and `Trainer.run`.
    """
    config = config or TrainConfig()
    config = replace(config, limits=replace(config.limits, **limits))
    data = corpus.encode() if isinstance(corpus, str) else corpus
    trainer = Trainer(data, config, threads)
    for progress in trainer.run():
        if on_progress is not None:
            on_progress(progress)
    return trainer.model
