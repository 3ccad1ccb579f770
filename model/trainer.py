"""Training: batches through the engine to the optimizer, with progress as it goes."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from treadle.model import checkpoint
from treadle.model.batches import make_batches
from treadle.model.config import TrainConfig
from treadle.model.corpus import Corpus, read_corpus
from treadle.model.engine import SHARD_ROWS, Engine
from treadle.model.errors import TrainingError
from treadle.model.examination import Examination
from treadle.model.memory import check_memory
from treadle.model.model import Model, default_context
from treadle.model.optimizer import Optimizer, learning_rate
from treadle.model.parameters import Parameters, Shape
from treadle.model.plan import Plan, fill_in
from treadle.model.pool import Pool
from treadle.model.precision import check_precision
from treadle.model.progress import Progress, Started
from treadle.model.record import TrainingRecord


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
        memory_limit_bytes: int | None = None,
    ) -> None:
        """Read the corpus and prepare everything; `started` then tells what became of it.

        Args:
            corpus: the data, a file of it, or a corpus already read.
            config: all settings; None: the defaults.
            threads: threads that the kernels may use; they do not change the result.
            memory_limit_bytes: the most that the run's arrays may take, the corpus not counted;
                None: whatever there is.

        Raises:
            ConfigError: the run would take more memory than it may, or wants a precision that
                this processor lacks.
            CorpusError: the corpus is empty, too small, or not UTF-8, or its words are too long
                together for a model file.
            UnknownSymbolError: a symbol has no token and the policy is ERROR.
        """
        config = config or TrainConfig()
        check_precision(config)
        if not isinstance(corpus, Corpus):
            corpus = read_corpus(corpus, config.tokenizer, config.data, config.seed)
        self._corpus = corpus
        self._batches = make_batches(corpus.train, config.data, corpus.tokenizer, config.seed)
        config, chosen = fill_in(config, corpus, self._batches)
        self._config = config
        shape = Shape.of(config.network, corpus.tokenizer.vocabulary_size)
        if memory_limit_bytes is not None:
            check_memory(config, shape.V, memory_limit_bytes)
        checkpoint.check_vocabulary(corpus.tokenizer)
        self._parameters = Parameters.initial(shape, config.seed)
        self._threads = threads
        self._optimizer = Optimizer(config.optimizer, self._parameters)
        self._plan = Plan(config, self._batches)
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
            stop: asked between steps, and while the model is examined: a run that is to stop
                does not validate for longer than STOP_PATIENCE_S more.

        Yields:
            Progress every `progress_interval_s`, at every validation, and at the end.

        Raises:
            TrainingError: the loss, the gradient or a weight is no finite number any more.
        """
        _load_kernels(self._config)
        pool = Pool(self._threads)
        try:
            config, batches = self._config, self._batches
            engine = Engine(
                self._parameters, batches.batch_size, batches.window, pool,
                config.network.dropout, config.seed, config.optimizer.precision,
            )  # fmt: skip
            yield from self._run(engine, Examination(self._corpus, pool, stop), stop)
        finally:
            pool.close()

    def _run(
        self, engine: Engine, examination: Examination, stop: Callable[[], bool]
    ) -> Iterator[Progress]:
        interval, examined, done = _Interval(), True, 0
        while not self._ended(stop):
            norm, rate = self._step(engine, interval)
            part = self._plan.part(self._optimizer.steps, self._elapsed)
            due = part > done or bool(self._plan.over(self._optimizer.steps, self._elapsed))
            examined, done = due, part
            if due or interval.seconds >= self._config.report.progress_interval_s:
                yield self._report(interval, norm, rate, examination if due else None)
                interval = _Interval()
        if not examined:  # stopped between two validations
            yield self._report(interval, norm, rate, examination)

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
        loss, count = engine.loss_and_gradient(tokens, targets, batch.fresh, steps)
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss} at step {steps + 1}; lower the learning rate"
            )
        norm = self._optimizer.step(engine.gradient, rate, engine.pool)
        seconds = time.perf_counter() - begin
        interval.add(loss, count, seconds)
        self._elapsed += seconds
        self._tokens_seen += count
        return norm, rate

    def _report(
        self, interval: _Interval, norm: float, rate: float, examination: Examination | None
    ) -> Progress:
        """Make a progress; with an examination, validate and draw a sample first."""
        steps = self._optimizer.steps
        if not np.isfinite(self._parameters.flat).all():
            raise TrainingError(
                f"a weight became infinite by step {steps}; lower the learning rate"
            )
        valid_loss, sample = self._examine(examination) if examination else (None, None)
        train_loss = interval.loss / max(interval.tokens, 1)
        if self._last is not None and not interval.tokens:  # stopped right after a report
            train_loss = self._last.train_loss
        self._last = Progress(
            step=steps,
            epoch=self._tokens_seen / self._batches.tokens_per_epoch,
            tokens_seen=self._tokens_seen,
            train_loss=train_loss,
            valid_loss=valid_loss,
            tokens_per_second=interval.tokens / max(interval.seconds, 1e-9),
            elapsed_s=self._elapsed,
            time_left_s=self._plan.time_left(steps, self._elapsed),
            gradient_norm=norm,
            learning_rate=rate,
            sample=sample,
        )
        return self._last

    def _examine(self, examination: Examination) -> tuple[float | None, str | None]:
        """The validation loss and a sample of the model as it is now."""
        self._valid_loss = examination.loss(self._parameters)
        count = self._config.report.sample_tokens
        return self._valid_loss, examination.sample(self.model, count, self._config.seed)


def _load_kernels(config: TrainConfig) -> None:
    """Compile or load what a step needs, on a network of nothing, before the clock starts."""
    parameters = Parameters(Shape(config.network.cell, V=2, E=1, H=1, L=1))
    rows = SHARD_ROWS + 1  # two shards, for what adds them
    engine = Engine(parameters, rows, 1, Pool(1), precision=config.optimizer.precision)
    nothing = np.zeros((1, rows), np.int32)
    engine.loss_and_gradient(nothing, nothing, np.ones(rows, np.bool_))
    Optimizer(replace(config.optimizer, clip_norm=1e-9), parameters).step(engine.gradient, 0.0)


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
    # A lone surrogate becomes bytes that are not UTF-8, for the corpus to refuse by name.
    data = corpus.encode("utf-8", "surrogatepass") if isinstance(corpus, str) else corpus
    trainer = Trainer(data, config, threads)
    for progress in trainer.run():
        if on_progress is not None:
            on_progress(progress)
    return trainer.model
